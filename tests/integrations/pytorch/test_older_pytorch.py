"""The adapter with older versions of PyTorch, whose private names and groups are imitated."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import make_parameters, needs_exchange, set_gradients

ImportAgain = Callable[..., ModuleType]


@needs_exchange
@pytest.mark.parametrize("exchange", [None, 7])
def test_steps_without_the_exchange_interface_are_slow_and_bit_identical(
    exchange: Any, import_again: ImportAgain
) -> None:
    runs = []
    for module in (ours, import_again(exchange=exchange)):
        params = make_parameters()
        optimizer = module.Adam(params)
        for t in range(4):
            set_gradients(params, t)
            optimizer.step()
        assert optimizer.slow_steps == (1 if module is ours else 4)
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_versions_are_increased_where_pytorch_accepts_one_tensor_per_call(import_again: ImportAgain) -> None:
    increment = torch._C._increment_version

    def increment_one(tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            raise RuntimeError("increment_version expect a Tensor as input")
        increment((tensor,))

    older = import_again(increment_version=increment_one)
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = older.Adam([first, second])
    for t in range(1, 4):
        first.grad, second.grad = torch.ones(2), torch.ones(2)
        optimizer.step()
        assert first._version == second._version == t


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_groups_without_newer_options_are_stepped_at_the_defaults(name: str) -> None:
    runs = []
    for is_older in (True, False):
        params = make_parameters()
        optimizer = getattr(ours, name)(params, weight_decay=0.1)
        if is_older:
            del optimizer.param_groups[0]["decoupled_weight_decay"]
        set_gradients(params, 0)
        optimizer.step()
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
