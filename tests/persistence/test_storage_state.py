"""State and parameters in fewer bits are saved exactly, resumed exactly, and converted to other storage to nearest."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from checkpoint_files import archive, members_of, npy
from onepass import _checkpoint
from onepass import _reference_storage as reference
from support import Array, assert_same_bits, bits, comparable, ordinary, refused, snapshot

NARROW: list[Any] = ["bfloat16", "float8"]
STATES: list[Any] = [None, *NARROW]
SHAPES: list[tuple[int, ...]] = [(70, 64), (5000,), (3, 5)]


def bfloat16() -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16


def made(bits_of_weights: int | None, order: Any = "C", **options: Any) -> onepass.Adam:
    """Return an optimizer of arrays in this order: float32 (None), or bfloat16 with so many bits."""
    rng = np.random.default_rng(0)
    params = [np.array(ordinary(rng, shape, np.float32), order=order) for shape in SHAPES]
    if bits_of_weights is None:
        return onepass.Adam(params, lr=0.1, **options)
    return onepass.Adam([p.astype(bfloat16()) for p in params], lr=0.1, master_bits=bits_of_weights, **options)


def train(optimizer: onepass.Optimizer, steps: int) -> None:
    """Take steps along gradients of very different sizes, which depend only on the number of the step."""
    for _ in range(steps):
        rng = np.random.default_rng(optimizer.step_count)
        sizes = [np.asarray(10 ** rng.uniform(-5, 1, p.shape), np.float32) for p in optimizer.params]
        optimizer.step([size * ordinary(rng, size.shape, np.float32) for size in sizes])


def arrays(optimizer: onepass.Optimizer, params: bool = True) -> list[Array]:
    states = [value for state in snapshot(optimizer) for value in state.values() if np.ndim(value)]
    return [comparable(np.asarray(a)) for a in [*(optimizer.params if params else []), *states]]


def with_weights_of(other: onepass.Adam, fresh: onepass.Adam) -> onepass.Adam:
    for own, param in zip(fresh.params, other.params):
        own[...] = param
    return fresh


def in_file(optimizer: onepass.Optimizer, path: Path, **options: Any) -> Path:
    optimizer.save(path, **options)
    return path


# What is stored is carried exactly.


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("bits_of_weights", [None, 32, 24, 16])
@pytest.mark.parametrize("state_dtype", STATES)
def test_resumed_training_has_the_bits_of_uninterrupted_training(
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
        warnings.simplefilter("error")  # the parameters are those that were saved
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


def test_the_seed_is_part_of_what_is_saved(tmp_path: Path) -> None:
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
    with refused(ValueError, "seed must be at least 0 and less than 2**64", other):
        other.load_state_dict({**one.state_dict(), "seed": 2**64})


def test_a_file_holds_the_stored_bits_and_numpy_reads_it(tmp_path: Path) -> None:
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


def test_arrays_of_ml_dtypes_load_as_stored_bits() -> None:
    optimizer = made(32, state_dtype="float8")
    train(optimizer, 1)
    saved = optimizer.state_dict(params=True)
    for index, state in optimizer.state.items():  # live views of ml_dtypes' dtypes
        saved["state"][index] = {**state, "param": optimizer.params[index]}
    other = made(32, state_dtype="float8")
    other.load_state_dict(copy.deepcopy(saved), params=True)
    assert_same_bits(arrays(other), arrays(optimizer))


def test_groups_of_different_storage_are_saved_together(tmp_path: Path) -> None:
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


# Other storage: decoded, and encoded to nearest in the order of memory.


def in_memory(array: Array) -> Array:
    return array.ravel(order="K")


def stored_to_nearest(state_dtype: Any, name: str, values: Array) -> list[Array]:
    """Return what stores float32 numbers, as `comparable` has it."""
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
def test_state_in_other_storage_is_converted_to_nearest(
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


def test_weights_of_float32_training_go_on_as_bfloat16_weights(tmp_path: Path) -> None:
    """The lower bits are zeros: the weights are what the bfloat16 parameters show."""
    for bits_of_weights in (32, 24, 16):
        plain, narrow = made(None, ema_decay=0.5), made(bits_of_weights, ema_decay=0.5, state_dtype="bfloat16")
        train(plain, 2)
        for own, param in zip(narrow.params, plain.params):
            own[...] = param.astype(own.dtype)
        train(narrow, 1)  # its own lower bits do not stay
        for reader in ("state dict", "file"):
            if reader == "file":
                with pytest.warns(UserWarning, match="saved with other values of parameter 0"):
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


@pytest.mark.parametrize("reader", ["state dict", "file"])
@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        (32, 24, "param_low of parameter 0: expected that of master_bits=24, got master_bits=32"),
        (24, 32, "param_low of parameter 0: expected that of master_bits=32, got master_bits=24"),
        (32, 16, "lower bits of bfloat16 parameters: create the optimizer with such parameters and its master_bits"),
        (24, 16, "lower bits of bfloat16 parameters: create the optimizer with such parameters and its master_bits"),
        (32, None, "lower bits of bfloat16 parameters: create the optimizer with such parameters and its master_bits"),
    ],
)
def test_lower_bits_that_would_be_lost_are_refused(
    saved: Any, own: Any, message: str, reader: str, tmp_path: Path
) -> None:
    donor, optimizer = made(saved), made(own)
    train(donor, 1)
    train(optimizer, 1)
    with refused(ValueError, message, optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reader == "file":
            optimizer.load(in_file(donor, tmp_path / "a.npz"))
        else:
            optimizer.load_state_dict(donor.state_dict())


def test_parameters_of_another_dtype_are_refused(tmp_path: Path) -> None:
    plain, narrow = made(None), made(16)
    for one, other, dtype in ((plain, narrow, "bfloat16 (as uint16)"), (narrow, plain, "float32")):
        with refused(
            ValueError, f"param of parameter 0: expected {'the parameter' if dtype == 'float32' else 'dtype'}", other
        ):
            other.load_state_dict(one.state_dict(params=True), params=True)
        with refused(ValueError, dtype, other):
            other.load(in_file(one, tmp_path / "a.npz", params=True), params=True)


def test_options_that_the_own_storage_cannot_serve_are_refused() -> None:
    donor = onepass.Adam(np.ones(5000, np.float32), betas=(0.995, 0.999))
    optimizer = onepass.Adam(np.ones(5000, np.float32), state_dtype="float8")
    with refused(ValueError, "state_dtype='float8' needs betas[0] of at most 0.99, got 0.995", optimizer):
        optimizer.load_state_dict(donor.state_dict())
    optimizer.load_state_dict(donor.state_dict(), betas=(0.9, 0.999))
    with refused(TypeError, "unexpected keyword argument 'state_dtype'", optimizer):
        optimizer.load_state_dict(donor.state_dict(), state_dtype=None)


# Damaged and forged.


def scales_wrong() -> dict[str, Any]:
    """Return functions that make scales wrong, of float32 numbers from 2**-117."""
    return {
        "missing": lambda s: None,
        "too few": lambda s: s[:-1].copy(),
        "too many": lambda s: np.append(s, s[:1]),
        "of two dimensions": lambda s: s.reshape(-1, 1),
        "float64": lambda s: s.astype(np.float64),
        "integers": lambda s: s.view(np.int32),
        "NaN": lambda s: np.where(np.arange(s.size) == 3, np.float32(np.nan), s),
        "infinite": lambda s: np.where(np.arange(s.size) == 3, np.float32(np.inf), s),
        "negative": lambda s: -s,
        "zero": lambda s: s * 0,
        "too large": lambda s: np.full_like(s, 1e36),
    }


@pytest.mark.parametrize("own", STATES)
@pytest.mark.parametrize("wrong", scales_wrong())
def test_wrong_scales_are_refused(wrong: str, own: Any, tmp_path: Path) -> None:
    donor, optimizer = made(None, state_dtype="float8"), made(None, state_dtype=own)
    train(donor, 1)
    train(optimizer, 1)
    path, key = in_file(donor, tmp_path / "a.npz"), "state/0/exp_avg_sq_scale.npy"
    saved = donor.state_dict()
    scales = scales_wrong()[wrong](saved["state"][0].pop("exp_avg_sq_scale"))
    members = members_of(path)
    if scales is None:
        del members[key]
    else:
        saved["state"][0]["exp_avg_sq_scale"] = scales
        members[key] = npy(scales)
    archive(path, members)
    with refused(ValueError, "exp_avg_sq_scale", optimizer):
        optimizer.load_state_dict(saved)
    with refused(ValueError, "cannot load", optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load(path)


def forged(path: Path, change: Any) -> None:
    """Change what a file holds as JSON."""
    members = members_of(path)
    scalars = json.loads(np.load(io.BytesIO(members["onepass.npy"])).tobytes())
    change(scalars)
    members["onepass.npy"] = npy(np.frombuffer(json.dumps(scalars).encode(), np.uint8))
    archive(path, members)


@pytest.mark.parametrize("own", STATES)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("state_dtype", "float9"),
        ("state_dtype", ["float8"]),
        ("state_dtype", {"a": 1}),
        ("state_dtype", None),
        ("state_dtype", "bfloat16"),
        ("master_bits", 7),
        ("rounding", "up"),
    ],
)
def test_a_file_with_another_option_of_storage_than_its_arrays_is_refused(
    option: str, value: Any, own: Any, tmp_path: Path
) -> None:
    donor, optimizer = made(None, state_dtype="float8"), made(None, state_dtype=own)
    train(donor, 1)
    path = in_file(donor, tmp_path / "a.npz")
    forged(path, lambda scalars: scalars["param_groups"][0].update({option: value}))
    with refused(ValueError, "cannot load", optimizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load(path)


@pytest.mark.parametrize("option", ["state_dtype", "master_bits", "rounding"])
def test_a_state_dict_with_a_wrong_option_of_storage_is_refused(option: str) -> None:
    optimizer = made(None, state_dtype="float8")
    saved = optimizer.state_dict()
    for value in ("other", 7):
        saved["param_groups"][0][option] = value
        with pytest.raises((ValueError, TypeError), match=f"{option} of group 0 must be"):
            optimizer.load_state_dict(saved)
    del saved["param_groups"][0][option]
    with refused(ValueError, f"group 0 lacks ['{option}']", optimizer):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16, np.float64, np.float16, np.uint32])
@pytest.mark.parametrize("own", STATES)
def test_moments_of_a_dtype_that_stores_nothing_are_refused(own: Any, dtype: Any) -> None:
    optimizer = made(None, state_dtype=own)
    saved = optimizer.state_dict()
    state = saved["state"][0]
    if dtype == np.uint16 or (dtype == np.uint8 and own == "float8"):
        return  # stored numbers
    state["exp_avg"] = np.zeros(SHAPES[0], dtype)
    with refused(ValueError, "exp_avg", optimizer):
        optimizer.load_state_dict(saved)
    state["exp_avg"] = "exp_avg"
    with refused(TypeError, "exp_avg of parameter 0 must be a NumPy array", optimizer):
        optimizer.load_state_dict(saved)


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    donor, optimizer = made(24, state_dtype="float8"), made(24, state_dtype="bfloat16")
    train(donor, 1)
    path = in_file(donor, tmp_path / "a.npz")
    whole = path.read_bytes()
    for size in range(0, len(whole), len(whole) // 37):
        path.write_bytes(whole[:size])
        with refused(ValueError, "cannot load", optimizer):
            optimizer.load(path)


# Files of before these options.


@pytest.mark.parametrize("averages", ["ema", "ema_decay"])
@pytest.mark.parametrize("own", STATES)
def test_files_of_before_these_options_load(own: Any, averages: str, tmp_path: Path) -> None:
    old, optimizer = made(None, ema_decay=0.5), made(None, state_dtype=own, ema_decay=0.25, seed=9)
    train(old, 2)
    saved = old.state_dict(params=True)
    del saved["seed"]
    for group in saved["param_groups"]:
        for name in ("state_dtype", "master_bits", "rounding"):
            del group[name]
        group[averages] = group.pop("ema_decay")
    given = copy.deepcopy(saved)
    _checkpoint.write(tmp_path / "a.npz", saved)
    same = copy.deepcopy(optimizer)
    optimizer.load_state_dict(saved, params=True)
    assert repr(saved) == repr(given)  # the caller's is unchanged
    same.load(tmp_path / "a.npz", params=True)
    for loaded in (optimizer, same):
        assert (loaded.seed, loaded.ema_decay, loaded.state_dtype, loaded.step_count) == (0, 0.5, own, 2)
        assert_same_bits(loaded.params, old.params)
    assert_same_bits(arrays(same), arrays(optimizer))
    if own is None:
        assert_same_bits(arrays(optimizer), arrays(old))
    for loaded in (optimizer, same):
        train(loaded, 1)
    assert_same_bits(arrays(same), arrays(optimizer))


# State in files.


def is_mapped(array: Any) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return type(getattr(array.base, "obj", array.base)).__name__ == "mmap"


@pytest.mark.parametrize("bits_of_weights", [None, 32, 24])
@pytest.mark.parametrize("state_dtype", NARROW)
def test_state_on_disk_has_the_bits_of_state_in_memory(
    state_dtype: Any, bits_of_weights: int | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"state_dtype": state_dtype, "ema_decay": 0.5}
    (tmp_path / "state").mkdir()
    with onepass.state_dir(tmp_path / "state"):
        on_disk = made(bits_of_weights, "F", **options)
    in_ram = made(bits_of_weights, "F", **options)
    for optimizer in (on_disk, in_ram):
        train(optimizer, 2)
    assert_same_bits(arrays(on_disk), arrays(in_ram))
    for one, other in zip(snapshot(on_disk), snapshot(in_ram)):
        names = [name for name in one if np.ndim(one[name])]
        assert all(is_mapped(one[name]) and not is_mapped(other[name]) for name in names)
    path = in_file(on_disk, tmp_path / "a.npz", params=True)
    train(on_disk, 1)
    on_disk.load(path, params=True)
    assert_same_bits(arrays(on_disk), arrays(in_ram))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_disk.load(in_file(made(bits_of_weights, "F", ema_decay=0.5), tmp_path / "b.npz"))  # float32 state
    assert all(is_mapped(on_disk.state[0][name]) for name in ("exp_avg", "exp_avg_sq"))
    assert not bits(on_disk.state[0]["exp_avg"]).any() and on_disk.step_count == 0
    if os.name == "posix":
        assert not list((tmp_path / "state").iterdir())
