"""Steps that are refused or interrupted: they leave no options and no part of a step behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import has_exchange, interrupted


def test_refused_step_keeps_the_learning_rates_of_the_other_groups() -> None:
    p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = ours.SGD([{"params": [p]}, {"params": [q]}], lr=1.0)
    p.grad, q.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.step()
    first, second = optimizer.param_groups
    lr, kept = torch.tensor(1e39, dtype=torch.float64), second["lr"]
    first["lr"] = lr
    with pytest.raises(ValueError, match="overflows"):
        optimizer.step()
    lr.fill_(0.5)
    optimizer.step()
    assert p.tolist() == [-2.5] * 2 and q.tolist() == [-3.0] * 2
    second["lr"] = float("inf")
    with pytest.raises(ValueError, match="overflows"):
        optimizer.step()
    second["lr"] = kept
    lr.fill_(0.25)
    optimizer.step()
    assert p.tolist() == [-2.75] * 2 and q.tolist() == [-4.0] * 2


def test_learning_rate_changed_before_a_refused_step_is_used_by_the_next() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ours.SGD([p], lr=0.1)
    p.grad = torch.ones(3)
    optimizer.step()
    group = optimizer.param_groups[0]
    group["lr"], group["differentiable"] = 10.0, True
    with pytest.raises(ValueError, match="differentiable"):
        optimizer.step()
    group["differentiable"] = False
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -10.1))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 reports no return of a bound C++ function")
@pytest.mark.parametrize("is_expanded", [False, True])
def test_ctrl_c_during_the_core_step_leaves_a_complete_step(is_expanded: bool) -> None:
    """Python raises KeyboardInterrupt when the C++ function returns; an expanded gradient takes the slow path."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    p.grad = torch.ones(1).expand(2) if is_expanded else torch.ones(2)
    version = p._version
    left = 2 if is_expanded or not has_exchange else 1  # the first of two calls reports that it could not step

    def interrupt(frame: Any, event: str, function: Any) -> None:
        nonlocal left
        if event == "c_return" and function.__qualname__ == "TorchEngine.step":
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    finally:
        sys.setprofile(None)
    state = optimizer.state_dict()["state"][0]
    assert state["step"] == 2 and state["exp_avg"].all() and p._version == version + 1 and (p < 0.85).all()


@pytest.mark.parametrize("is_first", [True, False])
def test_ctrl_c_at_any_line_of_a_slow_step_leaves_a_complete_step_or_none(is_first: bool) -> None:
    seen, moment, came = set(), 0, True
    while came:
        moment += 1
        columns = torch.nn.Parameter(torch.ones(4, 2)[:, 0])  # with gaps: the core steps a copy
        negated = torch.nn.Parameter(torch._neg_view(torch.full((2,), -1.0)))
        params = [columns, negated, torch.nn.Parameter(torch.ones(2))]
        optimizer = ours.Adam(params, lr=0.125, betas=(0.0, 0.0), eps=0.0, ema_decay=0.0)
        for p in params:
            p.grad = torch.ones(p.shape)
        if not is_first:
            optimizer.step()
        before = int(not is_first)
        came = interrupted(moment, optimizer.step)
        done = int(optimizer.state.get(params[0], {}).get("step", 0))
        assert done - before in (0, 1)
        seen.add(done - before)
        for count in (done, done + 1):
            for p in params:
                state = optimizer.state.get(p, {"step": 0, "exp_avg": torch.zeros(()), "ema": p})
                assert state["step"] == count and (p == 1 - 0.125 * count).all() and (state["ema"] == p).all()
                assert (state["exp_avg"] == (count > 0)).all()
            optimizer.step()
    assert seen == {0, 1}


def test_ctrl_c_at_any_line_of_a_first_step_does_not_slow_down_later_steps() -> None:
    moment, came = 0, True
    while came:
        moment += 1
        p = torch.nn.Parameter(torch.ones(2))
        p.grad = torch.ones(2)
        optimizer = ours.Adam([p])
        came = interrupted(moment, optimizer.step)
        optimizer.step()
        assert not optimizer._is_slow, f"after line {moment}, every step waits for the lock"


def test_gradients_passed_to_step_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = ours.SGD([p], lr=0.5)
    with pytest.raises(TypeError, match=r"step: expected a closure or None, got list \(gradients .* in .grad\)"):
        optimizer.step([p.grad])
    assert (p == 1).all()
