"""Requirements on sources and machine code: python -m tools.guards BUILD_DIRECTORY.

No file of src/ or of the Python package includes or imports itself through others.

The files that are compiled for one instruction set must share nothing that a linker could pick for everybody, run
nothing when they are loaded, be vectorised at that instruction set's width, and contain no fused multiply-add.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .kernel_code import Kernel, innermost_loops, kernels_of, output

# The registers that each table's hot loops must use, and the instructions that would betray another instruction set.
VECTOR = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
FORBIDDEN_FLAGS = ["-ffast-math", "-Ofast", "-march=native", "-mfma", "-flto", "-funsafe-math-optimizations"]
REQUIRED_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd"]


def check_flags(build: Path) -> list[str]:
    """Every file of ours is compiled with the same flags, and with no other that changes arithmetic."""
    problems = []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = entry.get("command", "").split()
        name = Path(entry["file"]).name
        is_kernel = Path(entry["file"]).parent.name == "kernels"
        problems += [f"{name}: compiled with {flag}" for flag in command if flag in FORBIDDEN_FLAGS]
        problems += [f"{name}: compiled without {flag}" for flag in REQUIRED_FLAGS if flag not in command]
        if is_kernel and "avx" in name and re.search(r"-mavx", entry["command"]) is None:
            problems.append(f"{name}: compiled without its instruction set")
    return problems


# The functions of power.hpp, which files of instruction sets may call.
FUNCTIONS = ("power", "real_power", "libm_pow", "libm_exp", "libm_log")
# The folders of src/ from the bottom up: each includes only itself and those below it.
LAYERS = ("kernels/rules", "kernels", "core", "python")
RULE_HEADERS = (
    "kernels/builtins.hpp",
    "kernels/power.hpp",
    "kernels/step.hpp",
)  # of kernels/, all that a rule may include
KERNEL_HEADERS = (
    "cstddef",
    "cstdint",
)  # of the standard library, all that is compiled once per instruction set may use
INTRINSICS = "immintrin.h"  # in headers that are named after their instruction set
COMPILED_ONCE = ("kernels/power.cpp",)


def check_includes(source: Path) -> list[str]:
    """Dependencies point downward, no two files include each other, and kernels/ does without the standard library."""
    problems = []
    includes: dict[str, list[str]] = {}
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = file.relative_to(source).as_posix()
        found = re.findall(r'#include\s+(["<])([^">]+)', file.read_text())
        includes[name] = [include for quote, include in found if quote == '"']
        system = [include for quote, include in found if quote == "<"]
        above = [other for other in includes[name] if layer_of(other) > layer_of(name)]
        if name.startswith("kernels/rules/"):
            above = [other for other in above if other not in RULE_HEADERS]
        if name.startswith("kernels/") and name not in COMPILED_ONCE:
            allowed = (*KERNEL_HEADERS, *([INTRINSICS] if name.endswith("_avx512.hpp") else []))
            above += [include for include in system if include not in allowed]
        if not name.startswith("python/"):
            above += [include for include in system if include.startswith(("pybind11/", "Python.h", "numpy/"))]
        problems += [f"{name}: includes {other}, which is not below it" for other in above]
    return problems + [f"{name}: includes itself through {through}" for name, through in cycles(includes)]


def layer_of(name: str) -> int:
    """Return the position of a file in LAYERS; names of other folders are an error."""
    return next(i for i, layer in enumerate(LAYERS) if name.startswith(f"{layer}/"))


def cycles(includes: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the files that include themselves through another, each with the first file on that way."""
    found = []
    for name in includes:
        for first in includes[name]:
            reached, todo = set(), [first]
            while todo:
                file = todo.pop()
                if file not in reached:
                    reached.add(file)
                    todo += includes.get(file, [])
            if name in reached:
                found.append((name, first))
    return found


def check_imports(package: Path) -> list[str]:
    """No two files of the package import each other, not even for type checkers or inside functions."""
    files = {}
    for path in package.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports = {name: sorted(imports_of(name, path) & files.keys()) for name, path in files.items()}
    return [f"{name}: imports itself through {through}" for name, through in cycles(imports)]


