"""The soak test's oracle has the bits of the specification, and a wrong bit is found."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest

from cases import CLASSES
from onepass import _core
from onepass._reference import RULES
from support import bits, ordinary

pytest.importorskip("ml_dtypes")
soak = pytest.importorskip("tools.soak")
compiled_reference = soak.compiled_reference


@pytest.fixture(scope="module", autouse=True)
def oracle() -> None:
    if os.name == "nt" or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("needs a C++ compiler")
    compiled_reference.build()


@pytest.mark.parametrize("kind", RULES)
def test_the_compiled_reference_has_every_rule_in_every_storage(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SIZE", soak.SMALL)  # the numbers that chunks are taken from are four times as many
    for storage in soak.STORAGE:
        digest, elements, found = soak.expect(kind, storage, 0)
        assert elements > 0 and found == {}
        assert soak.check(kind, storage, 0, digest) == {}


@pytest.mark.parametrize("storage", soak.STORAGE)
def test_a_wrong_element_is_found(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(CLASSES["Adam"]):  # type: ignore[misc]
        def step(self, grads: Any, grad_scale: float = 1.0) -> None:
            super().step(grads, grad_scale)
            bits(self.params[0])[7] ^= 1 << self.step_count % 8

    monkeypatch.setattr(soak, "SIZE", soak.SMALL)
    monkeypatch.setattr(soak, "NUMBERS", {"ordinary": ordinary})
    digest, _, _ = soak.expect("Adam", storage, 1)
    monkeypatch.setitem(CLASSES, "Adam", Wrong)
    assert soak.check("Adam", storage, 1, digest)["param"] == 1


def test_every_instruction_set_is_compared_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEPASS_ISA", _core.instruction_set)  # soak_all changes it; the end of the test restores it
    rows = soak.soak_all([("SGD", "float64")], 1)
    assert [(row["instruction_set"], row["wrong"]) for row in rows] == [
        (isa, 0) for isa in _core.usable_instruction_sets
    ]
