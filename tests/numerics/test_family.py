"""The family against textbook formulas in double, and what each rule promises: independent of the specification.

The formulas are those of torch's documentation (Lion: Chen et al. 2023). Adam and AdamW are in `test_paper.py`.
"""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest

import onepass
from cases import all_set, one_by_one
from support import DTYPES, Array, assert_same_bits

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}  # of the distance travelled


def adamax(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    b1, b2 = o.get("betas", (0.9, 0.999))
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["u"] = np.maximum(b2 * s.get("u", 0), np.abs(g) + o.get("eps", 1e-8))
    return lr * s["m"] / ((1 - b1**t) * s["u"])


def nadam(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    b1, b2 = o.get("betas", (0.9, 0.999))
    mu = [b1 * (1 - 0.96 ** (i * o.get("momentum_decay", 4e-3)) / 2) for i in range(1, t + 2)]
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    ahead = mu[t] * s["m"] / (1 - math.prod(mu)) + (1 - mu[t - 1]) * g / (1 - math.prod(mu[:t]))
    return lr * ahead / (np.sqrt(s["v"] / (1 - b2**t)) + o.get("eps", 1e-8))


def radam(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    b1, b2 = o.get("betas", (0.9, 0.999))
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    most = 2 / (1 - b2) - 1
    rho = most - 2 * t * b2**t / (1 - b2**t)
    m_hat = s["m"] / (1 - b1**t)
    if rho <= 5:
        return lr * m_hat
    rectification = math.sqrt((rho - 4) / (most - 4) * (rho - 2) / (most - 2) * most / rho)
    return lr * m_hat * rectification * math.sqrt(1 - b2**t) / (np.sqrt(s["v"]) + o.get("eps", 1e-8))


def rmsprop(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    alpha = o.get("alpha", 0.99)
    s["v"] = variance = alpha * s.get("v", 0) + (1 - alpha) * g**2
    if o.get("centered"):
        s["mean"] = alpha * s.get("mean", 0) + (1 - alpha) * g
        variance = s["v"] - s["mean"] ** 2
    s["b"] = o.get("momentum", 0) * s.get("b", 0) + g / (np.sqrt(variance) + o.get("eps", 1e-8))
    return lr * s["b"]


def adagrad(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    s["sum"] = s.get("sum", o.get("initial_accumulator_value", 0)) + g**2
    return lr / (1 + (t - 1) * o.get("lr_decay", 0)) * g / (np.sqrt(s["sum"]) + o.get("eps", 1e-10))


def adadelta(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    rho, eps = o.get("rho", 0.9), o.get("eps", 1e-6)
    s["v"] = rho * s.get("v", 0) + (1 - rho) * g**2
    delta = np.sqrt(s.get("u", 0) + eps) / np.sqrt(s["v"] + eps) * g
    s["u"] = rho * s.get("u", 0) + (1 - rho) * delta**2
    return lr * delta


def sgd(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    momentum = o.get("momentum", 0)
    s["b"] = momentum * s["b"] + (1 - o.get("dampening", 0)) * g if "b" in s else g
    return lr * (g + momentum * s["b"] if o.get("nesterov") else s["b"] if momentum else g)


def lion(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    b1, b2 = o.get("betas", (0.9, 0.99))
    m = s.get("m", np.zeros_like(g))
    s["m"] = b2 * m + (1 - b2) * g
    return lr * np.sign(b1 * m + (1 - b1) * g)


def ademamix(g: Array, s: dict[str, Any], t: int, lr: float, **o: Any) -> Array:
    b1, b2, b3 = o.get("betas", (0.9, 0.999, 0.9999))
    alpha, warmup = o.get("alpha", 5.0) * min(1, t / (o.get("alpha_warmup") or 1)), o.get("beta3_warmup") or 1
    if t < warmup and b3 > 0:
        # the paper's formula, multiplied out
        fast, slow = (math.log(b) if b > 0 else -math.inf for b in (b1, b3))
        share = t / warmup
        b3 = b3 ** (1 / share) if b1 == 0 else min(math.exp(fast * slow / ((1 - share) * slow + share * fast)), b3)
    s["m"] = b1 * s.get("m", 0) + (1 - b1) * g
    s["v"] = b2 * s.get("v", 0) + (1 - b2) * g**2
    s["slow"] = b3 * s.get("slow", 0) + (1 - b3) * g
    root = np.sqrt(s["v"] / (1 - b2**t)) + o.get("eps", 1e-8)
    return lr * (s["m"] / (1 - b1**t) + alpha * s["slow"]) / root


MOVES = {
    "Adamax": adamax,
    "NAdam": nadam,
    "RAdam": radam,
    "RMSprop": rmsprop,
    "Adagrad": adagrad,
    "Adadelta": adadelta,
    "SGD": sgd,
    "Lion": lion,
    "AdEMAMix": ademamix,
}
ELSEWHERE = ("lr", "clip_value", "ema_decay")  # options that have tests of their own
CASES = [(kind, options) for kind in MOVES for options in [*one_by_one(kind, *ELSEWHERE), all_set(kind, *ELSEWHERE)]]


def textbook(kind: str, p: Array, grads: list[Array], lr: float, **o: Any) -> Array:
    """Return the parameters after steps by the documented formulas, in double precision."""
    p = p.astype(np.float64)
    state: dict[str, Any] = {}
    decay = o.pop("weight_decay", 0)
    decoupled = o.pop("decoupled_weight_decay", kind in ("Lion", "AdEMAMix"))
    sign = -1 if o.pop("maximize", False) else 1
    for t, grad in enumerate(grads, 1):
        g = sign * grad.astype(np.float64)
        if decoupled:
            p = p - lr * decay * p
        else:
            g = g + decay * p
        p = p - MOVES[kind](g, state, t, lr, **o)
    return p


def gradients(rng: np.random.Generator, size: int, dtype: Any, count: int) -> list[Array]:
    """Make gradients of many sizes, with a mean, so that centering and momentum matter."""
    return [((rng.standard_normal(size) + 0.5) * 10 ** rng.uniform(-2, 0.5)).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_thirty_steps_match_the_textbook(kind: str, options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p = rng.standard_normal(501).astype(dtype)
    grads = gradients(rng, 501, dtype, 30)
    lr = {"Adadelta": 0.7}.get(kind, 0.05)
    expected = textbook(kind, p, grads, lr, **options)
    travelled = np.abs(expected - p).max()
    optimizer = getattr(onepass, kind)(p, lr=lr, **options)
    for grad in grads:
        optimizer.step(grad)
    # relative to the size of the numbers that are subtracted, one rounding of which is eps
    slack = 30 * np.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(p - expected).max() <= TOLERANCE[dtype] * travelled + slack


@pytest.mark.parametrize("kind", MOVES)
def test_steps_at_the_defaults_match_the_textbook_at_pytorchs_defaults(kind: str) -> None:
    """Pass no options. The defaults of lr differ: 1 for Adadelta, 1e-4 for Lion."""
    lr = {
        "Adamax": 2e-3,
        "NAdam": 2e-3,
        "Adadelta": 1.0,
        "RAdam": 1e-3,
        "AdEMAMix": 1e-3,
        "SGD": 1e-3,
        "Lion": 1e-4,
    }.get(kind, 1e-2)
    rng = np.random.default_rng(1)
    p, grads = np.zeros(50), gradients(rng, 50, np.float64, 5)
    expected = textbook(kind, p, grads, lr)
    optimizer = getattr(onepass, kind)(p)
    for grad in grads:
        optimizer.step(grad)
    np.testing.assert_allclose(p, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["Adamax", "NAdam", "RMSprop", "Adagrad", "Lion", "AdEMAMix"])
def test_rescaled_gradients_give_the_same_steps_bit_for_bit_without_eps(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    options: dict[str, Any] = {"lr": 0.1} if kind == "Lion" else {"lr": 0.1, "eps": 0.0}
    grads = gradients(rng, 99, dtype, 20)
    start, results = rng.standard_normal(99).astype(dtype), []
    for power in [0, -12, 5]:
        results.append(start.copy())
        optimizer = getattr(onepass, kind)(results[-1], **options)
        for grad in grads:
            optimizer.step(grad * dtype(2.0**power))
    assert_same_bits(results[1:], [results[0]] * 2)
    assert np.median(np.abs(results[0] - start)) > 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_sgd_is_linear_in_lr_and_in_the_gradients(dtype: Any) -> None:
    rng = np.random.default_rng(3)
    grads = gradients(rng, 99, dtype, 20)
    p, q = np.zeros(99, dtype), np.zeros(99, dtype)
    options = {"momentum": 0.9, "nesterov": True}
    a, b = onepass.SGD(p, lr=0.5, **options), onepass.SGD(q, lr=0.125, **options)
    for grad in grads:
        a.step(grad)
        b.step(grad, grad_scale=4.0)
    assert_same_bits([p], [q])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_moves_by_lr_or_stays_in_lion(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    lr = 2.0**-10
    p = np.zeros(200, dtype)
    optimizer = onepass.Lion(p, lr=lr)
    for _ in range(30):
        before = p.copy()
        grad = rng.standard_normal(200).astype(dtype)
        grad[:20] = rng.choice([0.0, -0.0], 20)
        optimizer.step(grad)
        assert (np.abs(p - before)[20:] == lr).all() and (p[:20] == 0).all()
    onepass.Lion(p, lr=1.0).step(np.full(200, np.nan, dtype))
    assert np.isnan(p).all()


def test_lion_moves_nothing_if_the_rounded_terms_cancel() -> None:
    """0.9 m + (1 - 0.9) g is zero in float32 here if 1 - 0.9 is rounded once; with 1 - float32(0.9) it is not zero."""
    m = np.float32(-0.11111111)
    assert np.float32(0.9) * m + np.float32(1 - 0.9) == 0 != np.float32(0.9) * m + (1 - np.float32(0.9))
    p = np.zeros(40, np.float32)
    optimizer = onepass.Lion(p, lr=1.0, betas=(0.9, 0.5))
    optimizer.step(np.full(40, 2 * m))
    assert (optimizer.state[0]["exp_avg"] == m).all() and (p == 1).all()
    optimizer.step(np.ones(40, np.float32))
    assert (p == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_centered_rmsprop_stays_finite_with_constant_gradients(dtype: Any) -> None:
    """Rounding makes v − s² negative for constant gradients: without the maximum with zero, its root is NaN."""
    p = np.zeros(300, dtype)
    optimizer = onepass.RMSprop(p, lr=1e-3, alpha=0.5, centered=True)
    grad = np.random.default_rng(5).standard_normal(300).astype(dtype)
    for _ in range(100):
        optimizer.step(grad)
    state = optimizer.state[0]
    assert (state["square_avg"] < state["grad_avg"] ** 2).any()
    assert np.isfinite(p).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*MOVES, "Adam", "AdamW"])
def test_clip_value_clamps_the_scaled_gradients(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(6)
    p = rng.standard_normal(99).astype(dtype)
    q = p.copy()
    a = getattr(onepass, kind)(p, clip_value=0.25, weight_decay=0.1)
    b = getattr(onepass, kind)(q, weight_decay=0.1)
    for grad in gradients(rng, 99, dtype, 10):
        a.step(grad, grad_scale=0.5)
        b.step(np.clip(grad * dtype(0.5), -0.25, 0.25))
    assert_same_bits([p], [q])


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_norm_bounds_the_norm_of_all_gradients_and_keeps_their_direction(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    shapes: list[tuple[int, ...]] = [(70, 80), (), (0,), (33,)]
    for grad_scale, clip_norm in itertools.product([1.0, -2.0, 1e-3], [0.5, 50.0, math.inf]):
        params = [np.zeros(shape, dtype) for shape in shapes]
        grads = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        optimizer = onepass.SGD(params, lr=1.0, clip_norm=clip_norm)
        optimizer.step(grads, grad_scale)
        together = np.concatenate([g.ravel() for g in grads]).astype(np.float64)
        moved = np.concatenate([p.ravel() for p in params]).astype(np.float64)
        norm = np.linalg.norm(together) * abs(grad_scale)
        np.testing.assert_allclose(optimizer.grad_norm, norm, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(moved), min(norm, clip_norm), rtol=1e-6)
        np.testing.assert_allclose(moved, -together * grad_scale * min(1, clip_norm / norm), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*MOVES, "Adam", "AdamW"])
@pytest.mark.parametrize("decay", [0.0, 0.8, lambda t: min(0.8, t / (t + 3))], ids=["0", "0.8", "growing"])
def test_ema_matches_the_running_average_of_the_parameters(decay: Any, kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(8)
    p, q = np.ones(50, dtype), np.ones(50, dtype)
    optimizer, plain = getattr(onepass, kind)(p, lr=0.1, ema_decay=decay), getattr(onepass, kind)(q, lr=0.1)
    expected = p.astype(np.float64)
    for t, grad in enumerate(gradients(rng, 50, dtype, 15), 1):
        optimizer.step(grad)
        plain.step(grad)
        d = decay(t) if callable(decay) else decay
        expected = d * expected + (1 - d) * p.astype(np.float64)
    assert_same_bits([p], [q])
    np.testing.assert_allclose(optimizer.ema, expected, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(expected).max())
    assert decay == 0.0 or np.abs(optimizer.ema - p).max() > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.999, 1 - 1e-9, lambda t: (t - 1) / t], ids=["0", "0.999", "1 - 1e-9", "even"])
def test_the_running_average_of_constant_weights_equals_the_weights(decay: Any, dtype: Any) -> None:
    p = np.random.default_rng(3).standard_normal(100).astype(dtype)
    optimizer = onepass.SGD(p, lr=0.0, ema_decay=decay)
    for _ in range(100):
        optimizer.step(np.ones_like(p))
    assert_same_bits([optimizer.ema], [p])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_average_with_decay_zero_equals_the_parameters_despite_overflow(dtype: Any) -> None:
    largest = np.finfo(dtype).max
    p = np.array([largest, -largest, np.inf, 0.0, -0.0], dtype)
    optimizer = onepass.SGD(p, lr=0.0, ema_decay=0)
    p[:] = np.roll(p, 1)
    optimizer.step(np.zeros_like(p))
    assert_same_bits([optimizer.ema], [p])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row_shape", [(), (1,), (3,), (2, 3)])
def test_values_of_repeated_rows_are_added_in_the_given_order(row_shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(8)
    rows, values = rng.integers(0, 40, 200), rng.standard_normal((200, *row_shape)).astype(dtype)
    dense = np.zeros((40, *row_shape), dtype)
    np.add.at(dense, rows, values)
    p = np.zeros_like(dense)
    onepass.SGD([p], lr=1.0).step([onepass.SparseRows(rows, values)])
    assert_same_bits([p], [0 - dense])


@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])
def test_sparse_rows_equal_a_dense_gradient_if_zeros_move_nothing(kind: str) -> None:
    rng = np.random.default_rng(9)
    p = rng.standard_normal((20, 4))
    q = p.copy()
    a, b = getattr(onepass, kind)([p], lr=0.1), getattr(onepass, kind)([q], lr=0.1)
    for _ in range(10):
        rows, values = rng.integers(0, 20, 12), rng.integers(-8, 9, (12, 4)) / 8
        dense = np.zeros((20, 4))
        np.add.at(dense, rows, values)  # exact: the values are multiples of 1/8
        a.step([onepass.SparseRows(rows, values)])
        b.step([dense])
    assert_same_bits([p], [q])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*MOVES, "Adam", "AdamW"])
def test_a_step_is_skipped_if_a_gradient_or_its_square_is_not_finite(kind: str, dtype: Any) -> None:
    """The square matters only for rules that take squares, after scaling, in full vectors and in the tail."""
    squares = kind not in ("Adamax", "SGD", "Lion")
    root = float(np.finfo(dtype).max) ** 0.5
    cases = [(np.nan, 1.0, True), (np.inf, 1.0, True), (root * 2, 1.0, squares), (root * 2, 0.25, False)]
    for (value, grad_scale, unusable), where in itertools.product(
        [*cases, (root / 2, 4.0, squares)], [(0, 0), (1, 22)]
    ):
        params = [np.ones(23, dtype), np.ones(23, dtype)]
        grads = [np.zeros(23, dtype), np.zeros(23, dtype)]
        grads[where[0]][where[1]] = value
        optimizer = getattr(onepass, kind)(params, nonfinite="skip")
        optimizer.step(grads, grad_scale)
        assert (optimizer.skipped, optimizer.step_count) == (int(unusable), int(not unusable))
        assert not unusable or (np.concatenate(params) == 1).all()
        optimizer.nonfinite = "raise"
        if unusable:
            with pytest.raises(FloatingPointError, match=rf"\b{where[0]}\b"):
                optimizer.step(grads, grad_scale)


def test_every_parameter_of_nadam_uses_its_own_product_of_momenta() -> None:
    """Step two parameters equally often, with different values of momentum_decay."""
    params, alone = [np.ones(5), np.ones(5)], [np.ones(5), np.ones(5)]
    together = onepass.NAdam(params, lr=0.1)
    each = [onepass.NAdam(p, lr=0.1) for p in alone]
    decays = [0.1, 5.0]
    for i, decay in enumerate(decays):
        together.groups[0].momentum_decay = each[i].groups[0].momentum_decay = decay
        together.step([np.full(5, 0.5) if i == j else None for j in range(2)])
        each[i].step(np.full(5, 0.5))
    assert together.state[0]["mu_product"] != together.state[1]["mu_product"]
    for optimizer in (together, *each):
        optimizer.groups[0].momentum_decay = 0.3
    together.step([np.full(5, -0.25)] * 2)
    for optimizer in each:
        optimizer.step(np.full(5, -0.25))
    assert_same_bits(params, alone)
    assert (params[0] != params[1]).all()


def test_the_first_of_several_gradients_that_are_not_finite_is_named() -> None:
    optimizer = onepass.SGD([np.ones(3) for _ in range(4)], nonfinite="raise")
    with pytest.raises(FloatingPointError, match=r"\b1\b"):
        optimizer.step([np.ones(3), np.array([1, np.nan, 1]), np.full(3, np.inf), np.ones(3)])


def test_a_nan_in_the_norm_makes_all_steps_nan_unless_it_is_only_measured() -> None:
    for clip_norm in (1.0, math.inf):
        params = [np.ones(3), np.ones(3)]
        optimizer = onepass.SGD(params, lr=0.5, clip_norm=clip_norm)
        optimizer.step([np.array([1, np.nan, 1]), np.ones(3)])
        assert optimizer.grad_norm is not None and math.isnan(optimizer.grad_norm)
        if clip_norm == 1.0:
            assert np.isnan(params).all()
        else:
            np.testing.assert_array_equal(params, [[0.5, np.nan, 0.5], [0.5, 0.5, 0.5]])


def test_a_clip_value_or_scale_that_overflows_the_dtype_is_refused() -> None:
    p = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="overflows float32"):
        onepass.SGD(p, clip_value=1e300).step(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="overflows float32"):
        onepass.SGD(p).step(np.ones(3, np.float32), 1e300)
    assert (p == 1).all()


def test_the_first_row_past_the_end_is_an_index_error() -> None:
    p = np.ones((4, 2))
    with pytest.raises(IndexError, match="row 4"):
        onepass.SGD([p]).step([onepass.SparseRows([4], np.ones((1, 2)))])
    assert (p == 1).all()


COMMON = {"maximize": False, "clip_norm": None, "clip_value": None, "nonfinite": "propagate", "ema_decay": None}
STORAGE = {"state_dtype": None, "master_bits": 32, "rounding": "stochastic", "seed": 0}
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
HERE = {"bias_correction": True, "eps_mode": "paper"}  # which PyTorch does not have
DEFAULTS: dict[str, dict[str, Any]] = {
    "Adam": ADAM | HERE,
    "AdamW": ADAM | HERE | {"weight_decay": 0.01},
    "Adamax": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "NAdam": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "momentum_decay": 4e-3}
    | {"decoupled_weight_decay": False},
    "RAdam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": False},
    "RMSprop": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
    "Adagrad": {"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
    "SGD": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0},
    "AdEMAMix": {"lr": 1e-3, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "alpha_warmup": None, "beta3_warmup": None}
    | {"eps": 1e-8, "weight_decay": 0.0},
    "ScheduleFreeAdamW": {"lr": 2.5e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0}
    | {"r": 0.0, "weight_lr_power": 2.0},
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_match_pytorch_or_the_authors_code(kind: str) -> None:
    parameters = inspect.signature(getattr(onepass, kind)).parameters.values()
    found = {p.name: p.default for p in parameters if p.name != "params"}
    assert found == DEFAULTS[kind] | COMMON | STORAGE | {"flush_denormals": True}
