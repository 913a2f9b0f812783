"""NAdam."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("nadam", decoupled="decoupled_weight_decay")
class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's momentum.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        mu(t) = beta1·(1 − 0.5·0.96^(t·momentum_decay)),  P(t) = mu(1)·mu(2)·…·mu(t)
        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        d = sqrt(v/(1 − beta2^t)) + eps
        p ← p − lr·(1 − mu(t))/(1 − P(t)) · g/d − lr·mu(t+1)/(1 − P(t+1)) · m/d

    The state holds the product ``P`` as "mu_product".

    Args:
        params: as in `Adam`. The state holds two arrays of the size of each parameter.
        lr: the learning rate, or a function of ``t`` that returns it.
        betas: the decays of the two moments, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2), unless ``decoupled_weight_decay=True``.
        momentum_decay: the speed at which the momentum rises to ``beta1``: see the formula.
        decoupled_weight_decay: weight decay shrinks the parameter, as in `AdamW`.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Dozat, "Incorporating Nesterov Momentum into Adam" (2016); names, defaults and the schedule of the momentum
    as ``torch.optim.NAdam``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.NAdam(w, lr=0.5).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.4718, 1.5282])
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    momentum_decay = Option(_checks.non_negative)
    decoupled_weight_decay = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        momentum_decay: SupportsFloat = 4e-3,
        decoupled_weight_decay: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            **common,
        )
