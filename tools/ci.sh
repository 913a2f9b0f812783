#!/usr/bin/env bash
# What every change must pass, on a fresh machine: installs what it needs, then lints, builds the documentation, and tests,
# alone and beside other libraries.
set -euo pipefail
cd "$(dirname "$0")/.."

# A C++ compiler and make, and Clang besides: warnings and machine code are checked with both compilers.
missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v clang++ >/dev/null || missing+=(clang)
[ -e "$(clang++ -print-file-name=libclang_rt.asan-x86_64.a 2>/dev/null)" ] || missing+=(libclang-rt-dev)  # sanitizers
command -v make >/dev/null || missing+=(make)
command -v readelf >/dev/null || missing+=(binutils)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  sudo=$([ "$(id -u)" -eq 0 ] || command -v sudo || true)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "${missing[@]}" >/dev/null
fi

make lint REQUIRE_CXXS="g++ clang++"
make bench-guard
make docs
make sanitize-core
make test
make test-integrations
