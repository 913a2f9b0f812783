"""Whatever the pages of the documentation show runs, and prints what they say."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

import onepass
from support import make_targets

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.name != "integrations.md")  # whose snippets need libraries
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not beside the tests")


def run(page: Path) -> int:
    """Execute the page's blocks one after the other, as in one session, and return how many there were."""
    text = page.read_text(encoding="utf-8")
    session: dict[str, object] = {}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        line = text.count("\n", 0, block.start(2))
        kind, code = block.groups()
        if kind == "python":
            exec(compile("\n" * line + code, str(page), "exec"), session)
        else:
            example = doctest.DocTestParser().get_doctest(code, session, page.name, str(page), line)
            said: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append, clear_globs=False)
            assert not said, "".join(said)
            session = example.globs  # of which get_doctest took a copy
    return len(blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some save files
    threads = onepass.get_num_threads()
    try:
        run(page)
    finally:
        onepass.set_num_threads(threads)


def test_the_commands_that_pages_name_exist() -> None:
    targets = make_targets(DOCS.parent)
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert named and named <= targets
