"""SciPy's ``minimize`` with onepass's optimizers: ``scipy.optimize.minimize(f, x0, jac=g, method=adam)``.

``adam``, ``adamw``, ``adamax``, ``nadam``, ``radam``, ``rmsprop``, ``adagrad``, ``adadelta``, ``sgd``, ``lion`` and
``ademamix`` are functions for the argument ``method`` of `scipy.optimize.minimize`. They descend along the gradient of
a smooth or noisy function of many variables, without line searches or second derivatives. ``options`` takes the options
of the optimizer, such as ``betas`` and ``lr``, and the options in the table. ``lr`` is a number or a function of the
step; its default is the optimizer's default (0.001 for ``adam``): set it to fit the scale of your variables.

==============  ======================================================================================================
``maxiter``     the maximum number of steps (default 1,000)
``gtol``        the search converges if no element of the gradient is larger than this (default: ``tol`` of
                ``minimize``, or 1e-5); with bounds, only elements that can still move count
``xtol``        the search also converges if a step moves no element by more than this (default 0: off)
``ftol``        the search also converges if a step changes the objective by at most
                ``ftol * max(1, |before|, |after|)`` (default 0: off)
``disp``        True: print the result
==============  ======================================================================================================

``adamw`` decays weights by 0.01 unless you set ``weight_decay``. It then settles near the minimum, where the gradient
is larger than ``gtol``. The options ``ema_decay``, ``maximize``, ``nonfinite``, ``state_dtype``, ``master_bits``,
``rounding`` and ``seed`` are refused, and so are constraints. Second derivatives are ignored with a warning. Unless
``jac`` is a function or True, the gradient is estimated by one-sided differences within the bounds. With ``bounds``,
every step ends at the nearest point within the bounds. ``callback`` has either of SciPy's signatures and ends the
search by raising ``StopIteration``; its return value is ignored, as in most of SciPy's own methods. If the objective or
its gradient is not finite, the search ends without success, at the last point at which both were finite. An unknown
option causes an ``OptimizeWarning`` and is ignored, as in SciPy's own methods.

Example:
    >>> from scipy.optimize import minimize, rosen, rosen_der
    >>> from onepass.integrations.scipy import adam
    >>> found = minimize(rosen, [-1.0, 2.0], jac=rosen_der, method=adam, options={"lr": 0.05, "maxiter": 5000})
    >>> found.success, found.x.round(3)
    (True, array([1., 1.]))
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import onepass

from .._checks import count, plural
from .._options import OPTIMIZER_CHECKS, suggestion
from .._storage import OPTIONS as STORAGE_OPTIONS
from . import needed

with needed("scipy"):
    from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning

__all__ = ["adadelta", "adagrad", "adam", "adamax", "adamw", "ademamix", "lion", "nadam", "radam", "rmsprop", "sgd"]

_DEFAULTS: dict[str, Any] = {
    "maxiter": 1000,
    "gtol": 1e-5,
    "xtol": 0.0,
    "ftol": 0.0,
    "disp": False,
}  # options of the search
_REFUSED = ("ema_decay", "maximize", "nonfinite", *STORAGE_OPTIONS, "seed")  # x is float64
_MESSAGES = {
    0: "The gradient is within gtol.",
    1: "Maximum number of iterations has been exceeded.",
    2: "The step was within xtol.",
    3: "The objective or its gradient is not finite.",
    4: "The change of the objective was within ftol.",
    99: "`callback` raised `StopIteration`.",
}


class _Point(NamedTuple):
    x: Any
    value: float
    gradient: Any
    steepness: float  # the largest absolute value in the gradient

    def is_finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.steepness)


class _Objective:
    """The user's function and its gradient, with the numbers of calls."""

    def __init__(self, fun: Callable[..., Any], args: tuple[Any, ...], jac: Any, low: Any, high: Any) -> None:
        self.fun, self.args, self.jac = fun, args, jac
        self.low, self.high = low, high
        self.calls = {"nfev": 0, "njev": 0}

    def at(self, x: Any) -> _Point:
        """Return value and gradient. The user's functions get copies of x, which they may keep or change."""
        value = self.value(x.copy())
        gradient = self.gradient(x.copy(), value)
        return _Point(x.copy(), value, gradient, _largest(gradient))

    def value(self, x: Any) -> float:
        self.calls["nfev"] += 1
        found = self.fun(x, *self.args)
        if isinstance(found, float):
            return found
        if isinstance(found, tuple):
            raise ValueError(
                "the objective function: expected one number, got a tuple (pass jac=True for a pair of value and "
                "gradient)"
            )
        number = np.asarray(found)
        if number.size != 1:
            raise ValueError(f"the objective function: expected one number, got an array of shape {number.shape}")
        return float(number.item())

    def gradient(self, x: Any, value: float) -> Any:
        self.calls["njev"] += 1
        if not callable(self.jac):
            return _differences(self.value, x, value, self.low, self.high)
        found = np.array(self.jac(x, *self.args), np.float64).reshape(-1)  # a copy: jac may return its own buffer
        if found.shape != x.shape:
            raise ValueError(f"jac: expected {plural(x.size, 'number')}, one for each element of x, got {found.size}")
        return found


