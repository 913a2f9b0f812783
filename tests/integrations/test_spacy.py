"""spaCy trains with onepass's Adam as with thinc's, named in its configuration."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

spacy = pytest.importorskip(
    "spacy", reason="spaCy holds thinc back: make test-spacy has an environment of its own for it"
)

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_spacy")


@pytest.mark.parametrize("component", ["textcat", "ner"])
def test_a_pipeline_learns_with_the_same_losses_as_with_thincs_adam(example: ModuleType, component: str) -> None:
    ours, theirs = (example.train(component, registered, 40) for registered in ("onepass.Adam.v1", "Adam.v1"))
    # The last bit may decide where an entity starts, so later losses differ.
    np.testing.assert_allclose(ours.losses[:16], theirs.losses[:16], rtol=1e-3)
    np.testing.assert_allclose(ours.losses[16:], theirs.losses[16:], rtol=0.05, atol=1e-4)
    assert ours.score > 0.95 and abs(ours.score - theirs.score) < 0.02


def test_configuration_creates_onepass_optimizer() -> None:
    from onepass.integrations.thinc import Optimizer

    nlp = spacy.blank("en", config={"training": {"optimizer": {"@optimizers": "onepass.Adam.v1"}}})
    nlp.add_pipe("ner")
    assert type(nlp.initialize()) is Optimizer


def test_the_program_prints_losses_and_times(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main(["--steps", "3"])
    printed = capsys.readouterr().out
    assert printed.count("in the optimizer") == 4 and printed.count("loss at step") == 2
