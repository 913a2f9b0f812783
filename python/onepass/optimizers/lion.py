"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


@declare("lion", decoupled=True, moment_beta=1)
class Lion(Optimizer):
    """Lion: steps by the sign of the momentum.

    For each element of each parameter ``p`` with gradient ``g``::

        p ← p·(1 − lr·weight_decay)              decoupled weight decay
        p ← p − lr·sign(beta1·m + (1 − beta1)·g)
        m ← beta2·m + (1 − beta2)·g              momentum, "exp_avg"

    Every element moves by ``lr``: use a learning rate three to ten times smaller than Adam's, and a larger weight
    decay.

    Args:
        params: as in `Adam`. The state holds one array of the size of each parameter.
        lr: the learning rate, or a function of the step that returns it.
        betas: the weight of the momentum in the step, and the decay of the momentum, in [0, 1).
        weight_decay: decoupled weight decay; each step multiplies the parameter by ``1 − lr·weight_decay``.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023).

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(3, np.float32)
        >>> onepass.Lion(w, lr=0.5).step(np.array([3, 0, -1], np.float32))
        >>> w
        array([0.5, 1. , 1.5], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: SupportsFloat = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, **common)
