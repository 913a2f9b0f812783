"""Stopped and continued training has the bits of uninterrupted training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _checkpoint, schedules
from support import Array, assert_same_bits, ones, refused, snapshot

F = np.float32


# A rule, the options of the first group, and the own options of the second group.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Adam", {}, {"betas": (0.5, 0.8), "eps_mode": "hat", "clip_value": 0.5}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}, {"amsgrad": False, "bias_correction": False}),
    ("AdamW", {"weight_decay": 0.3}, {"amsgrad": True, "maximize": True}),
    ("Adamax", {"eps": 0.1}, {"betas": (0.7, 0.6)}),
    ("NAdam", {"momentum_decay": 0.3}, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RAdam", {"weight_decay": 0.1}, {"betas": (0.5, 0.8), "decoupled_weight_decay": True}),
    ("RMSprop", {}, {"alpha": 0.5}),
    ("RMSprop", {"momentum": 0.9, "centered": True}, {"momentum": 0.0}),
    ("RMSprop", {"momentum": 0.5}, {"centered": True}),
    ("Adagrad", {"initial_accumulator_value": 0.3}, {"lr_decay": 0.5, "initial_accumulator_value": 0.0}),
    ("Adadelta", {}, {"rho": 0.5, "eps": 1e-3}),
    ("SGD", {}, {"momentum": 0.9, "nesterov": True}),
    ("SGD", {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.1}),
    ("Lion", {"weight_decay": 0.1}, {"betas": (0.5, 0.6)}),
    ("AdEMAMix", {"beta3_warmup": 8, "weight_decay": 0.1}, {"betas": (0.5, 0.6, 0.9), "alpha": 2.0, "alpha_warmup": 7}),
    ("ScheduleFreeAdamW", {"warmup_steps": 5, "weight_decay": 0.1}, {"r": 0.5, "weight_lr_power": 0.0}),
]
NAMES = [f"{kind}-{index}" for index, (kind, _, _) in enumerate(CASES)]
EMAS = {"number": 0.75, "function": schedules.linear(0.5, 0.9, 8)}
STEPS = 12


def start() -> list[Array]:
    rng = np.random.default_rng(0)
    shapes: list[tuple[tuple[int, ...], Any, Any]] = [((6, 3), F, "C"), ((5,), np.float64, "C"), ((4, 3), F, "F")]
    return [np.asarray(rng.standard_normal(shape), dtype, order=order) for shape, dtype, order in shapes]


def made(case: tuple[str, dict[str, Any], dict[str, Any]], ema: Any, params: list[Array]) -> Any:
    kind, options, own = case
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": schedules.cosine(0.3, STEPS), **own}]
    lr = schedules.warmup(schedules.inverse_sqrt(0.2), 4)
    return getattr(onepass, kind)(groups, lr=lr, ema_decay=ema, clip_norm=3.0, nonfinite="skip", **options)


def grads_of(t: int) -> list[Any]:
    """Return the gradients of step t: sometimes None, sparse rows, or a gradient that is not finite."""
    rng = np.random.default_rng(t)
    grads: list[Any] = [rng.standard_normal(shape) for shape in [(6, 3), (5,), (4, 3)]]
    if t % 3 == 0:
        grads[1] = None
    if t % 4 == 2:
        grads[2] = None
    if t % 4 == 3:
        grads[0] = onepass.SparseRows([4, 1, 4], grads[0][:3])
    if t in (3, 8):
        grads[2] = np.full((4, 3), np.nan)
    return grads


def steps(optimizer: Any, first: int, last: int) -> Any:
    for t in range(first, last + 1):
        optimizer.step(grads_of(t))
    return optimizer


def assert_same_training(actual: Any, expected: Any) -> None:
    assert_same_bits(actual.params, expected.params)
    for one, other in zip(snapshot(actual), snapshot(expected), strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            if isinstance(value, np.ndarray):
                assert_same_bits([value], [other[name]], name)
            else:
                assert value == other[name], name
    assert (actual.step_count, actual.skipped) == (expected.step_count, expected.skipped)
    assert repr(actual) == repr(expected)


def through_file(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    optimizer.save(folder / "state.npz")
    other = again()
    other.load(folder / "state.npz")
    return other


def through_state_dict(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    saved = optimizer.state_dict()
    other = again()
    other.load_state_dict(saved)
    for state in saved["state"].values():  # the state dict was copied
        for value in state.values():
            if isinstance(value, np.ndarray):
                value.fill(7)
    return other


def through_pickle(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def through_deepcopy(optimizer: Any, again: Callable[[], Any], folder: Path) -> Any:
    return copy.deepcopy(optimizer)


@pytest.mark.parametrize("way", [through_file, through_state_dict, through_pickle, through_deepcopy])
@pytest.mark.parametrize("ema", EMAS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_resumed_training_is_bit_identical_to_uninterrupted_training(
    case: Any, ema: str, way: Any, tmp_path: Path
) -> None:
    whole = steps(made(case, EMAS[ema], start()), 1, STEPS)
    assert whole.skipped == 2 and whole.state[1]["step"] == 7
    for k in (0, 1, 5, 9):
        stopped = steps(made(case, EMAS[ema], start()), 1, k)
        weights = [p.copy(order="K") for p in stopped.params]
        continued = way(stopped, lambda weights=weights: made(case, EMAS[ema], weights), tmp_path)
        assert_same_training(continued, stopped)
        steps(continued, k + 1, STEPS)
        assert_same_training(continued, whole)
        assert_same_bits(stopped.params, steps(made(case, EMAS[ema], start()), 1, k).params)  # is not changed
        steps(stopped, k + 1, STEPS)
        assert_same_training(stopped, whole)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_load_state_dict_restores_the_options(case: Any) -> None:
    kind, options, _ = case
    saved = getattr(onepass, kind)(start(), **options, lr=0.25, ema_decay=0.5, clip_norm=2, nonfinite="raise")
    saved.groups[0].clip_value = 3
    buffers = {n: v for n, v in options.items() if n in ("amsgrad", "momentum", "centered")}
    other = getattr(onepass, kind)(start(), **buffers, ema_decay=0.25)
    other.load_state_dict(saved.state_dict())
    assert repr(other) == repr(saved)
    assert "lr=0.25" in repr(other) and "clip_value=3" in repr(other) and "nonfinite='raise'" in repr(other)


def test_functions_are_not_saved_and_the_optimizers_own_function_stays(tmp_path: Path) -> None:
    saved = onepass.SGD(ones(2), lr=lambda t: 0.5, ema_decay=lambda t: 0.5)
    saved.step(ones(2))
    for name in ("lr", "ema_decay"):
        assert saved.state_dict()["param_groups"][0][name].keys() == {"function"}
    asked: list[int] = []

    def own(t: int) -> float:
        asked.append(t)
        return 0.25

    w = ones(2)
    saved.params[:] = 1
    saved.save(tmp_path / "state.npz")
    other = onepass.SGD(w, lr=own, ema_decay=own)
    other.load(tmp_path / "state.npz")
    assert other.groups[0].lr is own and other.groups[0].ema_decay is own
    other.step(ones(2))
    assert (w == 0.75).all() and (other.ema == 0.25 * 0.75 + 0.75 * 0.75).all()
    assert asked == [2, 2]  # the step count was loaded


def test_an_added_group_is_copied_saved_and_loaded(tmp_path: Path) -> None:
    def make() -> Any:
        optimizer = onepass.NAdam(ones(2), lr=0.1)
        optimizer.add_group([ones(3)], lr=0.2)
        return optimizer

    whole = make()
    for _ in range(4):
        whole.step([ones(2), ones(3)])
    stopped = make()
    for _ in range(2):
        stopped.step([ones(2), ones(3)])
    stopped.save(tmp_path / "state.npz", params=True)
    loaded = make()
    loaded.load(tmp_path / "state.npz", params=True)
    for other in (loaded, pickle.loads(pickle.dumps(stopped)), copy.deepcopy(stopped)):
        for _ in range(2):
            other.step([ones(2), ones(3)])
        assert_same_training(other, whole)


def test_state_saved_when_ema_decay_was_called_ema_can_be_loaded(tmp_path: Path) -> None:
    saved = onepass.Adam(ones(2), ema_decay=0.75)
    saved.step(ones(2))
    old = saved.state_dict()
    (group,) = old["param_groups"]
    group["ema"] = group.pop("ema_decay")
    _checkpoint.write(tmp_path / "old.npz", old)
    by_dict, by_file = (onepass.Adam(ones(2), ema_decay=0.5) for _ in range(2))
    by_dict.load_state_dict(old)
    by_file.load(tmp_path / "old.npz")
    for other in (by_dict, by_file):
        assert other.groups[0].ema_decay == 0.75
        assert_same_bits([other.ema], [saved.ema])
    both = onepass.Adam(ones(2))
    with refused(ValueError, "group 0 has unknown ['ema']", both):
        both.load_state_dict({**old, "param_groups": [{**group, "ema_decay": 0.5}]})
