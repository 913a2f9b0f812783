"""Gradients of any layout, missing gradients, and gradients on unusual memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast, assert_same_as_pytorch, gradient, make_parameters, set_gradients

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda values: values,
    "expanded": lambda values: values[:1, :1].expand(values.shape),
    "transposed": lambda values: values.t().contiguous().t(),
    "strided": lambda values: torch.cat([values, values], 1)[:, ::2],
    "negated lazily": lambda values: torch.view_as_complex(torch.stack([values, values], -1)).conj().imag,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_any_layout_is_used_and_not_changed(layout: str) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(6, 4))
        optimizer = module.Adam([p])
        p.grad = LAYOUTS[layout](gradient(p, 1))
        before = p.grad.clone()
        for _ in range(3):
            optimizer.step()
        assert torch.equal(p.grad, before)
        return [p]

    assert_same_as_pytorch(run)


def test_lazily_negated_gradient_is_used_with_its_sign_at_any_step() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = ours.SGD([p], lr=1.0)
    for t, is_negated in enumerate([True, False, True, True], 1):
        p.grad = torch._neg_view(torch.full((3,), -1.0)) if is_negated else torch.ones(3)
        optimizer.step()
        assert p.tolist() == [-t] * 3


def test_gradient_can_be_the_parameter_itself() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = module.SGD([p], lr=0.5)
        for _ in range(3):
            p.grad = p.detach()
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run)


def test_zero_gradient_without_memory_is_used_as_zero() -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = module.SGD([p], lr=0.1, momentum=0.9)
        for t in range(4):
            p.grad = torch.ones(2) if t < 2 else torch._efficientzerotensor((2,))
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run)


def test_gradient_whose_memory_was_freed_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p])
    p.grad = torch.ones(3)
    optimizer.step()
    p.grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the gradient of parameter 0 has no memory"):
        optimizer.step()


def test_parameter_without_a_gradient_keeps_its_value_state_and_count() -> None:
    def run(module: Any) -> list[Any]:
        params = make_parameters()
        optimizer = module.Adam(params, lr=0.1)
        for t in range(6):
            set_gradients(params, t)
            if t < 3:
                params[1].grad = None
            if t == 4:
                params[0].grad = None
            optimizer.step()
            assert (params[1] in optimizer.state) == (t >= 3)
        return [*params, optimizer]

    assert_same_as_pytorch(run)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "SGD", "Adagrad"])
def test_empty_parameters_and_missing_gradients_keep_the_fast_path(name: str) -> None:
    def run(module: Any) -> list[Any]:
        params = make_parameters()
        optimizer = getattr(module, name)(params, lr=0.1)
        for t in range(6):
            set_gradients(params, t)
            if t < 4:
                params[0].grad = None
            before = getattr(optimizer, "slow_steps", 0)
            optimizer.step()
            if t not in (0, 4):  # the first step of a parameter makes its state
                assert_fast(optimizer, before)
        return [*params, optimizer]

    assert_same_as_pytorch(run)


def test_zero_grad_zeroes_or_removes_gradients() -> None:
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p], lr=0.1)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert not p.grad.any()
        optimizer.zero_grad()
        assert p.grad is None
    optimizer.add_param_group({"params": [q]})
    q.grad = torch.ones(3)
    optimizer.zero_grad()
    assert q.grad is None


def test_grad_scaler_unscales_gradients_and_skips_infinite_gradients() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = ours.SGD([p], lr=1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.zeros(2))
    p.grad = torch.tensor([float("inf"), 1.0])
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p.detach(), torch.zeros(2)) and scaler.get_scale() == 2
