"""Checks of options, which return the value to keep or raise, and of arrays, which raise."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Mapping, Set
from itertools import pairwise
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np

from ._allocate import address
from ._types import (
    Array,
    Average,
    Betas,
    Check,
    EpsMode,
    LearningRate,
    Nonfinite,
    Rate,
    Rounding,
    Schedule,
    StateDtype,
    ThreeBetas,
)


def plural(number: int, noun: str) -> str:
    """Return the number with its noun: "1 parameter", "2 parameters"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """Return the repr of a value for a message, its start if it is long, or the shape of an array."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"an array of shape {tuple(shape)}"
    try:
        text = repr(value)
    except Exception:  # of a user's class, or of an integer with too many digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse_array(name: str, value: Any, *, hint: str) -> None:
    """Refuse an array in place of a number: the caller passed parameters or gradients without a list around them."""
    if isinstance(value, np.ndarray) and value.size != 1:
        raise TypeError(f"{name}: expected a number, got {shown(value)} ({hint})")


def finite(name: str, value: SupportsFloat) -> float:
    """A finite number."""
    strange = isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind not in "iuf"
    if strange or isinstance(value, (bool, np.bool_, str, bytes, bytearray, memoryview)):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except TypeError:
        raise TypeError(f"{name}: expected a number, got {shown(value)}") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{name}: expected a finite number, got {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return number


def non_negative(name: str, value: SupportsFloat) -> float:
    """A finite number, 0 or more."""
    number = finite(name, value)
    if number < 0:
        raise ValueError(f"{name}: expected at least 0, got {value!r}")
    return number


def unit_interval_open(name: str, value: SupportsFloat) -> float:
    """A number in [0, 1)."""
    number = finite(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected at least 0 and less than 1, got {value!r}")
    return number


def unit_interval(name: str, value: SupportsFloat) -> float:
    """A number in [0, 1]."""
    number = finite(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected at least 0 and at most 1, got {value!r}")
    return number


def learning_rate(name: str, value: LearningRate) -> Rate:
    """A number, 0 or more, or a function of the step."""
    return function(name, value) if callable(value) else non_negative(name, value)


def function(name: str, value: Schedule) -> Schedule:
    """A function of the step, not a class of such functions."""
    if isinstance(value, type):
        raise TypeError(
            f"{name}: expected a number or a function of the step, got the class {value.__name__} (pass an instance)"
        )
    return value


def betas(name: str, value: Betas) -> tuple[float, float]:
    """A pair of numbers in [0, 1)."""
    first, second = _decays(name, value, 2, "a pair of numbers")
    return first, second


def three_betas(name: str, value: ThreeBetas) -> tuple[float, float, float]:
    """Three numbers in [0, 1)."""
    first, second, third = _decays(name, value, 3, "three numbers")
    return first, second, third


def _decays(name: str, value: Any, count: int, expected: str) -> list[float]:
    if isinstance(value, (str, bytes, Mapping, Set)):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}") from None
    if len(values) != count:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return [unit_interval_open(f"{name}[{i}]", decay) for i, decay in enumerate(values)]


def flag(name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return bool(value)


def one_of(*choices: str | None) -> Check:
    """Return the check that a value is one of these words, or None if that is among them."""

    def check(name: str, value: Any) -> str | None:
        message = f"{name}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got {shown(value)}"
        if not isinstance(value, tuple(map(type, choices))):
            raise TypeError(message)
        if value not in choices:
            raise ValueError(message)
        return value

    return check


eps_mode: Callable[[str, EpsMode], EpsMode] = one_of("paper", "hat")
nonfinite: Callable[[str, Nonfinite], Nonfinite] = one_of("propagate", "skip", "raise")
rounding: Callable[[str, Rounding], Rounding] = one_of("stochastic", "nearest")
state_dtype: Callable[[str, StateDtype], StateDtype] = one_of(None, "bfloat16", "float8")


def master_bits(name: str, value: int) -> int:
    """The number of bits of bfloat16 parameters."""
    return integer_in((32, 24, 16), "32, 24 or 16", name, value)


def seed(name: str, value: int) -> int:
    """A seed of 64 bits."""
    return integer_in(range(2**64), "at least 0 and less than 2**64", name, value)


def integer(name: str, value: SupportsIndex) -> int:
    """An integer."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {shown(value)}") from None


def integer_in(numbers: Container[int], expected: str, name: str, value: SupportsIndex) -> int:
    """An integer that is one of these numbers; expected: the numbers, for the message."""
    number = integer(name, value)
    if number not in numbers:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")
    return number


def steps_or_none(name: str, value: int | None) -> int | None:
    """A number of steps, 1 or more, that a double holds, or None."""
    expected = "at least 1 and at most 2**53, or None"
    return None if value is None else integer_in(range(1, 2**53 + 1), expected, name, value)


