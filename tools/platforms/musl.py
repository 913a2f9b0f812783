"""Linux with musl, in place of glibc: the wheel as cibuildwheel would build it, and the test suite.

CPython and the C libraries that it needs are built from Debian's sources, with GCC and Debian's musl. The wheel is
built with Zig, whose C++ library works with musl; that library is linked in, as GCC's would be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from tools import wheels

from . import cpython, zig
from .record import Result
from .zig import WORK

NEEDED = ("gcc", "make", "binutils", "pkg-config", "zlib1g-dev")  # packages of Debian
KERNEL_HEADERS = ("linux", "asm-generic", "x86_64-linux-gnu/asm")  # of linux-libc-dev; libffi needs them
TAG = "musllinux_1_2_x86_64"


def python() -> Path:
    """Return the interpreter of a CPython for musl, built if it is not there."""
    # Wheels on PyPI need musl 1.2.4, which Debian 12 does not have.
    musl = cpython.built("musl", "musl", "--disable-static", f"--syslibdir={WORK / 'musl' / 'lib'}", CFLAGS="-O1")
    for name in KERNEL_HEADERS:
        headers = Path("/usr/include", name)
        with contextlib.suppress(FileExistsError):
            (musl / "include" / headers.name).symlink_to(headers)
    compiler = WORK / "musl-gcc"  # musl's own reports glibc's name of the platform
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --print-multiarch ] && exec echo x86_64-linux-musl\nexec {musl}/bin/musl-gcc "$@"\n'
    )
    compiler.chmod(0o755)
    zlib = cpython.built("musl-zlib", "zlib", "--static", CC=compiler, CFLAGS="-O1 -fPIC")
    options = ("--disable-shared", "--disable-docs")
    libffi = cpython.built("musl-libffi", "libffi", *options, CC=compiler, CFLAGS="-O1 -fPIC")
    prefix = cpython.built(
        "musl-python3.13",
        "python3.13",
        "--disable-test-modules",
        CC=compiler,
        OPT="-DNDEBUG -O1",
        LDFLAGS="-Wl,-z,stack-size=0x100000",  # as Alpine does: musl gives threads 128 KiB
        ZLIB_CFLAGS=f"-I{zlib}/include",
        ZLIB_LIBS=f"-L{zlib}/lib -lz",
        LIBFFI_CFLAGS=f"-I{libffi}/include",
        LIBFFI_LIBS=f"-L{libffi}/lib -lffi",
        PKG_CONFIG_LIBDIR=WORK,  # which has no package: Debian's are for glibc
    )
    return prefix / "bin" / "python3.13"


def environment() -> Path:
    """Create an environment with what builds and tests the wheel; return its interpreter."""
    inside = WORK / "venv-musl" / "bin" / "python"
    wheels.output(python(), "-m", "venv", "--clear", inside.parents[1])
    downloads = WORK / "musl-wheels"
    packages = [*wheels.PYPROJECT["build-system"]["requires"], *wheels.PYPROJECT["dependency-groups"]["test"]]
    # This Python has no OpenSSL, so that another one downloads.
    for_musl = ("--platform", TAG, "--python-version", "3.13", "--only-binary", ":all:", "-d", downloads)
    wheels.output(sys.executable, "-m", "pip", "download", "-q", *for_musl, *packages)
    wheels.output(inside, "-m", "pip", "install", "-q", "--no-index", "--find-links", downloads, *packages)
    return inside


def build(inside: Path, sdist: Path) -> Path:
    """Build the wheel with the flags of the wheels workflow, repair it, and check its tag."""
    (override,) = (o for o in wheels.PYPROJECT["tool"]["cibuildwheel"]["overrides"] if "musllinux" in o["select"])
    flags = override["environment"]["SKBUILD_CMAKE_DEFINE"]
    folder = WORK / "wheel-musl"
    shutil.rmtree(folder, ignore_errors=True)
    variables = {
        "CXX": str(zig.compilers("x86_64-linux-musl")["c++"]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # CMake and Ninja
        # Zig's linker does not know this flag, which hides the symbols of the C++ library.
        "SKBUILD_CMAKE_DEFINE": flags.replace("-Wl,--exclude-libs,ALL ", ""),
    }
    options = ("--no-index", "--no-deps", "--no-build-isolation", "-w", folder)
    wheels.output(inside, "-m", "pip", "wheel", "-q", *options, sdist, env={**os.environ, **variables})
    wheel = wheels.repair(next(folder.glob("*.whl")), "--exclude", "libc.so")  # musl, which Alpine names otherwise
    if not wheel.stem.endswith(TAG):
        raise RuntimeError(f"{wheel.name}: expected the tag {TAG}")
    return wheel


def run() -> list[Result]:
    """Build and test the wheel."""
    cpython.install(*NEEDED)
    sdist = wheels.make_sdist()
    inside = environment()
    wheel = build(inside, sdist)
    wheels.output(inside, "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel)
    compiler = str(WORK / "musl-gcc")  # for tests that compile a library for this Python
    return [
        cpython.suite_result(
            "Linux with musl 1.2.5, x86-64", "the Python test suite", inside, sdist, wheel, CC=compiler
        )
    ]
