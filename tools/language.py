"""Lint of the wording: the first words of docstrings, comments and test names, and words that have a plainer synonym.

A docstring or comment opens with a noun phrase or an imperative verb: "Contents of the file", not "What the file
holds". A test is named by a sentence: "test_closed_files_are_refused", not "test_what_happens_to_closed_files".
Run the lint with ``python -m tools.language``; ``make lint`` includes it.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
OPENERS = ("What", "Whether", "Where", "Who", "Whose", "How", "That", "Those", "Of")
SYNONYMS = {
    "anew": "again",
    "beside": "next to, with, compared with",
    "for ever": "forever",
    "hand(?:s|ed|ing)? over": "pass",
    "lack(?:s|ed|ing)|lack(?! of)": "has no, is missing",  # the noun is good English: "a lack of memory"
    "mend(?:s|ed|ing)?": "fix",
    "trainings": "training runs",
    "whoever": "a user who, code that",
}
PYTHON = (".py", ".pyi")
COMMENTS = {
    "//": (".c", ".cpp", ".hpp", ".inl"),
    "#": (".cff", ".cmake", ".mk", ".sh", ".toml", ".txt", ".yaml", ".yml", "Makefile", ".ci/run"),
}
PROSE = (".md",)
# The words are the subject of these files.
EXCEPT = ("tools/language.py", "tests/repository/test_language.py")


class Passage(NamedTuple):
    """A docstring, a comment of one or more lines, or a test name, and its first line."""

    line: int
    text: str


class Comment(NamedTuple):
    """One line of a comment. A comment to the right of code does not have the line to itself."""

    line: int
    text: str
    has_own_line: bool


def passages(name: str, source: str) -> Iterator[Passage]:
    """Yield the passages of a file."""
    for match in re.finditer(r"^ *(?:def test_|TEST\()(\w+)", source, re.MULTILINE):
        yield Passage(source[: match.start()].count("\n") + 1, match[1].replace("_", " ").capitalize())
    if name.endswith(PYTHON):
        yield from docstrings(ast.parse(source))
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.string[:1] == "#"]
        yield from joined(Comment(token.start[0], token.string[1:], token.line.lstrip()[0] == "#") for token in tokens)
    for marker, endings in COMMENTS.items():
        if name.endswith(endings):
            lines = enumerate(source.splitlines(), 1)
            found = [(number, re.search(rf"(^|\s){marker}(.*)", line)) for number, line in lines]
            yield from joined(
                Comment(number, match[2], not match.string[: match.start()].strip()) for number, match in found if match
            )


def docstrings(tree: ast.Module) -> Iterator[Passage]:
    """Yield the docstrings of a module."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                yield Passage(node.body[0].lineno, text)


def joined(comments: Iterable[Comment]) -> list[Passage]:
    """Join the comments on consecutive lines. A comment to the right of code is a passage by itself."""
    found: list[Passage] = []
    last = None
    for comment in comments:
        if comment.has_own_line and comment.line - 1 == last:
            found[-1] = Passage(found[-1].line, f"{found[-1].text} {comment.text.strip()}")
        else:
            found.append(Passage(comment.line, comment.text.strip()))
        last = comment.line if comment.has_own_line else None
    return found


def opener_problems(name: str, source: str) -> list[str]:
    """Return the passages of a file that open with one of OPENERS."""
    opens = re.compile(rf"\W*({'|'.join(OPENERS)})\b")
    found = [(passage, match[1]) for passage in passages(name, source) if (match := opens.match(passage.text))]
    return [
        f"{name}:{passage.line}: expected a noun phrase or an imperative verb, got {word!r} ({short(passage.text)})"
        for passage, word in found
    ]


def word_problems(name: str, source: str) -> list[str]:
    """Return the words that have a plainer synonym, in text and names. A phrase may span the lines of a comment."""
    found = []
    for words, better in SYNONYMS.items():
        pattern = words.replace(" ", r"[\s#/]+")
        for match in re.finditer(rf"\b(?:{pattern})\b", source.replace("_", " "), re.IGNORECASE):
            line = source[: match.start()].count("\n") + 1
            found.append(f"{name}:{line}: expected {better}; got {match[0]!r}")
    return found


def short(text: str) -> str:
    """Return the beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= 50 else f"{line[:47]}..."


def problems() -> list[str]:
    """Return the problems of all files in the repository."""
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    endings = (*PYTHON, *PROSE, *(ending for endings in COMMENTS.values() for ending in endings))
    found = []
    for name in names:
        if name.endswith(endings) and name not in EXCEPT:
            source = (ROOT / name).read_text(encoding="utf-8")
            found += opener_problems(name, source) + word_problems(name, source)
    return found


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) if found else "language: no problems")
    sys.exit(bool(found))
