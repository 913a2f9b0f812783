"""Builds with Zig for other systems: the core's own tests, and a wheel."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ..wheels import output, tool
from .record import ROOT
from .zig import WORK, compilers

PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"  # wheels are for the Python that builds them


def definitions(target: str, system: str, processor: str) -> dict[str, str | Path]:
    """Return CMake's variables for a target of Zig, such as x86_64-windows-gnu."""
    tools = compilers(target)
    return {
        "CMAKE_SYSTEM_NAME": system,
        "CMAKE_SYSTEM_PROCESSOR": processor,
        "CMAKE_CXX_COMPILER": tools["c++"],
        "CMAKE_AR": tools["ar"],
        "CMAKE_RANLIB": tools["ranlib"],
    }


def build_core(target: str, variables: Mapping[str, str | Path]) -> Path:
    """Build the core's own tests; return the folder of the build."""
    folder = WORK / f"core-{target}"
    own = {
        "CMAKE_BUILD_TYPE": "Debug",
        "ONEPASS_TESTS": "ON",
        "ONEPASS_WERROR": "ON",
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
    }
    flags = [f"-D{name}={value}" for name, value in {**own, **variables}.items()]
    output(tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", *flags)
    output(tool("cmake"), "--build", folder)
    return folder


def build_wheel(target: str, platform: str, suffix: str, variables: Mapping[str, str | Path], largest: int) -> Path:
    """Build a wheel for a platform, such as win-amd64.

    Args:
        target: as Zig names it.
        platform: as Python's sysconfig names it.
        suffix: of modules, such as .cp311-win_amd64.pyd.
        variables: CMake's, in addition.
        largest: size of the wheel, in bytes.
    """
    folder = WORK / f"wheel-{target}"
    shutil.rmtree(folder, ignore_errors=True)
    # Both variables replace what Python says of this machine.
    environment = {**os.environ, "_PYTHON_HOST_PLATFORM": platform, "SETUPTOOLS_EXT_SUFFIX": suffix}
    own = {"PYTHON_MODULE_EXTENSION": suffix}
    settings = [f"-Ccmake.define.{name}={value}" for name, value in {**own, **variables}.items()]
    settings.append(f"-Cbuild-dir={WORK}/module-{target}")
    pip = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w"]
    output(sys.executable, *pip, folder, *settings, ROOT, env=environment)
    (wheel,) = folder.glob("*.whl")
    name = f"{PYTHON_TAG}-{PYTHON_TAG}-{re.sub('[-.]', '_', platform)}.whl"
    if not wheel.name.endswith(name):
        sys.exit(f"{wheel.name}: expected a name that ends with {name}")
    if wheel.stat().st_size > largest:
        sys.exit(f"{wheel.name}: expected at most {largest:,} bytes, got {wheel.stat().st_size:,}")
    return wheel
