"""The kernels give the same bits as the executable specification, whatever the instruction set.

`test_instruction_sets.py` runs this file once more for every other instruction set of the machine.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import onepass
from cases import NUMBERS
from onepass import _core, _reference
from support import DTYPES, Array, assert_same_bits, offset, ordinary, skip_unspecified_flushing

STATES = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]

# Options of the rule: each pair of values occurs at least once. The full product would be 2 * 2^6 * 3 cases.
OPTIONS: list[dict[str, Any]] = [
    {
        "eps_mode": eps_mode,
        "bias_correction": bias_correction,
        "amsgrad": amsgrad,
        "maximize": maximize,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": decoupled,
    }
    for eps_mode, bias_correction, amsgrad, maximize, (weight_decay, decoupled) in itertools.product(
        ["paper", "hat"], [True, False], [False, True], [False, True], [(0.0, False), (0.01, False), (0.01, True)]
    )
]


def start(values: Any, rng: np.random.Generator, size: int, dtype: Any, amsgrad: bool) -> list[Array]:
    """Return a parameter, a gradient, and state like that after some steps."""
    arrays = [values(rng, size, dtype) for _ in range(5 if amsgrad else 4)]
    return arrays[:3] + [abs(array) for array in arrays[3:]]


def step_both(arrays: list[Array], step: int, options: dict[str, Any]) -> tuple[list[Array], tuple[Array, ...]]:
    """Take one step with the reference and then, in place, with the kernel."""
    param, grad, *states = arrays
    named = dict(zip(STATES, states))
    expected = _reference.adam_step(param, grad, **named, step=step, **options)
    onepass.adam_step(param, grad, **named, step=step, **options)
    return [param, *states], expected


@pytest.mark.parametrize("values", NUMBERS)
@pytest.mark.parametrize("flush", [True, False], ids=["flush", "gradual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_match_the_reference_bit_for_bit_with_every_option(dtype: Any, flush: bool, values: str) -> None:
    skip_unspecified_flushing(flush, values)
    rng = np.random.default_rng(0)
    for options in OPTIONS:
        options = dict(options)
        arrays = start(NUMBERS[values], rng, 2003, dtype, options.pop("amsgrad"))
        step = int(rng.integers(1, 3000))
        lr = float(10 ** rng.uniform(-6, 1))
        options |= {"lr": lr, "flush_denormals": flush, "grad_scale": float(rng.choice([1, 0.125, 3e-3]))}
        assert_same_bits(*step_both(arrays, step, options), context=(step, options))


@pytest.mark.parametrize("flush", [True, False], ids=["flush", "gradual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_match_the_reference_at_every_length_and_offset(dtype: Any, flush: bool) -> None:
    rng = np.random.default_rng(1)
    lengths = [*range(70), 127, 128, 129, 1000, 4095, 4096, 4097, 100_003]
    for length in lengths:
        for shift in [(0, 0, 0, 0), (1, 1, 1, 1), tuple(rng.integers(0, 16, 4))]:
            arrays = [offset(a, k) for a, k in zip(start(ordinary, rng, length, dtype, False), shift)]
            step = int(rng.integers(1, 100))
            assert_same_bits(*step_both(arrays, step, {"flush_denormals": flush}), context=(length, shift))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside_the_arrays(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    for length in range(70):
        guarded = [np.full(length + 64, 7, dtype) for _ in range(4)]
        for array in guarded:
            array[32 : 32 + length] = rng.standard_normal(length)
        onepass.adam_step(*(array[32 : 32 + length] for array in guarded), step=1)
        for array in guarded:
            assert (array[:32] == 7).all() and (array[32 + length :] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cls", [onepass.Adam, onepass.AdamW])
def test_many_steps_of_an_optimizer_match_the_reference_bit_for_bit(cls: Any, dtype: Any) -> None:
    rng = np.random.default_rng(3)
    shapes: list[tuple[int, ...]] = [(17, 5), (33,), (), (0, 4), (2, 3, 4)]
    params = [ordinary(rng, shape, dtype) for shape in shapes]
    expected = [p.copy() for p in params]
    moments = [[np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)] for p in params]
    optimizer = cls(params, lr=lambda t: 0.1 / t, weight_decay=0.02, amsgrad=True)
    counts = [0] * len(params)
    for t in range(1, 201):
        grads: list[Array | None] = [ordinary(rng, shape, dtype) for shape in shapes]
        if t % 3 == 0:
            grads[1] = None
        optimizer.step(grads)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            counts[i] += 1
            expected[i], *moments[i] = _reference.adam_step(
                expected[i],
                grad,
                moments[i][0],
                moments[i][1],
                counts[i],
                max_exp_avg_sq=moments[i][2],
                lr=0.1 / t,
                weight_decay=0.02,
                decoupled_weight_decay=cls is onepass.AdamW,
            )
    assert_same_bits(params, expected)
    for i, state in enumerate(moments):
        assert_same_bits([optimizer.state[i][name] for name in STATES], state)
        assert optimizer.state[i]["step"] == counts[i]


def test_a_product_that_rounds_up_to_the_smallest_normal_number_is_not_flushed() -> None:
    """Tininess is decided after rounding to full precision: just below, a product counts as zero."""
    skip_unspecified_flushing(True, "small")
    tiny = np.finfo(np.float32).tiny
    found = {"kept": 0, "flushed": 0}
    for beta in np.linspace(0.5, 0.999, 4001):
        factor = np.float32(beta)
        m = np.float32(float(tiny) / float(factor)) * np.ones(3, np.float32)
        m[0], m[2] = np.nextafter(m[1], np.float32(0)), np.nextafter(m[1], np.float32(1))
        exact = m.astype(np.float64) * float(factor)
        near = (exact < float(tiny)) & (exact > float(tiny) * (1 - 2.0**-23))
        if not near.any():
            continue
        arrays = [np.ones(3, np.float32), np.zeros(3, np.float32), m.copy(), np.ones(3, np.float32)]
        assert_same_bits(*step_both(arrays, 1, {"betas": (float(beta), 0.9), "flush_denormals": True}), context=beta)
        for value in arrays[2][near]:
            found["flushed" if value == 0 else "kept"] += 1
    if _core.can_flush_denormals:
        assert min(found.values()) > 5, found


@pytest.mark.parametrize("dtype", DTYPES)
def test_flush_denormals_flushes_subnormals_to_zero_only_during_the_step(dtype: Any) -> None:
    tiny = np.finfo(dtype).tiny
    for flush in [True, False]:
        p, m, v = np.ones(9, dtype), np.full(9, tiny, dtype), np.ones(9, dtype)
        onepass.adam_step(p, np.zeros(9, dtype), m, v, 1, flush_denormals=flush)
        assert tiny / dtype(2) > 0, "the processor's mode was not restored"
        assert (m == (0 if flush and _core.can_flush_denormals else tiny * dtype(0.9))).all()
    optimizer = onepass.Adam(np.ones(3, dtype))
    optimizer.step(np.ones(3, dtype))
    assert tiny / dtype(2) > 0


UPWARD = {"x86_64": 0x800, "AMD64": 0x800, "aarch64": 0x400000, "arm64": 0x400000}


@contextmanager
def rounding_upward() -> Iterator[None]:
    """Round upward in the block, and check at the end that the mode has not changed."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.fesetround(UPWARD[platform.machine()])
    try:
        yield
        kept = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert kept == UPWARD[platform.machine()]


