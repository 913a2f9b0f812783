"""Weights and their lower bits in another storage, loaded from state dicts and files."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from checkpoint_files import allocating_at_most, archive, members_of
from narrow_optimizers import STATES, arrays, bfloat16, in_file, made, train
from onepass import _allocate, _conversion, _storage
from onepass._reference import storage as reference
from support import Array, assert_same_bits, bits, refused, snapshot

WEIGHTS: list[Any] = [None, 32, 24, 16]  # float32, or bfloat16 with so many bits
EDGES = [-32768, -32767, -129, -128, -127, -1, 0, 1, 127, 128, 129, 32511, 32512, 32639, 32640, 32641, 32767]


def trained(bits_of_weights: int | None, order: Any = "C", **options: Any) -> onepass.Adam:
    """Return an optimizer after two steps; the lower bits have values next to rounding ties."""
    optimizer = made(bits_of_weights, order, **options)
    train(optimizer, 2)
    edges = np.array(EDGES, np.int16)
    if bits_of_weights is None:
        own = optimizer.params[0].view(np.uint32)[0, : len(EDGES)]
        own[...] = (own & np.uint32(0xFFFF0000)) | edges.view(np.uint16)
    elif bits_of_weights == 32:
        optimizer.state[0]["param_low"][0, : len(EDGES)] = edges
    return optimizer


def joined(optimizer: onepass.Optimizer, index: int) -> Array:
    """Return a parameter's weights in float32."""
    param, low = optimizer.params[index], optimizer.state[index].get("param_low")
    if param.dtype == np.float32:
        return param
    high = bits(param)
    if low is None:
        return reference.decode_bfloat16(high)
    return reference.join(high, low) if low.dtype == np.int16 else reference.join24(high, low)


def other_half(high: Array, values: Array, bits_of_weights: int) -> Array | None:
    """Return the lower bits of float32 weights next to given bfloat16 weights."""
    if bits_of_weights == 16:
        return None
    if bits_of_weights == 32:
        return reference.split(values)[1]
    rounded, low = reference.split24(values, None)
    return np.where(rounded == high, low, np.int8(127))  # the bfloat16 weight would become the next one


def expected_weights(saved: onepass.Optimizer, index: int, new: int | None, params: bool, own: Array) -> list[Any]:
    """Return the expected weights and lower bits after a load; own are the weights before the load."""
    param, values = saved.params[index], joined(saved, index)
    if new is None:
        return [values if params else own, None]
    if param.dtype != np.float32 and (new == 16 or not params):
        return [bits(param), other_half(bits(param), values, new)]
    if not params:
        return [bits(own), None if new == 16 else np.zeros(param.shape, _storage.LOW_DTYPES[new])]
    if new == 16:
        return [reference.encode_bfloat16(values, None), None]
    return [*(reference.split(values) if new == 32 else reference.split24(values, None))]


def loses(saved: onepass.Optimizer, found: onepass.Optimizer, index: int, params: bool) -> bool:
    """Return True if a load has lost bits of a parameter."""
    if not params and saved.params[index].dtype == np.float32:
        return False  # the file holds no weights
    return bits(joined(saved, index)).tobytes() != bits(joined(found, index)).tobytes()