class _Tolerances(NamedTuple):
    gtol: float
    xtol: float
    ftol: float

    def status(self, point: _Point, before: _Point | None, steepness: float) -> int | None:
        """Return the status of a search that has converged; steepness: that of the elements that can still move."""
        if steepness <= self.gtol:
            return 0
        if before is None:
            return None
        if self.xtol > 0 and _largest(point.x - before.x) <= self.xtol:
            return 2
        scale = max(1.0, abs(point.value), abs(before.value))
        return 4 if self.ftol > 0 and abs(point.value - before.value) <= self.ftol * scale else None


def _minimize(
    kind: type[onepass.Optimizer],
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable[..., Any] | None = None,
    *,
    tol: float | None = None,
    maxiter: int | None = None,
    gtol: float | None = None,
    xtol: float = _DEFAULTS["xtol"],
    ftol: float = _DEFAULTS["ftol"],
    disp: bool = _DEFAULTS["disp"],
    **options: Any,
) -> OptimizeResult:
    for name, given in (("Hessian information (hess)", hess), ("Hessian-vector product information (hessp)", hessp)):
        if given is not None:
            warnings.warn(f"Method {kind.__name__.lower()} does not use {name}.", RuntimeWarning, stacklevel=4)
    if not (isinstance(constraints, (tuple, list)) and len(constraints) == 0):
        raise ValueError("constraints are not supported (only bounds): add a penalty to the objective")
    maxiter = _iterations(maxiter)
    tolerances = _Tolerances(next(limit for limit in (gtol, tol, _DEFAULTS["gtol"]) if limit is not None), xtol, ftol)
    options = _known_options(kind, options)
    x = np.array(x0, np.float64).reshape(-1)
    low, high = _limits(bounds, x.size)
    np.clip(x, low, high, out=x)
    optimizer = kind(x, **options)
    objective = _Objective(fun, args, jac, low, high)

    is_bounded = bounds is not None
    report = _reporter(callback)
    best = point = objective.at(x)
    before, nit = None, 0
    status: int | None
    while True:
        if not point.is_finite():
            status = 3
            break
        best = point
        if nit > 0 and not report(point):
            status = 99
            break
        steepness = _largest(np.clip(-point.gradient, low - x, high - x)) if is_bounded else point.steepness
        status = tolerances.status(point, before, steepness)
        if status is None and nit >= maxiter:
            status = 1
        if status is not None:
            break
        optimizer.step(point.gradient)
        if is_bounded:
            np.clip(x, low, high, out=x)
        nit += 1
        before, point = point, objective.at(x)
    if disp:
        print(f"{_MESSAGES[status]}\n  objective: {best.value:.6g}\n  iterations: {nit}")
    return OptimizeResult(
        x=best.x,
        fun=best.value,
        jac=best.gradient,
        nit=nit,
        status=status,
        success=status in (0, 2, 4),
        message=_MESSAGES[status],
        **objective.calls,
    )


def _iterations(maxiter: Any) -> Any:
    """Return the maximum number of steps, an integer or infinity."""
    if maxiter is None:
        return _DEFAULTS["maxiter"]
    if maxiter == math.inf:
        return maxiter
    is_whole = isinstance(maxiter, (float, np.floating)) and float(maxiter).is_integer()
    return count("maxiter", int(maxiter) if is_whole else maxiter)


