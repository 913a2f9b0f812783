"""Old and new compilers, optimising or not, make the same bits: python -m tools.toolchains [--compiler clang++].

Builds the extension module with each compiler that is found, with g++ and clang++ in slower ways too, and with the
oldest CMake that is supported; runs the tests of the bits with each, and compares the digests of `python -m onepass`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "toolchains"
USUAL, SLOWER = "-O3", ["-O2 -fno-tree-vectorize", "-O0"]
TESTS = ["test_bits.py", "test_rules.py", "test_power.py"]  # of tests/numerics
BIN = Path(sys.executable).parent


def compilers() -> list[str]:
    """Return the compilers on PATH, each under one name; plain names take precedence."""
    names = {file.name for folder in os.get_exec_path() if Path(folder).is_dir() for file in Path(folder).iterdir()}
    chosen: dict[Path, str] = {}
    for name in sorted((name for name in names if re.fullmatch(r"(g|clang)\+\+(-\d+)?", name)), key=len):
        chosen.setdefault(Path(shutil.which(name) or name).resolve(), name)
    return list(chosen.values())


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with additional environment variables."""
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)


def built(name: str, cmake: Path, compiler: str, optimize: str) -> Path | str:
    """Build the package with a compiler. Return its folder, or the output of a build that failed."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    definitions = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_COMPILER": compiler,
        "CMAKE_MAKE_PROGRAM": BIN / "ninja",
        "ONEPASS_FLAGS": optimize,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11,
        "SKBUILD_PROJECT_VERSION": "0",
        "SKBUILD_PROJECT_VERSION_FULL": "0",
    }
    flags = [f"-D{key}={value}" for key, value in definitions.items()]
    configure: list[str | Path] = [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *flags]
    for command in (configure, [cmake, "--build", folder, "-j1"]):
        ran = run(*command)
        if ran.returncode:
            return ran.stdout + ran.stderr
    package = folder / "site" / "onepass"
    shutil.copytree(ROOT / "python" / "onepass", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}", package)
    return package.parent


def row(name: str, cmake: Path, compiler: str, optimize: str, arguments: list[str]) -> tuple[str, ...]:
    """Build with one toolchain, and return its row: compiler, flags, CMake, digest, result and time of the tests."""
    version = run(cmake, "--version").stdout.split()[2]
    site = built(name, cmake, compiler, optimize)
    if isinstance(site, str):
        print(site)
        return compiler, optimize, version, "-", "FAILED: not built", "-"
    report = run(sys.executable, "-m", "onepass", "--json", PYTHONPATH=str(site))
    found = json.loads(report.stdout)
    if found["config"]["version"] != "0":  # the number that this file gives
        sys.exit("another copy of onepass was imported")
    digests = {check["digest"][:16] for check in found["checks"]}
    start = time.perf_counter()
    tests = [str(ROOT / "tests" / "numerics" / test) for test in TESTS]
    ran = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments, PYTHONPATH=str(site))
    seconds = f"{time.perf_counter() - start:.0f} s"
    passed = ran.stdout.strip().rpartition("\n")[2].partition(" in ")[0]
    if ran.returncode or not found["good"]:
        print(ran.stdout + ran.stderr + report.stdout)
        passed = f"FAILED: {passed}"
    sets = ", ".join(check["instruction_set"] for check in found["checks"])
    return found["config"]["compiler"], optimize, version, f"{' '.join(digests)} ({sets})", passed, seconds


def other_cmake(version: str) -> Path:
    """Install the first PyPI release of a CMake version into its own folder, and return its path."""
    folder = WORK / f"cmake-{version}"
    if not (folder / "bin" / "cmake").exists():
        subprocess.run([BIN / "pip", "install", "-q", "--target", folder, f"cmake=={version}.*"], check=True)
    return folder / "cmake" / "data" / "bin" / "cmake"


def main() -> int:
    """Print a table of all toolchains; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--compiler", action="append", help="test only this compiler, for example g++-12")
    options, arguments = parser.parse_known_args()
    oldest = re.search(r"VERSION (\d+\.\d+)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert oldest is not None
    chosen = options.compiler or compilers()
    ways = [(c, o) for c in chosen for o in (USUAL, *(SLOWER if c in ("g++", "clang++") else ()))]
    builds = [(f"{c}{o}".replace(" ", ""), BIN / "cmake", c, o) for c, o in ways]
    if "g++" in chosen:
        builds.append((f"with-cmake-{oldest[1]}", other_cmake(oldest[1]), "g++", "-O0"))
    rows = []
    for build in builds:
        rows.append(row(*build, arguments))
        print(*rows[-1], flush=True)
    print()
    for line in [("compiler", "flags", "CMake", "digest", "tests", "time"), ("---",) * 6, *rows]:
        print(f"| {' | '.join(line)} |")
    same = len({line[3] for line in rows}) == 1
    print("\nThe same bits from each." if same else "\nTHE BITS DIFFER.")
    return not same or any("FAILED" in line[4] for line in rows)


if __name__ == "__main__":
    sys.exit(main())
