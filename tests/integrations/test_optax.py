"""Lion, RAdam and AdEMAMix take the steps of optax's optimizers."""

from __future__ import annotations

from typing import Any

import pytest

from integrations import deviations

pytest.importorskip("optax")

# optax computes bias corrections in the dtype of the parameters.
TOLERANCE = {
    "Lion": {"float32": 5e-6, "float64": 1e-13},
    "RAdam": {"float32": 2e-3, "float64": 2e-12},
    "AdEMAMix": {"float32": 3e-5, "float64": 1e-13},
}
CASES = [(kind, options) for kind, cases in deviations.OPTAX.items() for options in cases]


@pytest.mark.parametrize("dtype", deviations.DTYPES)
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_steps_match_optax(kind: str, options: dict[str, Any], dtype: str) -> None:
    tolerance = TOLERANCE[kind][dtype]
    assert deviations.from_optax(kind, dtype, options) <= tolerance
    third = (0.99,) if kind == "AdEMAMix" else ()
    wrong: list[dict[str, Any]] = [
        {"betas": (0.85, 0.8, *third)},
        {"betas": (0.5, 0.95, *third)},
        {"weight_decay": 0.05},
        {"maximize": True},
    ]
    if kind == "AdEMAMix":
        wrong += [{"alpha": 4.0}, {"alpha_warmup": 30}, {"beta3_warmup": 1000}]
    for changed in wrong:
        assert deviations.from_optax(kind, dtype, options, **changed) > 10 * tolerance, changed
