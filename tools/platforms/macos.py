"""macOS on Intel's and Apple's processors: the core's own tests and a wheel, which can be linked here but not run.

Needs Debian's llvm. Zig brings what its linker needs of macOS.
"""

from __future__ import annotations

import datetime
import re
import shutil
import sys
import zipfile
from pathlib import Path

from macholib.mach_o import CPU_TYPE_NAMES, LC_BUILD_VERSION, LC_VERSION_MIN_MACOSX
from macholib.MachO import MachO
from macholib.SymbolTable import SymbolTable

from ..wheels import LARGEST, documented, output
from . import zig
from .cross import PYTHON_TAG, build_core, build_wheel, definitions
from .record import Result

ARCHITECTURES = {"x86_64": "x86_64", "arm64": "aarch64"}  # Apple's names, Zig's names
LIBRARY = "/usr/lib/libSystem.B.dylib"  # macOS' C library


def run() -> list[Result]:
    """Build for both processors; return a result for each."""
    return [build(architecture) for architecture in ARCHITECTURES]


def build(architecture: str) -> Result:
    """Build the core's own tests and a wheel for the oldest macOS that docs/installing.md names, and check them."""
    system = documented()[f"{PYTHON_TAG}-macosx_{architecture}"]
    (oldest,) = re.findall(r"macOS ([\d.]+)", system)
    oldest += "" if "." in oldest else ".0"
    target = f"{ARCHITECTURES[architecture]}-macos.{oldest}"
    if (strip := shutil.which("llvm-strip")) is None:
        sys.exit("llvm-strip is missing: apt-get install llvm")
    # The linker writes every path as it will stay: none is changed when the files are installed.
    variables = definitions(target, "Darwin", architecture)
    variables |= {"CMAKE_INSTALL_NAME_TOOL": "/bin/true", "CMAKE_STRIP": strip}
    avoid_bundles(Path(variables["CMAKE_CXX_COMPILER"]))
    for program in (build_core(target, variables) / "tests" / "cpp").glob("test_*"):
        if program.is_file():
            check(program, architecture, oldest)

    numpy = zig.WORK / f"numpy-{architecture}"
    pip = ["-m", "pip", "install", "-q", "--upgrade", "--no-deps", "--only-binary", ":all:", "--platform"]
    output(sys.executable, *pip, f"macosx_14_0_{architecture}", "--target", numpy, "numpy")
    variables["Python_NumPy_INCLUDE_DIR"] = numpy / "numpy" / "_core" / "include"
    suffix = f".cpython-{PYTHON_TAG[2:]}-darwin.so"
    wheel = build_wheel(target, f"macosx-{oldest}-{architecture}", suffix, variables, LARGEST)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(suffix))
        module = Path(archive.extract(name, zig.WORK / f"wheel-{target}"))
    # Exported too: types of exceptions, and operators new and delete, since Zig links a C++ library of its own.
    exported = {
        symbol for symbol in check(module, architecture, oldest) if not re.match("__Z(TI|TS|n|d)|__mh_|___dso_", symbol)
    }
    if exported != {"_PyInit__core"}:
        sys.exit(f"{name}: expected to export only _PyInit__core, got {', '.join(sorted(exported))}")
    return Result(
        system,
        "the core's own tests, and a wheel",
        zig.version(),
        passed=0,
        failed=0,
        date=datetime.date.today().isoformat(),
        wheel_bytes=wheel.stat().st_size,
        note="linked only",
    )


def avoid_bundles(compiler: Path) -> None:
    """Let a compiler link dynamic libraries instead of bundles, at which Zig's linker crashes."""
    change = 'for a; do shift; [ "$a" = -bundle ] && a=-dynamiclib; set -- "$@" "$a"; done'
    compiler.write_text(compiler.read_text(encoding="utf-8").replace("exec ", f"{change}\nexec "), encoding="utf-8")


def check(path: Path, architecture: str, oldest: str) -> set[str]:
    """Check the processor, oldest system and libraries of a program or module; return the symbols that it exports."""
    program = MachO(str(path))
    (header,) = program.headers
    versions, libraries = [], []
    for load, command, data in header.commands:
        if load.cmd == LC_BUILD_VERSION:
            versions.append(command.minos)
        elif load.cmd == LC_VERSION_MIN_MACOSX:
            versions.append(command.version)
        elif load.get_cmd_name() == "LC_LOAD_DYLIB":
            libraries.append(data.rstrip(b"\0").decode())
    found = (CPU_TYPE_NAMES[header.header.cputype].lower(), [f"{v >> 16}.{v >> 8 & 255}" for v in versions], libraries)
    expected = (architecture, [oldest], [LIBRARY])
    if found != expected:
        sys.exit(f"{path.name}: expected processor, oldest macOS and libraries {expected}, got {found}")
    return {name.decode() for _, name in SymbolTable(program, header).extdefsyms}
