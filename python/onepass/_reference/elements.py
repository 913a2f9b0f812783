"""Arrays with one IEEE-754 operation per operator, and scalar arithmetic for coefficients."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Numbers = SimpleNamespace


class Elements:
    """An array of which every operation is one IEEE-754 operation of its dtype.

    With ``flush``, subnormal numbers count as zero of the same sign, as inputs and as results, and a result counts as
    subnormal if it is so after rounding to full precision: what x86 processors do with FTZ and DAZ set.
    """

    __array_ufunc__ = None  # make NumPy scalars defer to Elements' operators

    def __init__(self, values: Any, flush: bool) -> None:
        self.values = np.asarray(values)
        self.flush = flush

    def _operands(self, other: Any) -> tuple[Array, Array]:
        b = other.values if isinstance(other, Elements) else np.asarray(other)
        assert self.values.dtype == b.dtype
        return (flushed(self.values), flushed(b)) if self.flush else (self.values, b)

    def __add__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        return Elements(flushed(a + b) if self.flush else a + b, self.flush)  # a subnormal sum is exact

    def __sub__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        return Elements(flushed(a - b) if self.flush else a - b, self.flush)

    def __mul__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        if not self.flush:
            return Elements(a * b, self.flush)
        # Scaled up, the product is rounded to full precision. Where it may be tiny, the smaller factor has room.
        big = scale(a.dtype)
        smaller, larger = np.where(abs(a) < abs(b), a, b), np.where(abs(a) < abs(b), b, a)
        return Elements(flushed_if(abs((smaller * big) * larger) < tiny(a.dtype) * big, a * b), self.flush)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Elements:
        a, b = self._operands(other)
        if not self.flush:
            return Elements(a / b, self.flush)
        big = scale(a.dtype)
        return Elements(flushed_if(abs((a * big) / b) < tiny(a.dtype) * big, a / b), self.flush)

    def sqrt(self) -> Elements:
        return Elements(np.sqrt(flushed(self.values) if self.flush else self.values), self.flush)

    # Comparisons and copies. Comparisons take subnormals for zero, copies do not flush.

    def __abs__(self) -> Elements:
        return Elements(abs(self.values), self.flush)

    def maximum(self, other: Any) -> Elements:
        """``(a > b or a is NaN) ? a : b``."""
        a, b = self._operands(other)
        return Elements(np.where((a > b) | np.isnan(a), self.values, getattr(other, "values", other)), self.flush)

    def clamped(self, limit: Any) -> Elements:
        """``a < -limit ? -limit : a``, then ``a > limit ? limit : a``: NaN passes."""
        a, c = self._operands(limit)
        return Elements(np.where(a < -c, -limit, np.where(a > c, limit, self.values)), self.flush)

    def sign(self) -> Elements:
        """``a > 0 ? 1 : a < 0 ? -1 : a is NaN ? a : +0``."""
        a, zero = self._operands(self.values.dtype.type(0))
        return Elements(np.where(np.isnan(a), a, (a > zero).astype(a.dtype) - (a < zero)), self.flush)


def tiny(dtype: Any) -> Any:
    """The smallest normal number."""
    return np.finfo(dtype).tiny


def scale(dtype: Any) -> Any:
    """A power of two that lifts every subnormal result into the normal range."""
    return dtype.type(2.0**64 if dtype == np.float32 else 2.0**512)


def flushed_if(condition: Any, values: Any) -> Array:
    return np.asarray(np.where(condition, np.copysign(np.zeros_like(values), values), values))


def flushed(values: Any) -> Array:
    return flushed_if(abs(values) < tiny(values.dtype), values)


@lru_cache(maxsize=4096)
def power(base: float, exponent: int) -> float:
    """The double nearest to base**exponent: 60 digits, rounded once."""
    context = Context(prec=60, Emin=-(10**17), Emax=10**17)
    return float(context.power(Decimal(base), exponent))


def rounded(dtype: Any, **numbers: float | None) -> Numbers:
    """Each number rounded to the dtype, once."""
    to = np.dtype(dtype).type
    return Numbers(**{name: None if x is None else to(x) for name, x in numbers.items()})


def average(decay: Any, one_minus_decay: Any, old: Elements, new: Elements) -> Elements:
    """Return the exponential moving average decay·old + one_minus_decay·new."""
    return decay * old + one_minus_decay * new  # type: ignore[no-any-return]


def real_power(base: float, exponent: float) -> float:
    """A power by the C library, but for squares."""
    return base * base if exponent == 2 else math.pow(base, exponent)
