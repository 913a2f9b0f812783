"""onepass's own options in the PyTorch adapter: clipping, gradients that are not finite, running averages."""

from __future__ import annotations

import functools
from contextlib import nullcontext, suppress
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_same_as_pytorch, gradient, interrupted, set_gradients

# ---- Clipping ----


def test_clip_norm_matches_clip_grad_norm() -> None:
    def run(module: Any) -> list[Any]:
        params = [torch.nn.Parameter(torch.ones(40)), torch.nn.Parameter(torch.ones(3, 5))]
        optimizer = module.AdamW(params, lr=0.1, **({"clip_norm": 1.0} if module is ours else {}))
        for t in range(4):
            set_gradients(params, t)
            if module is torch.optim:
                norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
        return [*params, torch.tensor(optimizer.grad_norm) if module is ours else norm]

    assert_same_as_pytorch(run)


def test_grad_norm_is_none_after_a_step_without_clip_norm() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = ours.SGD([p], clip_norm=float("inf"))
    p.grad = torch.ones(4)
    optimizer.step()
    optimizer.clip_norm = None
    assert optimizer.grad_norm == 2.0  # of the last step
    for _ in range(2):
        optimizer.step()
        assert optimizer.grad_norm is None
    optimizer.clip_norm = 1.0
    optimizer.step()
    assert optimizer.grad_norm == 2.0


def test_ctrl_c_at_any_line_of_setting_clip_norm_leaves_one_of_the_values_in_use() -> None:
    seen, moment, came = set(), 0, True
    while came:
        moment += 1
        p = torch.nn.Parameter(torch.zeros(()))
        optimizer = ours.SGD([p], lr=1.0, clip_norm=1.0)
        p.grad = torch.tensor(4.0)
        optimizer.step()
        came = interrupted(moment, functools.partial(setattr, optimizer, "clip_norm", 2.0))
        optimizer.step()
        assert p.item() == -1.0 - optimizer.clip_norm
        seen.add(optimizer.clip_norm)
    assert seen == {1.0, 2.0}


def test_clip_value_matches_clip_grad_value() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(40))
        optimizer = module.SGD([p], lr=0.1, **({"clip_value": 0.5} if module is ours else {}))
        for t, limit in enumerate([0.5, 0.5, 0.5, 0.25]):
            p.grad = gradient(p, t)
            if module is ours:
                optimizer.param_groups[0]["clip_value"] = limit
            else:
                torch.nn.utils.clip_grad_value_([p], limit)
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run, rtol=1e-6, atol=1e-7)


# ---- Gradients that are not finite ----


def test_gradients_that_are_not_finite_are_skipped_or_refused() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p, q], nonfinite="skip", lr=0.5)
    for t, value in enumerate([1.0, float("nan"), float("inf"), 1.0]):
        p.grad, q.grad = torch.ones(3), torch.full((3,), value)
        version = p._version
        optimizer.step()
        assert optimizer.skipped == min(t, 2) and p._version == version + (t in (0, 3))
    assert optimizer.state[p]["step"] == 2
    optimizer.nonfinite = "raise"
    q.grad = torch.full((3,), float("nan"))
    before = p.detach().clone()
    with pytest.raises(FloatingPointError, match="the gradient of parameter 1 is not finite"):
        optimizer.step()
    assert torch.equal(p.detach(), before) and optimizer.skipped == 2


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_first_step_that_is_refused_or_skipped_leaves_no_state(name: str, nonfinite: str) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}

    def run(module: Any) -> list[Any]:
        p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
        own = {"nonfinite": nonfinite} if module is ours else {}
        optimizer = getattr(module, name)([p, q], lr=0.1, **options, **own)
        if module is ours:
            p.grad, q.grad = torch.ones(3), torch.full((3,), float("nan"))
            with pytest.raises(FloatingPointError) if nonfinite == "raise" else nullcontext():
                optimizer.step()
            assert not optimizer.state and torch.equal(p.detach(), torch.ones(3))
            assert optimizer.skipped == (nonfinite == "skip")
        p.grad, q.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        return [p, q]

    assert_same_as_pytorch(run)


# ---- Running averages ----


def test_running_averages_are_tensors_of_the_state_and_can_be_evaluated() -> None:
    p, late = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2,), 5.0))
    optimizer = ours.SGD([p, late], lr=1.0, ema_decay=0.5)
    expected = p.detach().clone()
    for _ in range(4):
        p.grad = torch.ones(3)
        optimizer.step()
        expected.lerp_(p.detach(), 0.5)
    assert torch.equal(optimizer.ema[0], expected) and torch.equal(optimizer.ema[1], late.detach())
    assert optimizer.state_dict()["state"][0]["ema"].equal(expected)
    weights = p.detach().clone()
    with suppress(RuntimeError), optimizer.averaged():
        assert torch.equal(p.detach(), expected)
        raise RuntimeError
    assert torch.equal(p.detach(), weights)


def test_ctrl_c_at_any_line_leaves_no_average_in_the_parameters() -> None:
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = ours.SGD(params, lr=1.0, ema_decay=0.5)
    for p in params:
        p.grad = torch.ones(2)
    optimizer.step()
    reached = set()

    def evaluate() -> None:
        with optimizer.averaged():
            reached.add(params[2].tolist()[0])

    moment = 1
    while interrupted(moment, evaluate):
        assert [p.tolist() for p in params] == [[0.0, 0.0]] * 3, f"Ctrl-C at line {moment} left an average"
        moment += 1
    assert moment > 20 and reached == {0.5}


def test_running_averages_are_loaded_or_begin_with_the_parameter() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = ours.SGD([p], lr=1.0, ema_decay=0.5)
    optimizer.step()
    resumed = ours.SGD([p], lr=1.0, ema_decay=0.5)
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(resumed.ema[0], optimizer.ema[0]) and not torch.equal(resumed.ema[0], p.detach())
    without = torch.optim.SGD([p], lr=1.0)
    without.step()
    resumed.load_state_dict(without.state_dict())
    assert resumed.param_groups[0]["ema_decay"] == 0.5 and torch.equal(resumed.ema[0], p.detach())


def test_averages_before_the_first_step_equal_the_parameters() -> None:
    p, lazy = torch.nn.Parameter(torch.ones(2)), torch.nn.UninitializedParameter()
    plain = ours.Adam([p])
    p.grad = torch.ones(2)
    plain.step()
    assert plain.ema is None
    with pytest.raises(ValueError, match="create the optimizer with ema_decay"), plain.averaged():
        pass
    optimizer = ours.Adam([p, lazy], ema_decay=0.5, lr=0.1)
    optimizer.state[p] = dict(plain.state[p])  # as loaded from PyTorch's optimizer
    assert torch.equal(optimizer.ema[0], p.detach())
    optimizer.step()
    with optimizer.averaged():
        assert torch.equal(p.detach(), optimizer.ema[0])
        p.grad = None
        (p * 2).sum().backward()
    assert p.grad is not None
