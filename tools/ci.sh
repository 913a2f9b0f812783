#!/usr/bin/env bash
# What every change must pass, on a fresh machine: installs what it needs, then lints, builds the documentation, and tests,
# alone and beside other libraries. Two lanes share the cores: compiling beside downloads, and tests beside tests, each
# of which takes one core. What the lanes print is in build/ci.
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

mkdir -p build/ci
pids=()

# start NAME COMMAND...: run a command in the background.
start() {
  "${@:2}" >"build/ci/$1.log" 2>&1 &
  pids+=("$!:$1")
}

# Wait for all background commands; print those that failed whole, and of the others the last line.
finish() {
  local failed=0 lane
  for lane in "${pids[@]}"; do
    if wait "${lane%%:*}"; then
      echo "${lane#*:}: $(tail -n 1 "build/ci/${lane#*:}.log")"
    else
      cat "build/ci/${lane#*:}.log"
      failed=1
    fi
  done
  pids=()
  return $failed
}

groups=(lint test types examples docs integrations clients mpi)
make .venv/.installed-build
start sanitize make sanitize-core
make "${groups[@]/#/.venv/.installed-}"
finish
make lint REQUIRE_CXXS="g++ clang++"
make bench-guard
start docs make docs
start test make test
make test-integrations
finish
