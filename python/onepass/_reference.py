"""The executable specification: what the kernels compute, in NumPy, one operation at a time.

Each rule is a fold (the numbers that depend only on options and step, in double, rounded to the dtype once) and an
update of one step's arrays, in exactly the order in which the kernels do it. The kernels must give the same bits.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Elements:
    """An array of which every operation is one IEEE-754 operation of its dtype.

    With ``flush``, subnormal numbers count as zero of the same sign, as inputs and as results, and a result counts as
    subnormal if it is so after rounding to full precision: what x86 processors do with FTZ and DAZ set.
    """

    __array_ufunc__ = None  # NumPy's numbers leave their products with Elements to Elements

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

    def maximum(self, other: Elements) -> Elements:
        """``(a > b or a is NaN) ? a : b``: a copy, which does not flush."""
        a, b = self._operands(other)
        return Elements(np.where((a > b) | np.isnan(a), self.values, other.values), self.flush)


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


def fold_adam(
    dtype: Any, t: int, *, lr: float, betas: tuple[float, float], eps: float, bias_correction: bool, eps_mode: str
) -> SimpleNamespace:
    """Adam's numbers at step t."""
    beta1, beta2 = betas
    c1 = 1 - power(beta1, t) if bias_correction else 1.0
    c2 = 1 - power(beta2, t) if bias_correction else 1.0
    return rounded(
        dtype,
        beta1=beta1,
        one_minus_beta1=1 - beta1,
        beta2=beta2,
        one_minus_beta2=1 - beta2,
        a=lr / c1 if eps_mode == "paper" else lr * math.sqrt(c2) / c1,
        r=1 / math.sqrt(c2) if eps_mode == "paper" else None,
        eps=eps,
    )


def rounded(dtype: Any, **numbers: float | None) -> SimpleNamespace:
    """Each number rounded to the dtype, once."""
    to = np.dtype(dtype).type
    return SimpleNamespace(**{name: None if x is None else to(x) for name, x in numbers.items()})


def adam(k: SimpleNamespace, p: Elements, g: Elements, m: Elements, v: Elements) -> tuple[Elements, ...]:
    """Adam: Kingma and Ba (2015), algorithm 1."""
    m = k.beta1 * m + k.one_minus_beta1 * g
    v = k.beta2 * v + k.one_minus_beta2 * (g * g)
    return p - adam_move(k, m, v), m, v


def amsgrad(
    k: SimpleNamespace, p: Elements, g: Elements, m: Elements, v: Elements, u: Elements
) -> tuple[Elements, ...]:
    """AMSGrad: Reddi, Kale and Kumar (2018)."""
    m = k.beta1 * m + k.one_minus_beta1 * g
    v = k.beta2 * v + k.one_minus_beta2 * (g * g)
    u = u.maximum(v)
    return p - adam_move(k, m, u), m, v, u


def adam_move(k: SimpleNamespace, m: Elements, u: Elements) -> Elements:
    """The step along the first moment, scaled by the root of the second."""
    root = u.sqrt()
    d = (root if k.r is None else root * k.r) + k.eps
    step: Elements = k.a * (m / d)
    return step


def around(
    p: Elements, g: Elements, *, scale: float, weight_decay: float, decoupled: bool, lr: float
) -> tuple[Elements, Elements]:
    """What surrounds every rule: the parameter and the gradient as the rule sees them."""
    k = rounded(p.values.dtype, scale=scale, weight_decay=weight_decay, shrink=1 - lr * weight_decay)
    if k.scale != 1:
        g = g * k.scale
    if weight_decay != 0 and not decoupled:
        g = g + k.weight_decay * p
    if weight_decay != 0 and decoupled:
        p = p * k.shrink
    return p, g


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    max_exp_avg_sq: Array | None = None,
    bias_correction: bool = True,
    eps_mode: str = "paper",
    maximize: bool = False,
    grad_scale: float = 1.0,
    flush_denormals: bool = True,
) -> tuple[Array, ...]:
    """What `onepass.adam_step` leaves in param, exp_avg, exp_avg_sq (and max_exp_avg_sq): new arrays."""
    k = fold_adam(param.dtype, step, lr=lr, betas=betas, eps=eps, bias_correction=bias_correction, eps_mode=eps_mode)
    arrays = [param, grad, exp_avg, exp_avg_sq] + ([] if max_exp_avg_sq is None else [max_exp_avg_sq])
    with np.errstate(all="ignore"):
        p, g, *states = (Elements(array, flush_denormals) for array in arrays)
        p, g = around(
            p,
            g,
            scale=-grad_scale if maximize else grad_scale,
            weight_decay=weight_decay,
            decoupled=decoupled_weight_decay,
            lr=lr,
        )
        updated = (adam if max_exp_avg_sq is None else amsgrad)(k, p, g, *states)
    return tuple(elements.values for elements in updated)
