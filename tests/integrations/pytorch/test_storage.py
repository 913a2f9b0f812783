"""State and parameters in fewer bits: state_dtype, master_bits, rounding, seed."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass
import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast, needs_exchange
from onepass import _storage

CASES: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"weight_decay": 0.1, "clip_norm": 30.0}),
    ("AdamW", {"betas": (0.8, 0.99)}),
    ("Adamax", {}),
    ("NAdam", {"nonfinite": "skip"}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adagrad", {"initial_accumulator_value": 0.1}),
    ("Adadelta", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("Lion", {"clip_value": 0.5}),
]
for_each_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{'-'.join(options) or 'defaults'}" for name, options in CASES]
)
SHAPES = [(65, 80), (7,), (4, 8, 16, 16), (0,), (4096,)]  # two groups of float8 scales are shorter


def make_params(dtype: Any = torch.float32, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for param in params:
        if param.dim() == 4:
            param.data = param.data.contiguous(memory_format=torch.channels_last)
    return params


def set_gradients(params: Iterable[Any], seed: int, dtype: Any = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        if dtype is not None:
            param.grad_dtype = dtype
        grad = torch.randn(param.shape, generator=generator) * 10 ** (seed % 3 - 1)
        param.grad = torch.empty_like(param, dtype=dtype).copy_(grad)


def train(optimizer: Any, params: list[Any], steps: range, dtype: Any = None) -> None:
    for t in steps:
        set_gradients(params, t, dtype)
        optimizer.step()


def as_array(tensor: Any) -> Any:
    """Return a flat copy of the memory of a tensor, bfloat16 and float8 numbers as ml_dtypes has them."""
    flat = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,)).clone()
    if tensor.dtype not in (torch.bfloat16, torch.float8_e4m3fn):
        return flat.numpy()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = flat.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.uint8).numpy()
    return codes.view(ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else ml_dtypes.float8_e4m3fn)


def assert_equal_bits(params: Iterable[Any], optimizer: Any, others: Iterable[Any], other: Any) -> None:
    for p, q in zip(params, others, strict=True):
        assert same_bits(p, q)
        mine, theirs = optimizer.state.get(p, {}), other.state.get(q, {})
        assert mine.keys() == theirs.keys()
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and as_array(a).tobytes() == as_array(b).tobytes()


STORAGES: list[tuple[Any, Any, dict[str, Any]]] = [
    (torch.float32, None, {"state_dtype": "float8", "seed": 7}),
    (torch.float32, None, {"state_dtype": "bfloat16", "rounding": "nearest"}),
    (torch.bfloat16, None, {}),
    (torch.bfloat16, None, {"state_dtype": "float8", "seed": 2**64 - 1}),
    (torch.bfloat16, torch.float32, {"state_dtype": "bfloat16", "master_bits": 16}),
    (torch.bfloat16, torch.float32, {"master_bits": 24, "ema_decay": 0.9}),
]
for_each_storage = pytest.mark.parametrize(
    ("dtype", "grad_dtype", "storage"),
    STORAGES,
    ids=["-".join(map(str, [dtype, *storage.values()])) for dtype, _, storage in STORAGES],
)


@for_each_storage
@for_each_case
def test_bits_are_those_of_the_numpy_optimizer(
    name: str, options: dict[str, Any], dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    if grad_dtype is not None and not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this PyTorch has no gradients of another dtype than the parameter's")
    params = make_params(dtype)
    arrays = [as_array(param) for param in params]
    options = {"lr": 0.01, **options, **storage}
    mine = getattr(ours, name)(params, **options)
    theirs = getattr(onepass, name)(arrays, **options)
    for t in range(4):
        set_gradients(params, t, grad_dtype)
        theirs.step([as_array(param.grad) for param in params])
        mine.step()
    for i, (param, array) in enumerate(zip(params, arrays, strict=True)):
        assert as_array(param).tobytes() == array.tobytes()
        for key, value in theirs.state[i].items():
            if isinstance(value, np.ndarray):
                assert as_array(mine.state[param][key]).tobytes() == value.tobytes(), key
        assert mine.state[param].get("step", 4) == theirs.state[i]["step"] == 4
    if "ema_decay" in storage:
        assert all(np.array_equal(as_array(a), b) for a, b in zip(mine.ema, theirs.ema))
    assert_fast(mine)


def test_state_tensors_have_the_dtypes_of_pytorch() -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, state_dtype="float8", master_bits=24)
    train(optimizer, params, range(1))
    state = optimizer.state[params[2]]
    assert {key: (value.dtype, value.shape) for key, value in state.items()} == {
        "step": (torch.float32, ()),
        "exp_avg": (torch.float8_e4m3fn, params[2].shape),
        "exp_avg_scale": (torch.float32, (64,)),
        "exp_avg_sq": (torch.float8_e4m3fn, params[2].shape),
        "exp_avg_sq_scale": (torch.float32, (64,)),
        "param_low": (torch.int8, params[2].shape),
    }
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.float32  # a small parameter


# ---- The fast path ----


@needs_exchange
def test_only_the_first_step_is_slow_while_options_and_memory_change() -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, lr=0.1, state_dtype="float8")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for t in range(4):
        train(optimizer, params, range(t, t + 1))
        scheduler.step()
        for param in params:
            param.data = param.data.clone(memory_format=torch.preserve_format)
            state = optimizer.state[param]
            state.update({key: value.clone(memory_format=torch.preserve_format) for key, value in state.items()})
    assert optimizer.slow_steps == 1


@for_each_storage
def test_steps_on_the_slow_path_have_the_same_bits(dtype: Any, grad_dtype: Any, storage: dict[str, Any]) -> None:
    pair = make_params(dtype), make_params(dtype)
    optimizers = [ours.NAdam(params, lr=0.1, **storage) for params in pair]
    for t in range(4):
        for params, optimizer in zip(pair, optimizers):
            set_gradients(params, t)
            if optimizer is optimizers[1]:  # gradients in another layout
                params[0].grad = params[0].grad.t().contiguous().t()
                params[2].grad = params[2].grad.contiguous()
            optimizer.step()
    assert optimizers[1].slow_steps == 4
    assert_equal_bits(pair[0], optimizers[0], pair[1], optimizers[1])


def test_bits_are_the_same_without_the_exchange_interface(import_again: Any) -> None:
    pair = make_params(torch.bfloat16), make_params(torch.bfloat16)
    optimizers = [module.AdamW(p, state_dtype="float8") for module, p in zip((ours, import_again(exchange=None)), pair)]
    for params, optimizer in zip(pair, optimizers):
        train(optimizer, params, range(3))
    assert optimizers[1].slow_steps == 3
    assert_equal_bits(pair[0], optimizers[0], pair[1], optimizers[1])


@needs_exchange
def test_weights_may_be_cast_and_replaced_between_steps() -> None:
    (param,) = make_params(shapes=[(65, 80)])
    optimizer = ours.AdamW([param], lr=0.01)
    train(optimizer, [param], range(2))
    param.grad, param.data = None, param.data.to(torch.bfloat16)
    train(optimizer, [param], range(2, 4))
    assert optimizer.state[param]["param_low"].any()
    slow = optimizer.slow_steps
    train(optimizer, [param], range(4, 6))
    param.grad, param.data = None, param.data.float()
    train(optimizer, [param], range(6, 8))
    assert optimizer.state[param]["step"] == 8 and slow == 2 and optimizer.slow_steps == 3


def test_parameter_with_gaps_is_stepped() -> None:
    buffer = torch.zeros(80, 130, dtype=torch.bfloat16)
    (plain,) = make_params(torch.bfloat16, [(80, 65)])
    buffer[:, ::2] = plain.detach()
    gaps = torch.nn.Parameter(buffer[:, ::2])
    optimizers = [ours.AdamW([p], lr=0.1, state_dtype="float8") for p in (plain, gaps)]
    for t in range(3):
        for p, optimizer in zip((plain, gaps), optimizers):
            train(optimizer, [p], range(t, t + 1))
    assert torch.equal(plain, gaps) and not buffer[:, 1::2].any()
    assert torch.equal(optimizers[0].state[plain]["exp_avg"].float(), optimizers[1].state[gaps]["exp_avg"].float())


def test_steps_in_the_backward_pass_have_the_same_bits() -> None:
    def run(in_backward: bool) -> list[Any]:
        torch.manual_seed(0)
        model = ours.cast_model(torch.nn.Sequential(torch.nn.Linear(80, 80), torch.nn.LayerNorm(80)))
        optimizer = ours.AdamW(model.parameters(), lr=0.01, state_dtype="float8")
        if in_backward:
            ours.step_in_backward(optimizer)
        for t in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                model(torch.full((4, 80), t + 1.0)).float().pow(2).mean().backward()
            assert in_backward == all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        return [*model.parameters(), *(v for p in model.parameters() for v in optimizer.state[p].values())]

    assert all(same_bits(a, b) for a, b in zip(run(True), run(False), strict=True))


# ---- State dicts ----


def through_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@for_each_storage
@for_each_case
def test_resumed_training_has_the_same_bits(
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
def test_state_of_pytorch_is_encoded_to_nearest(
    name: str, options: dict[str, Any], dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    if name == "Lion":
        pytest.skip("torch.optim has no Lion")
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
    again.load_state_dict(wide.state_dict())
    train(again, params, range(4, 5))
    assert all(state["step"] == 4 for state in again.state.values())


def test_codes_in_another_layout_are_encoded_again() -> None:
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


@pytest.mark.parametrize(("saved", "own"), [(32, 24), (24, 32), (32, 16), (16, 32)])
def test_master_bits_may_change_with_a_state_dict(saved: int, own: int) -> None:
    params = make_params(torch.bfloat16)
    first = ours.AdamW(params, lr=0.01, master_bits=saved)
    train(first, params, range(3))
    second = ours.AdamW(params, lr=0.01, master_bits=own)
    second.load_state_dict(first.state_dict())
    low = [state.get("param_low") for state in second.state.values()]
    kept = first.state[params[0]].get("param_low")
    if (saved, own) == (24, 32):
        assert torch.equal(low[0], kept.to(torch.int16) << 8)
    elif (saved, own) == (32, 24):
        assert (low[0].to(torch.int32) * 256 - kept).abs().max() <= 255
    elif own == 16:
        assert low == [None] * len(params)
    else:
        assert not any(one.any() for one in low)
    train(second, params, range(3, 4))


def test_state_of_bitsandbytes_that_is_not_decoded_is_refused() -> None:
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


# ---- Refusals ----


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"state_dtype": "float16"}, "state_dtype must be 'bfloat16' or 'float8', got 'float16'"),
        ("Adam", {"state_dtype": "float8", "amsgrad": True}, "does not work with amsgrad=True"),
        ("RMSprop", {"state_dtype": "bfloat16", "centered": True}, "does not work with centered=True"),
        ("Adam", {"state_dtype": "bfloat16", "eps": 1e-20}, "needs an eps of at least"),
        ("AdamW", {"state_dtype": "float8", "betas": (0.999, 0.999)}, r"needs betas\[0\] of at most 0.99, got 0.999"),
        ("Lion", {"state_dtype": "float8", "betas": (0.9, 0.999)}, r"needs betas\[1\] of at most 0.99"),
        ("SGD", {"state_dtype": "float8", "momentum": 0.995}, "needs momentum of at most 0.99"),
        ("Adadelta", {"state_dtype": "float8", "rho": 0.99}, "needs rho of at most 0.95"),
        ("Adam", {"state_dtype": "float8", "flush_denormals": False}, "needs flush_denormals=True"),
        ("Adam", {"master_bits": 24}, "master_bits=24 needs bfloat16 parameters, got float32"),
        ("Adam", {"master_bits": 8}, "master_bits must be 32, 24 or 16"),
        ("Adam", {"seed": -1}, "seed must be at least 0"),
    ],
)
def test_impossible_options_are_refused_as_in_the_numpy_optimizer(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(onepass, name)(np.ones(3, np.float32), **options)
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(make_params(), **options)
    whole = {k: v for k, v in options.items() if k == "flush_denormals"}
    optimizer = getattr(ours, name)([torch.nn.Parameter(torch.ones(3))], seed=5, **whole)
    message = "seed must be at least 0" if "seed" in options else message
    group = {k: v for k, v in options.items() if k not in whole}
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": make_params(), **group})
    assert len(optimizer.param_groups) == 1


def test_group_with_another_seed_is_refused() -> None:
    params = make_params()
    optimizer = ours.Adam(params[:1], seed=3, state_dtype="float8")
    with pytest.raises(ValueError, match=r"seed: expected one for all groups, got \[3, 4\]"):
        optimizer.add_param_group({"params": params[1:], "seed": 4})
    optimizer.add_param_group({"params": params[1:]})
    assert optimizer.seed == 3 and [group["seed"] for group in optimizer.param_groups] == [3, 3]


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_impossible_parameters_and_gradients_are_refused_and_nothing_changes(name: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(5000)), torch.nn.Parameter(torch.zeros(5000, dtype=torch.float64))]
    optimizer = getattr(ours, name)(params, state_dtype="float8")
    set_gradients(params, 0)
    with pytest.raises(ValueError, match=r"parameter 1: state_dtype='float8' needs float32 or bfloat16 parameters"):
        optimizer.step()
    params[1].grad = None
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(ValueError, match="the gradient of parameter 0: expected a dense gradient"):
        optimizer.step()
    assert not params[0].any() and not optimizer.state
    (plain,) = make_params(torch.bfloat16, [(5, 3)])
    optimizer = getattr(ours, name)([plain])
    plain.grad = torch.ones_like(plain).to_sparse()
    with pytest.raises(ValueError, match="expected a dense gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    ("option", "wrong", "message"),
    [
        ("state_dtype", None, "state_dtype is fixed once there is state: expected 'float8', got None"),
        ("master_bits", 16, "master_bits is fixed"),
        ("rounding", "nearest", "rounding is fixed"),
        ("amsgrad", True, "does not work with amsgrad"),
        ("betas", (0.999, 0.999), r"needs betas\[0\]"),
        ("eps", 1e-30, "needs an eps"),
        ("seed", -1, "seed must be"),
    ],
)
def test_option_that_becomes_impossible_is_refused_until_it_is_set_back(option: str, wrong: Any, message: str) -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(
        params, state_dtype="float8", master_bits=24, rounding="stochastic", amsgrad=False, eps=1e-8, seed=1
    )
    train(optimizer, params, range(1))
    group = optimizer.param_groups[0]
    kept, group[option] = group[option], wrong
    with pytest.raises(ValueError, match=message):
        train(optimizer, params, range(1, 2))
    group[option] = kept
    train(optimizer, params, range(2, 3))
    assert optimizer.state[params[0]]["step"] == 2


def test_state_in_other_storage_is_refused_until_it_is_loaded() -> None:
    params = make_params()
    optimizer = ours.AdamW(params, state_dtype="float8")
    train(optimizer, params, range(1))
    state = optimizer.state[params[0]]
    kept, state["exp_avg"] = state["exp_avg"], state["exp_avg"].float()
    with pytest.raises(ValueError, match=r"the state of parameter 0: expected .*float8_e4m3fn.*load a state dict"):
        train(optimizer, params, range(1, 2))
    state["exp_avg"] = kept
    scale = state.pop("exp_avg_scale")
    with pytest.raises(KeyError, match="no tensor 'exp_avg_scale'"):
        train(optimizer, params, range(1, 2))
    state["exp_avg_scale"] = scale[1:].clone()
    with pytest.raises(ValueError, match=r"the scales of the state of parameter 0: expected \[41\]"):
        train(optimizer, params, range(1, 2))
    state["exp_avg_scale"] = scale
    train(optimizer, params, range(1, 2))
    assert state["step"] == 2


def test_seed_can_be_set_between_steps() -> None:
    def run(seeds: list[int]) -> Any:
        params = make_params()
        optimizer = ours.AdamW(params, state_dtype="float8")
        for t, seed in enumerate(seeds):
            optimizer.seed = seed
            assert optimizer.seed == seed
            train(optimizer, params, range(t, t + 1))
        return optimizer.state[params[0]]["exp_avg"]

    assert same_bits(run([0, 1]), run([0, 1])) and not same_bits(run([0, 1]), run([0, 0]))


# ---- cast_model ----


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 8)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.BatchNorm1d(8), torch.nn.GroupNorm(2, 8)
        )
        self.head = torch.nn.Linear(8, 11, bias=False)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.embedding(x))) * self.scale


def dtypes(model: Any) -> dict[str, Any]:
    return {name: param.dtype for name, param in model.named_parameters()}


def test_cast_model_keeps_norms_and_named_layers_in_float32() -> None:
    model = Model()
    params = list(model.parameters())
    assert ours.cast_model(model) is model
    wide = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
    norms = {f"body.{i}.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert wide == norms and all(a is b for a, b in zip(params, model.parameters(), strict=True))
    assert model.body[2].running_mean.dtype == torch.float32
    model = ours.cast_model(Model(), keep_float32=("head", "*.bias", "scale", torch.nn.Embedding))
    wide = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
    assert wide == norms | {"head.weight", "body.0.bias", "scale", "embedding.weight"}


def test_cast_model_keeps_a_shared_parameter_and_converts_gradients() -> None:
    model = Model()
    model.head.weight = model.embedding.weight
    model.body[0].weight.grad = torch.ones(8, 8)
    ours.cast_model(model, keep_float32=("head",))
    assert model.embedding.weight.dtype == torch.float32
    assert model.body[0].weight.dtype == model.body[0].weight.grad.dtype == torch.bfloat16


def test_cast_model_refuses_patterns_without_a_match() -> None:
    model = Model()
    with pytest.raises(ValueError, match="keep_float32: expected the name of a module or parameter, got 'heads'"):
        ours.cast_model(model, keep_float32=("scale", "heads"))
    with pytest.raises(TypeError, match="keep_float32: expected module types and name patterns, got 3"):
        ours.cast_model(model, keep_float32=(3,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        ours.cast_model([model])  # type: ignore[type-var]
    assert set(dtypes(model).values()) == {torch.float32}


def test_cast_model_trains() -> None:
    torch.manual_seed(0)
    model = ours.cast_model(Model())
    optimizer = ours.AdamW(model.parameters(), lr=0.02, state_dtype="float8")
    x = torch.arange(11).repeat(4)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert_fast(optimizer)
