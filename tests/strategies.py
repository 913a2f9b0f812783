"""Hypothesis strategies: arrays in any layout, and options of optimizers."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

from cases import CLASSES, STORAGE, accepts
from onepass import _checks, schedules
from support import BFLOAT16, Array

SHAPES = [(), (0,), (1,), (7,), (33,), (3, 2), (4, 5), (0, 3), (2, 3, 4), (70,)]
NARROW_SHAPES = [(4096,), (4100,), (4481,), (65, 64)]  # enough elements for narrow state
PARAMETERS: list[Any] = [np.float32, np.float64, *([BFLOAT16] if BFLOAT16 else [])]
GRADIENTS: list[Any] = [np.float16, np.longdouble, *PARAMETERS]
STATES = [None, "bfloat16", "float8"]
SCHEDULES = [schedules.inverse_sqrt(0.1), schedules.linear(0.5, 0.1, 5), schedules.warmup(0.2, 3)]
AVERAGES = [0.0, 0.5, 0.999, schedules.linear(0.5, 0.9, 8)]
decays = st.sampled_from([0.0, 0.5, 0.9, 0.999]) | st.floats(0, 0.9999)

# Strategies for the values of a group's options, by the function that checks the option.
BY_CHECK: dict[Any, Any] = {
    _checks.learning_rate: st.sampled_from([0.0, 1e-3, 1.0, *SCHEDULES]) | st.floats(0, 10),
    _checks.betas: st.tuples(decays, decays),
    _checks.three_betas: st.tuples(decays, decays, decays),
    _checks.steps_or_none: st.none() | st.sampled_from([1, 3, 1000]),
    _checks.non_negative: st.sampled_from([0.0, 1e-8, 1e-3, 0.1, 0.5, 0.9]),
    _checks.finite: st.sampled_from([0.0, 0.5]),
    _checks.unit_interval: st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    _checks.count: st.sampled_from([0, 3, 100]),
    _checks.flag: st.booleans(),
    _checks.eps_mode: st.sampled_from(["paper", "hat"]),
    _checks.positive_or_none: st.none() | st.sampled_from([0.5, float("inf"), 1e-30]),
}
FIXED = {"amsgrad", "centered", "initial_accumulator_value", "nesterov"}  # at construction
WHOLE: dict[str, Any] = {
    "clip_norm": st.none() | st.sampled_from([1e-3, 1.0, float("inf")]),
    "nonfinite": st.sampled_from(["propagate", "skip", "raise"]),
}


def by_check(kind: str) -> dict[str, Any]:
    """Return a strategy for each option of a group that does not depend on another option."""
    checks = CLASSES[kind]._spec.checks
    return {name: BY_CHECK[check] for name, check in checks.items() if name not in {"nesterov", "ema_decay", *STORAGE}}


def is_refused(kind: str, options: Any) -> bool:
    """Return True if the storage of state does not work with these options."""
    state_dtype = options.get("state_dtype")
    if state_dtype is None:
        return False
    first = 0 if kind == "ScheduleFreeAdamW" else options.get("betas", (0, 0))[kind == "Lion"]
    noisy = first > 0.99 or options.get("momentum", 0) > 0.99 or options.get("rho", 0) > 0.95
    tiny = options.get("eps", 1.0) < (1e-32 if kind == "Adadelta" else 1e-16)
    return bool(options.get("amsgrad") or options.get("centered") or tiny or (state_dtype == "float8" and noisy))


def drawn_options(data: Any, kind: str, averaged: bool, state_dtype: str | None = None) -> dict[str, Any]:
    """Draw some options of a group. ``averaged`` adds a running average, which all groups or none must have."""
    strategies = by_check(kind)
    chosen = data.draw(st.lists(st.sampled_from([*strategies]), unique=True), "options")
    options = {name: data.draw(strategies[name], name) for name in chosen}
    storage = {"state_dtype": state_dtype}
    options = {
        name: value
        for name, value in options.items()
        if accepts(kind, {name: value}) and not is_refused(kind, {name: value, **storage})
    }
    if state_dtype is not None:
        options |= storage
    if data.draw(st.booleans(), "nearest"):
        options["rounding"] = "nearest"
    if "nesterov" in CLASSES[kind]._spec.checks and options.get("momentum") and not options.get("dampening"):
        options["nesterov"] = data.draw(st.booleans(), "nesterov")
    if averaged:
        options["ema_decay"] = data.draw(st.sampled_from(AVERAGES), "ema")
    return options


@st.composite
def stored(draw: st.DrawFn, shape: tuple[int, ...], dtype: Any) -> Array:
    """Draw an array of the given shape and dtype in any layout: strided, reversed, transposed, misaligned."""
    dtype = np.dtype(dtype)
    floats = st.floats(width=min(64, 8 * dtype.itemsize), allow_nan=True, allow_infinity=True, allow_subnormal=True)
    values = draw(hnp.arrays(np.float64, shape, elements=floats))
    with np.errstate(all="ignore"):
        values = values.astype(dtype)
    axes = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
    misaligned = draw(st.booleans())
    sizes = [shape[axis] * abs(steps[axis]) for axis in axes]
    count = int(np.prod(sizes, dtype=int))
    buffer = np.zeros(count * dtype.itemsize + 1, np.uint8)[1 if misaligned else 0 :][: count * dtype.itemsize]
    whole = buffer.view(dtype).reshape(sizes).transpose(np.argsort(axes))
    view = whole[(..., *(slice(None, None, step) for step in steps))]
    assert view.shape == shape
    view[...] = values
    return view
