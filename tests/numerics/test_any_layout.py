"""Hypothesis draws shapes, layouts, dtypes, values and options: the bits are always the reference's."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

import onepass
from onepass import _reference
from strategies import stored
from support import Array, assert_same_bits

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
GRADIENT_DTYPES = [np.float16, np.float32, np.float64, np.dtype(">f4"), np.dtype("<f8"), np.dtype(">f8"), np.longdouble]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Array], list[list[Array | None]], dict[str, Any]]:
    """Parameters, the gradients of some steps, and options."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=4))
    params, grads = [], []
    for shape in shapes:
        dtype = draw(st.sampled_from([np.float32, np.float64]))
        order: Any = draw(st.sampled_from(["C", "F"]))
        width = 8 * np.dtype(dtype).itemsize
        params.append(np.asarray(draw(hnp.arrays(dtype, shape, elements=st.floats(width=width))), order=order))
    for _ in range(draw(st.integers(1, 3))):
        grads.append(
            [
                draw(st.none() | st.sampled_from(GRADIENT_DTYPES).flatmap(lambda d, s=shape: stored(s, d)))
                for shape in shapes
            ]
        )
    unit = st.floats(0, 1, exclude_max=True)
    options = {
        "lr": draw(st.floats(0, 10)),
        "betas": (draw(unit), draw(unit)),
        "eps": draw(st.sampled_from([0.0, 1e-8, 1e-3, 1.0])),
        "weight_decay": draw(st.sampled_from([0.0, 0.0, 1e-2, 2.0])),
        "eps_mode": draw(st.sampled_from(["paper", "hat"])),
        "bias_correction": draw(st.booleans()),
        "maximize": draw(st.booleans()),
        "flush_denormals": draw(st.booleans()),
    }
    return params, grads, options


@settings(max_examples=300, deadline=None)
@given(problems(), st.booleans(), st.booleans(), st.booleans())
def test_any_parameters_and_gradients_match_the_reference_bit_for_bit(
    problem: tuple[list[Array], list[list[Array | None]], dict[str, Any]], named: bool, decoupled: bool, amsgrad: bool
) -> None:
    params, steps, options = problem
    names = [f"p{i}" for i in range(len(params))]
    cls = onepass.AdamW if decoupled else onepass.Adam
    expected = [p.copy(order="K") for p in params]
    states = [[np.zeros_like(p) for _ in range(3 if amsgrad else 2)] for p in params]
    counts = [0] * len(params)
    optimizer = cls(dict(zip(names, params)) if named else params, amsgrad=amsgrad, **options)
    for grads in steps:
        optimizer.step(dict(zip(names, grads)) if named else grads)
        for i, grad in enumerate(grads):
            if grad is None:
                continue
            counts[i] += 1
            with np.errstate(all="ignore"):
                converted = np.asarray(grad).astype(params[i].dtype)
            expected[i], *states[i] = _reference.adam_step(
                expected[i],
                converted,
                states[i][0],
                states[i][1],
                counts[i],
                max_exp_avg_sq=states[i][2] if amsgrad else None,
                decoupled_weight_decay=decoupled,
                **options,
            )
    assert_same_bits(params, expected, options)
    for i, key in enumerate(names if named else range(len(names))):
        state = optimizer.state[key]
        assert state.pop("step") == counts[i]
        assert_same_bits(state.values(), states[i], options)
