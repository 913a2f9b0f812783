"""Mutants of the sources, generated from their text.

In C++, mutants swap operators, change constants, fix conditions to true or false, and delete operands, parentheses and
statements. In Python, mutants change defaults in signatures and arguments of decorators.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FILES = ["src/kernels/rules/*.hpp", "src/kernels/*.hpp", "src/kernels/power.cpp", "src/core/float_mode.hpp",
         "src/core/optimizer.cpp", "src/core/sweeps.cpp", "src/python/optimizer.cpp",
         "python/onepass/optimizers/*.py"]  # fmt: skip
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"  # the mutants that no test can detect, each below its reason

TOKEN = re.compile(
    r"""(?P<skip>//[^\n]*|^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*|"(?:\\.|[^"\\])*")
    |(?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d+)?)|(?P<name>[A-Za-z_]\w*)
    |(?P<sign>->|::|\.\.\.|<=|>=|==|!=|&&|\|\||[-+*/&|]=|\+\+|--|\S)""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
OWNER = re.compile(r"^(?:class|struct) (\w+)", re.MULTILINE)
SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "&&": "||", "||": "&&", "&": "|", "|": "&", "+=": "-=", "-=": "+=", "true": "false", "false": "true",
}  # fmt: skip
PYTHON_SWAPS = {"True": "False", "False": "True", "0.0": "0.25", "0": "0.25"}
CLOSING = {"(": ")", "[": "]", "{": "}"}


class Mutant(NamedTuple):
    """One change of a file: the text from start to end is replaced by new."""

    file: str
    start: int
    end: int
    new: str

    def changed(self, text: str) -> str:
        """Return the file's text with the change."""
        return text[: self.start] + self.new + text[self.end :]

    def describe(self, text: str) -> str:
        """Return a name of the change from its class and statement, which stay the same when lines move."""
        owner = [found[1] for found in OWNER.finditer(text, 0, self.start)]
        begin = max(text.rfind(sign, 0, self.start) for sign in ";{}\n") + 1
        end = min(at for sign in ";{\n" if (at := text.find(sign, max(self.end - 1, self.start))) >= 0)
        old, new = text[begin : end + 1], text[begin : self.start] + self.new + text[self.end : end + 1]
        return f"{':'.join([self.file, *owner[-1:]])}: {' '.join(old.split())} -> {' '.join(new.split())}"


