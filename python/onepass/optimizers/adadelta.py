"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("adadelta", flush_from_eps=1e-32)
class Adadelta(Optimizer):
    """Adadelta: steps scaled by the ratio of RMS updates to RMS gradients.

    For each element of each parameter ``p`` with gradient ``g``::

        s ← rho·s + (1 − rho)·g²                 mean square of the gradients, "square_avg"
        x = sqrt(acc + eps) / sqrt(s + eps) · g
        acc ← rho·acc + (1 − rho)·x²             mean square of the steps, "acc_delta"
        p ← p − lr·x

    Args:
        params: as in `Adam`. The state holds two arrays of the size of each parameter.
        lr: a factor for the steps, or a function of the step that returns the factor. The paper has no
            such factor.
        rho: the decay of both averages, in [0, 1].
        eps: added under both roots. It determines the size of the first steps.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012); names and defaults as ``torch.optim.Adadelta``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.Adadelta(w).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.9968, 1.0032])
    """

    __slots__ = ()

    rho = Option(_checks.unit_interval)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1.0,
        rho: SupportsFloat = 0.9,
        eps: SupportsFloat = 1e-6,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, **common)
