#!/usr/bin/env bash
# Check a change on a fresh machine: install the required tools, lint, build the documentation, and run the tests, both
# without and with other libraries. Two lanes share the cores: the sanitizers run during the downloads, and the
# library's own tests run during the integration tests; each keeps one core busy. Background lanes write to build/ci.
set -euo pipefail
cd "$(dirname "$0")/.."

# GCC and Clang, because lint checks warnings and machine code with both compilers, and make.
missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v clang++ >/dev/null || missing+=(clang)
[ -e "$(clang++ -print-file-name="libclang_rt.asan-$(uname -m).a" 2>/dev/null)" ] || missing+=(libclang-rt-dev)  # sanitizers
command -v make >/dev/null || missing+=(make)
command -v readelf >/dev/null || missing+=(binutils)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
  sudo=$([ "$(id -u)" -eq 0 ] || command -v sudo || true)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq "${missing[@]}" >/dev/null
fi

mkdir -p build/ci
set -m # a process group for each lane, so that the trap can end all its processes
lanes=()
trap 'for lane in "${lanes[@]}"; do kill -- "-${lane%%:*}" 2>/dev/null || true; done' EXIT

# start NAME COMMAND...: run a command in the background.
start() {
  "${@:2}" >"build/ci/$1.log" 2>&1 </dev/null &
  lanes+=("$!:$1")
}

# finish NAME: wait for a lane; print pytest's summary, or the whole log if the lane failed.
finish() {
  local lane status=0
  for lane in "${lanes[@]}"; do
    [ "${lane#*:}" = "$1" ] || continue
    wait "${lane%%:*}" || status=$?
    if ((status)); then
      cat "build/ci/$1.log"
    else
      sed -n '/short test summary info/,$p' "build/ci/$1.log"
    fi
  done
  return $status
}

groups=(lint test types examples docs integrations clients mpi)
make .venv/.installed-build
start sanitize make sanitize-core
make "${groups[@]/#/.venv/.installed-}"
make venv=.venv-spacy .venv-spacy/.installed-test .venv-spacy/.installed-spacy
finish sanitize
make lint REQUIRE_CXXS="g++ clang++"
make bench-guard
make docs
start test make test ARGS="-o cache_dir=build/ci/cache"
status=0
make test-integrations || status=$?
finish test || status=$?
exit $status
