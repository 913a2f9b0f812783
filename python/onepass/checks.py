"""Checks of options: each takes an option's name and value, and returns the value to keep or raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from typing import Any, Literal, SupportsFloat

import numpy as np

# What a user may hand over. A number is whatever float() takes, NumPy's scalars too, but no string.
Schedule = Callable[[int], SupportsFloat]
LearningRate = SupportsFloat | Schedule
Average = SupportsFloat | Schedule | None  # the decay of the running average
Betas = tuple[SupportsFloat, SupportsFloat] | list[float]
EpsMode = Literal["paper", "hat"]
Nonfinite = Literal["propagate", "skip", "raise"]
Check = Callable[[str, Any], Any]


def counted(number: int, noun: str) -> str:
    """So many of them: "1 parameter", "2 parameters"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def finite(name: str, value: Any) -> float:
    """A finite number."""
    strange = isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in "biuf"
    if strange or isinstance(value, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a finite number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return number


def non_negative(name: str, value: Any) -> float:
    """A finite number, 0 or more."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, not {value!r}")
    return number


def decay(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    number = finite(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {value!r}")
    return number


def fraction(name: str, value: Any) -> float:
    """A number in [0, 1]."""
    number = finite(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be at least 0 and at most 1, not {value!r}")
    return number


def learning_rate(name: str, value: Any) -> float | Schedule:
    """A number, 0 or more, or a function of the step."""
    return value if callable(value) else non_negative(name, value)


def betas(name: str, value: Any) -> tuple[float, float]:
    """A pair of numbers in [0, 1)."""
    if isinstance(value, (str, bytes, Mapping, Set)):
        raise TypeError(f"{name} must be a pair of numbers, not {value!r}")
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a pair of numbers, not {value!r}") from None
    if len(values) != 2:
        raise ValueError(f"{name} must be a pair of numbers, not {value!r}")
    return decay(f"{name}[0]", values[0]), decay(f"{name}[1]", values[1])


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def one_of(*choices: str) -> Check:
    """The check that a value is one of these words."""

    def check(name: str, value: Any) -> str:
        message = f"{name} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, not {value!r}"
        if not isinstance(value, str):
            raise TypeError(message)
        if value not in choices:
            raise ValueError(message)
        return value

    return check


eps_mode = one_of("paper", "hat")
nonfinite = one_of("propagate", "skip", "raise")


def limit(name: str, value: Any) -> float | None:
    """A number above 0, which may be infinite, or None."""
    if value is None:
        return None
    number = math.inf if isinstance(value, (float, np.floating)) and value == math.inf else finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0 or None, not {value!r}")
    return number


def average(name: str, value: Any) -> float | Schedule | None:
    """A decay in [0, 1), a function of the step that returns one, or None."""
    return value if value is None or callable(value) else decay(name, value)


# Of every optimizer's groups.
COMMON: Mapping[str, Check] = {"maximize": flag, "clip_value": limit, "ema": average}

# Of the whole optimizer.
WHOLE: Mapping[str, Check] = {"clip_norm": limit, "nonfinite": nonfinite, "flush_denormals": flag}
