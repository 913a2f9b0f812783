"""Every optimizer gives the bits of the executable specification, through its public class.

Values, options, lengths, offsets, groups, rows, norms and gradients that are not finite: `_reference.Reference` says
what each must leave in the parameters, their state and their averages.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import onepass
from cases import CLASSES, NUMBERS, rules, shrinking, values_of
from onepass._reference import Reference
from onepass._reference.stages import global_norm
from support import DTYPES, Array, assert_same_bits, ordinary, skip_unspecified_flushing, small

RULES = rules()
SIGNED = {"exp_avg", "exp_avg_slow", "grad_avg", "momentum_buffer"}  # the states that may be negative


def pairwise(choices: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return few combinations that contain every pair of values of two options."""
    rng = random.Random(0)
    items = [[(name, i) for i in range(len(values))] for name, values in choices.items()]
    missing = {pair for a, b in itertools.combinations(items, 2) for pair in itertools.product(a, b)}
    combinations = []
    while missing:
        wanted = min(missing)
        candidates = [dict(wanted) for _ in range(40)]
        candidates = [{name: c.get(name, rng.randrange(len(choices[name]))) for name in choices} for c in candidates]
        covered = [set(itertools.combinations(candidate.items(), 2)) & missing for candidate in candidates]
        best = max(range(40), key=lambda i: len(covered[i]))
        missing -= covered[best]
        chosen = {name: choices[name][i] for name, i in candidates[best].items()}
        own = next((value for value in chosen.values() if isinstance(value, dict)), {})
        combinations.append({**chosen, **own})
    return combinations


def flat(arrays: Any) -> list[Array]:
    """Return the arrays of parameters in any form."""
    if isinstance(arrays, np.ndarray):
        return [arrays]
    return [x for part in (arrays.values() if isinstance(arrays, Mapping) else arrays) for x in flat(part)]


def pair(kind: str, params: Any, **options: Any) -> tuple[Any, Reference]:
    """Return the optimizer and a reference with copies of the parameters."""
    reference = Reference(kind, params, **options)
    return getattr(onepass, kind)(params, **options), reference


def assert_agreed(optimizer: Any, reference: Reference, params: list[Array], context: object = "") -> None:
    assert_same_bits(params, reference.params, ("params", context))
    for i, expected in enumerate(reference.state):
        state = optimizer.state[i]
        assert set(state) == set(expected)
        for name, value in expected.items():
            if isinstance(value, np.ndarray):
                assert_same_bits([state[name]], [value], (name, i, context))
            else:
                assert state[name] == value, (name, i, context)
    if reference.ema[0] is not None:
        assert_same_bits(flat(optimizer.ema), reference.ema, ("ema", context))
    assert (optimizer.step_count, optimizer.skipped) == (reference.step_count, reference.skipped)
    assert repr(optimizer.grad_norm) == repr(reference.grad_norm), context


