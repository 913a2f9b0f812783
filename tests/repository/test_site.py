"""The code in the documentation runs, and prints the documented output."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from support import make_targets

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS.parent / "examples"
LIBRARIES = ("integrations.md", "distributed.md")  # whose snippets need libraries
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.name not in LIBRARIES)
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^[ >]*(?:```|~~~)(.*)$", re.MULTILINE)
LANGUAGES = {"python", "pycon", "sh", "text", "{eval-rst}", "{include}", "{literalinclude}", "{toctree}"}


def run(page: Path) -> None:
    """Execute the page's blocks one after the other, as in one session."""
    text = page.read_text(encoding="utf-8")
    session: dict[str, object] = {}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2))
        kind, code = block.groups()
        if kind == "python":
            exec(compile("\n" * line + code, str(page), "exec"), session)
        else:
            example = doctest.DocTestParser().get_doctest(code, session, page.name, str(page), line)
            failures: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=failures.append, clear_globs=False)
            assert not failures, "".join(failures)
            session = example.globs  # get_doctest has copied them


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import ml_dtypes" in page.read_text(encoding="utf-8"):
        pytest.importorskip("ml_dtypes")
    monkeypatch.chdir(tmp_path)  # some save files
    run(page)


def test_every_code_block_names_a_known_language() -> None:
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        opened = [(fence.split() or [""])[0] for fence in FENCE.findall(text)[::2]]
        assert set(opened) <= LANGUAGES, page
        assert sum(language in ("python", "pycon") for language in opened) == len(BLOCK.findall(text)), page


def test_every_link_has_a_text_in_plain_markdown() -> None:
    for page in [*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")]:
        assert "[](" not in page.read_text(encoding="utf-8"), page


def test_make_commands_named_on_the_pages_exist() -> None:
    targets = make_targets(DOCS.parent)
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named and named <= targets


def test_the_figures_of_the_choosing_page_are_on_the_comparison_page() -> None:
    advice = (DOCS / "choosing.md").read_text(encoding="utf-8")
    compared = (DOCS / "comparison.md").read_text(encoding="utf-8")
    rows = [line for line in advice.splitlines() if "(comparison.md)" in line and line.startswith("|")]
    costs = [cost for row in rows for cost in re.findall(r"\b0\.\d{3,4}\b", row.rpartition("(comparison.md)")[2])]
    assert len(costs) == 7 and all(f"| {cost} " in compared for cost in costs)
    assert "in 25 of 40 cases" in advice and "In 25 of 40 cases" in compared


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples are missing")
def test_the_examples_page_lists_every_example_and_no_other_file() -> None:
    text = (DOCS / "examples.md").read_text(encoding="utf-8")
    programs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert set(re.findall(r"\(\.\./examples/([\w/]+\.py)\)", text)) == programs
    assert set(re.findall(r"examples/([\w/]+\.py)", text)) == programs  # commands too


def test_the_style_sheet_names_only_sections_that_exist() -> None:
    style = re.sub(r"/\*.*?\*/", "", (DOCS / "static" / "site.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", "\n".join(page.read_text(encoding="utf-8") for page in PAGES), re.MULTILINE)
    identifiers = {re.sub("[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}  # as docutils does
    named = set(re.findall(r"#([a-z][\w-]*)(?=[^{}]*\{)", style))
    assert {"benchmarks", "results"} <= named <= identifiers
