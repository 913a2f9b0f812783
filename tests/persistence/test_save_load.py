"""Checkpoint files hold every bit of the state, in a format that NumPy reads."""

from __future__ import annotations

import copy
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_files import SHAPES, allocating_at_most, assert_equal, small_state, state_of
from onepass import _checkpoint
from support import DTYPES, hostile


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loaded_checkpoint_is_bit_identical_to_the_saved_state(tmp_path: Path, dtype: Any, order: Any) -> None:
    rng = np.random.default_rng(0)
    state = state_of(*(np.array(hostile(rng, shape, dtype), order=order) for shape in SHAPES), mu_product=0.1 + 0.7)
    _checkpoint.write(tmp_path / "x", state)
    before = copy.deepcopy(state)
    found = _checkpoint.read(tmp_path / "x", state)
    assert_equal(found, before)
    assert_equal(state, before)
    for i, entry in found["state"].items():
        assert not np.shares_memory(entry["exp_avg"], state["state"][i]["exp_avg"])


def test_arrays_longer_than_a_chunk_are_saved_and_loaded(tmp_path: Path) -> None:
    state = state_of(np.random.default_rng(0).standard_normal((3, 50_001)))
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


@pytest.mark.parametrize("shape", [(2, 3, 4), (301, 303)])
@pytest.mark.parametrize(("written", "read"), ["CF", "FC"])
def test_arrays_are_loaded_in_the_memory_order_of_the_optimizer(
    tmp_path: Path, written: Any, read: Any, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    _checkpoint.write(tmp_path / "x", state_of(np.array(x, order=written)))
    like = state_of(np.array(x, order=read))
    assert_equal(_checkpoint.read(tmp_path / "x", like), like)


def test_arrays_that_are_not_contiguous_can_be_saved(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(4, 6)[:, ::2]
    _checkpoint.write(tmp_path / "x", state_of(x))
    assert_equal(_checkpoint.read(tmp_path / "x", state_of(x.copy())), state_of(x.copy()))


def test_a_learning_rate_of_none_can_be_saved_and_replaced(tmp_path: Path) -> None:
    state, like = small_state(), small_state()
    state["param_groups"][0]["lr"] = None
    _checkpoint.write(tmp_path / "x", state)
    assert _checkpoint.read(tmp_path / "x", like)["param_groups"][0]["lr"] is None
    like["param_groups"][0]["lr"] = None
    _checkpoint.write(tmp_path / "x", small_state())
    assert _checkpoint.read(tmp_path / "x", like)["param_groups"][0]["lr"] == 0.1 + 0.2


@pytest.mark.parametrize("groups", [1, 2000])
def test_many_parameters_and_groups_are_saved_and_loaded(tmp_path: Path, groups: int) -> None:
    state = state_of(*(np.array(i, np.float32) for i in range(2000)))
    own = state["param_groups"][0]
    state["param_groups"] = [{**own, "params": list(map(int, p))} for p in np.array_split(np.arange(2000), groups)]
    if groups > 1:  # plain SGD has no arrays
        state["state"] = {i: {"step": entry["step"]} for i, entry in state["state"].items()}
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


def test_metadata_may_be_longer_than_that_of_the_loading_optimizer(tmp_path: Path) -> None:
    like, state = (state_of(*np.zeros((5000, 0))) for _ in range(2))
    for own, step, lr in [(like, 0, 0.0), (state, 2**53, 2.2250738585072014e-308)]:
        own["param_groups"] = [{"params": [i], "lr": lr, "betas": (lr, lr), "state_dtype": None} for i in range(5000)]
        own["state"] = {i: {"step": step} for i in range(5000)}
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", like), state)


def test_numpy_reads_a_checkpoint_without_pickle(saved: Path) -> None:
    state = small_state()
    with np.load(saved, allow_pickle=False) as file:
        assert set(file.files) == {"onepass", *(f"state/{i}/{n}" for i in (0, 1) for n in ("exp_avg", "exp_avg_sq"))}
        assert_equal(file["state/0/exp_avg"], state["state"][0]["exp_avg"])
        scalars = json.loads(bytes(file["onepass"]))
    assert scalars["optimizer"] == "AdamW" and scalars["state"] == [{"step": 12}] * 2
    assert scalars["param_groups"][0]["lr"] == 0.1 + 0.2


def test_a_checkpoint_that_numpy_saved_again_can_be_read(saved: Path, tmp_path: Path) -> None:
    with np.load(saved) as file:
        np.savez(tmp_path / "again.npz", **dict(file))
    assert_equal(_checkpoint.read(tmp_path / "again.npz", small_state()), small_state())


def test_equal_states_are_saved_as_equal_files(saved: Path, tmp_path: Path) -> None:
    state = small_state()
    state["state"] = {1: dict(reversed(state["state"][1].items())), 0: state["state"][0]}
    _checkpoint.write(tmp_path / "other", dict(reversed(state.items())))
    assert (tmp_path / "other").read_bytes() == saved.read_bytes()


def test_archive_members_are_uncompressed_and_have_a_fixed_date(saved: Path) -> None:
    with zipfile.ZipFile(saved) as file:
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)


def test_archives_beyond_the_size_limit_of_zip_use_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    state = state_of(np.arange(1000.0), np.arange(500.0))
    _checkpoint.write(tmp_path / "x", state)
    monkeypatch.undo()
    assert b"PK\x06\x06" in (tmp_path / "x").read_bytes()
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


def test_no_suffix_is_added_to_the_path(tmp_path: Path) -> None:
    for path in [tmp_path / "a", str(tmp_path / "b.ckpt"), tmp_path / "c.npz"]:
        _checkpoint.write(path, small_state())
        assert_equal(_checkpoint.read(path, small_state()), small_state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.ckpt", "c.npz"]


def test_a_path_without_a_folder_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 255  # the longest that there may be
    _checkpoint.write(name, small_state())
    assert_equal(_checkpoint.read(name, small_state()), small_state())


def test_reading_allocates_one_copy_of_the_state_and_writing_none(tmp_path: Path) -> None:
    x = np.zeros((2500, 2500), np.float32)
    state = state_of(x)
    size = 2 * x.nbytes
    assert size == 50_000_000
    with allocating_at_most(1 << 20):
        _checkpoint.write(tmp_path / "x", state)
    with allocating_at_most(size + (1 << 20)):
        _checkpoint.read(tmp_path / "x", state)
    transposed = state_of(np.asfortranarray(x))
    with allocating_at_most(size + (1 << 20)):
        _checkpoint.read(tmp_path / "x", transposed)
