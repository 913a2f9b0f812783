"""Options of groups that change between steps: schedulers, numbers of any kind, added groups."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast, assert_same_as_pytorch, gradient, make_parameters, set_gradients

lr_scheduler = torch.optim.lr_scheduler

# ---- Schedulers ----

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 - t / 5),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.5),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, end_factor=0.0),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),  # moves the momentum or beta1 too
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_every_scheduler_works_on_the_fast_path_also_beyond_its_end(name: str, scheduler: str) -> None:
    options = {"momentum": 0.9} if name == "SGD" else {}

    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = getattr(module, name)([{"params": [p]} for p in params], lr=0.1, **options)
        schedule = SCHEDULERS[scheduler](optimizer)
        for t in range(7):
            set_gradients(params, t)
            optimizer.step()
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
        assert_fast(optimizer)
        resumed = getattr(module, name)([{"params": [p]} for p in params], lr=0.1)
        resumed.load_state_dict(optimizer.state_dict())
        resumed.step()
        return [*params, torch.tensor(optimizer.param_groups[0]["lr"])]

    assert_same_as_pytorch(run)


# ---- Numbers ----

NUMBERS: dict[str, Callable[[float], Any]] = {
    "float32": np.float32,
    "array": np.array,
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "float64 tensor": lambda x: torch.tensor(x, dtype=torch.float64),
    "tensor of one": lambda x: torch.tensor([x]),
}


def step_with_numbers(module: Any, make: Callable[[float], Any]) -> Any:
    """Return a parameter after four steps of AdamW, whose options are set to numbers of a kind before each step."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = module.AdamW([p])
    for t in range(4):
        group = optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = make(0.5 / (t + 1)), make(0.25)
        group["betas"] = (make(0.5), make(0.75))
        p.grad = gradient(p, t)
        optimizer.step()
    return p


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", NUMBERS)
def test_options_may_be_any_kind_of_number(kind: str, exchange: bool, import_again: Any) -> None:
    got = step_with_numbers(ours if exchange else import_again(exchange=None), NUMBERS[kind])
    tolerances = {"rtol": 1e-2, "atol": 1e-3} if kind == "bfloat16" else {"rtol": 1e-6, "atol": 0.0}
    torch.testing.assert_close(got, step_with_numbers(ours, float), **tolerances)


def test_betas_may_be_an_array_a_tensor_or_a_list() -> None:
    def run(betas: Any) -> Any:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = ours.Adam([p], lr=0.1)
        optimizer.param_groups[0]["betas"] = betas
        for t in range(3):
            p.grad = gradient(p, t)
            optimizer.step()
        return p.detach()

    for betas in (np.array([0.5, 0.75]), torch.tensor([0.5, 0.75]), [0.5, 0.75]):
        assert torch.equal(run(betas), run((0.5, 0.75)))


def test_flags_may_be_numbers() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p], lr=0.5, amsgrad=1, maximize=0)
    p.grad = torch.ones(2)
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[p]


@pytest.mark.parametrize("option", ["lr", "tensors of betas", "list of betas"])
def test_option_changed_in_place_is_used_from_the_next_step(option: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(2))
        lr, beta1, betas = torch.tensor(0.1), torch.tensor(0.9), [0.9, 0.99]
        options: dict[str, Any] = {"lr": lr if option == "lr" else 0.1}
        if option == "tensors of betas":
            options["betas"] = (beta1, torch.tensor(0.99))
        optimizer = module.Adam([p], foreach=False, **options)
        if option == "list of betas":
            optimizer.param_groups[0]["betas"] = betas
        for t in range(4):
            if t == 2:
                lr.fill_(0.02)
                beta1.fill_(0.0)
                betas[0] = 0.0
            p.grad = torch.full((2,), 1.0 - t)
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run)


