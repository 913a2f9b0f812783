"""Clipping the global norm, and gradients that are not finite."""

from __future__ import annotations

import numpy as np

import onepass
from support import ones, refused

F = np.float32


def test_clip_norm_can_be_set_and_infinity_only_measures() -> None:
    w = np.zeros(2)
    optimizer = onepass.SGD(w, lr=1)
    assert optimizer.clip_norm is None
    optimizer.step(np.array([3.0, 4.0]))
    assert optimizer.grad_norm is None and w.tolist() == [-3, -4]
    optimizer.clip_norm = float("inf")
    assert optimizer.clip_norm == float("inf")
    w.fill(0)
    optimizer.step(np.array([3.0, 4.0]), 2)
    assert optimizer.grad_norm == 10 and w.tolist() == [-6, -8]
    optimizer.clip_norm = 2.5
    w.fill(0)
    optimizer.step(np.array([3.0, 4.0]))
    assert optimizer.grad_norm == 5 and w.tolist() == [-1.5, -2]
    optimizer.clip_norm = None
    w.fill(0)
    optimizer.step(np.array([6.0, 8.0]))
    assert optimizer.grad_norm is None and w.tolist() == [-6, -8]


def test_nonfinite_can_be_set() -> None:
    w, bad = ones(2), np.array([1, np.nan], F)
    optimizer = onepass.SGD({"w": w, "b": ones(2)}, lr=0.5)
    optimizer.nonfinite = "raise"
    with refused(FloatingPointError, "gradient 'b' is not finite", optimizer):
        optimizer.step({"w": ones(2), "b": bad})
    optimizer.nonfinite = "skip"
    optimizer.step({"w": ones(2), "b": bad})
    assert (w == 1).all() and (optimizer.skipped, optimizer.step_count) == (1, 0)
    optimizer.nonfinite = "propagate"
    optimizer.step({"w": bad, "b": ones(2)})
    assert np.isnan(w[1]) and w[0] == 0.5 and optimizer.nonfinite == "propagate"


def test_the_first_gradient_that_is_not_finite_is_named() -> None:
    bad = np.array([1, np.inf], F)
    one = onepass.SGD(ones(2), nonfinite="raise")
    with refused(FloatingPointError, "the gradient is not finite", one):
        one.step(bad)
    several = onepass.Adam([ones(2)] + [ones(2) for _ in range(3)], nonfinite="raise")
    with refused(FloatingPointError, "gradient 1 is not finite", several):
        several.step([ones(2), bad, None, bad])
    with refused(FloatingPointError, "gradient 2 is not finite", several):
        several.step([ones(2), None, onepass.SparseRows([1], bad[1:]), bad])


def test_none_is_a_step_of_no_gradient() -> None:
    w = ones(2)
    optimizer = onepass.SGD([w], momentum=0.5, ema_decay=0.5, clip_norm=1, nonfinite="raise")
    optimizer.step([None])
    assert (w == 1).all() and (optimizer.step_count, optimizer.state[0]["step"], optimizer.grad_norm) == (1, 0, 0)
