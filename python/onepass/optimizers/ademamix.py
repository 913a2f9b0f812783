"""AdEMAMix."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import LearningRate, Params, ThreeBetas

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("ademamix", decoupled=True)
class AdEMAMix(Optimizer):
    """AdEMAMix: AdamW with a second, slow average of the gradients.

    At step ``t = 1, 2, …``, for each element of each parameter ``p`` with gradient ``g``::

        m ← beta1·m + (1 − beta1)·g              fast first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        n ← beta3(t)·n + (1 − beta3(t))·g        slow first moment, "exp_avg_slow"
        p ← p·(1 − lr·weight_decay)              decoupled weight decay
        p ← p − lr·(m/(1 − beta1^t) + alpha(t)·n) / (sqrt(v/(1 − beta2^t)) + eps)

    The slow moment averages over about ``1/(1 − beta3)`` gradients, 10,000 by default. The warmups keep the first steps
    small. With ``x = t/beta3_warmup``, and while ``t`` is below the warmups::

        alpha(t) = alpha·t/alpha_warmup
        beta3(t) = min(exp(1/((1 − x)/ln(beta1) + x/ln(beta3))), beta3)

    The paper sets both warmups to the total number of steps.

    Args:
        params: as in `Adam`. The state holds three arrays of the size of each parameter.
        lr: the learning rate, or a function of ``t`` that returns it.
        betas: the decays of the fast first moment, of the second moment and of the slow first moment, in [0, 1).
        alpha: the weight of the slow first moment.
        alpha_warmup: the number of steps over which ``alpha(t)`` rises from 0 to ``alpha``. None: no warmup.
        beta3_warmup: the number of steps over which the decay of the slow moment rises from the first beta to the
            third. None: no warmup.
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight decay; each step multiplies the parameter by ``1 − lr·weight_decay``.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`; with ``state_dtype="float8"`` the slow moment is stored
            in bfloat16, because float8 is too coarse for it.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older" (2024), algorithm 1.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.AdEMAMix(w, lr=0.5, betas=(0.9, 0.999, 0.99), alpha=10.0).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.45, 1.55])
    """

    __slots__ = ()

    betas = Option(_checks.three_betas)
    alpha = Option(_checks.non_negative)
    alpha_warmup = Option(_checks.steps_or_none)
    beta3_warmup = Option(_checks.steps_or_none)
    eps = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: ThreeBetas = (0.9, 0.999, 0.9999),
        alpha: SupportsFloat = 5.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            alpha=alpha,
            alpha_warmup=alpha_warmup,
            beta3_warmup=beta3_warmup,
            eps=eps,
            weight_decay=weight_decay,
            **common,
        )
