"""State in fewer bits through state dicts, files, pickles and copies."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from narrow_optimizers import STATES, arrays, bfloat16, in_file, made, train, with_weights_of
from onepass._reference import storage as reference
from support import Array, assert_same_bits, bits, comparable, refused


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("bits_of_weights", [None, 32, 24, 16])
@pytest.mark.parametrize("state_dtype", STATES)
def test_resumed_training_is_bit_identical_to_uninterrupted_training(
    state_dtype: Any, bits_of_weights: int | None, order: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"state_dtype": state_dtype, "ema_decay": 0.9}

    def fresh() -> onepass.Adam:
        return made(bits_of_weights, order, **options)

    uninterrupted = made(bits_of_weights, order, **options, seed=2**64 - 3)
    train(uninterrupted, 2)
    resumed = {
        "state dict": with_weights_of(uninterrupted, fresh()),
        "state dict with parameters": fresh(),
        "pickled state dict": fresh(),
        "file": with_weights_of(uninterrupted, fresh()),
        "file with parameters": fresh(),
        "pickle": pickle.loads(pickle.dumps(uninterrupted)),
        "old pickle": pickle.loads(pickle.dumps(uninterrupted, protocol=2)),
        "copy": copy.deepcopy(uninterrupted),
    }
    resumed["state dict"].load_state_dict(uninterrupted.state_dict())
    resumed["state dict with parameters"].load_state_dict(uninterrupted.state_dict(params=True), params=True)
    saved = pickle.loads(pickle.dumps(uninterrupted.state_dict(params=True)))
    resumed["pickled state dict"].load_state_dict(saved, params=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the parameters equal the saved parameters
        resumed["file"].load(in_file(uninterrupted, tmp_path / "a.npz"))
    resumed["file with parameters"].load(in_file(uninterrupted, tmp_path / "b.npz", params=True), params=True)
    for how, optimizer in resumed.items():
        assert_same_bits(arrays(optimizer), arrays(uninterrupted), how)
        assert optimizer.seed == 2**64 - 3, how
        assert [p.flags.f_contiguous for p in optimizer.params] == [p.flags.f_contiguous for p in uninterrupted.params]
    train(uninterrupted, 2)
    for how, optimizer in resumed.items():
        train(optimizer, 2)
        assert_same_bits(arrays(optimizer), arrays(uninterrupted), how)


def test_load_restores_the_seed_unless_a_seed_is_given(tmp_path: Path) -> None:
    one, other = (made(None, state_dtype="float8", seed=seed) for seed in (1, 2))
    train(one, 1)
    train(other, 1)
    assert bits(one.state[0]["exp_avg"]).tolist() != bits(other.state[0]["exp_avg"]).tolist()
    other.load_state_dict(one.state_dict(), seed=7)
    assert other.seed == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.load(in_file(one, tmp_path / "a.npz"), seed=8)
    assert other.seed == 8
    with refused(ValueError, "seed: expected at least 0 and less than 2**64", other):
        other.load_state_dict({**one.state_dict(), "seed": 2**64})


def test_numpy_reads_the_encoded_arrays_of_a_file(tmp_path: Path) -> None:
    optimizer = made(24, state_dtype="float8")
    train(optimizer, 1)
    with np.load(in_file(optimizer, tmp_path / "a.npz", params=True)) as file:
        found = {name: (file[name].dtype.name, file[name].shape) for name in file.files if name.startswith("state/0/")}
    assert found == {
        "state/0/exp_avg": ("uint8", (70, 64)),
        "state/0/exp_avg_scale": ("float32", (35,)),
        "state/0/exp_avg_sq": ("uint8", (70, 64)),
        "state/0/exp_avg_sq_scale": ("float32", (35,)),
        "state/0/param": ("uint16", (70, 64)),
        "state/0/param_low": ("int8", (70, 64)),
    }
    wide = sum(value.nbytes for value in optimizer.state_dict()["state"][1].values() if np.ndim(value))
    assert wide == 5000 * 3 + 2 * 4 * 40


def test_state_dicts_of_ml_dtypes_arrays_can_be_loaded() -> None:
    optimizer = made(32, state_dtype="float8")
    train(optimizer, 1)
    saved = optimizer.state_dict(params=True)
    for index, state in optimizer.state.items():  # live views of ml_dtypes' dtypes
        saved["state"][index] = {**state, "param": optimizer.params[index]}
    other = made(32, state_dtype="float8")
    other.load_state_dict(copy.deepcopy(saved), params=True)
    assert_same_bits(arrays(other), arrays(optimizer))


def test_groups_of_different_storage_are_saved_and_copied_together(tmp_path: Path) -> None:
    def groups() -> onepass.SGD:
        params = [np.ones((80, 70), np.float32), np.ones(5000, np.float32), np.ones(4096), np.ones(6000, bfloat16())]
        kinds: list[dict[str, Any]] = [{"state_dtype": "float8"}, {"state_dtype": "bfloat16"}, {}, {"master_bits": 24}]
        return onepass.SGD([{"params": p, **kind} for p, kind in zip(params, kinds)], lr=0.1, momentum=0.9)

    one, other = groups(), groups()
    train(one, 3)
    other.load(in_file(one, tmp_path / "a.npz", params=True), params=True)
    assert_same_bits(arrays(other), arrays(one))
    copied = pickle.loads(pickle.dumps(one))
    for optimizer in (one, other, copied):
        train(optimizer, 1)
    assert_same_bits(arrays(other), arrays(one))
    assert_same_bits(arrays(copied), arrays(one))


def in_memory(array: Array) -> Array:
    return array.ravel(order="K")


def stored_to_nearest(state_dtype: Any, name: str, values: Array) -> list[Array]:
    """Return the stored form of float32 numbers, in the form of `comparable`."""
    if state_dtype is None:
        return [values]
    if state_dtype == "bfloat16":
        return [comparable(reference.encode_bfloat16(values, None))]
    codes, scales = reference.encode_float8(values, None, name == "exp_avg_sq")
    return [comparable(codes), scales]


@pytest.mark.parametrize("reader", ["state dict", "file"])
@pytest.mark.parametrize("orders", ["CC", "FF", "CF", "FC"])
@pytest.mark.parametrize("new", STATES)
@pytest.mark.parametrize("old", STATES)
def test_loading_rounds_state_of_another_storage_to_nearest(
    old: Any, new: Any, orders: str, reader: str, tmp_path: Path
) -> None:
    saved, other = made(None, orders[0], state_dtype=old), made(None, orders[1], state_dtype=new)
    train(saved, 2)
    if reader == "file":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other parameters
            other.load(in_file(saved, tmp_path / "a.npz"))
    else:
        other.load_state_dict(saved.state_dict())
    assert other.state_dtype == new and other.step_count == 2
    for index, state in other.state.items():
        assert state["step"] == 2
        for name in ("exp_avg", "exp_avg_sq"):
            found = [comparable(in_memory(state[name]))]
            if new == "float8" and index < 2:
                found.append(state[f"{name}_scale"])
            order: Any = "F" if other.params[index].flags.f_contiguous else "C"
            if old == new and (index or orders[0] == orders[1] or new != "float8"):
                kept = saved.state[index][name].ravel(order=order)
                expected = [comparable(kept)] + ([saved.state[index][f"{name}_scale"]] if len(found) > 1 else [])
            else:
                values = saved.decoded_state(index)[name].ravel(order=order)
                expected = stored_to_nearest(new if index < 2 else None, name, values)
            assert_same_bits(found, expected, (index, name))
    train(other, 1)


def test_training_in_float32_continues_with_bfloat16_weights(tmp_path: Path) -> None:
    """Expect lower bits of zero: the weights equal the bfloat16 parameters."""
    for bits_of_weights in (32, 24, 16):
        plain, narrow = made(None, ema_decay=0.5), made(bits_of_weights, ema_decay=0.5, state_dtype="bfloat16")
        train(plain, 2)
        for own, param in zip(narrow.params, plain.params):
            own[...] = param.astype(own.dtype)
        train(narrow, 1)  # sets lower bits, which a load replaces
        for reader in ("state dict", "file"):
            if reader == "file":
                with pytest.warns(UserWarning, match="saved with other values or another dtype of parameter 0"):
                    narrow.load(in_file(plain, tmp_path / "a.npz"))
            else:
                narrow.load_state_dict(plain.state_dict())
            for index, state in narrow.state.items():
                assert not np.any(state.get("param_low", 0))
                assert_same_bits([narrow.ema[index]], [plain.ema[index]])
        train(narrow, 1)
    sixteen, exact = made(16), made(32)
    train(sixteen, 2)
    train(exact, 2)
    for own, param in zip(exact.params, sixteen.params):
        own[...] = param
    exact.load(in_file(sixteen, tmp_path / "b.npz", params=True), params=True)
    assert not exact.state[0]["param_low"].any() and (exact.params[0] == sixteen.params[0]).all()


@pytest.mark.parametrize("other", STATES)
@pytest.mark.parametrize("state_dtype", STATES)
def test_files_with_moments_in_two_storages_load_into_any_storage(state_dtype: Any, other: Any, tmp_path: Path) -> None:
    made = [onepass.AdEMAMix(np.ones(5000, np.float32), state_dtype=name) for name in (state_dtype, other)]
    made[0].step(np.linspace(-1, 1, 5000, dtype=np.float32))
    made[0].save(tmp_path / "state.npz")
    made[1].params[...] = made[0].params
    made[1].load(tmp_path / "state.npz")
    slow = [optimizer.decoded_state(0)["exp_avg_slow"] for optimizer in made]
    np.testing.assert_allclose(slow[1], slow[0], rtol=2**-8)
