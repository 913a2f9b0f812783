"""Functional API: one step on arrays that you manage."""

from __future__ import annotations

from typing import SupportsFloat, SupportsIndex

import numpy as np

from . import _checks, _core
from ._allocate import zeros_like
from ._checks import check_disjoint, check_storage
from ._gradients import cast_into, checked_gradient
from ._storage import is_bfloat16
from ._types import Array, Betas, EpsMode
from .optimizers import Adam


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: SupportsIndex,
    *,
    lr: SupportsFloat = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: SupportsFloat = 1e-8,
    weight_decay: SupportsFloat = 0.0,
    decoupled_weight_decay: bool = False,
    max_exp_avg_sq: Array | None = None,
    bias_correction: bool = True,
    eps_mode: EpsMode = "paper",
    maximize: bool = False,
    grad_scale: SupportsFloat = 1.0,
    flush_denormals: bool = True,
) -> None:
    """Take one step of Adam on arrays that you manage, such as memory maps.

    Update ``param``, ``exp_avg``, ``exp_avg_sq`` and, if given, ``max_exp_avg_sq`` in place, by the formulas of `Adam`
    (or of `AdamW`, with ``decoupled_weight_decay=True``) at step ``t = step``.

    Args:
        param: the parameter, float32 or float64, contiguous and writeable.
        grad: the gradient, of the same shape. It is copied first if its dtype or layout differs from the parameter's,
            or if it overlaps another array.
        exp_avg: the first moment, of the parameter's shape, dtype and layout; zeros before the first step.
        exp_avg_sq: the second moment, with the same requirements as ``exp_avg``.
        step: the number of this step, 1 or more.
        max_exp_avg_sq: the largest second moment so far, with the same requirements; enables AMSGrad.
        grad_scale: a factor for the gradient.

    The other options are described in `Adam`. ``lr`` must be a number.

    Raises:
        TypeError, ValueError: as in `Adam` and `Adam.step`; nothing has changed.

    Example:
        >>> import numpy as np, onepass
        >>> p, m, v = np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
        >>> onepass.adam_step(p, np.array([1, -1], np.float32), m, v, step=1, lr=0.5)
        >>> p
        array([0.5, 1.5], dtype=float32)
    """
    options = {
        "amsgrad": max_exp_avg_sq is not None,
        "betas": _checks.betas("betas", betas),
        "eps": _checks.non_negative("eps", eps),
        "bias_correction": _checks.flag("bias_correction", bias_correction),
        "eps_mode": _checks.eps_mode("eps_mode", eps_mode),
    }
    lr = _checks.non_negative("lr", lr)
    weight_decay = _checks.non_negative("weight_decay", weight_decay)
    grad_scale = _checks.finite("grad_scale", grad_scale)
    step = _checks.steps("step", step)

    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        states["max_exp_avg_sq"] = max_exp_avg_sq
    check_storage("param", param)
    param = np.asarray(param)  # subclasses may override these attributes
    if is_bfloat16(param):
        raise TypeError(
            "param: expected dtype float32 or float64, got bfloat16 (use an optimizer, such as onepass.Adam)"
        )
    for name, given in states.items():
        check_storage(name, given)
        states[name] = array = np.asarray(given)
        if array.dtype != param.dtype:
            raise TypeError(f"{name}: expected the dtype of param, {param.dtype}, got {array.dtype}")
        if array.shape != param.shape:
            raise ValueError(f"{name}: expected the shape of param, {param.shape}, got {array.shape}")
        if not (array.flags.c_contiguous and param.flags.c_contiguous) and not (
            array.flags.f_contiguous and param.flags.f_contiguous
        ):
            raise ValueError(f"{name}: expected the memory order of param, C or Fortran, got the other one")
    arrays = {"param": param, **states}
    check_disjoint(list(arrays.items()))
    gradient = checked_gradient("grad", grad, param.shape)
    same_order = (gradient.flags.c_contiguous and param.flags.c_contiguous) or (
        gradient.flags.f_contiguous and param.flags.f_contiguous
    )
    separate = not any(np.may_share_memory(gradient, array) for array in arrays.values())
    if not (same_order and separate and gradient.flags.aligned and gradient.dtype == param.dtype):
        gradient = cast_into(zeros_like(param), gradient)

    spec = Adam._spec
    common = _core.CommonOptions(
        lr=lr,
        weight_decay=weight_decay,
        decoupled=_checks.flag("decoupled_weight_decay", decoupled_weight_decay),
        maximize=_checks.flag("maximize", maximize),
        keep_subnormals=spec.keeps_subnormals(options),
    )
    flush = _checks.flag("flush_denormals", flush_denormals)
    if not _core.step_once(
        spec.rule_name(options),
        spec.numbers(options),
        common,
        grad_scale,
        flush,
        step,
        param,
        gradient,
        list(states.values()),
    ):
        raise ValueError(
            f"a coefficient made from the options overflows {param.dtype} at step {step}: use smaller numbers, or "
            f"float64 arrays (lr={lr!r}, weight_decay={weight_decay!r}, grad_scale={grad_scale!r}, {options!r})"
        )
