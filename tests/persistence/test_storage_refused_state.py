"""Saved state in fewer bits that does not fit, or that was forged."""

from __future__ import annotations

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from checkpoint_files import archive, members_of, npy
from narrow_optimizers import NARROW, SHAPES, STATES, arrays, in_file, made, train
from onepass import _checkpoint
from support import assert_same_bits, bits, refused, snapshot


def test_loaded_options_that_the_storage_does_not_support_are_refused() -> None:
    donor = onepass.Adam(np.ones(5000, np.float32), betas=(0.995, 0.999))
    optimizer = onepass.Adam(np.ones(5000, np.float32), state_dtype="float8")
    with refused(ValueError, "betas[0]: expected at most 0.99 with state_dtype='float8', got 0.995", optimizer):
        optimizer.load_state_dict(donor.state_dict())
    optimizer.load_state_dict(donor.state_dict(), betas=(0.9, 0.999))
    with refused(TypeError, "unexpected keyword argument 'state_dtype'", optimizer):
        optimizer.load_state_dict(donor.state_dict(), state_dtype=None)


def scales_wrong() -> dict[str, Any]:
    """Return functions that make valid scales invalid. Valid scales are float32 numbers of at least 2**-117."""
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
def test_wrong_float8_scales_are_refused(wrong: str, own: Any, tmp_path: Path) -> None:
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
    """Change the JSON metadata of a file."""
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
def test_a_file_whose_storage_options_contradict_its_arrays_is_refused(
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
def test_a_state_dict_with_a_wrong_storage_option_is_refused(option: str) -> None:
    optimizer = made(None, state_dtype="float8")
    saved = optimizer.state_dict()
    for value in ("other", 7):
        saved["param_groups"][0][option] = value
        with pytest.raises((ValueError, TypeError), match=f"^{option} of group 0: expected .*, got "):
            optimizer.load_state_dict(saved)
    del saved["param_groups"][0][option]
    with refused(ValueError, f"group 0 is missing ['{option}']", optimizer):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16, np.float64, np.float16, np.uint32])
@pytest.mark.parametrize("own", STATES)
def test_moments_of_an_unsupported_dtype_are_refused(own: Any, dtype: Any) -> None:
    optimizer = made(None, state_dtype=own)
    saved = optimizer.state_dict()
    state = saved["state"][0]
    if dtype == np.uint16 or (dtype == np.uint8 and own == "float8"):
        return  # stored numbers
    state["exp_avg"] = np.zeros(SHAPES[0], dtype)
    with refused(ValueError, "exp_avg", optimizer):
        optimizer.load_state_dict(saved)
    state["exp_avg"] = "exp_avg"
    with refused(TypeError, "exp_avg of parameter 0: expected a NumPy array", optimizer):
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


@pytest.mark.parametrize("averages", ["ema", "ema_decay"])
@pytest.mark.parametrize("own", STATES)
def test_files_older_than_the_storage_options_can_be_loaded(own: Any, averages: str, tmp_path: Path) -> None:
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
    assert repr(saved) == repr(given)  # load_state_dict does not change its argument
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


def is_mapped(array: Any) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return type(getattr(array.base, "obj", array.base)).__name__ == "mmap"


@pytest.mark.parametrize("bits_of_weights", [None, 32, 24])
@pytest.mark.parametrize("state_dtype", NARROW)
def test_state_on_disk_is_bit_identical_to_state_in_memory(
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