@pytest.mark.skipif(sys.platform == "win32" or platform.machine() not in UPWARD, reason="no known rounding mode to set")
@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("length", [100, 100_000])
def test_the_callers_rounding_mode_is_ignored_and_restored(length: int, clip_norm: float | None) -> None:
    rng = np.random.default_rng(4)
    options = {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-3, "clip_norm": clip_norm}
    p, g = ordinary(rng, length, np.float64), ordinary(rng, length, np.float64)
    expected = p.copy()
    usual, upward = onepass.AdamW(expected, **options), onepass.AdamW(p, **options)
    for _ in range(20):
        usual.step(g)
        with rounding_upward():
            upward.step(g)
    assert_same_bits([p], [expected])
    assert upward.grad_norm == usual.grad_norm


@pytest.mark.skipif(sys.platform == "win32" or platform.machine() not in UPWARD, reason="no known rounding mode to set")
def test_the_factor_of_clip_norm_ignores_the_callers_rounding_mode() -> None:
    rng = np.random.default_rng(4)
    for clip_norm in rng.uniform(0, 1, 20):
        usual, upward, gradient = np.zeros(3), np.zeros(3), rng.uniform(1, 2, 3)
        onepass.SGD(usual, lr=1.0, clip_norm=clip_norm).step(gradient)
        with rounding_upward():
            onepass.SGD(upward, lr=1.0, clip_norm=clip_norm).step(gradient)
        assert_same_bits([upward], [usual])


@pytest.mark.skipif(sys.platform == "win32" or platform.machine() not in UPWARD, reason="no known rounding mode to set")
def test_adam_step_ignores_the_callers_rounding_mode() -> None:
    rng = np.random.default_rng(4)
    arrays = [ordinary(rng, 100, np.float64) for _ in range(4)]
    arrays[3] = np.abs(arrays[3])
    expected = [array.copy() for array in arrays]
    for t in range(1, 21):
        onepass.adam_step(*expected, t)
        with rounding_upward():
            onepass.adam_step(*arrays, t)
    assert_same_bits(arrays, expected)


def test_the_reference_matches_exact_fractions() -> None:
    """Compute three elements with exact fractions, so that kernel and reference cannot share a mistake."""
    from fractions import Fraction

    def rounded(x: Fraction) -> Fraction:
        return Fraction(float(x))  # the nearest double

    def root(x: Fraction) -> Fraction:
        return Fraction(float(np.sqrt(np.float64(float(x)))))

    p, g, m, v = (
        np.array(x, np.float64) for x in ([0.3, -1.5, 2.0], [0.1, 0.7, -3.0], [0.2, 0.0, -1.0], [0.5, 1.0, 2.0])
    )
    rows = list(zip(p.tolist(), g.tolist(), m.tolist(), v.tolist()))
    onepass.adam_step(p, g, m, v, 7, lr=0.01)
    b1, b2, one = Fraction(0.9), Fraction(0.999), Fraction(1)
    c1, c2 = rounded(one - rounded(b1**7)), rounded(one - rounded(b2**7))
    a, r = rounded(Fraction(0.01) / c1), rounded(one / root(c2))
    for i, (p0, g0, m0, v0) in enumerate([tuple(map(Fraction, row)) for row in rows]):
        m1 = rounded(rounded(b1 * m0) + rounded(rounded(one - b1) * g0))
        v1 = rounded(rounded(b2 * v0) + rounded(rounded(one - b2) * rounded(g0 * g0)))
        d = rounded(rounded(root(v1) * r) + Fraction(1e-8))
        p1 = rounded(p0 - rounded(a * rounded(m1 / d)))
        assert (m[i], v[i], p[i]) == (float(m1), float(v1), float(p1))