def steps(name: str, value: SupportsIndex) -> int:
    """A number of steps, 1 or more, that an optimizer can reach."""
    return integer_in(range(1, 2**63), "at least 1 and less than 2**63", name, value)


def count(name: str, value: int) -> int:
    """An integer, 0 or more, that a double holds exactly."""
    return integer_in(range(2**53 + 1), "at least 0 and at most 2**53", name, value)


def positive_or_none(name: str, value: SupportsFloat | None) -> float | None:
    """A number above 0, which may be infinite, or None."""
    if value is None:
        return None
    number = math.inf if isinstance(value, (float, np.floating)) and value == math.inf else finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected more than 0 or None, got {value!r}")
    return number


def ema_decay(name: str, value: Average) -> Rate | None:
    """A decay in [0, 1), a function of the step that returns one, or None."""
    return value if value is None else function(name, value) if callable(value) else unit_interval_open(name, value)


# ---- Arrays ----

_COPY = "makes a copy: keep it, only the copy is updated"


def check_storage(label: str, array: Any) -> None:
    """Refuse anything that cannot be updated in place."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label}: expected a NumPy array, got {type(array).__name__}{_remedy(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .data")
    array = np.asarray(array)  # subclasses may override these attributes
    dtype = array.dtype
    if not dtype.isnative:
        native = f"w.astype(w.dtype.newbyteorder('=')) {_COPY}"
        raise TypeError(f"{label}: expected native byte order, got {dtype.str!r} ({native})")
    name = "longdouble" if dtype.char == "g" else dtype.name  # on Windows it is equal to float64
    if dtype.char not in ("f", "d") and name != "bfloat16":
        remedy = f"w.astype(numpy.{'float64' if name == 'longdouble' else 'float32'}) {_COPY}"
        if dtype.kind == "c":
            remedy = "use two parameters, its real and imaginary parts"
        if dtype == "V2":  # numpy.save does not write the name of bfloat16
            remedy = "if it holds bfloat16, pass .view(ml_dtypes.bfloat16)"
        raise TypeError(f"{label}: expected dtype float32, float64 or bfloat16, got {name} ({remedy})")
    if not array.flags.writeable:
        raise ValueError(f"{label}: expected a writeable array, got a read-only one (w.copy() {_COPY})")
    if not array.flags.forc:
        copy = f"numpy.ascontiguousarray(w) {_COPY}"
        raise ValueError(f"{label}: expected a contiguous array, got strides {array.strides} ({copy})")
    if not array.flags.aligned:
        raise ValueError(f"{label}: expected an array aligned to its dtype, got a misaligned one (w.copy() {_COPY})")


def _remedy(found: Any) -> str:
    """Return the hint that ends the error about a parameter that is not a NumPy array."""
    library = type(found).__module__.partition(".")[0]
    if library == "torch":
        return " (for PyTorch use onepass.integrations.torch)"
    if library in ("jax", "jaxlib"):
        return f" (JAX's arrays cannot change in place, numpy.array(parameter) {_COPY})"
    if library == "scipy":
        return f" (.toarray() {_COPY})"
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str):
        return " (use the mapping itself, not its items)"
    if isinstance(found, (list, tuple, Mapping)):
        return " (flatten nested parameters into one list or mapping of arrays)"
    return " (use numpy.array(parameter, numpy.float32))" if isinstance(found, (float, int, np.generic)) else ""


def check_disjoint(arrays: list[tuple[str, Array]]) -> None:
    """Refuse contiguous arrays that share memory; each comes with its label."""
    plain = [(label, np.asarray(array)) for label, array in arrays]
    extents = sorted((address(array), array.nbytes, label) for label, array in plain if array.size)
    for (start, size, label), (next_start, next_size, next_label) in pairwise(extents):
        if (start, size) == (next_start, next_size):
            raise ValueError(f"{next_label} is the same memory as {label}: pass it once")
        if next_start < start + size:
            raise ValueError(f"{next_label} overlaps {label} in memory: pass arrays that share nothing, or a copy")


def real_floating(label: str, array: Any) -> None:
    """Refuse anything but an array of real floating-point numbers."""
    if not isinstance(array, np.ndarray):
        remedy = " (use numpy.array(..., numpy.float32))" if isinstance(array, (list, tuple, float, int)) else ""
        if callable(array):
            remedy = " (call it and pass the result)"
        kind = type(array).__name__
        raise TypeError(f"{label}: expected a NumPy array of real floating-point numbers, got {kind}{remedy}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .filled(0)")
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        remedy = (
            "use .real, or its real and imaginary parts" if array.dtype.kind == "c" else "use .astype(numpy.float32)"
        )
        raise TypeError(f"{label}: expected a real floating-point dtype, got {array.dtype} ({remedy})")
