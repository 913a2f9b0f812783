"""The optimizers: what is particular to each.

The arithmetic is the core's; `_reference.py` says in NumPy what it computes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from . import _core, checks
from .arrays import Array, Params, check_disjoint, check_storage, checked_gradient, copy_into, zeros_like
from .base import Optimizer
from .checks import LearningRate


class Adam(Optimizer):
    r"""Adam: adaptive moment estimation, in place and in one pass over memory.

    At step :math:`t = 1, 2, \dots`, for each element of each parameter :math:`p` with gradient :math:`g`::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m / (sqrt(v/(1 − beta2^t)) + eps)

    With ``eps_mode="hat"`` epsilon stands where TensorFlow, Keras and others have it, before the bias correction::

        p ← p − lr·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)

    The same number acts as one up to ``1/sqrt(1 − beta2)`` times larger there.

    Names and defaults are those of ``torch.optim.Adam``. What differs: parameters are NumPy arrays, gradients are
    handed to `step`, ``lr`` may be a function of the step, and ``bias_correction`` and ``eps_mode`` exist.

    Args:
        params: an array, a sequence of arrays or a mapping of names to arrays, of dtype float32 or float64, contiguous
            (C or Fortran order) and writeable. They are updated in place. State takes two arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the two moments, in [0, 1).
        eps: keeps the division from blowing up.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2); see `AdamW` for the other kind.
        amsgrad: divide by the root of the largest second moment so far, "max_exp_avg_sq".
        bias_correction: whether the moments are divided by ``1 − beta^t``.
        eps_mode: ``"paper"`` or ``"hat"``.
        maximize: step along the gradient instead of against it.
        flush_denormals: treat subnormal numbers as zero while stepping. They carry no information worth having and make
            processors slow.

    Raises:
        TypeError: a parameter that is no array, or of another dtype; an option of the wrong type.
        ValueError: a parameter that is read-only, not contiguous, misaligned, or that shares memory with another; no
            parameters; an option out of its range.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1 and the end of section 2;
    amsgrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (2018).

    Example:
        >>> import numpy as np, onepass
        >>> w, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
        >>> opt = onepass.Adam([w, b], lr=0.1)
        >>> opt.step([np.full((2, 2), 3, np.float32), np.array([1, -1], np.float32)])
        >>> w
        array([[0.9, 0.9],
               [0.9, 0.9]], dtype=float32)
        >>> b
        array([-0.1,  0.1], dtype=float32)
    """

    _checks: ClassVar = {
        "lr": checks.learning_rate,
        "betas": checks.betas,
        "eps": checks.non_negative,
        "weight_decay": checks.non_negative,
        "bias_correction": checks.flag,
        "eps_mode": checks.eps_mode,
        "maximize": checks.flag,
    }

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: str = "paper",
        maximize: bool = False,
        flush_denormals: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "eps_mode": eps_mode,
            "maximize": maximize,
        }
        super().__init__(params, "amsgrad" if checks.flag("amsgrad", amsgrad) else "adam", options, flush_denormals)

    @staticmethod
    def _numbers(options: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = options["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "eps": options["eps"],
            "bias_correction": float(options["bias_correction"]),
            "hat": float(options["eps_mode"] == "hat"),
        }


class AdamW(Adam):
    """Adam with decoupled weight decay.

    As `Adam`, but weight decay shrinks the parameter, ``p ← p·(1 − lr·weight_decay)`` before the step, instead of
    entering the gradient and its moments.

    Args:
        weight_decay: 0.01 by default. All others as in `Adam`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); defaults as ``torch.optim.AdamW``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.AdamW(w, lr=0.5, weight_decay=0.5)
        >>> opt.step(np.array([3, 0], np.float32))
        >>> w
        array([0.25, 0.75], dtype=float32)
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: str = "paper",
        maximize: bool = False,
        flush_denormals: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            eps_mode=eps_mode,
            maximize=maximize,
            flush_denormals=flush_denormals,
        )


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
) -> None:
    """One step of Adam on arrays that the caller keeps: the kernel alone.

    Computes what `Adam` (or `AdamW`, with ``decoupled_weight_decay=True``) computes at step ``step``, and updates
    ``param``, ``exp_avg`` and ``exp_avg_sq`` in place. Any of them may be a memory map.

    Args:
        param: the parameter, float32 or float64, contiguous and writeable.
        grad: its gradient, of the same shape; copied first if its dtype or layout differ or it overlaps the others.
        exp_avg: the first moment, of the parameter's shape, dtype and layout; zeros before the first step.
        exp_avg_sq: the second moment, likewise.
        step: the number of this step, 1 or more.
        max_exp_avg_sq: the largest second moment so far, likewise; given, the step is AMSGrad's.
        grad_scale: a factor for the gradient.

    The other options are those of `Adam`. ``lr`` is a number here.

    Raises:
        TypeError, ValueError: as `Adam` and `Adam.step`; nothing has changed.

    Example:
        >>> import numpy as np, onepass
        >>> p, m, v = np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
        >>> onepass.adam_step(p, np.array([1, -1], np.float32), m, v, step=1, lr=0.5)
        >>> p
        array([0.5, 1.5], dtype=float32)
    """
    options = {
        "betas": checks.betas("betas", betas),
        "eps": checks.non_negative("eps", eps),
        "bias_correction": checks.flag("bias_correction", bias_correction),
        "eps_mode": checks.eps_mode("eps_mode", eps_mode),
    }
    lr = checks.non_negative("lr", lr)
    weight_decay = checks.non_negative("weight_decay", weight_decay)
    scale = (
        -checks.finite("grad_scale", grad_scale)
        if checks.flag("maximize", maximize)
        else checks.finite("grad_scale", grad_scale)
    )
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be an integer, not {step!r}") from None
    if not 1 <= step < 2**63:
        raise ValueError(f"step must be at least 1 and fit 64 bits, not {step}")

    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        states["max_exp_avg_sq"] = max_exp_avg_sq
    check_storage("param", param)
    for name, array in states.items():
        check_storage(name, array)
        if array.dtype != param.dtype:
            raise TypeError(f"{name} is of dtype {array.dtype}, param of {param.dtype}: they must be equal")
        if array.shape != param.shape:
            raise ValueError(f"{name} has shape {array.shape}, param {param.shape}: they must be equal")
        if not (array.flags.c_contiguous and param.flags.c_contiguous) and not (
            array.flags.f_contiguous and param.flags.f_contiguous
        ):
            raise ValueError(f"{name} and param must both be in C order or both in Fortran order")
    arrays = {"param": param, **states}
    check_disjoint(arrays)
    gradient = checked_gradient("grad", grad, param.shape)
    same_order = (gradient.flags.c_contiguous and param.flags.c_contiguous) or (
        gradient.flags.f_contiguous and param.flags.f_contiguous
    )
    alone = not any(np.may_share_memory(gradient, array) for array in arrays.values())
    if not (same_order and alone and gradient.flags.aligned and gradient.dtype == param.dtype):
        gradient = copy_into(zeros_like(param), gradient)

    rule = "adam" if max_exp_avg_sq is None else "amsgrad"
    named = Adam._numbers(options)
    numbers = [named[name] for name in _core.rules[rule][0]]
    if not _core.step_once(
        rule,
        numbers,
        lr,
        weight_decay,
        checks.flag("decoupled_weight_decay", decoupled_weight_decay),
        scale,
        checks.flag("flush_denormals", flush_denormals),
        step,
        param,
        gradient,
        list(states.values()),
    ):
        raise ValueError(
            f"a coefficient made from the options overflows {param.dtype} at step {step}: use smaller numbers, or "
            f"float64 arrays (lr={lr!r}, weight_decay={weight_decay!r}, grad_scale={grad_scale!r}, {options!r})"
        )
