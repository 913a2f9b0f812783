"""What the machine code of the kernels must be: python tests/guards.py BUILD_DIRECTORY.

The files that are compiled for one instruction set must share nothing that a linker could pick for everybody, run
nothing when they are loaded, be vectorised at that instruction set's width, and contain no fused multiply-add.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

# The registers that each table's hot loops must use, and the instructions that would betray another instruction set.
VECTOR = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
FORBIDDEN_FLAGS = ["-ffast-math", "-Ofast", "-march=native", "-mfma", "-flto", "-funsafe-math-optimizations"]
REQUIRED_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp-simd"]


def output(*command: str | Path) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def check_flags(build: Path) -> list[str]:
    """Every file of ours is compiled with the same flags, and with no other that changes arithmetic."""
    problems = []
    for entry in json.loads((build / "compile_commands.json").read_text()):
        command = entry.get("command", "").split()
        name = Path(entry["file"]).name
        problems += [f"{name}: compiled with {flag}" for flag in command if flag in FORBIDDEN_FLAGS]
        problems += [f"{name}: compiled without {flag}" for flag in REQUIRED_FLAGS if flag not in command]
        if name.startswith("kernels_") and re.search(r"-mavx", entry["command"]) is None and "baseline" not in name:
            problems.append(f"{name}: compiled without its instruction set")
    return problems


def check_includes(source: Path) -> list[str]:
    """The kernels include nothing of the standard library but <cstddef> and <cstdint>."""
    seen: set[Path] = set()
    problems = []
    todo = [source / "kernels.inl"]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        text = file.read_text()
        if file.name == "builtins.hpp":  # what Microsoft's compiler lacks a builtin for
            text = re.sub(r"#if defined\(_MSC_VER\).*?#else", "", text, count=1, flags=re.DOTALL)
        for quote, name in re.findall(r'#include\s+(["<])([^">]+)', text):
            if quote == "<" and name not in ("cstddef", "cstdint"):
                problems.append(f"{file.name}: includes <{name}>")
            if quote == '"':
                todo.append(source / name)
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
            and symbol.partition("(")[0] not in ("onepass::power", "onepass::real_power")
            and symbol not in ("_GLOBAL_OFFSET_TABLE_",)
        ):
            problems.append(f"{name}: calls {symbol}")
    if defined != [f"onepass::kernels_{name}"]:
        problems.append(f"{name}: defines {defined} instead of its table alone")
    sections = output("readelf", "-SW", item)
    problems += [f"{name}: static initializer ({s})" for s in (".init_array", ".ctors") if s in sections]
    return problems


def check_code(name: str, item: Path, expected: int) -> list[str]:
    """Each sweep's loop works on whole vectors of this instruction set and contracts nothing."""
    problems = []
    code = output("objdump", "-dC", "--no-show-raw-insn", item)
    if fused := re.findall(r"\bvfn?m(?:add|sub)\w*", code):
        problems.append(f"{name}: fused operations {sorted(set(fused))}")
    if name == "baseline" and (wide := re.findall(r"%[yz]mm\d+", code)):
        problems.append(f"{name}: wide registers {sorted(set(wide))}")
    if name == "avx2" and "%zmm" in code:
        problems.append(f"{name}: uses 512-bit registers")
    loops = 0
    for title, body in re.findall(r"^[0-9a-f]+ <(.*)>:\n((?:.+\n)+)", code, re.MULTILINE):
        match = re.search(
            r"(?:::|\b)(sweep|unpack|loop|stream_loop|stream|squares|all_finite|finite)<.*?(float|double)", title
        )
        if match is None:
            continue
        kind, dtype = match.groups()
        suffix = "s" if dtype == "float" and kind != "squares" else "d"  # squares are summed in double
        if not re.search(rf"\bv?(?:add|sub)[sp]{suffix}\b", body):
            continue  # the loop was put into another function, which is looked at by itself
        loops += 1
        if not re.search(rf"\bv?(?:add|sub)p{suffix} .*%{VECTOR[name]}\d", body):
            problems.append(f"{name}: {title} adds nothing on {VECTOR[name]} registers")
        if re.search(r"\bcall", body):
            problems.append(f"{name}: {title} calls a function")
    if loops < expected:
        problems.append(f"{name}: only {loops} loops were found, not {expected}")
    return problems


def main() -> int:
    build = Path(sys.argv[1])
    source = Path(__file__).parents[1] / "src"
    problems = check_flags(build) + check_includes(source)
    rules = len(re.findall(r"\brule<\w+>\(\)", (source / "kernels.inl").read_text()))
    # Each rule in five surroundings, and squares, finite and the stream limit, for two dtypes.
    loops = 2 * (5 * rules + 3)
    objects = {re.sub(r"kernels_|\.cpp\.o", "", o.name): o for o in build.rglob("kernels_*.cpp.o")}
    missing = [tool for tool in ("nm", "objdump", "readelf") if shutil.which(tool) is None]
    if missing:
        problems.append(f"{', '.join(missing)} not found: install binutils")
    elif set(objects) != set(VECTOR):
        print(f"guards: machine code is checked on x86-64 only, not of {sorted(objects)}")
    else:
        for name, item in objects.items():
            problems += check_symbols(name, item) + check_code(name, item, loops)
    print("\n".join(problems) or f"guards: {build} holds ({', '.join(sorted(objects))})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
