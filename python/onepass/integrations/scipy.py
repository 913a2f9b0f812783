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
from typing import TYPE_CHECKING, Any

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
    for name in _REFUSED:
        if name in options:
            raise ValueError(f"option {name!r} is not supported by minimize: leave it out")
    maxiter = _DEFAULTS["maxiter"] if maxiter is None else maxiter
    if maxiter != math.inf:
        maxiter = count(
            "maxiter",
            int(maxiter) if isinstance(maxiter, (float, np.floating)) and maxiter == int(maxiter) else maxiter,
        )
    gtol = next(limit for limit in (gtol, tol, _DEFAULTS["gtol"]) if limit is not None)
    known = {*kind._spec.checks, *OPTIMIZER_CHECKS}
    if unknown := [name for name in options if name not in known]:  # as in SciPy's own methods
        hint = suggestion(unknown[0], sorted((known | _DEFAULTS.keys()) - {*_REFUSED}))
        warnings.warn(f"Unknown solver options: {', '.join(unknown)}{hint}", OptimizeWarning, stacklevel=4)
    options = {name: value for name, value in options.items() if name in known}
    x = np.array(x0, np.float64).reshape(-1)
    low, high = _limits(bounds, x.size)
    is_bounded = bounds is not None
    np.clip(x, low, high, out=x)
    optimizer = kind(x, **options)
    calls = {"nfev": 0, "njev": 0}

    def value(at: Any) -> float:
        calls["nfev"] += 1
        found = fun(at, *args)
        if isinstance(found, float):
            return found
        if isinstance(found, tuple):
            raise ValueError(
                "the objective function must return one number, got a tuple: pass jac=True if it returns the gradient"
            )
        number = np.asarray(found)
        if number.size != 1:
            raise ValueError(f"the objective function must return one number, got an array of shape {number.shape}")
        return float(number.item())

    def gradient(at: Any, there: float) -> Any:
        calls["njev"] += 1
        if callable(jac):
            found = np.array(jac(at, *args), np.float64).reshape(-1)  # a copy: jac may return its own buffer
            if found.shape != at.shape:
                raise ValueError(
                    f"jac: expected {plural(at.size, 'number')}, one for each element of x, got {found.size}"
                )
            return found
        return _differences(value, at, there, low, high)

    intermediate = callback is not None and [*inspect.signature(callback).parameters] == ["intermediate_result"]
    here = value(x.copy())  # copies: the user's functions may keep or change them
    slope = gradient(x.copy(), here)
    best, nit = (x.copy(), here, slope), 0
    while True:
        largest = _largest(slope)
        if not (math.isfinite(here) and math.isfinite(largest)):
            status = 3
            break
        before, best = best, (x.copy(), here, slope)
        if nit > 0 and callback is not None and _stops(callback, intermediate, x, here):
            status = 99
            break
        if is_bounded:
            largest = _largest(np.clip(-slope, low - x, high - x))  # the part of the gradient that can still move x
        if largest <= gtol:
            status = 0
            break
        if nit > 0 and xtol > 0 and _largest(x - before[0]) <= xtol:
            status = 2
            break
        if nit > 0 and ftol > 0 and abs(here - before[1]) <= ftol * max(1.0, abs(here), abs(before[1])):
            status = 4
            break
        if nit >= maxiter:
            status = 1
            break
        optimizer.step(slope)
        if is_bounded:
            np.clip(x, low, high, out=x)
        nit += 1
        here = value(x.copy())
        slope = gradient(x.copy(), here)
    if disp:
        print(f"{_MESSAGES[status]}\n  objective: {best[1]:.6g}\n  iterations: {nit}")
    return OptimizeResult(
        x=best[0],
        fun=best[1],
        jac=best[2],
        nit=nit,
        status=status,
        success=status in (0, 2, 4),
        message=_MESSAGES[status],
        **calls,
    )


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


def _stops(callback: Callable[..., Any], intermediate: bool, x: Any, here: float) -> bool:
    """Return True if the callback, of either of SciPy's signatures, ends the search."""
    try:
        if intermediate:
            callback(intermediate_result=OptimizeResult(x=x.copy(), fun=here))
        else:
            callback(x.copy())
    except StopIteration:
        return True
    return False


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
