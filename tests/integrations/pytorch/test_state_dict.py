"""State dicts, copies and pickles of the PyTorch adapter's optimizers."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass
import onepass.integrations.torch as ours
from integrations.pytorch.helpers import (
    NAMES,
    assert_same_as_pytorch,
    for_each_optimizer,
    interrupted,
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


def test_ctrl_c_at_any_line_of_a_load_keeps_the_options_that_only_onepass_has() -> None:
    def make(module: Any, lr: float, **options: Any) -> Any:
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = module.Adam([p], lr=lr, **options)
        optimizer.step()
        return optimizer

    saved = make(torch.optim, 0.5).state_dict()
    seen, moment, came = set(), 0, True
    while came:
        moment += 1
        optimizer = make(ours, 0.25, clip_value=2.0, ema_decay=0.5)
        came = interrupted(moment, functools.partial(optimizer.load_state_dict, saved))
        (group,) = optimizer.param_groups
        seen.add(group["lr"])
        assert (group["clip_value"], group["ema_decay"]) == (2.0, 0.5), f"interrupted at line {moment}"
        (state,) = optimizer.state.values()
        assert ("ema" in state) == (group["lr"] == 0.25)
        optimizer.load_state_dict(saved)
        optimizer.step()
    assert seen == {0.25, 0.5}


def test_shallow_copy_shares_groups_and_state_but_not_onepass_options() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.full((2,), 4.0)
    optimizer = ours.SGD([p], lr=1.0, momentum=0.5, clip_norm=1.0)
    optimizer.step()
    copied = copy.copy(optimizer)
    assert copied.state is optimizer.state and copied.param_groups is optimizer.param_groups
    copied.clip_norm = None
    assert optimizer.clip_norm == 1.0
    before = p.detach().clone()
    copied.step()
    assert before[0] - p[0] > 4
    before = p.detach().clone()
    optimizer.param_groups[0]["momentum"] = 0.0
    optimizer.step()
    assert before[0] - p[0] < 1 and optimizer.clip_norm == 1.0


def test_skipped_steps_and_the_last_norm_are_kept_by_copies() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.Adam([p], nonfinite="skip", clip_norm=2.0)
    for value in (float("nan"), 3.0):
        p.grad = torch.full((4,), value)
        optimizer.step()
    for copied in (copy.copy(optimizer), copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (copied.skipped, copied.grad_norm) == (1, 6.0)
        (q,) = copied.param_groups[0]["params"]
        q.grad = torch.full((4,), float("nan"))
        copied.step()
        assert copied.skipped == 2
    assert optimizer.skipped == 1


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


def stepped(module: Any, name: str, **options: Any) -> Any:
    """Return an optimizer of one parameter that has taken a step."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(module, name)([p], lr=0.1, **options)
    p.grad = torch.ones(3)
    optimizer.step()
    return optimizer


CLASSES = sorted(name for name in ours.__all__ if name[0].isupper())
PAIRS = {(a, b) for a in CLASSES for b in CLASSES if a != b} - {("Adam", "AdamW"), ("AdamW", "Adam")}


@pytest.mark.parametrize(("saved", "name"), sorted(PAIRS))
def test_state_of_another_class_is_refused_and_nothing_changes(saved: str, name: str) -> None:
    optimizer = stepped(ours, name)
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"load_state_dict: expected the state of {name}[ ,].*got"):
        optimizer.load_state_dict(stepped(ours, saved).state_dict())
    assert repr(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    ("saved", "name", "message"),
    [
        ("AdamW", "RAdam", r"of RAdam \(options lr, betas, eps, weight_decay\), got group 0 with amsgrad \(was it"),
        ("RAdam", "AdamW", r"of AdamW \(options .*, amsgrad\), got group 0 without amsgrad \(was it"),
        ("AdamW", "SGD", "group 0 with betas, eps, .* and without momentum, dampening, nesterov"),
        ("Adamax", "RAdam", "of RAdam, got parameter 0 without 'exp_avg_sq'"),
    ],
)
def test_refusal_of_another_class_names_the_difference(saved: str, name: str, message: str) -> None:
    for module in (ours, torch.optim):
        with pytest.raises(ValueError, match=message):
            stepped(ours, name).load_state_dict(stepped(module, saved).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_of_older_pytorch_and_with_keys_of_the_user_load(name: str) -> None:
    newer = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
    saved, optimizer = stepped(torch.optim, name).state_dict(), stepped(ours, name)
    group = saved["param_groups"][0]
    own = {"name": "mine", "initial_lr": 0.1, "max_momentum": 0.9}
    saved["param_groups"][0] = {key: value for key, value in group.items() if key not in newer} | own
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.param_groups[0].items() >= own.items()


def test_an_option_of_another_class_may_be_a_key_of_the_user() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([{"params": [p], "r": 8}])
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["r"] == 8


def test_a_saved_key_of_the_user_may_be_an_option_of_another_class() -> None:
    saved = stepped(torch.optim, "Adam").state_dict()
    saved["param_groups"][0].update(alpha=16, r=8)
    optimizer = stepped(ours, "Adam")
    optimizer.load_state_dict({**saved, "optimizer": {"more": 1}, "version": 2})
    optimizer.step()
    assert optimizer.param_groups[0]["alpha"] == 16


@pytest.mark.parametrize(("name", "flag"), [("Adam", "amsgrad"), ("AdamW", "amsgrad"), ("SGD", "nesterov")])
def test_a_flag_that_was_not_saved_is_false_as_in_pytorch(name: str, flag: str) -> None:
    saved = stepped(torch.optim, name).state_dict()
    for missing in (flag, "decoupled_weight_decay"):
        saved["param_groups"][0].pop(missing, None)
    optimizer = stepped(ours, name)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.param_groups[0][flag] is False


def test_state_dict_of_an_optimizer_for_numpy_is_refused() -> None:
    saved = onepass.Adam(np.ones(3, np.float32)).state_dict()
    with pytest.raises(ValueError, match=r"expected the state of Adam in PyTorch, got the state of onepass\.Adam for"):
        stepped(ours, "Adam").load_state_dict(saved)
