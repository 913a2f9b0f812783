"""Parameters, gradients and comparisons shared by the tests of the PyTorch adapter."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import onepass.integrations.torch as ours

FOLDER = str(Path(ours.__file__).parent)
NAMES = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "SGD"]

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-4}),
    ("Adam", {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "weight_decay": 0.2, "fused": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("NAdam", {}),
    ("NAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.01}),
    ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1, "betas": (0.8, 0.9), "maximize": True}),
    ("RAdam", {"weight_decay": 0.1, "foreach": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "foreach": True}),
    ("Adagrad", {"initial_accumulator_value": 0.1, "lr_decay": 0.1}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
]
for_each_optimizer = pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(name, options, id=f"{name}-{'-'.join(options) or 'defaults'}") for name, options in OPTIONS],
)

# The interface through which the core reads tensors without Python. Without it, every step is slow.
has_exchange = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
needs_exchange = pytest.mark.skipif(not has_exchange, reason="PyTorch before 2.10 has no DLPack exchange interface")


def make_parameters(dtype: Any = None) -> list[Any]:
    """Return parameters of several shapes, one of them a scalar and one of them empty."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (7,), (), (2, 3, 4), (0,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def gradient(p: Any, seed: int) -> Any:
    """Return a random gradient of the parameter's shape and dtype."""
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=p.dtype)


def set_gradients(params: Iterable[Any], seed: int) -> None:
    """Set a different random gradient for each parameter."""
    for i, p in enumerate(params):
        p.grad = gradient(p, 100 * seed + i)


def assert_same_as_pytorch(run: Callable[[Any], list[Any]], rtol: float = 2e-5, atol: float = 1e-6) -> None:
    """Assert that the run returns the same tensors and optimizers with onepass's module and with torch.optim."""
    for got, expected in zip(run(ours), run(torch.optim), strict=True):
        if isinstance(expected, torch.optim.Optimizer):
            assert_same_state(got, expected)
        else:
            torch.testing.assert_close(got.detach(), expected.detach(), rtol=rtol, atol=atol)


def assert_same_state(optimizer: Any, expected: Any) -> None:
    """Assert that the state dicts of two optimizers have the same entries and options, and close tensors."""
    mine, theirs = optimizer.state_dict(), expected.state_dict()
    assert mine["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert mine["state"][index].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(mine["state"][index][name], value, rtol=1e-4, atol=1e-5)
    assert mine["param_groups"] == theirs["param_groups"]


def assert_fast(optimizer: Any, slow_steps: int = 1) -> None:
    """Assert the number of steps that an optimizer of onepass took on the slow path: only the first step."""
    if has_exchange and hasattr(optimizer, "slow_steps"):
        assert optimizer.slow_steps == slow_steps


def interrupted(moment: int, call: Callable[[], Any]) -> bool:
    """Raise KeyboardInterrupt before line number ``moment`` of a call in the adapter; return True if it got there.

    Only the first two runs of each line count.
    """
    left, came, runs = moment, False, Counter[tuple[Any, int]]()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left, came
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            runs[line := (frame.f_code, frame.f_lineno)] += 1
            left -= runs[line] <= 2
            if left == 0:
                came = True
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(True)  # an interrupted torch.no_grad() leaves gradients disabled
    return came


def run_in_threads(functions: Iterable[Callable[[], Any]]) -> None:
    """Run each function in its own thread and wait for all threads."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
