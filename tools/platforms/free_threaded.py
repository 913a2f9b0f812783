"""Free-threaded builds of CPython: the test suite without the GIL, with a longer stress of many threads.

CPython is built from Debian's sources, hardly optimised: the tests spend their time in NumPy and in onepass.
"""

from __future__ import annotations

from pathlib import Path

from tools import wheels

from . import cpython
from .record import ROOT, Result
from .zig import WORK

VERSIONS = ("3.13", "3.14")
NEEDED = ("gcc", "g++", "make", "libffi-dev", "libssl-dev", "zlib1g-dev")  # packages of Debian
STEPS = "40"


def run() -> list[Result]:
    """Build a wheel for each version and test it. One of the tests checks that the import leaves the GIL disabled."""
    cpython.install(*NEEDED)
    sdist = wheels.make_sdist()
    return [result_of(version, sdist) for version in VERSIONS]


def result_of(version: str, sdist: Path) -> Result:
    """Build a wheel for one version and test it."""
    options = ("--disable-gil", "--disable-test-modules")
    prefix = cpython.built(f"python{version}t", f"python{version}", *options, OPT="-DNDEBUG -O1")
    inside = wheels.environment(prefix / "bin" / f"python{version}t", WORK / f"venv-{version}t")
    wheel = wheels.repair(wheels.build(inside, sdist, WORK / f"wheel-{version}t"))
    wheels.output(inside, "-m", "pip", "install", "-q", "--prefer-binary", wheel, "--group", "test", cwd=ROOT)
    platform, what = "Linux, x86-64, free-threaded CPython", "the Python test suite without the GIL"
    note = f"{STEPS} steps in each thread of the stress test"
    return cpython.suite_result(platform, what, inside, sdist, wheel, note, PYTHON_GIL="0", ONEPASS_STRESS_STEPS=STEPS)
