"""Machine code of the hot functions in the kernel tables, found by address instead of name."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
Code = list[tuple[int, str]]  # addresses and instructions


class Kernel(NamedTuple):
    """A hot function of one instruction set, with all functions that it calls."""

    table: str
    dtype: str
    name: str
    functions: list[Code]
    unknown: list[str]  # calls of functions that are not part of the program


def output(*command: str | Path) -> str:
    """Return what a program prints; raise CalledProcessError where it fails."""
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def kernels_of(build: Path) -> list[Kernel]:
    """Disassemble the kernels of a build folder; for each entry of the tables follow its calls."""
    compiler = json.loads((build / "compile_commands.json").read_text())[0]["command"].split()[0]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "list_kernels"
        library = next(build.rglob("libonepass_core.a"))
        flags = ["-std=c++17", "-O1", "-no-pie", f"-I{ROOT / 'src'}"]
        output(compiler, *flags, ROOT / "tools" / "list_kernels.cpp", library, "-pthread", "-o", program)
        listed = [line.split("\t") for line in output(program).splitlines()]
        functions = functions_of(output("objdump", "-d", "--no-show-raw-insn", program))
    return [Kernel(table, dtype, name, *reachable(int(at, 16), functions)) for table, dtype, name, at in listed]


def functions_of(disassembly: str) -> dict[int, Code]:
    """Return the instructions of each function, by its address."""
    found = {}
    for at, body in re.findall(r"^([0-9a-f]+) <.*>:\n((?:.+\n)*)", disassembly, re.MULTILINE):
        found[int(at, 16)] = [(int(a, 16), t) for a, t in re.findall(r"^ +([0-9a-f]+):\t(.+)$", body, re.MULTILINE)]
    return found


def reachable(address: int, functions: dict[int, Code]) -> tuple[list[Code], list[str]]:
    """Return a function and all functions that it calls or jumps to, and the calls that leave the program."""
    found: dict[int, Code] = {}
    unknown = []
    todo = [address]
    while todo:
        if (at := todo.pop()) in found:
            continue
        found[at] = functions[at]
        for _, text in functions[at]:
            if match := re.match(r"(?:call|j\w+) +(\S+)(?: <([^>]*)>)?", text):
                target = int(match[1], 16) if re.fullmatch(r"[0-9a-f]+", match[1]) else None
                if target in functions and not (match[2] or "").endswith("@plt"):
                    todo.append(target)
                elif text.startswith("call"):
                    unknown.append(match[2] or match[1])
    return list(found.values()), unknown


def innermost_loops(code: Code) -> Iterator[list[str]]:
    """Yield the instructions of each innermost loop."""
    places = {at: index for index, (at, _) in enumerate(code)}
    begin = 0
    for index, (at, text) in enumerate(code):
        match = re.match(r"j\w+ +([0-9a-f]+)", text)
        if match and (target := int(match[1], 16)) <= at and places.get(target, -1) >= begin:
            yield [text for _, text in code[places[target] : index + 1]]
            begin = index + 1