class Tokens:
    """Tokens of a C++ source in clang-format's style, without comments, strings and directives."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = [match for match in TOKEN.finditer(text) if match.lastgroup != "skip"]
        self.words = [match[0] for match in found]
        self.kinds = [str(match.lastgroup) for match in found]
        self.spans = [match.span() for match in found]
        self.pair: dict[int, int] = {}  # index of each bracket's counterpart
        open_: list[int] = []
        for i, word in enumerate(self.words):
            if word in CLOSING:
                open_.append(i)
            elif word in CLOSING.values():
                self.pair[i] = open_.pop()
                self.pair[self.pair[i]] = i

    def is_binary(self, i: int) -> bool:
        """Return True for an operator with a space on both sides, unlike template brackets, pointers and references."""
        start, end = self.spans[i]
        return self.words[i] in SWAPS and self.kinds[i] == "sign" and self.text[start - 1] + self.text[end] == "  "

    def operand(self, i: int, step: int, over: Sequence[str]) -> int:
        """Return the far end of the operand right (step 1) or left (-1) of i, which may contain these operators."""
        ends = {*"=,;?:", "return", *(CLOSING.values() if step > 0 else CLOSING)}
        while self.words[i + step] not in ends and (self.words[i + step] in over or not self.is_binary(i + step)):
            i = self.pair.get(i + step, i + step)
        return i


def python_mutants(file: str, text: str) -> Iterator[Mutant]:
    """Yield each change of a number or flag among the defaults of signatures and the arguments of decorators."""
    for place in re.finditer(r"^ +\w+: [\w\[\], |]+ = (.+),$|^@\w+\((.+)\)$", text, re.MULTILINE):
        for value in re.finditer(r"\b(?:True|False|\d[\w.]*(?:(?<=e)-\d+)?)", place[1] or place[2]):
            start = place.start(place.lastindex or 0) + value.start()
            new = PYTHON_SWAPS.get(value[0]) or f"{value[0]} * 0.5"
            yield Mutant(file, start, start + len(value[0]), new)


def mutants_of(file: str, text: str) -> Iterator[Mutant]:
    """Yield each change of a source, in the order of the source."""
    if file.endswith(".py"):
        yield from python_mutants(file, text)
        return
    t = Tokens(text)

    def change(first: int, last: int, new: str) -> Mutant:
        return Mutant(file, t.spans[first][0], t.spans[last][1], new)

    for i, word in enumerate(t.words):
        before, after = t.words[i - 1], t.words[i + 1 : i + 2]
        if t.is_binary(i) or word in ("true", "false"):
            yield change(i, i, SWAPS[word])
        if word in ("+", "-", "*", "/") and t.is_binary(i):  # keep only one operand
            over = ("*", "/") if word in "+-" else ()
            first, last = t.operand(i, -1, over), t.operand(i, 1, over)
            yield change(first, last, text[t.spans[first][0] : t.spans[i - 1][1]])
            yield change(first, last, text[t.spans[i + 1][0] : t.spans[last][1]])
        if word in "-!" and not t.is_binary(i) and text[t.spans[i][1]] != " ":
            yield change(i, i, "")
        if t.kinds[i] == "number":
            integer = re.fullmatch(r"\d+[uUlL]*", word)
            lowest_bit_off = f"({word} & ({word} - 1))"
            yield change(i, i, f"({word} + 1)" if integer else lowest_bit_off if "0x" in word else f"({word} * 1.5)")
        other = word[:-1] + {"1": "2", "2": "1"}.get(word[-1], "")
        if t.kinds[i] == "name" and t.kinds[i - 1] != "name" and other != word[:-1] and other in t.words:
            yield change(i, i, other)  # beta2 for beta1
        if word == "?":
            yield from (change(t.operand(i, -1, [*SWAPS]), i - 1, value) for value in ("true", "false"))
        if word == "(" and before in ("if", "constexpr"):
            yield from (change(i + 1, t.pair[i] - 1, value) for value in ("true", "false"))
        grouping = word == "(" and (before in ("=", "?", ":", ",", "(", "return") or t.is_binary(i - 1))
        if grouping and any(t.is_binary(k) for k in range(i + 1, t.pair[i])):  # change the order of evaluation
            yield change(i, t.pair[i], text[t.spans[i][1] : t.spans[t.pair[i]][0]])
        opens = t.kinds[i] == "name" and after and after[0] in ("=", "(", "[", ".", "->", "::", "+=", "-=", "*=", "/=")
        if (opens or word in ("++", "--")) and before in (";", "{", "}", ")", "else"):
            end = next(k for k in range(i, len(t.words)) if t.words[k] in (";", "{", "}"))
            if t.words[end] == ";" and word not in ("return", "if", "for", "while", "static_assert", "std"):
                yield change(i, end, ";")


def generate(globs: Sequence[str] = FILES) -> dict[str, tuple[Mutant, str]]:
    """Return each mutant and the text of its file, by the mutant's description."""
    found: dict[str, tuple[Mutant, str]] = {}
    seen = Counter[str]()
    for path in (path for glob in globs for path in sorted(ROOT.glob(glob))):
        text = path.read_text(encoding="utf-8")
        for mutant in {m.changed(text): m for m in mutants_of(path.relative_to(ROOT).as_posix(), text)}.values():
            name = mutant.describe(text)
            seen[name] += 1
            found[name if seen[name] == 1 else f"{name} ({seen[name]})"] = mutant, text
    return found


def equivalent() -> set[str]:
    """Return the descriptions of the mutants that no test can detect."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}
