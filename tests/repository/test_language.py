"""The lint of the wording finds bad openers and words with plainer synonyms, and nothing in plain English."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from tools import language

PYTHON = {
    "a module": (1, '"""{} is in this file."""\n'),
    "a class": (2, 'class A:\n    """{} is in this file."""\n'),
    "a function": (2, 'def f():\n    """{} is in this file."""\n'),
    "a coroutine": (2, 'async def f():\n    r"""\n    {} is in this file.\n    """\n'),
    "a comment": (2, "\n# {} is in this file.\n"),
    "a rule between sections": (1, "# ---- {} is in this file ----\n"),
    "a comment after code": (2, "# Sizes\na = 1  # {} is in this file\nb = 2  # more\n"),
    "a comment below one after code": (2, "a = 1  # a size\n# {} is in this file.\n"),
}
CPP = {
    "a comment": (2, "\n// {} is in this file.\n"),
    "a comment after code": (2, "// Sizes\nint a;  // {} is in this file\n"),
    "a documentation comment": (1, "/// {} is in this file.\n"),
}
GOOD_PYTHON = '''"""Contents of the file, which say what to do, and how.

What follows the first sentence is free.
"""

# Arrays of the file.
# What follows in a comment is free too.
text = "# What a string holds is free."  # so is what follows in lower case


def test_somehow() -> None:
    """Whatever, whereas and Office are other words."""
    what = [1]
'''
GOOD_WORDS = """
for every reason; a lack of memory; slack, black and lacquer; besides; amend, recommend and commend; hand-written,
hands, over; forever; menders; slacks_off and forevermore
"""


def expect(problems: list[str], start: str, words: str) -> None:
    (problem,) = problems
    assert problem.startswith(start) and words in problem


@pytest.mark.parametrize("opener", language.OPENERS)
@pytest.mark.parametrize("place", PYTHON)
def test_bad_openers_are_found_in_python(place: str, opener: str) -> None:
    line, source = PYTHON[place]
    expect(language.opener_problems("a.py", source.format(opener)), f"a.py:{line}: ", repr(opener))
    expect(language.opener_problems("a.pyi", source.format(opener)), f"a.pyi:{line}: ", repr(opener))
    assert language.opener_problems("a.py", source.format("Everything")) == []


@pytest.mark.parametrize("opener", language.OPENERS)
@pytest.mark.parametrize("place", CPP)
def test_bad_openers_are_found_in_cpp(place: str, opener: str) -> None:
    line, source = CPP[place]
    for name in ("a.c", "a.cpp", "a.hpp", "a.inl"):
        expect(language.opener_problems(name, source.format(opener)), f"{name}:{line}: ", repr(opener))
    assert language.opener_problems("a.cpp", source.format("Everything")) == []


@pytest.mark.parametrize("name", ["Makefile", "core.mk", "pyproject.toml", "tests.yml", "tests/cpp/CMakeLists.txt"])
def test_bad_openers_are_found_in_other_files(name: str) -> None:
    expect(language.opener_problems(name, "a:\n# Arrays\n\n# How it works\n"), f"{name}:4: ", "How")


@pytest.mark.parametrize("opener", language.OPENERS)
def test_bad_openers_are_found_in_test_names(opener: str) -> None:
    name = f"{opener.lower()}_is_right"
    expect(language.opener_problems("a.py", f"\n\ndef test_{name}(): ...\n"), "a.py:3: ", repr(opener))
    expect(language.opener_problems("a.py", f"class A:\n    def test_{name}(): ...\n"), "a.py:2: ", repr(opener))
    expect(language.opener_problems("a.cpp", f"\nTEST({name}) {{}}\n"), "a.cpp:2: ", repr(opener))


def test_a_comment_of_several_lines_is_one_passage() -> None:
    assert list(language.passages("a.cpp", "// One\n// and two.\nint a;  // Three\n// Four\n")) == [
        (1, "One and two."),
        (3, "Three"),
        (4, "Four"),
    ]


@pytest.mark.parametrize(
    ("words", "better"),
    [
        ("anew", "again"),
        ("Beside", "next to"),
        ("for ever", "forever"),
        ("hand over", "pass"),
        ("hands over", "pass"),
        ("handed over", "pass"),
        ("handing over", "pass"),
        ("lack", "is missing"),
        ("lacks", "is missing"),
        ("lacked", "is missing"),
        ("lacking", "is missing"),
        ("mend", "fix"),
        ("mends", "fix"),
        ("mended", "fix"),
        ("mending", "fix"),
        ("Whoever", "a user who"),
    ],
)
def test_words_with_a_plainer_synonym_are_found(words: str, better: str) -> None:
    for name in ("a.py", "a.cpp", "a.md", "Makefile"):
        expect(language.word_problems(name, f"One\n{words} two"), f"{name}:2: ", better)
    for wrapped in (words.replace(" ", "\n    # "), words.replace(" ", "\n// ")):
        expect(language.word_problems("a.py", f"# One {wrapped}, two"), "a.py:1: ", better)
    name = words.replace(" ", "_")
    expect(language.word_problems("a.py", f"\ndef test_{name}_two(): ..."), "a.py:2: ", better)


def test_good_prose_has_no_problems() -> None:
    assert language.opener_problems("a.py", GOOD_PYTHON) == []
    assert language.opener_problems("a.cpp", '// Size, in bytes.\n// Of all arrays.\nconst char* a = "//What";\n') == []
    assert language.opener_problems("a.md", "# What a heading says is free\n") == []
    for name in ("a.py", "a.cpp", "a.md"):
        assert language.word_problems(name, GOOD_WORDS) == []


def test_the_repository_has_no_problems() -> None:
    git = shutil.which("git")
    if git is None or subprocess.run([git, "-C", language.ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("git or the repository is missing")
    assert language.problems() == []
