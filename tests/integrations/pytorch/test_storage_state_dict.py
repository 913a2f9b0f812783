"""State dicts of state and weights in fewer bits."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.storage_helpers import (
    as_array,
    assert_equal_bits,
    for_each_case,
    for_each_storage,
    make_params,
    train,
)
from onepass import _storage
from onepass._reference import storage as reference


def through_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@for_each_storage
@for_each_case
def test_resumed_training_is_bit_identical_to_uninterrupted_training(
    name: str, options: dict[str, Any], dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    params = make_params(dtype)
    options = {"lr": 0.01, **options, **storage}
    optimizer = getattr(ours, name)(params, **options)
    train(optimizer, params, range(2))
    copies = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    others = make_params(dtype)
    resumed = getattr(ours, name)(others, **{**options, "seed": 1})
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    for param, other in zip(params, others):
        other.data.copy_(param.data)
    if "state_dtype" in storage or "master_bits" in storage:
        assert resumed.seed == optimizer.seed == storage.get("seed", 0)
    for each in ((params, optimizer), (others, resumed), *copies):
        train(each[1], each[0], range(2, 4))
    assert_equal_bits(params, optimizer, others, resumed)
    for copied, other in copies:
        assert_equal_bits(params, optimizer, copied, other)


@for_each_storage
@for_each_case
def test_loaded_state_of_pytorch_is_rounded_to_nearest(
    name: str, options: dict[str, Any], dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch.optim has no {name}")
    storage = {option: value for option, value in storage.items() if option != "ema_decay"}
    options = {k: v for k, v in options.items() if k not in {"clip_norm", "nonfinite"}}
    params = make_params(dtype)
    theirs = getattr(torch.optim, name)(params, lr=0.01, **options)
    train(theirs, params, range(2))
    mine = getattr(ours, name)(params, lr=0.01, **storage)
    mine.load_state_dict(theirs.state_dict())
    for param in params:
        state = theirs.state.get(param, {})
        for key, value in state.items():
            if key in ("step", "mu_product"):
                assert mine.state[param][key] == value
                continue
            found = mine.state[param][key]
            values = as_array(value.float())
            if found.dtype == torch.float32:
                assert np.array_equal(as_array(found), values)
                continue
            expected = {key: np.empty(value.numel(), np.uint16 if found.dtype == torch.bfloat16 else np.uint8)}
            if found.dtype == torch.float8_e4m3fn:
                expected[f"{key}_scale"] = np.empty(-(-value.numel() // 128), np.float32)
            _storage.encode_into(key, values, expected)
            for name_, array in expected.items():
                assert as_array(mine.state[param][name_]).tobytes() == array.tobytes()
    train(mine, params, range(2, 4))
    steps = [state["step"] for state in mine.state.values() if "step" in state]
    assert all(step == 4 for step in steps) or name == "SGD"


@for_each_storage
def test_decoded_state_loads_in_pytorch_and_in_other_storage(
    dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    params = make_params(dtype)
    optimizer = ours.AdamW(params, lr=0.01, **storage)
    train(optimizer, params, range(2))
    decoded = optimizer.decoded_state_dict()
    assert not decoded["param_groups"][0].keys() & {"state_dtype", "master_bits", "rounding", "seed"}
    theirs, wide = torch.optim.AdamW(params), ours.AdamW(params)
    theirs.load_state_dict(decoded)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lower bits
        wide.load_state_dict(through_file(optimizer.state_dict()))
    for i, param in enumerate(params):
        state = decoded["state"][i]
        assert state.keys() - {"ema"} == {"step", "exp_avg", "exp_avg_sq"}
        for key in ("exp_avg", "exp_avg_sq"):
            stored = optimizer.state[param][key]
            scales = optimizer.state[param].get(f"{key}_scale")
            codes = _storage.raw(as_array(stored))
            expected = _storage.decoded(codes, None if scales is None else scales.numpy())
            for found in (state[key], wide.state[param][key]):
                assert found.dtype == torch.float32 and found.stride() == param.stride()
                assert np.array_equal(as_array(found), expected)
    train(theirs, params, range(2, 3))
    train(wide, params, range(3, 4))
    again = ours.AdamW(params, **storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again.load_state_dict(wide.state_dict())
    train(again, params, range(4, 5))
    assert all(state["step"] == 4 for state in again.state.values())


def test_float8_state_in_another_memory_layout_is_encoded_again() -> None:
    first, second = make_params(shapes=[(64, 65)]), make_params(shapes=[(64, 65)])
    second[0].data = second[0].data.t().contiguous().t()
    a, b = (ours.AdamW(params, state_dtype="float8") for params in (first, second))
    train(a, first, range(2))
    b.load_state_dict(a.state_dict())
    assert b.state[second[0]]["exp_avg"].stride() == second[0].stride()
    error = (a.decoded_state_dict()["state"][0]["exp_avg"] - b.decoded_state_dict()["state"][0]["exp_avg"]).abs()
    assert 0 < error.max() < 0.1 * a.state[first[0]]["exp_avg_scale"].max() * 448
    train(b, second, range(2, 3))
    b.state[second[0]]["exp_avg"] = a.state[first[0]]["exp_avg"]
    with pytest.raises(ValueError, match=r"the state of parameter 0: expected the strides \(1, 64\)"):
        train(b, second, range(3, 4))


WEIGHTS = [(torch.float32, 32), (torch.bfloat16, 32), (torch.bfloat16, 24), (torch.bfloat16, 16)]
FACTORS = {torch.int16: 1, torch.int8: 256}


def lower_halves(state: Any) -> Any:
    """Return the lower bits of weights, in the order of memory, as in the lower halves of float32 numbers."""
    low = state.get("param_low", torch.zeros_like(state["exp_avg"], dtype=torch.int16))
    return as_array(low).astype(np.int32) * FACTORS[low.dtype]


@pytest.mark.parametrize("new", WEIGHTS, ids=str)
@pytest.mark.parametrize("old", WEIGHTS, ids=str)
def test_weights_in_another_storage_are_converted_as_in_the_numpy_optimizers(old: Any, new: Any) -> None:
    params, others = make_params(old[0]), make_params(new[0])
    first = ours.AdamW(params, lr=0.01, master_bits=old[1])
    train(first, params, range(3))
    if old == (torch.bfloat16, 32):
        first.state[params[0]]["param_low"][0, :4] = torch.tensor([32767, 32640, 32639, -32768])
    for param, other in zip(params, others):
        other.data.copy_(param.data)
    second = ours.AdamW(others, lr=0.01, master_bits=new[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second.load_state_dict(through_file(first.state_dict()))
    lost = []
    for index, (param, other) in enumerate(zip(params, others)):
        state, own = first.state[param], second.state[other]
        assert own.get("param_low") is None or own["param_low"].stride() == other.stride()
        saved, found = lower_halves(state), lower_halves(own)
        if new == (torch.bfloat16, 24) and old == (torch.bfloat16, 32):
            high = as_array(param).view(np.uint16)
            rounded, low = reference.split24(reference.join(high, saved.astype(np.int16)), None)
            expected = np.where(rounded == high, low, 127).astype(np.int32) * 256
        else:
            expected = saved if "param_low" in own else np.zeros_like(saved)
        assert np.array_equal(found, expected)
        lost += [f"parameter {index}"] * bool(np.any(saved != found))
    assert bool(lost) == (old[0] == torch.bfloat16 and (new[0] == torch.float32 or new[1] < old[1]) and old[1] != 16)
    assert len(caught) == bool(lost)
    if lost:
        assert f"the weights of {', '.join(lost)} have more bits" in str(caught[0].message)
        assert caught[0].filename == __file__
    train(second, others, range(3, 4))


def test_float32_weights_equal_to_the_saved_joined_weights_cause_no_warning() -> None:
    params, others = make_params(torch.bfloat16), make_params()
    first, second = ours.AdamW(params, lr=0.01), ours.AdamW(others, lr=0.01)
    train(first, params, range(3))
    for param, other in zip(params, others):
        high, low = as_array(param).view(np.uint16), as_array(first.state[param]["param_low"])
        flat = torch.as_strided(other.data, (other.numel(),), (1,))
        flat.copy_(torch.from_numpy(reference.join(high, low)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(first.state_dict())
    with torch.no_grad():
        others[1][3] = 0.3
    with pytest.warns(UserWarning, match="the weights of parameter 1 have more bits"):
        second.load_state_dict(first.state_dict())


def test_the_warning_names_the_only_parameter_without_lower_bits() -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, lr=0.01)
    train(optimizer, params, range(3))
    state_dict = copy.deepcopy(optimizer.state_dict())
    del state_dict["state"][2]["param_low"]
    with pytest.warns(UserWarning, match="the lower bits of parameter 2 are missing: they start at zero") as caught:
        optimizer.load_state_dict(state_dict)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not optimizer.state[params[2]]["param_low"].any() and optimizer.state[params[0]]["param_low"].any()
    for state in state_dict["state"].values():
        state.pop("param_low", None)  # as in a state dict of torch.optim
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(state_dict)
    assert not optimizer.state[params[0]]["param_low"].any()


def test_parameters_saved_without_lower_bits_start_at_zero_without_a_warning() -> None:
    params = make_params(torch.bfloat16)
    groups = [{"params": params[:1]}, {"params": params[1:], "master_bits": 16}]
    saved, optimizer = ours.AdamW(groups, lr=0.01), ours.AdamW([{"params": params[:1]}, {"params": params[1:]}])
    train(saved, params, range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved.state_dict())
    assert optimizer.state[params[0]]["param_low"].any() and not optimizer.state[params[1]]["param_low"].any()


def test_a_load_whose_warning_is_an_error_changes_nothing() -> None:
    params = make_params(torch.bfloat16)
    saved, optimizer = ours.AdamW(params, lr=0.01), ours.AdamW(params, lr=0.02, master_bits=24)
    train(saved, params, range(2))
    train(optimizer, params, range(1))
    before = copy.deepcopy((params, optimizer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="more bits than this optimizer stores"):
            optimizer.load_state_dict(saved.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert_equal_bits(params, optimizer, *before)


@pytest.mark.parametrize(
    "low", [torch.zeros(7), torch.zeros(65, 80), torch.zeros(65, 79, dtype=torch.int16), "low"], ids=str
)
def test_lower_bits_of_another_shape_or_dtype_are_refused(low: Any) -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, lr=0.01)
    train(optimizer, params, range(1))
    state_dict = copy.deepcopy(optimizer.state_dict())
    state_dict["state"][0]["param_low"] = low
    with pytest.raises(ValueError, match="parameter 0: expected 'param_low' as int16 or int8 of shape"):
        optimizer.load_state_dict(state_dict)


def test_encoded_state_of_bitsandbytes_is_refused() -> None:
    params = make_params()
    optimizer = ours.AdamW(params, state_dtype="float8")
    state_dict = optimizer.state_dict()
    state_dict["state"] = {0: {"step": 1, "state1": torch.zeros(65, 80, dtype=torch.uint8)}}
    with pytest.raises(ValueError, match="the state of parameter 0: expected 'exp_avg', got 'step', 'state1'"):
        optimizer.load_state_dict(state_dict)


def test_state_dict_with_an_impossible_option_is_refused_and_nothing_changes() -> None:
    params = make_params()
    optimizer = ours.AdamW(params, state_dtype="float8", seed=4)
    train(optimizer, params, range(2))
    before = copy.deepcopy((params, optimizer))
    theirs = torch.optim.AdamW(params, amsgrad=True)
    train(theirs, params, range(1))
    for p, q in zip(params, before[0]):
        p.data.copy_(q.data)
    with pytest.raises(ValueError, match="does not work with amsgrad=True"):
        optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.seed == 4 and not optimizer.param_groups[0]["amsgrad"]
    assert_equal_bits(params, optimizer, *before)


def test_seed_of_a_state_dict_replaces_the_optimizers_own() -> None:
    params = make_params()
    saved = ours.AdamW([{"params": params[:1], "state_dtype": "bfloat16"}, {"params": params[1:]}])
    optimizer = ours.AdamW([{"params": params[:1]}, {"params": params[1:]}], seed=9, state_dtype="float8")
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.seed == 0
    assert [group["state_dtype"] for group in optimizer.param_groups] == ["float8", "float8"]


@pytest.mark.parametrize("kind", [ours.AdamW, ours.SGD, ours.Adagrad])
@pytest.mark.parametrize("steps", [0, 1])
def test_parameters_without_a_first_step_load_without_state(kind: Any, steps: int) -> None:
    def made() -> tuple[Any, Any]:
        params = [torch.nn.Parameter(torch.ones(5000, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = kind(params, lr=0.01, state_dtype="float8")
        for _ in range(steps):
            params[0].grad = torch.ones_like(params[0])  # the second parameter has no gradient
            optimizer.step()
        return params, optimizer

    (_, saved), (params, optimizer) = made(), made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state[params[1]].get("param_low", torch.zeros(1)).any()
    assert "param_low" not in saved.state_dict()["state"].get(1, {})
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert (params[1] < 1).all()
