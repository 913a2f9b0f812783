"""Claims of the paper, and the textbook's formulas in double, independent of the executable specification.

Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import onepass
from support import DTYPES, Array, assert_same_bits

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}  # of the distance travelled


def textbook(p: Array, grads: list[Array], **o: Any) -> Array:
    """Algorithm 1 of the paper in double precision, with the options as PyTorch documents them."""
    p = p.astype(np.float64)
    m, v, vmax = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    lr, (b1, b2), eps = o.get("lr", 1e-3), o.get("betas", (0.9, 0.999)), o.get("eps", 1e-8)
    for t, g in enumerate(grads, 1):
        g = g.astype(np.float64) * (-1 if o.get("maximize") else 1)
        if o.get("decoupled"):
            p = p - lr * o["weight_decay"] * p
        else:
            g = g + o.get("weight_decay", 0) * p
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        vmax = np.maximum(vmax, v)
        c1, c2 = (1 - b1**t, 1 - b2**t) if o.get("bias_correction", True) else (1, 1)
        u = vmax if o.get("amsgrad") else v
        if o.get("eps_mode", "paper") == "paper":
            p = p - lr * (m / c1) / (np.sqrt(u / c2) + eps)
        else:
            p = p - lr * math.sqrt(c2) / c1 * m / (np.sqrt(u) + eps)
    return p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1, "betas": (0.5, 0.7), "eps": 0.3},
        {"eps": 0.01, "eps_mode": "hat"},
        {"bias_correction": False},
        {"weight_decay": 0.3},
        {"amsgrad": True, "betas": (0.9, 0.5)},
        {"maximize": True, "weight_decay": 0.1},
        {"weight_decay": 0.5, "decoupled": True, "lr": 0.05},
    ],
    ids=str,
)
def test_fifty_steps_match_the_textbook(options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p = rng.standard_normal(501).astype(dtype)
    grads = [(rng.standard_normal(501) * 10 ** rng.uniform(-3, 1)).astype(dtype) for _ in range(50)]
    expected = textbook(p, grads, **options)
    travelled = np.abs(expected - p).max()
    arguments = dict(options)
    cls = onepass.AdamW if arguments.pop("decoupled", False) else onepass.Adam
    optimizer = cls(p, **arguments)
    for grad in grads:
        optimizer.step(grad)
    # relative to the size of the numbers that are subtracted, one rounding of which is eps
    slack = 50 * np.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(p - expected).max() <= TOLERANCE[dtype] * travelled + slack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-20, -3, 1, 12])
def test_rescaled_gradients_give_the_same_steps_bit_for_bit_without_eps(power: int, dtype: Any) -> None:
    """Section 2.1: the effective step is invariant to the scale of the gradients."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal(333).astype(dtype)
    q = p.copy()
    a, b = onepass.Adam(p, eps=0.0), onepass.Adam(q, eps=0.0)
    for _ in range(30):
        g = rng.standard_normal(333).astype(dtype)
        a.step(g)
        b.step(g * dtype(2.0**power))
    assert_same_bits([p], [q])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_step_is_lr_times_the_sign_of_the_gradient(dtype: Any) -> None:
    g = np.array([3, -0.5, 1e-3, -1e-8, 0], dtype)
    p = np.zeros(5, dtype)
    onepass.Adam(p, lr=0.01).step(g)
    np.testing.assert_allclose(p, -0.01 * g / (abs(g) + 1e-8), rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_bounded_by_about_lr(dtype: Any) -> None:
    """Section 2.1: |step| <= lr (1 - beta1) / sqrt(1 - beta2) when gradients are sparse, lr when they are steady."""
    rng = np.random.default_rng(2)
    lr, bound = 0.01, 0.01 * (1 - 0.9) / math.sqrt(1 - 0.999)
    p = np.zeros(1000, dtype)
    optimizer = onepass.Adam(p, lr=lr)
    for t in range(300):
        before = p.copy()
        optimizer.step(rng.standard_normal(1000).astype(dtype) * dtype(1e6 if t == 150 else 1))
        assert np.abs(p - before).max() <= 1.001 * max(bound, lr)
    steady = np.zeros(1, dtype)
    optimizer = onepass.Adam(steady, lr=lr)
    for t in range(1, 50):
        optimizer.step(np.full(1, 5, dtype))
        np.testing.assert_allclose(steady, -lr * t, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_gradient_moves_only_parameters_with_momentum(dtype: Any) -> None:
    p = np.array([1.5, -2.5], dtype)
    optimizer = onepass.Adam(p, lr=0.1)
    for _ in range(10):
        optimizer.step(np.zeros(2, dtype))
    assert (p == [1.5, -2.5]).all()
    optimizer.step(np.array([1, 0], dtype))
    after = p.copy()
    optimizer.step(np.zeros(2, dtype))
    assert p[0] < after[0] and p[1] == -2.5


def test_epsilon_hat_equals_a_larger_epsilon_at_the_first_step() -> None:
    """The same step as in the paper's form with epsilon-hat / sqrt(1 - beta2), 31.6 times as large."""
    g = np.array([1e-8, 1e-4, 1.0])
    hat, paper = np.zeros(3), np.zeros(3)
    onepass.Adam(hat, eps=1e-6, eps_mode="hat").step(g)
    onepass.Adam(paper, eps=1e-6 / math.sqrt(1 - 0.999)).step(g)
    np.testing.assert_allclose(hat, paper, rtol=1e-12)


def test_amsgrad_keeps_the_maximum_of_the_second_moment() -> None:
    p = np.zeros(1)
    optimizer = onepass.Adam(p, amsgrad=True, betas=(0.9, 0.5))
    largest = 0.0
    for g in [1.0, 100.0, 1e-3, 1e-3, 1e-3]:
        optimizer.step(np.array([g]))
        state = optimizer.state[0]
        largest = max(largest, float(state["exp_avg_sq"][0]))
        assert state["max_exp_avg_sq"][0] == largest
    assert largest > 5 * state["exp_avg_sq"][0]


def test_adam_finds_the_minimum_of_the_rosenbrock_valley() -> None:
    p = np.array([-1.5, 2.0])
    optimizer = onepass.Adam(p, lr=0.02)
    for _ in range(8000):
        x, y = p
        optimizer.step(np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]))
    np.testing.assert_allclose(p, [1, 1], atol=1e-3)