def _known_options(kind: type[onepass.Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the optimizer has; refuse some, and warn of others as SciPy's own methods do."""
    for name in _REFUSED:
        if name in options:
            raise ValueError(f"option {name!r} is not supported by minimize: leave it out")
    known = {*kind._spec.checks, *OPTIMIZER_CHECKS}
    if unknown := [name for name in options if name not in known]:
        hint = suggestion(unknown[0], sorted((known | _DEFAULTS.keys()) - {*_REFUSED}))
        warnings.warn(f"Unknown solver options: {', '.join(unknown)}{hint}", OptimizeWarning, stacklevel=5)
    return {name: value for name, value in options.items() if name in known}


def _largest(array: Any) -> float:
    """Return the largest absolute value, or NaN if an element is NaN."""
    return float(np.maximum.reduce(np.abs(array), initial=0.0))


def _limits(bounds: Any, size: int) -> tuple[Any, Any]:
    if bounds is None:
        return np.full(size, -np.inf), np.full(size, np.inf)
    if isinstance(bounds, Bounds):
        pairs = bounds.lb, bounds.ub
    else:
        listed = [(-np.inf if a is None else a, np.inf if b is None else b) for a, b in bounds]
        if len(listed) != size:
            raise ValueError(f"bounds: expected {plural(size, 'pair')}, one for each element of x0, got {len(listed)}")
        pairs = tuple(zip(*listed))
    low, high = (np.broadcast_to(np.asarray(side, np.float64), (size,)) for side in pairs)
    if np.isnan(low).any() or np.isnan(high).any():
        raise ValueError("a bound is NaN")
    if (low > high).any():
        raise ValueError("a lower bound is above its upper bound")
    return low, high


def _differences(value: Callable[[Any], float], at: Any, there: float, low: Any, high: Any) -> Any:
    """Return the gradient by one-sided differences within the bounds; 0 for elements whose bounds are equal.

    Each difference is towards the more distant bound. The step, √ε·max(1, |x|), has about the smallest error in double
    precision. SciPy's own estimate is private (``approx_derivative``) or ignores bounds (``approx_fprime``).
    """
    step = np.sqrt(np.finfo(np.float64).eps) * np.maximum(1.0, np.abs(at))
    step = np.where(high - at >= at - low, np.minimum(step, high - at), -np.minimum(step, at - low))
    found = np.zeros_like(at)
    for i in np.flatnonzero(step):
        shifted = at.copy()  # for the user's function, which may keep it
        shifted[i] = np.clip(at[i] + step[i], low[i], high[i])  # the sum is rounded
        moved = shifted[i] - at[i]
        found[i] = (value(shifted) - there) / moved
    return found


def _reporter(callback: Callable[..., Any] | None) -> Callable[[_Point], bool]:
    """Return a function that calls the callback, of either of SciPy's signatures, and returns False if it stops."""
    if callback is None:
        return lambda point: True
    takes_result = [*inspect.signature(callback).parameters] == ["intermediate_result"]

    def report(point: _Point) -> bool:
        try:
            if takes_result:
                callback(intermediate_result=OptimizeResult(x=point.x.copy(), fun=point.value))
            else:
                callback(point.x.copy())
        except StopIteration:
            return False
        return True

    return report


def _method(kind: type[onepass.Optimizer]) -> Callable[..., OptimizeResult]:
    def minimizer(fun: Callable[..., Any], x0: Any, *args: Any, **keywords: Any) -> OptimizeResult:
        return _minimize(kind, fun, x0, *args, **keywords)

    minimizer.__name__ = minimizer.__qualname__ = name = kind.__name__.lower()
    own = {
        p.name: p.default for p in inspect.signature(kind).parameters.values() if p.name not in {"params", *_REFUSED}
    }
    options = ", ".join(f"{name}={default!r}" for name, default in {**_DEFAULTS, **own}.items())
    minimizer.__doc__ = (
        f"Minimize with `onepass.{kind.__name__}`: ``minimize(fun, x0, jac=..., method={name}, options=...)``.\n\n"
        f"Options, with their defaults: {options}.\n"
        "See the module `onepass.integrations.scipy`."
    )
    return minimizer


adam, adamw, adamax, nadam = map(_method, (onepass.Adam, onepass.AdamW, onepass.Adamax, onepass.NAdam))
radam = _method(onepass.RAdam)
rmsprop, adagrad, adadelta = map(_method, (onepass.RMSprop, onepass.Adagrad, onepass.Adadelta))
sgd, lion = map(_method, (onepass.SGD, onepass.Lion))
ademamix = _method(onepass.AdEMAMix)


if not TYPE_CHECKING:  # checkers would take it for a sign that every name exists

    def __getattr__(name: str) -> Any:
        if name == "lower":  # minimize treats a method that is not callable as a name
            raise AttributeError(f"method: expected a method of {__name__}, such as adam, got the module")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{suggestion(name, __all__, 'methods')}")
