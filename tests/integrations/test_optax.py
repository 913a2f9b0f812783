"""Lion and RAdam take the steps of optax's optimizers."""

from __future__ import annotations

from typing import Any

import pytest

from integrations import deviations

pytest.importorskip("optax")

TOLERANCE = {"float32": 5e-6, "float64": 1e-13}
CASES = [(kind, options) for kind, cases in deviations.OPTAX.items() for options in cases]


@pytest.mark.parametrize("dtype", deviations.DTYPES)
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_steps_match_optax(kind: str, options: dict[str, Any], dtype: str) -> None:
    tolerance = TOLERANCE[dtype]
    if kind != "Lion":  # optax computes bias corrections in the dtype of the parameters
        tolerance = 2e-3 if dtype == "float32" else 1e-11
    assert deviations.from_optax(kind, dtype, options) <= tolerance
    for changed in ({"betas": (0.85, 0.8)}, {"betas": (0.5, 0.95)}, {"weight_decay": 0.05}, {"maximize": True}):
        assert deviations.from_optax(kind, dtype, options, **changed) > 10 * tolerance
