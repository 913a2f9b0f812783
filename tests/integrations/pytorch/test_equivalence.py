"""onepass's optimizers for PyTorch take the steps of PyTorch's own optimizers."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_same_as_pytorch, for_each_optimizer, make_parameters, set_gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@for_each_optimizer
def test_parameters_and_state_match_pytorch(name: str, options: dict[str, Any], dtype: Any) -> None:
    def run(module: Any) -> list[Any]:
        params = make_parameters(dtype)
        optimizer = getattr(module, name)(params, **options)
        assert isinstance(optimizer, getattr(torch.optim, name))
        for t in range(20):
            set_gradients(params, t)
            optimizer.step()
        return [*params, optimizer]

    tolerances = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {}
    if name == "NAdam":  # PyTorch keeps the product of momenta in the default dtype
        torch.set_default_dtype(dtype)
    try:
        assert_same_as_pytorch(run, **tolerances)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("eps", "tiny"), [(0.0, 1e-18), (1e-30, 1e-20)])
def test_tiny_gradients_move_the_parameter_if_eps_is_tiny(eps: float, tiny: float) -> None:
    def run(module: Any) -> list[Any]:
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = module.Adam([p], lr=0.1, eps=eps)
        for _ in range(3):
            p.grad = torch.full((1,), tiny)
            optimizer.step()
        return [p]

    assert_same_as_pytorch(run, rtol=0.02)


def test_docstring_examples_run() -> None:
    tested = doctest.testmod(ours)
    assert tested.attempted > 5 and tested.failed == 0
