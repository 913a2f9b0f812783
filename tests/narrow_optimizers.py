"""Optimizers with narrow storage, and their training, for the tests of saved state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import Array, comparable, ordinary, snapshot

NARROW: list[Any] = ["bfloat16", "float8"]
STATES: list[Any] = [None, *NARROW]
SHAPES: list[tuple[int, ...]] = [(70, 64), (5000,), (3, 5)]


def bfloat16() -> Any:
    return pytest.importorskip("ml_dtypes").bfloat16


def made(bits_of_weights: int | None, order: Any = "C", **options: Any) -> onepass.Adam:
    """Return an optimizer of arrays in this memory order: float32 (None), or bfloat16 with this number of bits."""
    rng = np.random.default_rng(0)
    params = [np.array(ordinary(rng, shape, np.float32), order=order) for shape in SHAPES]
    if bits_of_weights is None:
        return onepass.Adam(params, lr=0.1, **options)
    return onepass.Adam([p.astype(bfloat16()) for p in params], lr=0.1, master_bits=bits_of_weights, **options)


def train(optimizer: onepass.Optimizer, steps: int) -> None:
    """Take steps along gradients of very different sizes, which depend only on the number of the step."""
    for _ in range(steps):
        rng = np.random.default_rng(optimizer.step_count)
        sizes = [np.asarray(10 ** rng.uniform(-5, 1, p.shape), np.float32) for p in optimizer.params]
        optimizer.step([size * ordinary(rng, size.shape, np.float32) for size in sizes])


def arrays(optimizer: onepass.Optimizer, params: bool = True) -> list[Array]:
    states = [value for state in snapshot(optimizer) for value in state.values() if np.ndim(value)]
    return [comparable(np.asarray(a)) for a in [*(optimizer.params if params else []), *states]]


def with_weights_of(other: onepass.Adam, fresh: onepass.Adam) -> onepass.Adam:
    for own, param in zip(fresh.params, other.params):
        own[...] = param
    return fresh


def in_file(optimizer: onepass.Optimizer, path: Path, **options: Any) -> Path:
    optimizer.save(path, **options)
    return path
