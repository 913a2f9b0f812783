"""Saved state of optimizers with an evaluation mode: either mode resumes with the same bits."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import BFLOAT16, Array, assert_same_bits, comparable, ones, ordinary, refused, snapshot

STORAGES: list[tuple[Any, dict[str, Any]]] = [
    (np.float32, {}),
    (np.float64, {}),
    (np.float32, {"state_dtype": "float8"}),
    (BFLOAT16, {"master_bits": 24}),
    (BFLOAT16, {"state_dtype": "bfloat16"}),
]


def made(dtype: Any, options: dict[str, Any]) -> Any:
    rng = np.random.default_rng(0)
    params = [np.asarray(ordinary(rng, shape, np.float64).astype(dtype), order="F") for shape in [(65, 64), (5,)]]
    return onepass.ScheduleFreeAdamW(params, lr=0.05, warmup_steps=3, ema_decay=0.5, **options)


def train(optimizer: Any, steps: int) -> None:
    optimizer.train()
    for _ in range(steps):
        rng = np.random.default_rng(optimizer.step_count)
        optimizer.step([ordinary(rng, p.shape, np.float32) for p in optimizer.params])


def arrays(optimizer: Any) -> list[Array]:
    states = [value for state in snapshot(optimizer) for value in state.values() if isinstance(value, np.ndarray)]
    return [comparable(array) for array in [*optimizer.params, *states]]


def assert_same(actual: Any, expected: Any) -> None:
    assert [list(state) for state in snapshot(actual)] == [list(state) for state in snapshot(expected)]
    assert_same_bits(arrays(actual), arrays(expected))


def through_file(optimizer: Any, other: Any, folder: Path) -> Any:
    optimizer.save(folder / "state.npz", params=True)
    other.load(folder / "state.npz", params=True)
    return other


def through_file_without_params(optimizer: Any, other: Any, folder: Path) -> Any:
    optimizer.save(folder / "state.npz")
    for own, param in zip(other.params, optimizer.params):
        own[...] = param
    other.load(folder / "state.npz")
    return other


def through_state_dict(optimizer: Any, other: Any, folder: Path) -> Any:
    other.load_state_dict(optimizer.state_dict(params=True), params=True)
    return other


def through_pickle(optimizer: Any, other: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


def through_deepcopy(optimizer: Any, other: Any, folder: Path) -> Any:
    return copy.deepcopy(optimizer)


Way = Callable[[Any, Any, Path], Any]
WAYS: list[Way] = [
    through_file,
    through_file_without_params,
    through_state_dict,
    through_pickle,
    through_deepcopy,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("other_mode", ["train", "eval"])
@pytest.mark.parametrize(("dtype", "options"), STORAGES, ids=str)
def test_training_resumes_from_either_mode_into_either_mode(
    dtype: Any, options: dict[str, Any], mode: str, other_mode: str, way: Way, tmp_path: Path
) -> None:
    if dtype is None:
        pytest.importorskip("ml_dtypes")
    whole = made(dtype, options)
    train(whole, 6)
    stopped, other = made(dtype, options), made(dtype, options)
    train(stopped, 4)
    getattr(stopped, mode)()
    train(other, 1)
    getattr(other, other_mode)()
    continued = way(stopped, other, tmp_path)
    assert_same(continued, stopped)
    if mode == "eval":
        with refused(RuntimeError, "evaluation mode", continued):
            continued.step(continued.params)
    train(continued, 2)
    assert_same(continued, whole)
    whole.eval()
    continued.eval()
    assert_same(continued, whole)


WEIGHTS: list[Any] = [None, 32, 24, 16]  # float32, or bfloat16 with so many bits


def with_weights(bits_of_weights: int | None, state_dtype: Any) -> Any:
    options = {"state_dtype": state_dtype, "master_bits": bits_of_weights or 32}
    return made(np.float32 if bits_of_weights is None else BFLOAT16, options)


def loaded(saved: Any, fresh: Any, reader: str, params: bool, path: Path) -> tuple[Any, list[str]]:
    """Load into a new optimizer whose weights are the saved weights, rounded; return the optimizer and the warnings."""
    for own, param in zip(fresh.params, saved.params):
        own[...] = param.astype(own.dtype)
    options: dict[str, Any] = {"params": True} if params else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if reader == "file":
            saved.save(path, **options)
            fresh.load(path, **options)
        else:
            fresh.load_state_dict(saved.state_dict(**options), **options)
    return fresh, [str(each.message) for each in caught if "was saved with other values" not in str(each.message)]


@pytest.mark.skipif(BFLOAT16 is None, reason="needs ml_dtypes")
@pytest.mark.parametrize("state_dtypes", [(None, "float8"), ("float8", "bfloat16")])
@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("reader", ["file", "state dict"])
@pytest.mark.parametrize("new", WEIGHTS)
@pytest.mark.parametrize("old", WEIGHTS)
def test_training_weights_are_converted_alike_in_both_modes(
    old: Any, new: Any, reader: str, params: bool, state_dtypes: tuple[Any, Any], tmp_path: Path
) -> None:
    saved = with_weights(old, state_dtypes[0])
    train(saved, 3)
    path = tmp_path / "state.npz"
    training, warnings_in_training = loaded(saved, with_weights(new, state_dtypes[1]), reader, True, path)
    saved.eval()
    evaluating, messages = loaded(saved, with_weights(new, state_dtypes[1]), reader, params, path)
    hint = ", and params=True loads the weights too"
    assert [message.replace(hint, "") for message in messages] == warnings_in_training
    with refused(RuntimeError, "evaluation mode", evaluating):
        evaluating.step(evaluating.params)
    for own, param in zip(evaluating.params, saved.params):
        assert_same_bits([comparable(own)], [comparable(param.astype(own.dtype))])
    evaluating.train()
    assert_same(evaluating, training)
    train(evaluating, 1)
    train(training, 1)
    assert_same(evaluating, training)


@pytest.mark.skipif(BFLOAT16 is None, reason="needs ml_dtypes")
def test_averages_rounded_from_the_saved_averages_cause_no_warning(tmp_path: Path) -> None:
    saved = with_weights(None, None)
    train(saved, 3)
    saved.eval()
    saved.save(tmp_path / "state.npz", params=True)
    other = with_weights(32, None)
    for own, param in zip(other.params, saved.params):
        own[...] = param.astype(own.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load(tmp_path / "state.npz")
    other.params[1].view(np.uint16)[3] += 1
    with pytest.warns(UserWarning, match="other values or another dtype of parameter 1:"):
        other.load(tmp_path / "state.npz")


def test_copies_of_weights_are_stored_on_disk_if_the_state_is(tmp_path: Path) -> None:
    with onepass.state_dir(tmp_path):
        on_disk = made(np.float32, {})
    in_memory = made(np.float32, {})
    for optimizer in (on_disk, in_memory):
        train(optimizer, 2)
        optimizer.eval()
    base = on_disk.state[0]["y"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert type(getattr(base.base, "obj", base.base)).__name__ == "mmap"
    assert_same(on_disk, in_memory)
    train(on_disk, 1)
    train(in_memory, 1)
    assert_same(on_disk, in_memory)


def test_state_with_copies_of_only_some_weights_is_refused() -> None:
    optimizer = made(np.float32, {})
    train(optimizer, 1)
    optimizer.eval()
    saved = optimizer.state_dict()
    del saved["state"][1]["y"]
    other = made(np.float32, {})
    with refused(ValueError, "the state of parameter 1 is missing ['y']", other):
        other.load_state_dict(saved)
    other.eval()
    with refused(ValueError, "the state of parameter 1 is missing ['y']", other):
        other.load_state_dict(saved)


def test_a_copy_of_weights_with_another_shape_or_dtype_is_refused() -> None:
    optimizer = made(np.float32, {})
    optimizer.eval()
    for wrong in (ones(4), ones(5, dtype=np.float64)):
        saved = optimizer.state_dict()
        saved["state"][1]["y"] = wrong
        with refused(ValueError, "y of parameter 1", optimizer):
            optimizer.load_state_dict(saved)


def test_other_optimizers_refuse_a_copy_of_weights(tmp_path: Path) -> None:
    optimizer = onepass.Adam(ones(3))
    saved = optimizer.state_dict()
    saved["state"][0]["y"] = ones(3)
    with refused(ValueError, "has unknown ['y']", optimizer):
        optimizer.load_state_dict(saved)
    onepass._checkpoint.write(tmp_path / "state.npz", saved)
    with refused(ValueError, "has unknown ['y']", optimizer):
        optimizer.load(tmp_path / "state.npz")


def test_scalars_are_loaded_in_double_precision() -> None:
    optimizer = onepass.ScheduleFreeAdamW(ones(3), lr=0.1)
    for _ in range(3):
        optimizer.step(ones(3))
    other = onepass.ScheduleFreeAdamW(ones(3))
    other.load_state_dict(optimizer.state_dict())
    assert other.state[0]["lr_max"] == 0.1 and other.state[0]["weight_sum"] == optimizer.state[0]["weight_sum"]
    for name in ("lr_max", "weight_sum"):
        saved = optimizer.state_dict()
        saved["state"][0][name] = float("inf")
        with refused(ValueError, f"{name} of parameter 0: expected a finite number", other):
            other.load_state_dict(saved)
