"""Types of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, SupportsFloat

import numpy.typing as npt

Array = npt.NDArray[Any]
# Any: or mypy would not take {...} with arrays of several dtypes for a mapping.
Params = Array | Mapping[Any, Array | Any] | Iterable[Array | Mapping[str, Any]]

# Forms in which the parameters of an optimizer come.
Form = Literal["array", "sequence", "mapping"]

# A number is anything that float() takes, NumPy's scalars too, but no string.
Schedule = Callable[[int], SupportsFloat]
LearningRate = SupportsFloat | Schedule
Rate = float | Any  # a number or a function of the step. Any: with Schedule in its place, lr *= 0.5 would be an error
Average = SupportsFloat | Schedule | None  # the decay of the running average
Betas = tuple[SupportsFloat, SupportsFloat] | list[float]
ThreeBetas = tuple[SupportsFloat, SupportsFloat, SupportsFloat] | list[float]
EpsMode = Literal["paper", "hat"]
Nonfinite = Literal["propagate", "skip", "raise"]
StateDtype = Literal["bfloat16", "float8"] | None
Rounding = Literal["stochastic", "nearest"]
Check = Callable[[str, Any], Any]
