"""Schedule-Free AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from .. import _checks, _evaluation
from .._optimizer import Optimizer
from .._options import Option, declare
from .._types import Betas, LearningRate, Params

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._options import CommonOptions


def _check_schedule_free(options: Mapping[str, Any]) -> None:
    if options["betas"][0] == 0:
        raise ValueError(f"betas[0]: expected more than 0, got {options['betas'][0]!r} (0.9 to 0.98 are common)")


@declare(
    "schedule_free_adamw",
    validate=_check_schedule_free,
    moment_beta=None,
    evaluation_weight=lambda options: 1 - 1 / options["betas"][0],
)
class ScheduleFreeAdamW(Optimizer):
    """Schedule-Free AdamW: averages the weights, so that the learning rate needs no schedule.

    At step ``t = 1, 2, …``, for each element of each parameter ``y`` with gradient ``g``::

        lr(t) = lr·min(1, t/warmup_steps)        its maximum so far is "lr_max"
        q(t) = t^r · lr_max^weight_lr_power,  c = q(t) / (q(1) + … + q(t))
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        u = g / (sqrt(v/(1 − beta2^t)) + eps) + weight_decay·y
        z ← z − lr(t)·u                          sequence of plain steps, "z"
        x ← (1 − c)·x + c·z                      weighted average of z
        y = (1 − beta1)·z + beta1·x

    In training mode the parameters hold ``y``: compute gradients there. `eval` replaces ``y`` by the average ``x``, the
    weights to evaluate and deploy, and `train` puts ``y`` back. A new optimizer is in training mode, with
    ``x = y = z``. The state holds the sum of all ``q`` as "weight_sum".

    Args:
        params: as in `Adam`. The state holds two arrays of the size of each parameter, and a third in evaluation mode.
        lr: the learning rate, or a function of ``t`` that returns it. Pass a constant: the average replaces a schedule.
            The best rate may equal the best rate of `AdamW`, or be larger.
        betas: the weight of ``x`` in ``y``, in (0, 1), and the decay of the second moment, in [0, 1). ``x`` is computed
            from ``y`` and ``z``, with rounding errors that grow as ``1/betas[0]``.
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·y`` to the normalized gradient. Unlike `AdamW`, the default is 0, as in the
            authors' package.
        warmup_steps: the number of steps over which the learning rate rises linearly.
        r: the power of ``t`` in the weight of a step.
        weight_lr_power: the power of the largest learning rate so far in the weight of a step.
        maximize, clip_norm, clip_value, nonfinite, flush_denormals: as in `Adam`.
        ema_decay: as in `Adam`, an average of ``y``. You do not need it: ``x`` is an average already.
        state_dtype, master_bits, rounding, seed: as in `Adam`; "z" always has the dtype of the arithmetic.

    Raises:
        TypeError, ValueError: as in `Adam`; ValueError: ``betas[0]`` is 0.

    Source: Defazio et al., "The Road Less Scheduled" (2024); names, defaults and steps as ``AdamWScheduleFree`` in the
    authors' package schedulefree 1.4.1, which starts in evaluation mode.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.ScheduleFreeAdamW(w, lr=0.25, betas=(0.5, 0.999))
        >>> for _ in range(2):
        ...     opt.step(np.array([3, -1], np.float32))
        >>> w
        array([0.5625, 1.4375], dtype=float32)
        >>> opt.eval()
        >>> w
        array([0.625, 1.375], dtype=float32)
        >>> opt.train()
        >>> w
        array([0.5625, 1.4375], dtype=float32)
    """

    __slots__ = ()

    betas = Option(_checks.betas)
    eps = Option(_checks.non_negative)
    warmup_steps = Option(_checks.count)
    r = Option(_checks.non_negative)
    weight_lr_power = Option(_checks.non_negative)

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 2.5e-3,
        betas: Betas = (0.9, 0.999),
        eps: SupportsFloat = 1e-8,
        weight_decay: SupportsFloat = 0.0,
        warmup_steps: int = 0,
        r: SupportsFloat = 0.0,
        weight_lr_power: SupportsFloat = 2.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            **common,
        )

    def eval(self) -> None:
        """Switch to evaluation mode: replace the parameters by the averages ``x``, in place.

        Call it before you evaluate or deploy the weights. The state keeps a copy of ``y``, as ``"y"``, until `train`;
        until then, `step` and `add_group` raise. Does nothing if the optimizer is in evaluation mode already. State
        that is saved in evaluation mode is in evaluation mode after loading. bfloat16 parameters hold ``x`` rounded to
        nearest.

        Raises:
            MemoryError: not enough memory for the copy. Nothing has changed.
        """
        _evaluation.switch(self, True)

    def train(self) -> None:
        """Switch to training mode: put ``y`` back into the parameters, in place, bit for bit.

        Does nothing if the optimizer is in training mode already.
        """
        _evaluation.switch(self, False)