def test_changing_options_keep_the_fast_path() -> None:
    def run(module: Any) -> list[Any]:
        first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        groups = [{"params": [first]}, {"params": []}, {"params": [second], "weight_decay": 0.1}]
        optimizer = module.Adam(groups, lr=torch.tensor(0.1), foreach=False)
        for t in range(1, 6):
            first.grad, second.grad = torch.full((2,), 1.0 / t), torch.full((2,), -1.0 * t)
            optimizer.param_groups[0]["lr"] = [torch.tensor(0.1), 0.1 / t][t > 2]
            optimizer.param_groups[2]["lr"].mul_(0.5)
            optimizer.param_groups[2]["betas"] = (0.9 / t, 0.99)
            optimizer.step()
        assert_fast(optimizer)
        return [first, second]

    assert_same_as_pytorch(run)


def test_momentum_can_be_switched_on_later() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = module.SGD([p], lr=0.1)
        for t in range(6):
            optimizer.param_groups[0]["momentum"] = 0.0 if t < 2 else 0.9 / t
            p.grad = gradient(p, t)
            optimizer.step()
        return [p, optimizer.state[p]["momentum_buffer"]]

    assert_same_as_pytorch(run)


# ---- Groups ----


def test_groups_have_their_own_options_and_can_be_added_and_changed() -> None:
    def run(module: Any) -> list[Any]:
        params = make_parameters()
        groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:4], "weight_decay": 0.3}]
        optimizer = module.AdamW(groups, lr=0.02)
        for t in range(8):
            if t == 3:
                optimizer.add_param_group({"params": params[4:], "betas": (0.5, 0.6)})
            if t == 5:
                optimizer.param_groups[1]["lr"] = 0.5
                optimizer.param_groups[0]["betas"] = (0.3, 0.4)
            set_gradients(params, t)
            optimizer.step()
        return [*params, optimizer]

    assert_same_as_pytorch(run)


def test_groups_without_parameters_are_possible() -> None:
    optimizer = ours.Adam([{"params": []}])
    optimizer.step()
    p = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [p], "lr": 0.5})
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 1.0
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), -1.0))


def test_groups_and_state_may_hold_entries_of_the_user() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer = ours.SGD([{"params": [p], "decay": "mine"}, {"params": [q]}], lr=1.0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "name": True})
    optimizer.state["epoch"] = 3
    optimizer.step()
    optimizer.param_groups[1]["decay"] = 0.5
    del optimizer.param_groups[0]["decay"]
    optimizer.param_groups[0]["params"] = (p,)
    optimizer.step()
    optimizer.step()
    assert p.tolist() == q.tolist() == [-3.0] * 2 and optimizer.state["epoch"] == 3


@pytest.mark.parametrize("state_dtype", [None, "float8"])
def test_entries_of_the_user_in_the_state_are_copied_pickled_and_decoded(state_dtype: Any) -> None:
    p = torch.nn.Parameter(torch.ones(5000))
    p.grad = torch.ones(5000)
    optimizer = ours.Adam([p], lr=0.5, state_dtype=state_dtype)
    optimizer.step()
    state = {"epoch": 3, "history": {"losses": [1.0]}}
    own = {"prev": torch.ones(4), "prev_scale": torch.ones(1), "half": torch.ones(2, dtype=torch.bfloat16), "note": 7}
    optimizer.state.update(state)
    optimizer.state[p].update(own)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    resumed = ours.Adam([torch.nn.Parameter(torch.ones(5000))], lr=0.5, state_dtype=state_dtype)
    resumed.load_state_dict(optimizer.state_dict())
    copies = [copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), resumed]
    for each in (*copies, torch.load(file, weights_only=False), optimizer):
        (param,) = each.param_groups[0]["params"]
        stored = each.state[param]
        assert stored["exp_avg"].dtype == (torch.float8_e4m3fn if state_dtype else torch.float32)
        if each is not resumed or state_dtype:  # PyTorch casts tensors to the parameter's dtype
            assert stored["half"].dtype == torch.bfloat16
        decoded = each.decoded_state_dict()["state"]
        assert decoded[0]["exp_avg"].dtype == torch.float32 and "exp_avg_scale" not in decoded[0]
        assert decoded[0]["prev"] is not stored["prev"]
        for found, of_param in ((each.state, stored), (decoded, decoded[0])):
            assert {name: found[name] for name in state} == state
            assert torch.equal(of_param["prev"], own["prev"]) and torch.equal(of_param["prev_scale"], torch.ones(1))
            assert of_param["half"].dtype == stored["half"].dtype and of_param["note"] == 7
