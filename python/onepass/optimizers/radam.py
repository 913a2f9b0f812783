"""RAdam."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("radam", decoupled="decoupled_weight_decay")
class RAdam(Optimizer):
    """RAdam: Adam that leaves out the second moment in the first steps, while its estimate is poor.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        rho_inf = 2/(1 − beta2) − 1,  rho = rho_inf − 2·t·beta2^t/(1 − beta2^t)
        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m             while rho ≤ 5 (5 steps with the default betas), then
        p ← p − lr·rect·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)
        rect = sqrt((rho − 4)·(rho − 2)·rho_inf / ((rho_inf − 4)·(rho_inf − 2)·rho))

    The first steps use only the momentum and are proportional to the gradients. Then ``rect`` rises from 0 to 1, like a
    warmup.

    Args:
        params: as in `Adam`. The state holds two arrays of the size of each parameter.
        lr: the learning rate, or a function of ``t`` that returns it.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the root of the second moment for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2), unless ``decoupled_weight_decay=True``.
        decoupled_weight_decay: weight decay shrinks the parameter, as in `AdamW`.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2020); names, defaults and the place
    of epsilon as ``torch.optim.RAdam``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.RAdam(w, lr=0.5).step(np.array([1.0, -0.5]))
        >>> w
        array([0.5 , 1.25])
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    decoupled_weight_decay = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        decoupled_weight_decay: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )
