"""Adagrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("adagrad", initial="initial_accumulator_value")
class Adagrad(Optimizer):
    """Adagrad: the gradient divided by the root of the sum of all squared gradients so far.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        s ← s + g²                               "sum"
        p ← p − lr/(1 + (t − 1)·lr_decay) · g / (sqrt(s) + eps)

    Args:
        params: as in `Adam`. The state holds one array of the size of each parameter.
        lr: the learning rate, or a function of ``t`` that returns it.
        lr_decay: rate of decay: the learning rate has halved at step ``1 + 1/lr_decay``.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        initial_accumulator_value: the initial value of the sums.
        eps: added to the denominator for numerical stability.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization"
    (2011); names and defaults as ``torch.optim.Adagrad``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> onepass.Adagrad(w, lr=0.5).step(np.array([3, -1], np.float32))
        >>> w
        array([0.5, 1.5], dtype=float32)
    """

    __slots__ = ()

    lr_decay = Option(_checks.non_negative)
    initial_accumulator_value = Option(_checks.non_negative)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        lr_decay: SupportsFloat = 0.0,
        weight_decay: SupportsFloat = 0.0,
        initial_accumulator_value: SupportsFloat = 0.0,
        eps: SupportsFloat = 1e-10,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            **common,
        )
