"""A small network, its data, and training with onepass's and with PyTorch's optimizers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast

Train = Callable[[Any], tuple[Iterable[Any], Iterable[Any]]]  # of a module of optimizers


def assert_trains_the_same(train: Train, rtol: float = 2e-5, atol: float = 1e-6) -> None:
    """Assert that training ends at the same tensors with onepass's module and with PyTorch's module.

    The function that trains returns tensors and the optimizers that stepped them, all but one of whose steps were fast.
    """
    ends = []
    for module in (ours, torch.optim):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (the libraries draw from it)
        random.seed(0)
        tensors, optimizers = train(module)
        ends.append([tensor.detach().clone() for tensor in tensors])
        for optimizer in optimizers:
            assert type(optimizer) is getattr(module, type(optimizer).__name__)
            assert_fast(optimizer)
    assert len(ends[0]) > 0
    torch.testing.assert_close(*ends, rtol=rtol, atol=atol)


def network() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def batch() -> tuple[Any, Any]:
    return torch.randn(32, 8), torch.randn(32, 4)


def loss(model: Any, data: tuple[Any, Any]) -> Any:
    return nn.functional.mse_loss(model(data[0]), data[1])


def fit(objective: Callable[[], Any], optimizer: Any, steps: int = 10) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()
