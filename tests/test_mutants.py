"""The mutants keep up with the sources; `make mutants` runs them."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "src").exists(), reason="the sources are not beside the tests")


@pytest.mark.parametrize("name", MUTANTS)
def test_what_a_mutant_changes_is_still_there(name: str) -> None:
    file, old, new = MUTANTS[name]
    text = (ROOT / file).read_text(encoding="utf-8")
    assert old in text
    assert text.replace(old, new, 1) != text
