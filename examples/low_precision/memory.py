"""Memory per parameter of a training run: bytes of its arrays, and the peak of a process that trains with PyTorch."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from train_digits import need

import onepass

WIDTH = 1000  # a layer is a square matrix of this width: a million parameters


class Case(NamedTuple):
    """Training whose memory is measured."""

    title: str
    dtype: str
    options: dict[str, Any]
    frees_gradients: bool = False  # steps each parameter in the backward pass


FLOAT8 = {"state_dtype": "float8"}
BITS24 = {**FLOAT8, "master_bits": 24}
CASES = (
    Case("float32 throughout", "float32", {}),
    Case("bfloat16 state", "float32", {"state_dtype": "bfloat16"}),
    Case("float8 state", "float32", FLOAT8),
    Case("bfloat16 weights and gradients, float8 state", "bfloat16", FLOAT8),
    Case("the same, `master_bits=24`", "bfloat16", BITS24),
    Case("the same, `master_bits=16`", "bfloat16", {**FLOAT8, "master_bits": 16}),
    Case("`master_bits=24`, gradients freed as they are used", "bfloat16", BITS24, frees_gradients=True),
)


def train(case: Case, layers: int) -> float:
    """Take three steps; return the bytes per parameter of weights, gradients and state."""
    torch = need("torch", "PyTorch")
    adapter = onepass.integrations.torch
    dtype = getattr(torch, case.dtype)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(layers)))
    optimizer = adapter.Adam(model.parameters(), **case.options)
    if case.frees_gradients:
        adapter.step_in_backward(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, WIDTH, dtype=dtype)).square().mean().backward()
        optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    total: int = sum(tensor.nbytes for tensor in held)
    return total / (layers * WIDTH**2)


def measure(case: Case, layers: int) -> dict[str, Any]:
    """Train in this process; return the bytes per parameter of the arrays, and of the process at its peak."""
    need("torch", "PyTorch").set_num_threads(1)
    train(case, layers=1)  # warm-up: excludes PyTorch's own memory
    before = status("VmRSS")
    held = train(case, layers)
    peak = (status("VmHWM") - before) / (layers * WIDTH**2)
    return {"title": case.title, "bytes": held, "peak": peak if before else None}


def status(key: str) -> int:
    """Return a figure of this process from the kernel, in bytes; 0 outside Linux."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def memory(layers: int) -> dict[str, Any]:
    """Measure every case in a separate process."""
    # glibc, the allocator of most Linux systems, leaves gaps between gradients that PyTorch frees and allocates again.
    # New processes read this variable, and return arrays from this size on to the system.
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"):
        cases = [in_new_process(measure, case, layers) for case in CASES]
    return {"parameters": layers * WIDTH**2, "cases": cases}


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, so that its peak of memory is that of the call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
