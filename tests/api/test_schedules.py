"""Schedules follow their formulas, are values (compared, hashed, pickled, printed), and refuse wrong arguments.

The presets are fixed, complete, and accepted by `Adam`. `integrations/test_presets.py` compares them with others.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _presets, presets, schedules
from onepass.schedules import cosine, exponential, inverse_sqrt, inverse_time, linear, piecewise, warmup

NAN, INF = float("nan"), float("inf")
LARGEST_STEP = 2**63 - 1

# Each schedule with the formula in its documentation.
FORMULAS: dict[Any, Callable[[int], float]] = {
    inverse_sqrt(0.3): lambda t: 0.3 * t**-0.5,
    inverse_time(0.3, 0.07): lambda t: 0.3 / (1 + 0.07 * (t - 1)),
    inverse_time(0.3, 0): lambda t: 0.3,
    exponential(0.3, 0.9): lambda t: 0.3 * 0.9 ** (t - 1),
    exponential(0.3, 0.5, steps=7): lambda t: 0.3 * 0.5 ** ((t - 1) / 7),
    exponential(1e-8, 1.5, steps=2): lambda t: 1e-8 * 1.5 ** ((t - 1) / 2),
    piecewise([2, 5, 9], [0.4, 0.3, 0.2, 0.1]): lambda t: 0.4 if t <= 2 else 0.3 if t <= 5 else 0.2 if t <= 9 else 0.1,
    piecewise([], [0.5]): lambda t: 0.5,
    linear(0.3, 0.05, 10): lambda t: 0.3 + (0.05 - 0.3) * min(t - 1, 10) / 10,
    linear(0, 0.3, 10): lambda t: 0.3 * min(t - 1, 10) / 10,
    cosine(0.3, 10): lambda t: 0.3 * (1 + math.cos(math.pi * min(t - 1, 10) / 10)) / 2,
    cosine(0.3, 10, end=0.1): lambda t: 0.1 + 0.2 * (1 + math.cos(math.pi * min(t - 1, 10) / 10)) / 2,
    warmup(0.3, 4): lambda t: 0.3 * min(t, 4) / 4,
    warmup(inverse_sqrt(0.3), 4): lambda t: 0.3 * t / 4 if t <= 4 else 0.3 / math.sqrt(t - 4),
    warmup(warmup(0.3, 4), 2): lambda t: 0.075 * t / 2 if t <= 2 else 0.3 * min(t - 2, 4) / 4,
}
SCHEDULES = list(FORMULAS)


def test_every_schedule_has_a_test_case() -> None:
    assert {type(schedule).__name__ for schedule in SCHEDULES} == set(schedules.__all__)


# ---- Values ----


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_follows_its_formula(schedule: Any) -> None:
    for t in [*range(1, 16), 100, 1000]:
        value = schedule(t)
        assert type(value) is float
        assert value == pytest.approx(FORMULAS[schedule](t), rel=1e-13, abs=1e-17), t


def test_linear_and_cosine_start_and_end_exactly_at_their_limits() -> None:
    rng = np.random.default_rng(0)
    for lr, end in rng.uniform(0, 1, (500, 2)) ** 3:
        for schedule in linear(lr, end, 7), cosine(lr, 7, end):
            assert schedule(1) == lr
            assert schedule(8) == schedule(9) == schedule(LARGEST_STEP) == end


def test_a_warmup_ends_exactly_at_the_first_rate_of_its_schedule() -> None:
    for steps in range(1, 100):
        schedule = warmup(inverse_sqrt(0.3), steps)
        assert schedule(steps) == schedule(steps + 1) == 0.3


def test_a_warmup_accepts_any_callable() -> None:
    steps = []

    def constant(t: int) -> float:
        steps.append(t)
        return 0.4

    schedule = warmup(constant, 4)
    assert [schedule(t) for t in range(1, 7)] == [0.1, 0.2, pytest.approx(0.3), 0.4, 0.4, 0.4]
    assert steps == [1, 1, 1, 1, 1, 2]
    assert warmup(lambda t: np.float32(0.5), 2)(3) == 0.5


EXTREMES = [
    inverse_sqrt(1.7e308),
    inverse_time(1.7e308, 1.7e308),
    inverse_time(0, 1.7e308),
    exponential(1.7e308, 1.7e308),
    exponential(5e-324, 1.0000001),
    exponential(0, 2),
    exponential(0, 2, steps=10**18),
    exponential(1, 5e-324),
    exponential(1, 1 - 2**-53, steps=2**63 - 1),
    piecewise([1, LARGEST_STEP - 1], [1, 2, 3]),
    linear(1.7e308, 1.7e308, 10),
    linear(1.7e308, 0, LARGEST_STEP),
    linear(1e-20, 1.7e308, 2**63 - 1),
    cosine(1.7e308, LARGEST_STEP, 1.7e308),
    cosine(5e-324, 3, 1.7e308),
    warmup(exponential(1, 2), 10**18),
    warmup(1.7e308, 2**63 - 1),
]


@pytest.mark.parametrize("schedule", SCHEDULES + EXTREMES, ids=repr)
def test_rates_are_finite_and_not_negative_at_every_step(schedule: Any) -> None:
    for t in [*range(1, 2000, 7), *(2**k for k in range(63)), 10**18, LARGEST_STEP - 1, LARGEST_STEP]:
        value = schedule(t)
        assert type(value) is float and math.isfinite(value) and value >= 0, t


def test_a_growing_rate_is_bounded_by_the_largest_double() -> None:
    values = [exponential(1e-8, 10)(t) for t in range(1, 400)]
    assert values == sorted(values)
    assert values[-1] == exponential(1e-8, 10)(LARGEST_STEP) == np.finfo(float).max
    assert exponential(0, 10)(LARGEST_STEP) == 0


# ---- Schedules are values ----


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_copy_is_equal_and_returns_the_same_rates(schedule: Any) -> None:
    copies = [pickle.loads(pickle.dumps(schedule, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in [*copies, copy.copy(schedule), copy.deepcopy(schedule), eval(repr(schedule), vars(schedules).copy())]:
        assert type(twin) is type(schedule)
        assert twin == schedule and hash(twin) == hash(schedule) and repr(twin) == repr(schedule)
        assert [twin(t) for t in range(1, 30)] == [schedule(t) for t in range(1, 30)]


def test_schedules_of_different_kinds_or_arguments_are_not_equal() -> None:
    assert len(set(SCHEDULES)) == len(SCHEDULES)
    assert linear(0.1, 0, 10) != cosine(0.1, 10)
    assert inverse_sqrt(0.1) != 0.1


def test_every_type_of_number_gives_the_same_schedule() -> None:
    assert inverse_sqrt(1) == inverse_sqrt(1.0) == inverse_sqrt(np.float32(1))
    assert repr(inverse_sqrt(np.float64(1))) == "inverse_sqrt(lr=1.0)"
    assert repr(cosine(np.float32(0.5), np.int8(3), np.array(0))) == "cosine(lr=0.5, steps=3, end=0.0)"
    assert repr(warmup(np.float64(1), np.uint64(3))) == "warmup(schedule=1.0, steps=3)"
    numbers = piecewise([10, 20], [3, 2, 1])
    assert numbers == piecewise((10, 20), (3.0, 2.0, 1.0)) == piecewise(np.array([10, 20]), np.array([3, 2, 1]))
    assert repr(numbers) == "piecewise(boundaries=(10, 20), values=(3.0, 2.0, 1.0))"


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_cannot_be_changed(schedule: Any) -> None:
    for name in [field.name for field in dataclasses.fields(schedule)]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, name, 1)
    with pytest.raises((AttributeError, TypeError)):
        schedule.other = 1
    assert not hasattr(schedule, "__dict__")


def test_a_list_that_is_changed_later_does_not_change_the_schedule() -> None:
    boundaries, values = [10], [0.2, 0.1]
    schedule = piecewise(boundaries, values)
    boundaries[0], values[0] = 1, 9.0
    assert schedule(5) == 0.2


# ---- Wrong input ----

WELL = {
    inverse_sqrt: {"lr": 0.1},
    inverse_time: {"lr": 0.1, "decay": 0.1},
    exponential: {"lr": 0.1, "rate": 0.9, "steps": 3},
    piecewise: {"boundaries": [10, 20], "values": [3, 2, 1]},
    linear: {"lr": 0.1, "end": 0.01, "steps": 3},
    cosine: {"lr": 0.1, "steps": 3, "end": 0.01},
    warmup: {"schedule": 0.1, "steps": 3},
}
ILL: dict[str, list[tuple[Any, type[Exception], str]]] = {
    **{
        name: [
            *[(v, ValueError, f"{name}: expected a finite number, got {v!r}") for v in (NAN, INF, -INF)],
            *[(v, TypeError, f"{name}: expected a number, got {v!r}") for v in ("0.1", b"1", None, [0.1], 1j)],
            (10**400, ValueError, f"{name}: expected a finite number, got 1000"),
        ]
        for name in ("lr", "decay", "rate", "end")
    },
    "steps": [
        *[
            (v, ValueError, f"steps: expected at least 1 and less than 2**63, got {v}")
            for v in (0, -1, -(10**30), 2**63)
        ],
        (10**400, ValueError, "steps: expected at least 1 and less than 2**63, got 1000"),
        (10**5000, ValueError, "steps: expected at least 1 and less than 2**63, got a value of type int"),
        *[(v, TypeError, f"steps: expected an integer, got {v!r}") for v in (1.0, 2.5, NAN, "3", None, [3], 1j, True)],
    ],
    "boundaries": [
        ([20, 10], ValueError, "boundaries: expected each greater than the one before, got [20, 10]"),
        ([10, 10], ValueError, "boundaries: expected each greater than the one before, got [10, 10]"),
        ([10], ValueError, "values: expected 2 (one more than boundaries), got 3"),
        ([10, 20, 30], ValueError, "values: expected 4 (one more than boundaries), got 3"),
        ([0, 10], ValueError, "boundaries[0]: expected at least 1 and less than 2**63, got 0"),
        ([10, 10**5000], ValueError, "boundaries[1]: expected at least 1"),
        ([10, 20.0], TypeError, "boundaries[1]: expected an integer, got 20.0"),
        *[
            (v, TypeError, f"boundaries: expected a sequence of numbers, got {v!r}")
            for v in (10, None, "12", b"12", {10: 1}, {10})
        ],
    ],
    "values": [
        ([3, 2], ValueError, "values: expected 3 (one more than boundaries), got 2"),
        ([3, 2, -1], ValueError, "values[2]: expected at least 0, got -1"),
        ([NAN, 2, 1], ValueError, "values[0]: expected a finite number, got nan"),
        ([3, "2", 1], TypeError, "values[1]: expected a number, got '2'"),
        *[(v, TypeError, f"values: expected a sequence of numbers, got {v!r}") for v in (0.1, None, "abc", {1: 2})],
    ],
    "schedule": [
        *[(v, TypeError, f"schedule: expected a number, got {v!r}") for v in ("0.1", None, [0.1])],
        (NAN, ValueError, "schedule: expected a finite number, got nan"),
        (-0.1, ValueError, "schedule: expected at least 0, got -0.1"),
    ],
}
for option in ("lr", "decay", "end"):
    ILL[option].append((-1e-9, ValueError, f"{option}: expected at least 0, got -1e-09"))
ILL["rate"] += [(v, ValueError, f"rate: expected more than 0, got {v!r}") for v in (0, -0.5)]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, well in WELL.items() for name in well])
def test_the_error_about_a_wrong_argument_names_it(kind: Any, name: str) -> None:
    kind(**WELL[kind])
    assert ILL[name]
    for value, error, message in ILL[name]:
        with pytest.raises(error, match=re.escape(message)) as caught:
            kind(**{**WELL[kind], name: value})
        assert caught.type is error


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_accepts_only_integer_steps_from_1(schedule: Any) -> None:
    large = [(10**400, "1000"), (10**5000, "a value of type int")]
    for t, got in [*((t, f"{t}$") for t in (0, -1, -(10**30), 2**63)), *large]:
        with pytest.raises(ValueError, match=rf"^t: expected at least 1 and less than 2\*\*63, got {got}"):
            schedule(t)
    for t in (1.0, 2.5, NAN, "1", None, [1], True):
        with pytest.raises(TypeError, match=re.escape(f"t: expected an integer, got {t!r}")):
            schedule(t)
    assert schedule(np.int32(3)) == schedule(np.uint64(3)) == schedule(3)


@pytest.mark.parametrize(
    ("value", "error"), [(NAN, ValueError), (INF, ValueError), ("1", TypeError), (None, TypeError)]
)
def test_a_warmup_refuses_invalid_results_of_its_schedule(value: Any, error: type[Exception]) -> None:
    schedule = warmup(lambda t: value, 3)
    for t, asked in (1, 1), (3, 1), (4, 1), (5, 2):
        with pytest.raises(error, match=re.escape(f"schedule({asked}): expected ")):
            schedule(t)


# ---- In an optimizer ----


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_schedule_equals_setting_the_rate_before_each_step(schedule: Any) -> None:
    rng = np.random.default_rng(0)
    w, v = np.zeros(5), np.zeros(5)
    scheduled, by_hand = onepass.Adam(w, lr=schedule), onepass.Adam(v)
    for t in range(1, 16):
        g = rng.standard_normal(5)
        scheduled.step(g)
        by_hand.lr = schedule(t)
        by_hand.step(g)
        assert (w == v).all()
    assert (w != 0).all()
    assert scheduled.lr is schedule
    assert repr(schedule) in repr(scheduled)


# ---- Presets ----

OF_THE_ARTICLE = ["tensorflow", "keras", "blocks", "lasagne", "caffe", "mxnet", "torch"]
OF_TODAY = ["keras3", "optax", "sklearn", "thinc", "pennylane", "qiskit"]
NAMES = OF_THE_ARTICLE + OF_TODAY


def test_there_is_a_preset_for_each_library() -> None:
    assert list(presets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_holds_only_options_of_adam(name: str) -> None:
    preset = presets[name]
    assert list(preset) == ["lr", "betas", "eps", "eps_mode"]
    group = onepass.Adam(np.zeros(3), **preset).groups[0]
    assert {option: getattr(group, option) for option in preset} == preset
    assert onepass.Adam(np.zeros(3), **{**preset, "lr": 0.5}).lr == 0.5
    onepass.AdamW(np.zeros(3), **preset)


@pytest.mark.parametrize("mapping", [presets, *presets.values()], ids=["presets", *presets])
def test_presets_are_immutable(mapping: Any) -> None:
    before = dict(mapping)
    with pytest.raises(TypeError, match="does not support item assignment"):
        mapping["lr"] = 0.1
    with pytest.raises(TypeError, match="does not support item deletion"):
        del mapping[next(iter(mapping))]
    assert not hasattr(mapping, "update") and not hasattr(mapping, "pop")
    assert type(mapping.get("betas", ())) is tuple
    assert dict(mapping) == before


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_documented(name: str) -> None:
    assert f"\n``{name}``" in (_presets.__doc__ or "")


def test_presets_of_the_article_have_the_values_of_its_table() -> None:
    for name in OF_THE_ARTICLE:
        assert presets[name] == {
            "lr": 0.002 if name == "blocks" else 0.001,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "eps_mode": "paper" if name == "torch" else "hat",
        }