def loaded(optimizer: onepass.Optimizer, saved: onepass.Optimizer, reader: str, params: bool, path: Path) -> list[str]:
    """Load, and return the warnings."""
    options: dict[str, Any] = {"params": True} if params else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if reader == "file":
            optimizer.load(in_file(saved, path, **options), **options)
        else:
            optimizer.load_state_dict(saved.state_dict(**options), **options)
    assert all(each.category is UserWarning and each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("orders", ["CC", "CF", "FC"])
@pytest.mark.parametrize("params", [False, True])
@pytest.mark.parametrize("reader", ["state dict", "file"])
@pytest.mark.parametrize("new", WEIGHTS)
@pytest.mark.parametrize("old", WEIGHTS)
def test_loading_rounds_weights_of_another_storage_to_nearest(
    old: Any, new: Any, reader: str, params: bool, orders: str, tmp_path: Path
) -> None:
    for state_dtypes in itertools.product(STATES, STATES) if orders == "CC" else [(None, "float8")]:
        saved = trained(old, orders[0], state_dtype=state_dtypes[0])
        optimizer = made(new, orders[1], state_dtype=state_dtypes[1])
        for own, param in zip(optimizer.params, saved.params):
            own[...] = param.astype(own.dtype)
        before = copy.deepcopy(optimizer.params)
        messages = loaded(optimizer, saved, reader, params, tmp_path / "a.npz")
        if reader == "file" and not params and old is None and new is not None:  # the file has only their checksum
            assert "was saved with other values or another dtype of parameter 0, parameter 1" in messages.pop(0)
        for index, own in enumerate(before):
            weights, low = expected_weights(saved, index, new, params, own)
            assert_same_bits([bits(optimizer.params[index])], [bits(weights)], (index, state_dtypes))
            found = optimizer.state[index].get("param_low")
            assert (found is None) == (low is None)
            if found is not None:
                assert_same_bits([found], [low], (index, state_dtypes))
        lost = [f"parameter {index}" for index in range(3) if loses(saved, optimizer, index, params)]
        assert len(messages) == bool(lost)
        assert not lost or f"the weights of {', '.join(lost)} have more bits" in messages[0]
        assert optimizer.step_count == 2
        train(optimizer, 1)


@pytest.mark.parametrize("reader", ["state dict", "file"])
@pytest.mark.parametrize(("old", "new"), [(32, 24), (32, 16), (24, 16), (32, None), (24, None)])
def test_lower_bits_that_are_zero_are_dropped_without_a_warning(
    old: int, new: int | None, reader: str, tmp_path: Path
) -> None:
    saved, optimizer = made(old), made(new)
    for own, param in zip(optimizer.params, saved.params):
        own[...] = param.astype(own.dtype)
    assert not loaded(optimizer, saved, reader, False, tmp_path / "a.npz")
    saved.state[1]["param_low"][7] = 1 if old == 32 or new != 24 else 0
    (message,) = loaded(optimizer, saved, reader, False, tmp_path / "a.npz")
    assert "weights of parameter 1 have more bits than this optimizer stores" in message


@pytest.mark.parametrize("old", [32, 24, 16])
def test_float32_weights_equal_to_the_saved_joined_halves_cause_no_warning(old: int, tmp_path: Path) -> None:
    saved, optimizer = trained(old), made(None)
    for index, own in enumerate(optimizer.params):
        own[...] = joined(saved, index)
    assert not loaded(optimizer, saved, "file", False, tmp_path / "a.npz")
    assert not loaded(optimizer, saved, "state dict", False, tmp_path / "a.npz")
    optimizer.params[1].view(np.uint32)[3] ^= 1
    messages = loaded(optimizer, saved, "file", False, tmp_path / "a.npz")
    assert "other values or another dtype of parameter 1:" in messages[0]
    assert len(messages) == (1 if old == 16 else 2)


@pytest.mark.parametrize("bits_of_weights", [32, 24, 16])
def test_bfloat16_weights_rounded_from_the_saved_weights_get_lower_bits(bits_of_weights: int, tmp_path: Path) -> None:
    saved = trained(None)
    values = saved.params[0].view(np.uint32)
    values[1, :4] = 0x3F808000, 0x3F818000, 0xBF808000, 0x7F7FFFFF  # ties; the largest number rounds to infinity
    values[2, :4] = 0x7F800000, 0x80000000, 0x7FC00001, 0x7FF00001
    path = in_file(saved, tmp_path / "a.npz", params=True)
    saved_dict = saved.state_dict(params=True)
    for rounding in ("even", "away"):
        optimizer = made(bits_of_weights)
        for own, param in zip(optimizer.params, saved.params):
            own[...] = param.astype(own.dtype)
            if rounding == "away":
                own.view(np.uint16)[...] = reference.split(param)[0]
        high = [bits(own).copy() for own in optimizer.params]
        for reader in ("state dict", "file"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if reader == "file":
                    optimizer.load(path)
                else:
                    optimizer.load_state_dict(saved_dict)
            assert_same_bits([bits(own) for own in optimizer.params], high)
            assert not any("other values" in str(each.message) for each in caught)
            lost = [
                index
                for index in range(3)
                if bits_of_weights != 16
                and np.any((joined(optimizer, index) != saved.params[index]) & ~np.isnan(saved.params[index]))
            ]
            assert len(caught) == bool(lost)
            assert all(f"parameter {index}" in str(caught[0].message) for index in lost)
            for index, param in enumerate(saved.params) if bits_of_weights != 16 else ():
                low = optimizer.state[index]["param_low"].astype(np.int32) << (0 if bits_of_weights == 32 else 8)
                exact = (bits(param) - (high[index].astype(np.uint32) << 16)).view(np.int32)
                largest, unit = (32767, 0) if bits_of_weights == 32 else (127 * 256, 128)
                error = np.where(np.isnan(param), 0, low - exact)
                assert (abs(error) <= np.where(exact > largest, 32768 - largest, unit)).all()
    assert "parameter 0" not in str(lost) or rounding == "away"


@pytest.mark.parametrize("change", [1, -1])
@pytest.mark.parametrize("bits_of_weights", [32, 24, 16])
def test_bfloat16_weights_that_differ_from_the_file_get_no_lower_bits(
    bits_of_weights: int, change: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_conversion, "ROWS_SIZE", 1000)  # elements; the changed weight is in the last part
    saved, optimizer = trained(None), trained(bits_of_weights)
    for own, param in zip(optimizer.params, saved.params):
        own[...] = param.astype(own.dtype)
    optimizer.params[1].view(np.int16)[4999] += change  # the saved weight is not a tie, so no rounding gives this value
    path = in_file(saved, tmp_path / "a.npz", params=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load(path)
    assert "was saved with other values or another dtype of parameter 1:" in str(caught[0].message)
    if bits_of_weights != 16:
        assert not optimizer.state[1]["param_low"].any()
        assert optimizer.state[0]["param_low"].any() and optimizer.state[2]["param_low"].any()


@pytest.mark.parametrize("reader", ["state dict", "file"])
def test_the_warning_names_the_only_parameter_without_lower_bits(reader: str, tmp_path: Path) -> None:
    saved, optimizer = trained(32), trained(32)
    entry = saved.state_dict()
    del entry["state"][1]["param_low"]
    members = members_of(in_file(saved, tmp_path / "a.npz"))
    del members["state/1/param_low.npy"]
    archive(tmp_path / "a.npz", members)
    load = (
        (lambda: optimizer.load(tmp_path / "a.npz")) if reader == "file" else lambda: optimizer.load_state_dict(entry)
    )
    for own, param in zip(optimizer.params, saved.params):
        own[...] = param
    with pytest.warns(UserWarning, match="the lower bits of parameter 1 are missing: they start at zero") as caught:
        load()
    assert len(caught) == 1
    assert not optimizer.state[1]["param_low"].any()
    assert_same_bits([optimizer.state[0]["param_low"]], [saved.state[0]["param_low"]])


def test_parameters_saved_without_lower_bits_start_at_zero_without_a_warning() -> None:
    def groups(*bits_of_weights: int) -> onepass.SGD:
        params = [np.ones(500, bfloat16()) for _ in bits_of_weights]
        return onepass.SGD([{"params": p, "master_bits": n} for p, n in zip(params, bits_of_weights)], lr=0.3)

    saved, optimizer = groups(32, 16), groups(32, 32)
    train(saved, 1)
    train(optimizer, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved.state_dict())
    assert optimizer.state[0]["param_low"].any() and not optimizer.state[1]["param_low"].any()


@pytest.mark.parametrize("reader", ["state dict", "file"])
def test_a_load_whose_warning_is_an_error_changes_nothing(reader: str, tmp_path: Path) -> None:
    saved, optimizer = trained(32), trained(24)
    for own, param in zip(optimizer.params, saved.params):
        own[...] = param
    path = in_file(saved, tmp_path / "a.npz")
    with refused(UserWarning, "more bits than this optimizer stores", optimizer), warnings.catch_warnings():
        warnings.simplefilter("error")
        if reader == "file":
            optimizer.load(path)
        else:
            optimizer.load_state_dict(saved.state_dict())


def test_scalar_and_empty_weights_are_converted() -> None:
    for old, new in itertools.product(WEIGHTS, WEIGHTS):
        pair = []
        for each in (old, new):
            dtype: Any = np.float32 if each is None else bfloat16()
            params = [np.full((), -1.7, dtype), np.zeros((0, 3), dtype)]
            pair.append(onepass.SGD(params, lr=0.01, momentum=0.5, master_bits=each or 32))
        pair[0].step([np.full((), 0.3, np.float32), np.zeros((0, 3), np.float32)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair[1].load_state_dict(pair[0].state_dict(params=True), params=True)
        precision = 2.0 ** -(8 if 16 in (old, new) else 16 if 24 in (old, new) else 24)
        assert abs(joined(pair[1], 0) / joined(pair[0], 0) - 1) <= precision


def test_lower_bits_of_float32_or_float64_weights_are_refused() -> None:
    saved, optimizer = trained(32).state_dict(params=True), made(32)
    saved["state"][0]["param"] = np.zeros((70, 64), np.float32)
    with refused(ValueError, "the state of parameter 0: it holds the lower bits of bfloat16 parameters", optimizer):
        optimizer.load_state_dict(saved, params=True)
    wide = onepass.Adam([p.astype(np.float64) for p in made(None).params])
    with refused(ValueError, "create the optimizer with bfloat16 or float32 parameters", wide):
        wide.load_state_dict(trained(32).state_dict())


# ---- State on disk ----


def on_disk(folder: Path, count: int = 24, **options: Any) -> onepass.Adam:
    with onepass.state_dir(folder):
        params = [np.full((512, 512), 1.25, np.float32 if options.get("wide") else bfloat16()) for _ in range(count)]
        return onepass.Adam(params, lr=0.1, **{name: value for name, value in options.items() if name != "wide"})


@pytest.mark.parametrize("reader", ["state dict", "file"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"wide": True}, {"state_dtype": "float8"}),
        ({"state_dtype": "float8"}, {"state_dtype": "bfloat16", "master_bits": 24}),
        ({"state_dtype": "bfloat16", "master_bits": 24}, {"wide": True}),
    ],
)
def test_converting_state_on_disk_needs_memory_for_one_parameter(
    old: dict[str, Any], new: dict[str, Any], reader: str, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    saved, optimizer = on_disk(tmp_path / "state", **old), on_disk(tmp_path / "state", **new)
    saved.step([np.full((512, 512), 0.3, np.float32)] * 24)
    path, entries = in_file(saved, tmp_path / "a.npz", params=True), saved.state_dict(params=True)
    in_memory = 512 * 512 * (4 + 4 + 4 + 4)  # the arrays of one parameter in float32, and one array while it is encoded
    limit = in_memory + (3 << 20)
    assert sum(x.nbytes for state in snapshot(optimizer) for x in state.values() if np.ndim(x)) > 1.5 * limit
    with warnings.catch_warnings(), allocating_at_most(limit):
        warnings.simplefilter("ignore")
        if reader == "file":
            optimizer.load(path, params=True)
        else:
            optimizer.load_state_dict(entries, params=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {name: value for name, value in new.items() if name != "wide"}
        plain = onepass.Adam([p.copy() for p in optimizer.params], lr=0.1, **options)
        plain.load_state_dict(entries, params=True)
    assert_same_bits(arrays(optimizer), arrays(plain))
    if os.name == "posix":
        assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("place", ["disk", "memory"])
@pytest.mark.parametrize("reader", ["state dict", "file"])
def test_a_conversion_that_fails_halfway_changes_nothing(
    reader: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, optimizer = trained(None), trained(24, state_dtype="float8")
    if place == "disk":
        (tmp_path / "state").mkdir()
        with onepass.state_dir(tmp_path / "state"):
            optimizer = trained(24, state_dtype="float8")
    path, entries = in_file(saved, tmp_path / "a.npz", params=True), saved.state_dict(params=True)
    convert, calls = _conversion.convert_weights, []

    def exhausted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise MemoryError
        return convert(*arguments)

    monkeypatch.setattr(_conversion, "convert_weights", exhausted)
    with refused(MemoryError, "", optimizer):
        if reader == "file":
            optimizer.load(path, params=True)
        else:
            optimizer.load_state_dict(entries, params=True)
    assert len(calls) == 2


def test_a_damaged_file_in_another_storage_changes_nothing(tmp_path: Path) -> None:
    path = in_file(trained(None), tmp_path / "a.npz", params=True)
    whole = path.read_bytes()
    optimizer = trained(24, state_dtype="float8")
    for at in range(len(whole) // 10, len(whole), len(whole) // 10):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with refused(ValueError, "cannot load", optimizer):
            optimizer.load(path, params=True)


@pytest.mark.parametrize("reader", ["state dict", "file"])
def test_weights_saved_without_their_lower_bits_are_refused(reader: str, tmp_path: Path) -> None:
    saved, optimizer = trained(32), trained(32)
    entry = saved.state_dict(params=True)
    for state in entry["state"].values():
        del state["param_low"]
    members = members_of(in_file(saved, tmp_path / "a.npz", params=True))
    archive(tmp_path / "a.npz", {name: data for name, data in members.items() if "param_low" not in name})
    before = copy.deepcopy(optimizer.state_dict(params=True))
    load, given = (optimizer.load, tmp_path / "a.npz") if reader == "file" else (optimizer.load_state_dict, entry)
    with pytest.raises(ValueError, match="param_low"):
        load(given, params=True)
    for index, state in before["state"].items():
        assert_same_bits([optimizer.state[index]["param_low"]], [state["param_low"]])


def test_a_full_disk_is_not_reported_as_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = trained(32, state_dtype="float8")
    in_file(saved, tmp_path / "a.npz")
    with onepass.state_dir(tmp_path):
        optimizer = trained(32)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_allocate, "_extend", full)
    with pytest.raises(OSError, match="No space left"):
        optimizer.load(tmp_path / "a.npz")
