"""Learning-rate schedules: functions of the step ``t = 1, 2, …`` that return the learning rate of that step.

A schedule is a small immutable object that can be called, pickled, compared, hashed and printed (its repr is the code
that creates it). Optimizers accept it as ``lr``, as well as any other callable.

========================================  ========================================  ======================
schedule                                  learning rate at step t                   known from
========================================  ========================================  ======================
``inverse_sqrt(lr)``                      lr / sqrt(t)                              the Adam paper
``inverse_time(lr, decay)``               lr / (1 + decay·(t − 1))                  Keras 1 and 2
``exponential(lr, rate, steps=1)``        lr · rate^((t − 1)/steps)                 ``ExponentialLR``
``piecewise(boundaries, values)``         values[i] while t ≤ boundaries[i]         ``MultiStepLR``
``linear(lr, end, steps)``                from lr to end in a straight line         ``LinearLR``
``cosine(lr, steps, end=0.0)``            from lr to end along half a cosine        ``CosineAnnealingLR``
``warmup(schedule, steps)``               a straight line up, then the schedule     Goyal et al. (2017)
========================================  ========================================  ======================

The rates are Python floats, finite and at least 0 at every step that an optimizer can reach (below 2⁶³). A step below 1
raises ``ValueError``, a step that is not an integer ``TypeError``. Arguments are checked when a schedule is created;
numbers of steps must be below 2⁶³.

Example:
    >>> import numpy as np, onepass
    >>> from onepass import schedules
    >>> w = np.zeros(3, np.float32)
    >>> opt = onepass.Adam(w, lr=schedules.warmup(schedules.cosine(1e-3, steps=900), steps=100))
    >>> opt.step(np.array([1, 2, 3], np.float32))
    >>> opt.lr
    warmup(schedule=cosine(lr=0.001, steps=900, end=0.0), steps=100)
    >>> [opt.lr(t) for t in (1, 50, 100, 101, 551, 1001)]
    [1e-05, 0.0005, 0.001, 0.001, 0.0005, 0.0]
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import _checks
from ._options import Class, suggestion
from ._types import LearningRate

__all__ = ["cosine", "exponential", "inverse_sqrt", "inverse_time", "linear", "piecewise", "warmup"]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


if not TYPE_CHECKING:  # checkers would take it for a sign that every name exists

    def __getattr__(name: str) -> Any:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{suggestion(name, __all__, 'schedules')}")


def _suggesting(cls: Class) -> Class:
    """Add a suggestion to the error of the constructor about an unknown argument."""
    init: Any = cls.__init__  # type: ignore[misc]

    @wraps(init)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        names = [field.name for field in fields(cls)]
        if unknown := [name for name in options if name not in names]:
            raise TypeError(
                f"{cls.__name__}() got an unexpected keyword argument {unknown[0]!r}{suggestion(unknown[0], names)}"
            )
        init(self, *args, **options)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@_suggesting
@dataclass(frozen=True, slots=True)
class inverse_sqrt:
    """Inverse square-root decay: ``lr / sqrt(t)``.

    Args:
        lr: the rate at step 1, at least 0.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), section 4 (the proof of convergence)
    and section 6.1 (logistic regression).

    Example:
        >>> from onepass import schedules
        >>> [schedules.inverse_sqrt(0.1)(t) for t in (1, 4, 100)]
        [0.1, 0.05, 0.01]
    """

    lr: float

    def __post_init__(self) -> None:
        _keep(self, lr=_checks.non_negative("lr", self.lr))

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        return self.lr / math.sqrt(_checks.steps("t", t))


@_suggesting
@dataclass(frozen=True, slots=True)
class inverse_time:
    """Inverse-time decay: ``lr / (1 + decay·(t − 1))``.

    Args:
        lr: the rate at step 1, at least 0.
        decay: at least 0; the rate has halved after ``1/decay`` steps.

    Source: the option ``decay`` of the optimizers of Keras 1 and 2.

    Example:
        >>> from onepass import schedules
        >>> [schedules.inverse_time(0.1, decay=0.5)(t) for t in (1, 3, 7)]
        [0.1, 0.05, 0.025]
    """

    lr: float
    decay: float

    def __post_init__(self) -> None:
        _keep(self, lr=_checks.non_negative("lr", self.lr), decay=_checks.non_negative("decay", self.decay))

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        return self.lr / (1 + self.decay * (_checks.steps("t", t) - 1))


@_suggesting
@dataclass(frozen=True, slots=True)
class exponential:
    """Exponential decay by the factor ``rate`` every ``steps`` steps: ``lr · rate^((t − 1)/steps)``.

    Args:
        lr: the rate at step 1, at least 0.
        rate: the factor, greater than 0. Above 1 the learning rate grows, at most to the largest double: use it to
            search for the largest rate that works.
        steps: the number of steps of one factor, at least 1.

    Source: ``torch.optim.lr_scheduler.ExponentialLR`` (with ``steps=1``), Keras's ``ExponentialDecay``.

    Example:
        >>> from onepass import schedules
        >>> [schedules.exponential(0.1, rate=0.25, steps=10)(t) for t in (1, 6, 11)]
        [0.1, 0.05, 0.025]
    """

    lr: float
    rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        lr, rate = _checks.non_negative("lr", self.lr), _checks.finite("rate", self.rate)
        if rate <= 0:
            raise ValueError(f"rate: expected more than 0, got {self.rate!r}")
        _keep(self, lr=lr, rate=rate, steps=_checks.steps("steps", self.steps))

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        exponent = (_checks.steps("t", t) - 1) / self.steps
        try:
            factor = math.pow(self.rate, exponent)
        except OverflowError:
            return sys.float_info.max if self.lr else 0.0
        return min(self.lr * factor, sys.float_info.max)


@_suggesting
@dataclass(frozen=True, slots=True)
class piecewise:
    """Piecewise constant rate: ``values[i]`` while ``t ≤ boundaries[i]``, then the last value.

    Args:
        boundaries: the last step of each value except the last value: increasing integers, at least 1.
        values: the rates, at least 0: one rate more than there are boundaries.

    Both arguments are stored as tuples.

    Source: Keras's ``PiecewiseConstantDecay``; ``torch.optim.lr_scheduler.MultiStepLR`` is a special case.

    Example:
        >>> from onepass import schedules
        >>> schedule = schedules.piecewise(boundaries=[30, 60], values=[0.1, 0.01, 0.001])
        >>> [schedule(t) for t in (1, 30, 31, 60, 61)]
        [0.1, 0.1, 0.01, 0.01, 0.001]
    """

    boundaries: Sequence[int]
    values: Sequence[float]

    def __post_init__(self) -> None:
        boundaries = tuple(
            _checks.steps(f"boundaries[{i}]", b) for i, b in enumerate(_items("boundaries", self.boundaries))
        )
        values = tuple(_checks.non_negative(f"values[{i}]", v) for i, v in enumerate(_items("values", self.values)))
        if any(a >= b for a, b in pairwise(boundaries)):
            raise ValueError(
                f"boundaries: expected each greater than the one before, got {_checks.shown(self.boundaries)}"
            )
        if len(values) != len(boundaries) + 1:
            raise ValueError(f"values: expected {len(boundaries) + 1} (one more than boundaries), got {len(values)}")
        _keep(self, boundaries=boundaries, values=values)

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        return self.values[bisect_left(self.boundaries, _checks.steps("t", t))]


@_suggesting
@dataclass(frozen=True, slots=True)
class linear:
    """Linear change from ``lr`` to ``end``: ``lr + (end − lr)·min(t − 1, steps)/steps``.

    The rate is ``lr`` at step 1, and ``end`` from step ``steps + 1`` on.

    Args:
        lr: the first rate, at least 0.
        end: the last rate, at least 0; it may be greater than ``lr``.
        steps: the number of steps of the transition, at least 1.

    Source: ``torch.optim.lr_scheduler.LinearLR``, ``optax.linear_schedule``.

    Example:
        >>> from onepass import schedules
        >>> [schedules.linear(0.1, end=0.0, steps=100)(t) for t in (1, 51, 101, 1000)]
        [0.1, 0.05, 0.0, 0.0]
    """

    lr: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        lr, end = _checks.non_negative("lr", self.lr), _checks.non_negative("end", self.end)
        _keep(self, lr=lr, end=end, steps=_checks.steps("steps", self.steps))

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        return _between(self.lr, self.end, min(_checks.steps("t", t) - 1, self.steps) / self.steps)


@_suggesting
@dataclass(frozen=True, slots=True)
class cosine:
    """Cosine decay, half a period: ``end + (lr − end)·(1 + cos(π·min(t − 1, steps)/steps))/2``.

    The rate is ``lr`` at step 1, and ``end`` from step ``steps + 1`` on.

    Args:
        lr: the first rate, at least 0.
        steps: the number of steps of the transition, at least 1.
        end: the last rate, at least 0.

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5, without
    restarts; ``torch.optim.lr_scheduler.CosineAnnealingLR`` up to its ``T_max``, ``optax.cosine_decay_schedule``.

    Example:
        >>> from onepass import schedules
        >>> [schedules.cosine(0.1, steps=100)(t) for t in (1, 51, 101, 1000)]
        [0.1, 0.05, 0.0, 0.0]
    """

    lr: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        lr, end = _checks.non_negative("lr", self.lr), _checks.non_negative("end", self.end)
        _keep(self, lr=lr, steps=_checks.steps("steps", self.steps), end=end)

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        angle = math.pi * (min(_checks.steps("t", t) - 1, self.steps) / self.steps)
        return _between(self.end, self.lr, (1 + math.cos(angle)) / 2)


@_suggesting
@dataclass(frozen=True, slots=True)
class warmup:
    """Linear warmup: ``schedule(1)·t/steps`` while ``t ≤ steps``, then ``schedule(t − steps)``.

    The warmup ends at the first rate of the schedule, which the next step repeats as step 1 of the schedule.

    Args:
        schedule: a schedule, any other function of the step that returns a rate, or a number for a constant rate.
        steps: the number of steps of the rise, at least 1.

    Raises:
        ValueError, TypeError: also when called, if the schedule does not return a finite number.

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017), section 2.2.

    Example:
        >>> from onepass import schedules
        >>> [schedules.warmup(0.1, steps=4)(t) for t in (1, 2, 4, 5)]
        [0.025, 0.05, 0.1, 0.1]
        >>> [schedules.warmup(schedules.inverse_sqrt(0.1), steps=4)(t) for t in (2, 4, 5, 8)]
        [0.05, 0.1, 0.1, 0.05]
    """

    schedule: LearningRate
    steps: int

    def __post_init__(self) -> None:
        _keep(self, schedule=_checks.learning_rate("schedule", self.schedule), steps=_checks.steps("steps", self.steps))

    def __call__(self, t: int) -> float:
        """Return the rate at step t."""
        t = _checks.steps("t", t)
        return self._rate(1) * (t / self.steps) if t <= self.steps else self._rate(t - self.steps)

    def _rate(self, t: int) -> float:
        schedule = self.schedule
        return _checks.finite(f"schedule({t})", schedule(t)) if callable(schedule) else float(schedule)


def describe_schedule(function: Any) -> dict[str, Any]:
    """Return a description of a schedule for a file: its name and arguments, or only the name of any other function."""
    if is_dataclass(function) and globals().get(type(function).__name__) is type(function):
        arguments = {field.name: getattr(function, field.name) for field in fields(function)}
        described = {name: describe_schedule(value) if callable(value) else value for name, value in arguments.items()}
        if not any(isinstance(value, Mapping) and "function" in value for value in described.values()):
            return {"name": type(function).__name__, **described}
    return {"function": str(getattr(function, "__qualname__", type(function).__qualname__))}


def from_description(description: Mapping[str, Any]) -> Any:
    """Return the schedule that `describe_schedule` described, or None for any other function."""
    if description.keys() == {"function"}:
        return None
    name = description.get("name")
    if name not in __all__:
        raise ValueError(f"unknown schedule {name!r}: expected one of {', '.join(__all__)}")
    arguments = {key: value for key, value in description.items() if key != "name"}
    made = {key: from_description(value) if isinstance(value, Mapping) else value for key, value in arguments.items()}
    try:
        return globals()[name](**made)
    except TypeError as error:
        raise ValueError(f"schedule {name}: {error}") from None


def _keep(self: object, /, **values: Any) -> None:
    """Set the checked values of a frozen dataclass during its construction."""
    for name, value in values.items():
        object.__setattr__(self, name, value)


def _items(name: str, value: Any) -> tuple[Any, ...]:
    """Return the items of a sequence as a tuple, or raise."""
    if isinstance(value, (str, bytes, bytearray, Mapping, Set)):
        raise TypeError(f"{name}: expected a sequence of numbers, got {_checks.shown(value)}")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of numbers, got {_checks.shown(value)}") from None


def _between(start: float, end: float, fraction: float) -> float:
    """Interpolate linearly from start to end: exactly start at 0, exactly end at 1."""
    return end if fraction == 1 else start + (end - start) * fraction
