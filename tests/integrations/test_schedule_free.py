"""Schedule-Free AdamW takes the steps of the authors' package and of optax, and loads the package's state."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import onepass
from integrations import deviations
from support import Array

OPTIONS: list[dict[str, Any]] = [
    {},
    {"warmup_steps": 10},
    {"weight_decay": 0.1},
    {"r": 1.0},
    {"weight_lr_power": 0.0},
    {"betas": (0.5, 0.9), "eps": 1e-2},
    {"warmup_steps": 7, "weight_decay": 0.1, "r": 0.5, "weight_lr_power": 1.5},
]
CHANGES: list[dict[str, Any]] = [
    {"betas": (0.85, 0.99)},
    {"betas": (0.9, 0.95)},
    {"eps": 1e-1},
    {"weight_decay": 0.05},
    {"warmup_steps": 20},
    {"r": 2.0},
    {"maximize": True},
]
TOLERANCE = {"float32": 2e-6, "float64": 5e-15}  # of numbers of about 1
STEPS, SIZE, LR = 50, 400, 0.05


def numbers(dtype: str) -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(0)
    p, *grads = (rng.standard_normal(SIZE).astype(dtype) for _ in range(STEPS + 1))
    return p, grads


def run_onepass(dtype: str, options: dict[str, Any]) -> list[Array]:
    """Return y, x, z and the second moment after the steps."""
    p, grads = numbers(dtype)
    optimizer = onepass.ScheduleFreeAdamW(p, lr=LR, **options)
    for grad in grads:
        optimizer.step(grad)
    y = p.copy()
    optimizer.eval()
    return [y, p, optimizer.state[0]["z"], optimizer.state[0]["exp_avg_sq"]]


def run_package(dtype: str, options: dict[str, Any]) -> list[Array]:
    torch, schedulefree = pytest.importorskip("torch"), pytest.importorskip("schedulefree")
    p, grads = numbers(dtype)
    weight = torch.nn.Parameter(torch.from_numpy(p))
    optimizer = schedulefree.AdamWScheduleFree([weight], lr=LR, foreach=False, **options)
    optimizer.train()
    for grad in grads:
        weight.grad = torch.from_numpy(grad)
        optimizer.step()
    y = p.copy()
    optimizer.eval()
    state = optimizer.state[weight]
    return [y, p, state["z"].numpy(), state["exp_avg_sq"].numpy()]


def run_optax(dtype: str, options: dict[str, Any]) -> list[Array]:
    optax = pytest.importorskip("optax")
    p, grads = numbers(dtype)
    options = dict(options)
    b1, b2 = options.pop("betas", (0.9, 0.999))
    with deviations.jax_in_double():
        import jax.numpy as jnp

        optimizer = optax.contrib.schedule_free_adamw(LR, b1=b1, b2=b2, **options)
        weights = jnp.asarray(p)
        state = optimizer.init(weights)
        for grad in grads:
            updates, state = optimizer.update(jnp.asarray(grad), state, weights)
            weights = optax.apply_updates(weights, updates)
        x = optax.contrib.schedule_free_eval_params(state, weights)
        return [np.asarray(weights), np.asarray(x), np.asarray(state.z)]


def deviation(ours: list[Array], theirs: list[Array]) -> float:
    return max(float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fifty_steps_match_the_package_of_the_authors(options: dict[str, Any], dtype: str) -> None:
    theirs = run_package(dtype, options)
    assert deviation(run_onepass(dtype, options), theirs) <= TOLERANCE[dtype]
    for changed in CHANGES:
        if any(options.get(name) != value for name, value in changed.items()):
            assert deviation(run_onepass(dtype, {**options, **changed}), theirs) > 100 * TOLERANCE[dtype]


@pytest.mark.parametrize("options", [one for one in OPTIONS if not one.keys() & {"r", "warmup_steps"}], ids=str)
def test_fifty_steps_match_optax(options: dict[str, Any]) -> None:
    """Use a constant learning rate, because the warmup of optax differs. optax adds eps in the same place."""
    theirs = run_optax("float64", options)
    assert deviation(run_onepass("float64", options), theirs) <= 1e-13
    assert deviation(run_onepass("float64", {**options, "weight_decay": 0.05}), theirs) > 1e-5


# ---- The class for PyTorch ----


def torch_steps(optimizer: Any, param: Any, first: int, last: int) -> None:
    import torch

    for t in range(first, last):
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(t)).to(param.dtype)
        optimizer.step()


def torch_case(dtype: str = "float32", **options: Any) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    import onepass.integrations.torch as ours

    param = torch.nn.Parameter(
        torch.randn(70, 80, generator=torch.Generator().manual_seed(9)).to(getattr(torch, dtype))
    )
    return param, ours.ScheduleFreeAdamW([param], lr=0.05, warmup_steps=4, weight_decay=0.1, r=0.5, **options)


def array_of(param: Any) -> Array:
    """Return a parameter as the array that the optimizers for NumPy take."""
    import torch

    if param.dtype != torch.bfloat16:
        return np.asarray(param.detach().clone().numpy())
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    return np.asarray(param.detach().clone().view(torch.int16).numpy().view(bfloat16))


STORAGES: list[tuple[str, dict[str, Any]]] = [
    ("float32", {}),
    ("float64", {}),
    ("float32", {"state_dtype": "float8", "seed": 3}),
    ("bfloat16", {}),
    ("bfloat16", {"master_bits": 24, "state_dtype": "bfloat16"}),
    ("bfloat16", {"master_bits": 16, "state_dtype": "float8"}),
]


@pytest.mark.parametrize(("dtype", "options"), STORAGES, ids=str)
def test_the_pytorch_class_is_bit_identical_to_the_numpy_class_in_both_modes(
    dtype: str, options: dict[str, Any]
) -> None:
    param, optimizer = torch_case(dtype, **options)
    array = array_of(param)
    numpy = onepass.ScheduleFreeAdamW(array, lr=0.05, warmup_steps=4, weight_decay=0.1, r=0.5, **options)
    for t in range(6):
        torch_steps(optimizer, param, t, t + 1)
        numpy.step(array_of(param.grad))
        assert array_of(param).tobytes() == array.tobytes()
        if t % 3 == 2:
            optimizer.eval()
            numpy.eval()
            assert array_of(param).tobytes() == array.tobytes()
            optimizer.eval()
            optimizer.train()
            numpy.train()
            optimizer.train()
            assert array_of(param).tobytes() == array.tobytes()
            assert "y" not in optimizer.state[param]
        if t == 3:  # zeros in bfloat16 keep their lower bits, which may be negative
            param.data[:9] = 0
            array[:9] = 0
            optimizer.eval()
            numpy.eval()
            assert array_of(param).tobytes() == array.tobytes()
            optimizer.train()
            numpy.train()
    assert optimizer.slow_steps == 1
    for name in ("lr_max", "weight_sum"):
        assert optimizer.state[param][name].item() == numpy.state[0][name]


def saved_and_loaded(optimizer: Any, other: Any) -> Any:
    import torch

    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("dtype", "options"), STORAGES, ids=str)
def test_state_saved_in_either_mode_resumes_bit_identically(dtype: str, options: dict[str, Any], mode: str) -> None:
    whole_param, whole = torch_case(dtype, **options)
    torch_steps(whole, whole_param, 0, 8)
    param, stopped = torch_case(dtype, **options)
    torch_steps(stopped, param, 0, 5)
    getattr(stopped, mode)()
    other_param, other = torch_case(dtype, **options)
    other_param.data.copy_(param.data)
    resumed = [(other_param, saved_and_loaded(stopped, other))]
    for copied in (pickle.loads(pickle.dumps(stopped)), copy.deepcopy(stopped)):
        resumed.append((copied.param_groups[0]["params"][0], copied))
    for own, optimizer in [*resumed, (param, stopped)]:
        if mode == "eval":
            with pytest.raises(RuntimeError, match=r"got evaluation mode \(call optimizer.train\(\) first\)"):
                torch_steps(optimizer, own, 5, 6)
        optimizer.train()
        torch_steps(optimizer, own, 5, 8)
        assert array_of(own).tobytes() == array_of(whole_param).tobytes()


@pytest.mark.parametrize("state_dtype", [None, "float8"])
@pytest.mark.parametrize("new", [None, 32, 24, 16])
@pytest.mark.parametrize("old", [None, 32, 24, 16])
def test_loading_another_storage_in_evaluation_mode_matches_the_numpy_class(
    old: Any, new: Any, state_dtype: Any
) -> None:
    """Load between float32 weights (None) and bfloat16 weights with this number of bits."""
    dtypes = ["float32" if bits is None else "bfloat16" for bits in (old, new)]
    options = [{"master_bits": bits or 32, "state_dtype": state_dtype} for bits in (old, new)]
    (param, optimizer), (other_param, other) = (torch_case(name, **each) for name, each in zip(dtypes, options))
    arrays = [array_of(each) for each in (param, other_param)]
    numpy, other_numpy = (
        onepass.ScheduleFreeAdamW(array, lr=0.05, warmup_steps=4, weight_decay=0.1, r=0.5, **each)
        for array, each in zip(arrays, options)
    )
    for t in range(3):
        torch_steps(optimizer, param, t, t + 1)
        numpy.step(array_of(param.grad))
    optimizer.eval()
    numpy.eval()
    other_param.data.copy_(param.data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved_and_loaded(optimizer, other)
    with warnings.catch_warnings(record=True) as expected:
        warnings.simplefilter("always")
        other_numpy.load_state_dict(numpy.state_dict(params=True), params=True)
    assert len(caught) == len(expected)
    other.train()
    other_numpy.train()
    for _ in range(2):
        assert array_of(other_param).tobytes() == arrays[1].tobytes()
        low = other.state[other_param].get("param_low")
        assert (low is None) == ("param_low" not in other_numpy.state[0])
        assert low is None or low.numpy().tobytes() == other_numpy.state[0]["param_low"].tobytes()
        assert other.state[other_param]["z"].numpy().tobytes() == other_numpy.state[0]["z"].tobytes()
        torch_steps(other, other_param, 3, 4)
        other_numpy.step(array_of(other_param.grad))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_state_of_the_schedulefree_package_can_be_loaded_in_either_mode(dtype: str, mode: str) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    param, optimizer = torch_case(dtype)
    their_param = copy.deepcopy(param)
    theirs = schedulefree.AdamWScheduleFree([their_param], lr=0.05, warmup_steps=8, weight_decay=0.2, r=1.0)
    theirs.train()
    torch_steps(theirs, their_param, 0, 5)
    getattr(theirs, mode)()
    param.data.copy_(their_param.data)
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for one, own in ((theirs, their_param), (optimizer, param)):
        one.train()
        torch_steps(one, own, 5, 12)
        one.eval()
    assert deviation([array_of(param)], [array_of(their_param)]) <= TOLERANCE[dtype]
    assert optimizer.param_groups[0]["warmup_steps"] == 8 and "k" not in optimizer.param_groups[0]


def test_parameters_without_a_gradient_keep_their_values_in_both_modes() -> None:
    torch = pytest.importorskip("torch")
    import onepass.integrations.torch as ours

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = ours.ScheduleFreeAdamW(params, lr=0.1)
    torch_steps(optimizer, params[0], 0, 2)
    optimizer.eval()
    assert torch.equal(params[1].detach(), torch.ones(3))
    optimizer.train()
    torch_steps(optimizer, params[1], 0, 1)
    assert not torch.equal(params[1].detach(), torch.ones(3))


def test_groups_with_impossible_options_are_refused() -> None:
    torch = pytest.importorskip("torch")
    import onepass.integrations.torch as ours

    with pytest.raises(ValueError, match=r"betas\[0\]: expected more than 0, got 0.0"):
        ours.ScheduleFreeAdamW([torch.ones(3)], betas=(0.0, 0.9))
    optimizer = ours.ScheduleFreeAdamW([torch.ones(3)])
    for options, error in [({"eps": -1.0}, ValueError), ({"betas": (0.0, 0.9)}, ValueError), ({"r": "1"}, TypeError)]:
        with pytest.raises(error):
            optimizer.add_param_group({"params": [torch.ones(2)], **options})
    optimizer.eval()
    with pytest.raises(RuntimeError, match="add_param_group: expected training mode"):
        optimizer.add_param_group({"params": [torch.ones(2)]})
    assert len(optimizer.param_groups) == 1


def test_a_step_after_setting_betas_0_to_zero_is_refused() -> None:
    params, optimizer = trained_in_torch()
    before = params[0].detach().clone()
    optimizer.param_groups[0]["betas"] = (0.0, 0.9)
    with pytest.raises(ValueError, match=r"betas\[0\]: expected more than 0, got 0.0"):
        step_in_torch(params, optimizer)
    assert params[0].detach().equal(before)
    optimizer.param_groups[0]["betas"] = (0.8, 0.9)
    step_in_torch(params, optimizer)
    assert not params[0].detach().equal(before)


def test_a_step_in_evaluation_mode_does_not_call_its_closure() -> None:
    _, optimizer = trained_in_torch()
    optimizer.eval()
    with pytest.raises(RuntimeError, match="step: expected training mode, got evaluation mode"):
        optimizer.step(lambda: pytest.fail("called"))


def test_weights_written_before_the_first_step_are_the_start_of_training() -> None:
    w, v = np.zeros(3, np.float32), np.zeros(3, np.float32)
    optimizer = onepass.ScheduleFreeAdamW([w, v], lr=0.001)
    w[:], v[:] = 5, 7
    optimizer.step([np.ones(3, np.float32), None])
    assert (abs(w - 5) < 0.01).all() and (abs(optimizer.state[0]["z"] - 5) < 0.01).all()
    optimizer.eval()
    assert (abs(w - 5) < 0.01).all() and (v == 7).all()
    optimizer.train()
    assert (v == 7).all()


def test_first_step_by_rows_starts_from_the_current_weights_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    import onepass.integrations.torch as ours

    w, weights = np.zeros((3, 1), np.float32), torch.nn.Parameter(torch.zeros(3, 1))
    optimizer, in_torch = onepass.ScheduleFreeAdamW(w, lr=0.1), ours.ScheduleFreeAdamW([weights], lr=0.1)
    w[:] = 5
    weights.data.fill_(5)
    for row in (0, 1):
        optimizer.step(onepass.SparseRows([row], np.ones((1, 1), np.float32)))
        weights.grad = torch.sparse_coo_tensor([[row]], torch.ones(1, 1), (3, 1), check_invariants=True)
        in_torch.step()
    optimizer.eval()
    in_torch.eval()
    assert w[2] == 5 and (w == weights.detach().numpy()).all()


def trained_in_torch() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from onepass.integrations import torch as ours

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = ours.ScheduleFreeAdamW([{"params": [param]} for param in params], lr=0.1)
    step_in_torch(params, optimizer)
    return params, optimizer


def step_in_torch(params: Any, optimizer: Any) -> None:
    import torch

    for _ in range(3):
        for param in params:
            param.grad = torch.tensor([1.0, 2, 3])
        optimizer.step()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_failed_mode_switch_can_be_repeated(mode: str) -> None:
    torch = pytest.importorskip("torch")
    (params, optimizer), (others, other) = trained_in_torch(), trained_in_torch()
    good = params[1].data
    if mode == "train":
        optimizer.eval()
        params[1].data = torch.ones(4)  # a layer resized meanwhile
    else:
        params[1].data = params[1].data[:1].expand(3)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            getattr(optimizer, mode)()
    params[1].data = good
    optimizer.eval()
    optimizer.train()
    assert torch.equal(params[0], others[0])
    step_in_torch(params, optimizer)
    step_in_torch(others, other)
    assert torch.equal(params[0], others[0])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_ctrl_c_at_any_line_of_a_mode_switch_leaves_one_of_the_modes(mode: str) -> None:
    torch = pytest.importorskip("torch")
    from integrations.pytorch.helpers import interrupted

    params, optimizer = trained_in_torch()
    y = [param.detach().clone() for param in params]
    optimizer.eval()
    x = [param.detach().clone() for param in params]
    assert not torch.equal(x[0], y[0])
    seen, moment, came = set(), 0, True
    while came:
        moment += 1
        params, optimizer = trained_in_torch()
        if mode == "train":
            optimizer.eval()
        came = interrupted(moment, getattr(optimizer, mode))
        (trains,) = {group["train_mode"] for group in optimizer.param_groups}
        seen.add(trains)
        for param, of_training, average in zip(params, y, x):
            assert torch.equal(param, of_training if trains else average), f"interrupted at line {moment}"
            copy = optimizer.state[param].get("y")
            assert copy is None if trains else torch.equal(copy, of_training)
        for again, expected in ((optimizer.eval, x), (optimizer.train, y)):
            again()
            assert all(map(torch.equal, params, expected))
    assert seen == {True, False}


def test_train_does_not_change_a_state_dict_taken_in_evaluation_mode() -> None:
    torch = pytest.importorskip("torch")
    params, optimizer = trained_in_torch()
    trained = params[0].detach().clone()
    optimizer.eval()
    averages, saved = [param.detach().clone() for param in params], optimizer.state_dict()
    optimizer.train()
    others, other = trained_in_torch()
    for mine, average in zip(others, averages):
        mine.data.copy_(average)
    other.load_state_dict(saved)
    other.train()
    assert torch.equal(others[0], trained)
