"""Checks of options: each takes an option's name and value, and returns the value to keep or raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LearningRate = float | Callable[[int], float]
Check = Callable[[str, Any], Any]


def finite(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, (str, bytes, bytearray)):
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


def learning_rate(name: str, value: Any) -> LearningRate:
    """A number, 0 or more, or a function of the step."""
    return value if callable(value) else non_negative(name, value)


def betas(name: str, value: Any) -> tuple[float, float]:
    """A pair of numbers in [0, 1)."""
    if isinstance(value, (str, bytes, Mapping)):
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


def eps_mode(name: str, value: Any) -> str:
    """Where epsilon stands: "paper" or "hat"."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'paper' or 'hat', not {value!r}")
    if value not in ("paper", "hat"):
        raise ValueError(f"{name} must be 'paper' or 'hat', not {value!r}")
    return value
