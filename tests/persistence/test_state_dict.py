"""State dicts: those that do not fit change nothing; copies and subclasses survive."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import ones, refused


def changed(**changes: Any) -> Callable[[Any], None]:
    """Return a function that changes a state dict: group__lr is lr of group 0, state__step is step of parameter 0."""

    def change(saved: Any) -> None:
        for name, value in changes.items():
            where, _, key = name.rpartition("__")
            place = {"": saved, "group": saved["param_groups"][0], "state": saved["state"][0]}[where]
            if value is None:
                del place[key]
            else:
                place[key] = value

    return change


MISFITS: dict[str, tuple[Callable[[Any], None], type[Exception], str]] = {
    "another class": (changed(optimizer="AdamW"), ValueError, "checkpoint is for 'AdamW', not 'Adam'"),
    "a newer version": (changed(version=2), ValueError, "written by a newer onepass"),
    "an older version": (changed(version=0), ValueError, "version: expected 1, got 0"),
    "a key missing": (changed(step_count=None), ValueError, "is missing ['step_count']"),
    "a key unknown": (changed(color=1), ValueError, "has unknown ['color']"),
    "an option missing": (changed(group__eps=None), ValueError, "group 0 is missing ['eps']"),
    "an option unknown": (changed(group__momentum=0.5), ValueError, "group 0 has unknown ['momentum']"),
    "a state array missing": (changed(state__exp_avg=None), ValueError, "is missing ['exp_avg']"),
    "a state array unknown": (changed(state__max_exp_avg_sq=ones(2, 3)), ValueError, "saved with amsgrad"),
    "a wrong shape": (changed(state__exp_avg=ones(3, 2)), ValueError, "expected shape (2, 3), got (3, 2)"),
    "a wrong dtype": (
        changed(state__exp_avg=ones(2, 3, dtype=float)),
        ValueError,
        "expected the parameter's dtype float32",
    ),
    "a list instead of an array": (changed(state__exp_avg=[[0.0] * 3] * 2), TypeError, "expected a NumPy array"),
    "a negative count": (changed(state__step=-1), ValueError, "at least 0"),
    "a float step count": (changed(step_count=1.0), TypeError, "step_count: expected an integer"),
    "a wrong lr": (changed(group__lr=-1), ValueError, "lr: expected at least 0, got -1"),
    "wrong betas": (changed(group__betas=(2, 0)), ValueError, "betas[0]: expected at least 0 and less than 1"),
    "a wrong flag": (changed(group__maximize=1), TypeError, "maximize: expected True or False"),
    "a wrong mode": (changed(group__eps_mode="tf"), ValueError, "eps_mode: expected"),
    "a wrong ema": (changed(group__ema_decay=1.0), ValueError, "ema_decay: expected at least 0 and less than 1"),
    "a wrong clip_norm": (changed(clip_norm=-1.0), ValueError, "clip_norm: expected more than 0"),
    "a wrong nonfinite": (changed(nonfinite="stop"), ValueError, "nonfinite: expected"),
    "other names": (changed(group__param_names=["w", "c"]), ValueError, "expected 'b', got 'c'"),
    "another order": (changed(group__params=[1, 0]), ValueError, "expected 0, got 1"),
    "amsgrad without its array": (changed(group__amsgrad=True), ValueError, "it determines which state buffers exist"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    change, error, message = MISFITS[case]
    optimizer, donor = (onepass.Adam({"w": ones(2, 3), "b": ones(3)}, lr=0.1, ema_decay=0.5) for _ in range(2))
    optimizer.step({"w": ones(2, 3), "b": ones(3)})
    saved = donor.state_dict()
    change(saved)
    with refused(error, message, optimizer):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Adam", {"amsgrad": True}),
        ("RMSprop", {"momentum": 0.9}),
        ("RMSprop", {"centered": True}),
        ("SGD", {"momentum": 0.9}),
        ("Lion", {"ema_decay": 0.9}),
    ],
)
def test_loading_state_with_different_buffers_is_refused(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    make = getattr(onepass, kind)
    pair = make([ones(2)], lr=0.5), make([ones(2)], **options)
    for own, other in [pair, pair[::-1]]:
        with refused(ValueError, "the state of parameter 0", own):
            own.load_state_dict(other.state_dict())
        other.save(tmp_path / "state.npz")
        with refused(ValueError, "cannot load", own):
            own.load(tmp_path / "state.npz")


def test_another_number_of_groups_or_parameters_is_refused() -> None:
    optimizer = onepass.Lion([ones(2), ones(2)])
    for other in [onepass.Lion([{"params": ones(2)}, {"params": ones(2)}]), onepass.Lion([ones(2)])]:
        with refused(ValueError, "the optimizer has", optimizer):
            optimizer.load_state_dict({**other.state_dict()})


def test_a_state_dict_that_fits_only_the_first_group_changes_nothing() -> None:
    optimizer = onepass.Adam([{"params": ones(2)}, {"params": ones(3)}])
    saved = onepass.Adam([{"params": ones(2), "lr": 0.5}, {"params": ones(3)}]).state_dict()
    saved["param_groups"][1]["eps"] = -1.0
    with refused(ValueError, "eps: expected at least 0", optimizer):
        optimizer.load_state_dict(saved)


def test_live_state_arrays_can_be_swapped_by_loading_them() -> None:
    w = np.ones(3)
    optimizer = onepass.Adam(w)
    optimizer.step(np.array([1.0, 2.0, 3.0]))
    first, second = (optimizer.state[0][name].copy() for name in ("exp_avg", "exp_avg_sq"))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = optimizer.state[0]["exp_avg_sq"]
    saved["state"][0]["exp_avg_sq"] = optimizer.state[0]["exp_avg"]
    optimizer.load_state_dict(saved)
    assert (optimizer.state[0]["exp_avg"] == second).all() and (optimizer.state[0]["exp_avg_sq"] == first).all()


def test_a_large_state_dict_is_loaded_in_linear_time() -> None:
    small, large = (onepass.Adam([np.zeros(1) for _ in range(n)]) for n in (100, 3000))
    times = []
    for optimizer in (small, large):
        load = partial(optimizer.load_state_dict, optimizer.state_dict())
        times.append(min(timeit.repeat(load, number=1, repeat=3)))
    assert times[1] < 300 * times[0] + 0.5