def imports_of(name: str, path: Path) -> set[str]:
    """Return the names of all modules that a file imports, and of everything else that it imports from them."""
    found = set()
    around = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]  # the package that "." stands for
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = around[: len(around) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | ({module} if node.module else set())
    return found


# Stand-ins for the headers of Microsoft's compiler, so that Clang can check the kernels as that compiler sees them.
STUBS = {
    "cstddef": "#include <stddef.h>\nnamespace std { using ::size_t; }\n",
    "cstdint": "#include <stdint.h>\n#define U(type) using ::type;\n"
    "namespace std { U(int8_t) U(int16_t) U(int32_t) U(int64_t) U(uint8_t) U(uint16_t) U(uint32_t) U(uint64_t)\n"
    "U(uintptr_t) }\n#undef U\n",
}


def check_microsoft(source: Path) -> list[str]:
    """The branch of builtins.hpp for Microsoft's compiler is C++, calls what it may and leaves no function to share."""
    problems = []
    for file in sorted((source / "kernels").glob("*.cpp")):
        if re.search(r"\bconstexpr Kernels kernels_", file.read_text()):
            problems.append(f"{file.name}: constexpr after extern is another storage class there (C2370): write const")
    used = (source / "kernels" / "builtins.hpp").read_text().partition("#else")[0]
    if re.search(r"\bomp\b", used) or re.search(r"\s/openmp", (source.parent / "CMakeLists.txt").read_text()):
        problems.append("OpenMP, in Microsoft's compiler, is /fp:fast inside its loops")
    if shutil.which("clang++") is None:
        return problems
    with tempfile.TemporaryDirectory() as folder:
        for name, text in STUBS.items():
            Path(folder, name).write_text(text)
        item = Path(folder, "kernels.obj")
        flags = ["--target=x86_64-pc-windows-msvc", "-fms-compatibility-version=19.44", "-U__clang__", "-std=c++17"]
        flags += ["-nostdlibinc", "-isystem", folder, "-Wno-unknown-pragmas", "-Wno-ignored-pragma-intrinsic"]
        command: list[str | Path] = [
            "clang++",
            *flags,
            "-I",
            source,
            "-c",
            source / "kernels" / "baseline.cpp",
            "-o",
            item,
        ]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode or ran.stderr:
            return [*problems, f"as Microsoft's compiler: {ran.stderr}"]
        calls = set(re.findall(r" U (\S+)", output("nm", item))) - {
            "sqrt",
            "sqrtf",
            "memcpy",
            "memset",
            "_fltused",
            "__chkstk",
        }
        problems += [
            f"as Microsoft's compiler: calls {name}"
            for name in calls
            if not re.match(rf"\?({'|'.join(FUNCTIONS)})@onepass@", name)
        ]
        shared = re.findall(r"CODE, LINK_ONCE\w+ \(COMDAT (\S+)", output("objdump", "-h", item))
        problems += [f"as Microsoft's compiler: shares {name}" for name in shared]
    return problems


def check_symbols(name: str, item: Path) -> list[str]:
    """No weak or shared symbol; one table; no static initializer."""
    problems = []
    defined = []
    for line in output("nm", "-C", item).splitlines():
        match = re.match(r"[0-9a-f ]{16} (\w) (.*)", line)
        assert match is not None, line
        kind, symbol = match.groups()
        if kind in "VvWwuiC":
            problems.append(f"{name}: weak or shared symbol {symbol}")
        if kind in "TDBR":
            defined.append(symbol)
        if (
            kind == "U"
            and symbol.partition("(")[0].removeprefix("onepass::") not in FUNCTIONS
            and symbol not in ("_GLOBAL_OFFSET_TABLE_",)
        ):
            problems.append(f"{name}: calls {symbol}")
    if defined != [f"onepass::kernels_{name}"]:
        problems.append(f"{name}: defines {defined} instead of only its table")
    sections = output("readelf", "-SW", item)
    problems += [f"{name}: static initializer ({s})" for s in (".init_array", ".ctors") if s in sections]
    return problems


def check_registers(name: str, item: Path) -> list[str]:
    """No instruction contracts, and none is of a wider instruction set."""
    problems = []
    code = output("objdump", "-dC", "--no-show-raw-insn", item)
    if fused := re.findall(r"\bvfn?m(?:add|sub)\w*", code):
        problems.append(f"{name}: fused operations {sorted(set(fused))}")
    if name == "baseline" and (wide := re.findall(r"%[yz]mm\d+", code)):
        problems.append(f"{name}: wide registers {sorted(set(wide))}")
    if name == "avx2" and "%zmm" in code:
        problems.append(f"{name}: uses 512-bit registers")
    return problems


def check_kernel(kernel: Kernel) -> list[str]:
    """A hot function's loop works on whole vectors of its instruction set and calls nothing."""
    title = f"{kernel.table}: {kernel.dtype} {kernel.name}"
    problems = [f"{title} calls {name}" for name in kernel.unknown]
    loops = [loop for function in kernel.functions for loop in innermost_loops(function)]
    suffix = "s" if kernel.dtype == "float32" and kernel.name != "squares" else "d"  # squares are summed in double
    adds = re.compile(rf"v?(?:add|sub)p{suffix} .*%{VECTOR[kernel.table]}\d")
    if not any(adds.match(text) for loop in loops for text in loop):
        problems.append(f"{title} adds nothing on {VECTOR[kernel.table]} registers")
    if any(text.startswith("call") for loop in loops for text in loop):
        problems.append(f"{title} calls a function in its loop")
    return problems


def main() -> int:
    """Check the sources and a build; return the exit status."""
    build = Path(sys.argv[1])
    source = Path(__file__).parents[1] / "src"
    problems = check_flags(build) + check_includes(source) + check_microsoft(source)
    problems += check_imports(source.parent / "python" / "onepass")
    found = [*build.rglob("kernels/avx*.cpp.o"), *build.rglob("kernels/baseline.cpp.o")]
    objects = {item.name.removesuffix(".cpp.o"): item for item in found}
    missing = [tool for tool in ("nm", "objdump", "readelf") if shutil.which(tool) is None]
    if missing:
        problems.append(f"{', '.join(missing)} not found: install binutils")
    elif set(objects) != set(VECTOR):
        print(f"guards: machine code is checked on x86-64 only, not of {sorted(objects)}")
    else:
        for name, item in objects.items():
            problems += check_symbols(name, item) + check_registers(name, item)
        kernels = kernels_of(build)
        problems += [problem for kernel in kernels for problem in check_kernel(kernel)]
        if {kernel.table for kernel in kernels} != set(VECTOR):
            problems.append("not all tables list their kernels")
    print("\n".join(problems) or f"guards: {build} holds ({', '.join(sorted(objects))})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
