"""SGD."""

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


def _check_nesterov(options: Mapping[str, Any]) -> None:
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        raise ValueError(
            "nesterov needs a momentum above 0 and no dampening, got "
            f"momentum={options['momentum']!r}, dampening={options['dampening']!r}"
        )


@declare(lambda options: "sgd_momentum" if options["momentum"] else "sgd", validate=_check_nesterov)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum or Nesterov's momentum.

    For each element of each parameter ``p`` with gradient ``g``::

        p ← p − lr·g                             without momentum

        b ← momentum·b + (1 − dampening)·g       with momentum, "momentum_buffer"; b ← g at the first step
        p ← p − lr·b                             or, with nesterov, p ← p − lr·(g + momentum·b)

    Args:
        params: as in `Adam`. With momentum, the state holds one array of the size of each parameter.
        lr: the learning rate, or a function of the step that returns it.
        momentum: the decay of the momentum. You can change the value later, but not between zero and above zero.
        dampening: the fraction of the gradient kept out of the momentum.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2).
        nesterov: use Nesterov momentum. It needs a momentum above 0 and no dampening.
        maximize, clip_norm, clip_value, nonfinite, ema_decay, flush_denormals: as in `Adam`.
        state_dtype, master_bits, rounding, seed: as in `Adam`.

    Raises:
        TypeError, ValueError: as in `Adam`; ValueError: nesterov without momentum or with dampening.

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods" (1964); Sutskever et al., "On the
    importance of initialization and momentum in deep learning" (2013); formulas, names and defaults as
    ``torch.optim.SGD``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.SGD(w, lr=0.25, momentum=0.5, nesterov=True)
        >>> opt.step(np.array([1, -1], np.float32))
        >>> w
        array([0.625, 1.375], dtype=float32)
    """

    __slots__ = ()

    momentum = Option(_checks.non_negative)
    dampening = Option(_checks.finite)
    nesterov = Option(_checks.flag)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        momentum: SupportsFloat = 0.0,
        dampening: SupportsFloat = 0.0,
        weight_decay: SupportsFloat = 0.0,
        nesterov: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            **common,
        )
