"""Regression guard on the number of instructions per element, which noise cannot change.

``python -m tools.guard_instructions BUILD`` reads the machine code of the kernels in a build folder, counts the
instructions of a whole step if valgrind is installed, and compares both with the counts in ``tools/instructions.json``
for this compiler. A ratio above ``SLACK``, a missing kernel or a new one is an error; ``--record`` writes the counts
instead. Compilers differ: without counts for this one nothing is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.kernel_code import innermost_loops, kernels_of, output

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tools" / "instructions.json"
DRIVER = ROOT / "tools" / "steps.cpp"
SLACK = 1.03
REGISTERS = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}
SIZES = {"float32": 4, "float64": 8}
STEPS = {  # the numbers of tensors and of distinct step counts
    "1 tensors": (1, 1),
    "8 tensors": (8, 1),
    "148 tensors": (148, 1),
    "1000 tensors, 1000 step counts": (1000, 1000),
}

Counts = dict[str, float]


def compiler_of(build: Path) -> str:
    """Name the compiler, such as ``g++ 12.2.0``."""
    entries = json.loads((build / "compile_commands.json").read_text())
    command = entries[0]["command"].split()[0]
    name = "clang++" if "clang" in output(command, "--version") else "g++"
    return f"{name} {output(command, '-dumpfullversion' if name == 'g++' else '-dumpversion').strip()}"


def loops_of(build: Path) -> Counts:
    """Count each kernel's instructions per element in the loop over whole vectors."""
    counts: Counts = {}
    for kernel in kernels_of(build):
        per_element = [
            len(loop) / elements
            for function in kernel.functions
            for loop in innermost_loops(function)
            if (elements := elements_of(loop, kernel.dtype, REGISTERS[kernel.table]))
        ]
        if per_element:  # the fastest of several is the loop over whole vectors
            counts[f"{kernel.table}: {kernel.dtype} {kernel.name}"] = round(min(per_element), 4)
    return dict(sorted(counts.items()))


def elements_of(loop: list[str], dtype: str, register: str) -> int:
    """Count the elements that one iteration of a loop advances by; 0 if the loop is not over whole vectors."""
    if not any(re.match(rf"v?(?:add|sub|mul|cvtps2)p[sd]? .*%{register}", text) for text in loop):
        return 0
    advances = []
    for text in loop:
        match = (
            re.match(r"add +\$0x([0-9a-f]+),%(r\w+)$", text)
            or re.match(r"lea +0x([0-9a-f]+)\(%(r\w+)\),%\2$", text)
            or re.match(r"(sub) +\$0xffffffffffffff80,%(r\w+)$", text)  # adds 128 in a shorter instruction
        )
        if match is None:
            continue
        advance = 128 if match[1] == "sub" else int(match[1], 16)
        addresses = re.findall(r"\((%\w*)(?:,(%\w+),(\d))?\)", "\n".join(loop))
        scales = [int(scale or 1) for base, index, scale in addresses if f"%{match[2]}" in (base, index)]
        if scales:
            advances.append(advance * max(scales) // SIZES[dtype])
    return max(advances, default=0)


def steps_of(build: Path) -> Counts:
    """Count the instructions of a whole step of the core along tensors of one element."""
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: the instructions of a step are not counted")
        return {}
    entries = json.loads((build / "compile_commands.json").read_text())
    compiler = entries[0]["command"].split()[0]
    counts: Counts = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "steps"
        library = next(build.rglob("libonepass_core.a"))
        output(compiler, "-std=c++17", "-O2", f"-I{ROOT / 'src'}", DRIVER, library, "-pthread", "-o", program)
        for name, (tensors, distinct) in STEPS.items():
            few, many = (collected(folder, program, tensors, steps, distinct) for steps in (100, 200))
            counts[f"step: {name}"] = (many - few) / 100
    return counts


def collected(folder: str, program: Path, *arguments: int) -> int:
    """Return the number of instructions that the program takes on the baseline's kernels."""
    log = Path(folder) / "log"
    options = ["--tool=callgrind", f"--callgrind-out-file={folder}/out", f"--log-file={log}"]
    environment = {**os.environ, "ONEPASS_ISA": "baseline", "ONEPASS_NUM_THREADS": "1"}
    subprocess.run(["valgrind", *options, program, *map(str, arguments)], check=True, env=environment)
    found = re.search(r"Collected : (\d+)", log.read_text())
    assert found is not None
    return int(found[1])


def compare(recorded: Counts, counts: Counts) -> list[str]:
    """List the counts that are worse than recorded, missing or new."""
    problems = [f"{name}: {counts[name]:g} instructions, {old:g} recorded" for name, old in recorded.items()
                if name in counts and counts[name] > old * SLACK]  # fmt: skip
    counted = any(name.startswith("step:") for name in counts)  # with valgrind
    problems += [f"{name}: missing" for name in recorded if name not in counts and (counted or "step:" not in name)]
    return problems + [f"{name}: new" for name in counts if name not in recorded]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare or record the counts; return 1 if one is worse than recorded."""
    parser = argparse.ArgumentParser(prog="python -m tools.guard_instructions", description="Count instructions.")
    parser.add_argument("build", type=Path, help="a build folder, with compile_commands.json")
    parser.add_argument("--record", action="store_true", help="write the counts instead of comparing")
    options = parser.parse_args(arguments)
    everything: dict[str, Counts] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    compiler = compiler_of(options.build)
    counts = loops_of(options.build) | steps_of(options.build)
    if options.record:
        RECORD.write_text(json.dumps(everything | {compiler: counts}, indent=1) + "\n")
        print(f"{len(counts)} counts are recorded for {compiler}")
        return 0
    if compiler not in everything:
        print(f"nothing is recorded for {compiler}, only for {', '.join(everything)}: nothing is compared")
        return 0
    problems = compare(everything[compiler], counts)
    better = [name for name, old in everything[compiler].items() if counts.get(name, old) * SLACK < old]
    print("\n".join(problems) or f"{len(counts)} counts of {compiler} are as recorded, or fewer ({len(better)})")
    if problems:
        print("to accept these counts: make bench-guard ARGS=--record")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
