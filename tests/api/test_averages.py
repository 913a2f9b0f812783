"""Running averages of the parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onepass
from cases import FORMS
from support import Array, assert_same_bits, ones


@pytest.mark.parametrize("form", FORMS)
def test_running_averages_are_live_and_have_the_form_of_the_parameters(form: str) -> None:
    params = FORMS[form]()
    optimizer = onepass.SGD(params, lr=0.5, ema_decay=0.75)
    averages = optimizer.ema
    assert type(averages) is type(optimizer.params)
    grads: Any = {"array": ones(2), "mapping": {"w": ones(2), ("b", 1): ones(3)}}.get(form, [ones(2), ones(3)])

    def flat(arrays: Any) -> list[Array]:
        if isinstance(arrays, np.ndarray):
            return [arrays]
        return list(arrays.values()) if isinstance(arrays, dict) else list(arrays)

    expected = [p.astype(np.float64) for p in flat(optimizer.params)]
    assert_same_bits(flat(averages), flat(optimizer.params))
    for _ in range(3):
        optimizer.step(grads)
        for e, p in zip(expected, flat(optimizer.params)):
            e *= 0.75
            e += 0.25 * p
        for e, average in zip(expected, flat(averages)):  # created before the step
            np.testing.assert_array_equal(average, e)  # all of it is exact
    assert "ema" not in optimizer.state[next(iter(optimizer.state))]


def test_ema_decay_may_be_a_function_and_can_be_set() -> None:
    w = ones(2)
    optimizer = onepass.SGD(w, lr=1, ema_decay=lambda t: 1 - 1 / t)
    seen = []
    for t in range(1, 5):
        optimizer.step(t * ones(2))
        seen.append(w.copy())
        np.testing.assert_allclose(optimizer.ema, np.mean(seen, axis=0), rtol=1e-6)
    optimizer.groups[0].ema_decay = 0
    optimizer.step(ones(2))
    assert_same_bits([optimizer.ema], [w])


def test_setting_lr_leaves_the_other_options_unchanged() -> None:
    options = {"betas": (0.5, 0.25), "weight_decay": 0.5, "clip_value": 2.0, "maximize": True}
    ours, fresh = ones(3), ones(3)
    optimizer = onepass.AdamW(ours, lr=9.0, ema_decay=lambda t: 0.5 / t, **options)
    reference = onepass.AdamW(fresh, lr=lambda t: 0.5 / t, ema_decay=lambda t: 0.5 / t, **options)
    for t in range(1, 7):
        optimizer.lr = 0.5 / t if t < 4 else lambda t: 0.5 / t
        for each in (optimizer, reference):
            each.step(t * ones(3))
    assert_same_bits([ours, optimizer.ema], [fresh, reference.ema])


def test_ema_is_none_without_ema_decay() -> None:
    assert onepass.SGD(ones(2)).ema is None
