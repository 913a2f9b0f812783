"""Adamax."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("adamax")
class Adamax(Optimizer):
    """Adamax: Adam with the infinity norm in place of the second moment.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        u ← max(beta2·u, |g| + eps)              infinity norm, "exp_inf"
        p ← p − lr/(1 − beta1^t) · m / u

    Args:
        params: as in `Adam`. The state holds two arrays of the size of each parameter.
        lr: the learning rate, or a function of ``t`` that returns it.
        betas: the decays of the first moment and of the infinity norm, in [0, 1).
        eps: added to the absolute value of the gradient.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Kingma and Ba (2015), section 7.1; names, defaults and the place of epsilon as ``torch.optim.Adamax``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> onepass.Adamax(w, lr=0.5).step(np.array([3, -1], np.float32))
        >>> w
        array([0.5, 1.5], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)
