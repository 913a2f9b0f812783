"""The generated mutants, none of which is built here: make mutants."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from tools import mutations

GENERATED = mutations.generate()


def test_every_generated_mutant_is_a_different_change() -> None:
    assert len(GENERATED) > 1000
    changed = {(mutant.file, mutant.changed(text)) for mutant, text in GENERATED.values()}
    assert len(changed) == len(GENERATED)
    assert not changed & {(mutant.file, text) for mutant, text in GENERATED.values()}


@pytest.mark.parametrize("pattern", mutations.FILES)
def test_every_file_pattern_has_mutants(pattern: str) -> None:
    assert any(PurePath(mutant.file).match(pattern) for mutant, _ in GENERATED.values())


def test_every_mutant_listed_as_equivalent_is_generated() -> None:
    assert mutations.equivalent() <= GENERATED.keys()
