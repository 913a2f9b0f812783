"""Linux on 64-bit Arm: the wheel, built with Zig, and the Python tests in Debian's Python, emulated by qemu.

Debian's packages for Arm are unpacked and not installed, so that the packages of this machine stay as they are. The
wheel is built in the emulated Python, which knows the names and tags of its platform, by CMake and a compiler of this
machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from tools import wheels
from tools.wheels import output

from .record import Result, passed_and_failed
from .zig import WORK, compilers, version

NEEDED = ("mmdebstrap", "qemu-user", "binutils")  # packages of Debian
SYSTEM = ("python3-dev", "libstdc++6")  # the latter for NumPy
# The bits of steps, threads and resumed training. Other tests are of Python code and of the specification, and would
# take hours in the emulator, or limit time.
TESTS = (
    "numerics/test_any_layout.py",
    "numerics/test_bits.py",
    "numerics/test_power.py",
    "numerics/test_prepared_steps.py",
    "numerics/test_random_bits.py",
    "numerics/test_rules.py",
    "numerics/test_schedule_free.py",
    "numerics/test_storage.py",
    "numerics/test_threads.py",
    "persistence/test_resumed_training.py",
    "persistence/test_save_load.py",
    "robustness/test_user_threads.py::test_the_interpreter_can_exit_while_a_thread_steps",
)
WHAT = "the Python tests of bits, resumed training and threads"
EXCLUDED = "fork or cannot_be_created"  # qemu neither follows a process with threads that forks nor limits its memory
VERSIONS = """
import numpy, onepass, platform
print(onepass.config()["compiler"], f"Python {platform.python_version()}", f"NumPy {numpy.__version__}", sep=", ")
"""


def system() -> Path:
    """Return the folder of a Debian for Arm with Python."""
    folder = WORK / "arm64"
    if not folder.exists():
        output("apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "-y", "--no-install-recommends", *NEEDED)
        options = ("--variant=extract", "--architectures=arm64", "--skip=check/qemu", f"--include={','.join(SYSTEM)}")
        output("mmdebstrap", *options, "bookworm", folder)
    return folder


def environment(root: Path) -> Path:
    """Create a virtual environment with all that builds and tests the wheel; return its interpreter, a script."""
    folder = WORK / "venv-arm64"
    shutil.rmtree(folder, ignore_errors=True)
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec qemu-aarch64 -L {root} -0 {python} {root}/usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    (folder / "pyvenv.cfg").write_text(f"home = {root}/usr/bin\n")
    where = "import sysconfig; print(sysconfig.get_python_version(), sysconfig.get_path('purelib'))"
    python_version, packages = output(python, "-c", where).split()
    # Emulated, pip would take minutes.
    options = ["--python-version", python_version, "--only-binary", ":all:", "--target", packages]
    for minor in range(17, 29):
        options += ["--platform", f"manylinux_2_{minor}_aarch64"]
    build, test = (wheels.PYPROJECT["dependency-groups"][group] for group in ("build", "test"))
    python_packages = [name for name in build if name not in ("cmake", "ninja")]  # programs, which this machine has
    output(
        *(sys.executable, "-m", "pip", "install", "-q", *options),
        *("pip", "pytest-xdist", "ml_dtypes", *python_packages, *test),
    )
    return python


def build(python: Path, root: Path, sdist: Path) -> Path:
    """Build, repair and check the wheel."""
    folder = WORK / "wheel-arm64"
    shutil.rmtree(folder, ignore_errors=True)
    # glibc ends threads with the unwinder of GCC. Zig would link its own one in, and the process would crash.
    unwinder = root / "lib" / "aarch64-linux-gnu" / "libgcc_s.so.1"
    definitions = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_MODULE_LINKER_FLAGS": f"-s {unwinder}",
        "CMAKE_STRIP": "",  # this machine's program does not know the processor
    }
    variables = {
        "CXX": str(compilers("aarch64-linux-gnu.2.28")["c++"]),
        "CXXFLAGS": f"-idirafter {root}/usr/include",  # Debian's pyconfig.h includes another one by this path
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # CMake and Ninja
        "SKBUILD_CMAKE_ARGS": ";".join(f"-D{name}={value}" for name, value in definitions.items()),
        "SKBUILD_BUILD_DIR": str(WORK / "module-arm64"),
    }
    options = ("--no-deps", "--no-build-isolation", "-w", folder)
    output(python, "-m", "pip", "wheel", "-q", *options, sdist, env={**os.environ, **variables})
    wheel = wheels.repair(next(folder.glob("*.whl")))
    wheels.check(wheel)
    return wheel


def test(python: Path, sdist: Path) -> tuple[int, int]:
    """Run the tests; return the numbers of those that passed and failed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(sdist, folder)
        source = next(Path(folder).iterdir())
        where = output(python, "-c", "import onepass; print(onepass.__file__)", cwd=source)
        if not where.startswith(str(WORK)):
            sys.exit(f"onepass: expected the installed wheel, got {where}")
        options = [
            "-v",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            "-k",
            f"not ({EXCLUDED})",
            *(f"tests/{name}" for name in TESTS),
        ]
        log = WORK / "tests-arm64.log"
        with log.open("w", encoding="utf-8") as file:
            ran = subprocess.run([python, "-m", "pytest", *options], cwd=source, stdout=file, stderr=file)
    return passed_and_failed(log, log.read_text(encoding="utf-8").strip().rpartition("\n")[2], ran.returncode)


def run() -> list[Result]:
    """Build, check and test the wheel."""
    root = system()
    sdist = wheels.make_sdist()
    python = environment(root)
    wheel = build(python, root, sdist)
    output(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    output(python, "-m", "onepass")
    passed, failed = test(python, sdist)
    qemu = output("qemu-aarch64", "--version").split()[2]
    found = f"{version()}, {output(python, '-c', VERSIONS).strip()}, qemu {qemu}"
    size = wheel.stat().st_size
    return [Result("Linux on 64-bit Arm", WHAT, found, passed, failed, date.today().isoformat(), size)]