@pytest.mark.parametrize("values", NUMBERS)
@pytest.mark.parametrize("flush", [True, False], ids=["flush", "gradual"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CLASSES)
def test_steps_match_the_reference_bit_for_bit_with_every_option(
    kind: str, dtype: Any, flush: bool, values: str
) -> None:
    skip_unspecified_flushing(flush, values)
    rng = np.random.default_rng(0)
    tiny = float(np.finfo(dtype).tiny)
    limit = {"ordinary": 0.7, "hostile": 1e3, "small": tiny * 4}[values]
    choices = {**values_of(kind), "clip_value": [None, limit], "grad_scale": [1.0, 0.125, -3e-3]}
    if values != "hostile":  # the norm would be NaN: see below
        choices["clip_norm"] = [None, limit]
    for options in pairwise(choices):
        context, grad_scale = dict(options), options.pop("grad_scale")
        params = [NUMBERS[values](rng, 151, dtype)]
        optimizer, reference = pair(kind, params, flush_denormals=flush, **options)
        for name, array in reference.state[0].items():
            if isinstance(array, np.ndarray):  # start from state that steps can reach
                start = NUMBERS[values](rng, 151, dtype)
                array[...] = optimizer.state[0][name][...] = start if name in SIGNED else abs(start)
        for _ in range(3):
            grads = [NUMBERS[values](rng, 151, dtype)]
            optimizer.step(grads, grad_scale)
            reference.step(grads, grad_scale)
            assert_agreed(optimizer, reference, params, context)


@pytest.mark.parametrize("values", NUMBERS)
@pytest.mark.parametrize("flush", [True, False], ids=["flush", "gradual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_radam_matches_the_reference_bit_for_bit_before_and_after_step_5(dtype: Any, flush: bool, values: str) -> None:
    """The second moment scales steps only after step 5; other tests take fewer steps or have smaller betas."""
    skip_unspecified_flushing(flush, values)
    rng = np.random.default_rng(7)
    for options in ({}, {"betas": (0.0, 0.9), "eps": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}):
        params = [NUMBERS[values](rng, 151, dtype)]
        optimizer, reference = pair("RAdam", params, flush_denormals=flush, **options)
        for t in range(9):
            grads = [NUMBERS[values](rng, 151, dtype)]
            optimizer.step(grads)
            reference.step(grads)
            assert_agreed(optimizer, reference, params, t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "chosen"), RULES.values(), ids=RULES)
def test_steps_match_at_every_length_and_offset_and_write_nothing_else(kind: str, chosen: Any, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    lengths = [*range(71), 127, 128, 129, 1000, 4095, 4096, 4097]
    buffers = [np.full(length + 64, 7, dtype) for length in lengths]
    params = [b[k : k + n] for b, n, k in zip(buffers, lengths, rng.integers(8, 40, len(lengths)))]
    for param in params:
        param[...] = ordinary(rng, param.size, dtype)
    optimizer, reference = pair(kind, params, flush_denormals=False, clip_norm=2.0, **chosen)
    for _ in range(3):
        grads = [ordinary(rng, n + 20, dtype)[k : k + n] for n, k in zip(lengths, rng.integers(0, 17, len(lengths)))]
        optimizer.step(grads)
        reference.step(grads)
    assert_agreed(optimizer, reference, params)
    for buffer, param in zip(buffers, params):
        assert (buffer == 7).sum() == 64 + (param == 7).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_momentum_buffer_copies_the_gradient_without_flushing(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    for clip_value, nesterov in itertools.product([None, 1.0], [False, True]):
        params, grads = [ordinary(rng, 200, dtype)], [small(rng, 200, dtype)]
        options = {"momentum": 0.9, "nesterov": nesterov, "clip_value": clip_value}
        optimizer, reference = pair("SGD", params, **options)
        for _ in range(2):
            optimizer.step(grads)
            reference.step(grads)
            assert_agreed(optimizer, reference, params, options)


@pytest.mark.parametrize(("kind", "chosen"), RULES.values(), ids=RULES)
def test_groups_have_own_options_and_parameters_have_own_step_counts(kind: str, chosen: Any) -> None:
    rng = np.random.default_rng(3)
    arrays = [ordinary(rng, shape, dtype) for shape, dtype in zip([(3, 5), (), (0, 2), 17], DTYPES * 2)]
    groups = [
        {"params": arrays[:2], "lr": shrinking, "clip_value": 0.8},
        {"params": arrays[2], "maximize": True},
        {"params": arrays[3:], "weight_decay": 0.1, "ema_decay": 0.5},
    ]
    optimizer, reference = pair(kind, groups, **{"clip_norm": 3.0, **chosen})
    for t in range(1, 31):
        grads: list[Any] = [None if rng.random() < 0.3 else ordinary(rng, a.shape, a.dtype) for a in arrays]
        if t == 10:
            optimizer.groups[2].lr = reference.groups[2]["lr"] = 0.3
            optimizer.groups[0].weight_decay = reference.groups[0]["weight_decay"] = 0.0
        optimizer.step(grads, grad_scale=1 / t)
        reference.step(grads, grad_scale=1 / t)
        assert_agreed(optimizer, reference, arrays, t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "chosen"), RULES.values(), ids=RULES)
def test_sparse_rows_change_only_their_rows(kind: str, chosen: Any, dtype: Any) -> None:
    rng = np.random.default_rng(4)
    shapes: list[tuple[int, ...]] = [(40, 3), (9, 2, 5), (7, 20)]
    params = [ordinary(rng, shape, dtype) for shape in shapes]
    optimizer, reference = pair(kind, params, clip_norm=4.0, nonfinite="skip", **chosen)
    for t in range(12):
        rows = [rng.integers(0, shape[0], count) for shape, count in zip(shapes, [25, t % 3, 7])]
        values = [ordinary(rng, (len(r), *shape[1:]), dtype) for r, shape in zip(rows, shapes)]
        if t == 5:
            values[0][3] = np.inf
        pairs: list[Any] = list(zip(rows, values))
        sparse: list[Any] = [onepass.SparseRows(*each) for each in pairs]
        if t % 2:  # between steps with few rows, one with all
            pairs[2] = sparse[2] = ordinary(rng, shapes[2], dtype)
        optimizer.step(sparse)
        reference.step(pairs)
        assert_agreed(optimizer, reference, params, t)
    assert reference.skipped == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["ordinary", "small"])
def test_the_global_norm_matches_the_reference_bit_for_bit(values: str, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    lengths = [4095, 0, 4096, 1, 4097, 17, 8191, 8192, 8193, 12_289, 40_000, 33]
    grads = [NUMBERS[values](rng, n, dtype) * (10 ** rng.uniform(-2, 2, n)).astype(dtype) for n in lengths]
    exact = global_norm(grads, -0.3)
    assert np.isclose(exact, 0.3 * np.sqrt(sum(np.sum(g.astype(np.longdouble) ** 2) for g in grads)), rtol=1e-12)
    for clip_norm in [exact, np.nextafter(exact, 0), exact / 7, exact * 2, float("inf")]:
        params = [np.zeros(n, dtype) for n in lengths]
        optimizer, reference = pair("SGD", params, lr=0.5, clip_norm=float(clip_norm))
        assert optimizer.grad_norm is None
        for skipped in (None, 3):
            given = [None if i == skipped else g for i, g in enumerate(grads)]
            optimizer.step(given, -0.3)
            reference.step(given, -0.3)
            assert_agreed(optimizer, reference, params, clip_norm)


def test_an_overflowing_norm_zeroes_finite_gradients_or_skips_the_step() -> None:
    for nonfinite in ("propagate", "skip"):
        params = [np.ones(5), np.ones(3)]
        grads = [np.full(5, 1e200), np.full(3, -1.0)]
        optimizer, reference = pair("SGD", params, clip_norm=1.0, nonfinite=nonfinite)
        optimizer.step(grads)
        reference.step(grads)
        assert_agreed(optimizer, reference, params, nonfinite)
        assert optimizer.grad_norm == np.inf and (params[0] == 1).all()
        assert optimizer.skipped == (nonfinite == "skip")


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "chosen"), RULES.values(), ids=RULES)
def test_gradients_that_are_not_finite_are_skipped_or_refused(
    kind: str, chosen: Any, dtype: Any, nonfinite: str, clip_norm: Any
) -> None:
    rng = np.random.default_rng(6)
    largest = float(np.finfo(dtype).max)
    root = largest**0.5
    # a gradient, grad_scale, and True if the gradient is unusable: for rules that square it, and for other rules
    cases = [
        (np.nan, 1.0, True, True),
        (np.inf, 0.5, True, True),
        (-np.inf, 1.0, True, True),
        (root * 1.5, 1.0, True, False),
        (-root * 1.5, 0.5, False, False),
        (root * 0.5, 4.0, True, False),
        (largest * 0.9, 1.0, True, False),
        (-largest * 0.9, 2.0, True, True),
    ]
    params = [ordinary(rng, n, dtype) for n in (3, 21, 70)]
    options = {"lr": shrinking, "nonfinite": nonfinite, "clip_norm": clip_norm, **chosen}
    optimizer, reference = pair(kind, params, **options)
    for value, grad_scale, squared, plain in cases:
        for where in (0, 20):  # in a whole vector, and in the tail
            grads = [None, *(ordinary(rng, n, dtype) for n in (21, 70))]
            optimizer.step(grads)
            reference.step(grads)
            grads[1][where] = value
            unusable = squared if reference.rule.squares else plain
            if clip_norm and dtype is np.float64 and abs(value) >= root:
                unusable = True  # the sum of squares overflows
            before = reference.step_count
            if nonfinite == "raise" and unusable:
                with pytest.raises(FloatingPointError, match=r"\b1\b"):  # the gradient's index
                    optimizer.step(grads, grad_scale)
                # the reference skips a step that raises
            else:
                optimizer.step(grads, grad_scale)
                reference.step(grads, grad_scale)
                assert reference.step_count == before + (not unusable)
            assert_agreed(optimizer, reference, params, (value, grad_scale))
