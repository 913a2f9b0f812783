"""State dicts, copies and pickles of the PyTorch adapter's optimizers."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import (
    NAMES,
    assert_same_as_pytorch,
    for_each_optimizer,
    make_parameters,
    set_gradients,
)


def train(params: list[Any], optimizer: Any, steps: range) -> None:
    for t in steps:
        set_gradients(params, t)
        optimizer.step()


@pytest.mark.parametrize("to_ours", [True, False])
@for_each_optimizer
def test_state_dict_of_either_library_loads_in_the_other(name: str, options: dict[str, Any], to_ours: bool) -> None:
    def run(module: Any) -> list[Any]:
        first = second = module
        if module is ours:
            first, second = (torch.optim, ours) if to_ours else (ours, torch.optim)
        params = make_parameters()
        optimizer = getattr(first, name)(params, **options)
        train(params, optimizer, range(5))
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = getattr(second, name)(params, **options)
        resumed.load_state_dict(torch.load(file))
        train(params, resumed, range(5, 10))
        return [*params, resumed]

    assert_same_as_pytorch(run)


@for_each_optimizer
def test_copies_and_pickles_continue_bit_identically(name: str, options: dict[str, Any]) -> None:
    params = make_parameters()
    optimizer = getattr(ours, name)(params, **options)
    train(params, optimizer, range(1))
    pair = (params, optimizer)
    copies = [copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))]
    for each in (pair, *copies):
        train(*each, range(1, 4))
    for copied, _ in copies:
        assert all(torch.equal(p, q) for p, q in zip(params, copied, strict=True))


def test_onepass_options_are_kept_by_copies_and_by_loading_from_pytorch() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([{"params": [p], "clip_value": 2.0}], clip_norm=1.0, nonfinite="skip", ema_decay=0.9)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (copied.clip_norm, copied.nonfinite, copied.flush_denormals) == (1.0, "skip", True)
        assert (copied.param_groups[0]["clip_value"], copied.param_groups[0]["ema_decay"]) == (2.0, 0.9)
    optimizer.load_state_dict(torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=0.5).state_dict())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["clip_value"], group["ema_decay"], optimizer.clip_norm) == (0.5, 2.0, 0.9, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_at_default_options_has_only_pytorchs_entries(name: str) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    mine, theirs = getattr(ours, name)([p], lr=0.1), getattr(torch.optim, name)([p], lr=0.1)
    assert mine.defaults == theirs.defaults
    assert mine.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    options = inspect.signature(getattr(ours, name)).parameters
    assert {"lr", "clip_norm", "clip_value", "nonfinite", "ema_decay", "flush_denormals"} <= options.keys()


def test_options_that_a_load_state_dict_hook_sets_are_checked() -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = ours.Adam(params)
    state = torch.optim.Adam(params, capturable=True).state_dict()

    def make_possible(_: Any, state_dict: Any) -> None:
        state_dict["param_groups"][0]["capturable"] = False

    handle = optimizer.register_load_state_dict_pre_hook(make_possible)
    optimizer.load_state_dict(state)
    handle.remove()

    def make_impossible(_: Any, state_dict: Any) -> None:
        state_dict["param_groups"][0]["differentiable"] = True

    optimizer.register_load_state_dict_pre_hook(make_impossible)
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["differentiable"] is False
