"""Lion takes the steps of optax's Lion."""

from __future__ import annotations

from typing import Any

import pytest

from integrations import deviations

pytest.importorskip("optax")

TOLERANCE = {"float32": 5e-6, "float64": 1e-13}


@pytest.mark.parametrize("dtype", deviations.DTYPES)
@pytest.mark.parametrize("options", deviations.LION, ids=str)
def test_lion_matches_optax(options: dict[str, Any], dtype: str) -> None:
    assert deviations.from_optax(dtype, options) <= TOLERANCE[dtype]
    for changed in ({"betas": (0.85, 0.8)}, {"betas": (0.5, 0.95)}, {"weight_decay": 0.05}, {"maximize": True}):
        assert deviations.from_optax(dtype, options, **changed) > 10 * TOLERANCE[dtype]
