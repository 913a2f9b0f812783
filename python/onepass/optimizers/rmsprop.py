"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from .. import _checks
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


def _rmsprop(options: Mapping[str, Any]) -> str:
    return f"rmsprop{'_centered' * options['centered']}{'_momentum' * (options['momentum'] != 0)}"


@declare(_rmsprop)
class RMSprop(Optimizer):
    """RMSprop: the gradient divided by the root of its mean square.

    For each element of each parameter ``p`` with gradient ``g``::

        v ← alpha·v + (1 − alpha)·g²             mean square, "square_avg"
        x = g / (sqrt(v) + eps)
        p ← p − lr·x

    With ``centered``, the divisor is the standard deviation ``sqrt(max(v − s², 0)) + eps`` with the mean
    ``s ← alpha·s + (1 − alpha)·g``, "grad_avg". With ``momentum``, the step is ``p ← p − lr·b`` with
    ``b ← momentum·b + x``, "momentum_buffer".

    Args:
        params: as in `Adam`. The state holds one to three arrays of the size of each parameter.
        lr: the learning rate, or a function of the step that returns it.
        alpha: the decay of the averages, in [0, 1].
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        momentum: the decay of the momentum buffer. You can change the value later, but not between zero and above zero.
        centered: divide by the standard deviation of the gradient. PyTorch does not take the maximum with 0, and may
            therefore return NaN.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`.

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5 (2012); centered: Graves,
    "Generating Sequences With Recurrent Neural Networks" (2013); names and defaults as ``torch.optim.RMSprop``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2)
        >>> onepass.RMSprop(w, lr=0.05).step(np.array([3.0, -1.0]))
        >>> w.round(4)
        array([0.5, 1.5])
    """

    __slots__ = ()

    alpha = Option(_checks.unit_interval)
    eps = Option(_checks.non_negative)
    momentum = Option(_checks.non_negative)
    centered = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-2,
        alpha: SupportsFloat = 0.99,
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        momentum: SupportsFloat = 0.0,
        centered: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            **common,
        )
