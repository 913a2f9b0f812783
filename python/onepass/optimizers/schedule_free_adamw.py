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
        raise ValueError(f"betas: expected betas[0] above 0, got {options['betas'][0]!r} (0.9 to 0.98 are common)")


@declare(
    "schedule_free_adamw",
    validate=_check_schedule_free,
    moment_beta=None,
    evaluation_weight=lambda options: 1 - 1 / options["betas"][0],
)
class ScheduleFreeAdamW(Optimizer):
    """Schedule-Free AdamW: an average of the weights in place of a schedule of the learning rate.

    At step ``t = 1, 2, …``, for each element of each parameter ``y`` with gradient ``g``::

        lr(t) = lr·min(1, t/warmup_steps)        "lr_max": the largest of these so far
        q(t) = t^r · lr_max^weight_lr_power,  c = q(t) / (q(1) + … + q(t))
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        u = g / (sqrt(v/(1 − beta2^t)) + eps) + weight_decay·y
        z ← z − lr(t)·u                          plain steps, "z"
        x ← (1 − c)·x + c·z                      their weighted average
        y = (1 − beta1)·z + beta1·x

    While training the parameters hold ``y``, where gradients must be taken. `eval` puts the average ``x`` into them,
    the weights to evaluate and to deploy, and `train` puts ``y`` back. A new optimizer is in training mode, with
    ``x = y = z``. The sum of all ``q`` is kept in the state, as "weight_sum".

    Args:
        params: as in `Adam`. State takes two arrays of each one's size, and one more in evaluation mode.
        lr: the learning rate, or a function of ``t`` that returns one. A constant, larger than Adam's, is common.
        betas: the share of ``x`` in ``y``, in (0, 1), and the decay of the second moment, in [0, 1). ``x`` is computed
            from ``y`` and ``z``, with rounding errors that grow as ``1/betas[0]``.
        eps: added to the denominator for numerical stability.
        weight_decay: adds ``weight_decay·y`` to the normalized gradient.
        warmup_steps: the number of steps in which the learning rate rises linearly.
        r: the power of ``t`` in the weight of a step.
        weight_lr_power: the power of the largest learning rate so far in the weight of a step.
        maximize, clip_norm, clip_value, nonfinite, flush_denormals: as in `Adam`.
        ema_decay: as in `Adam`, an average of ``y``. ``x`` needs no other average.
        state_dtype, master_bits, rounding, seed: as in `Adam`; "z" always has the dtype of the arithmetic.

    Raises:
        TypeError, ValueError: as `Adam`; ValueError: ``betas[0]`` is 0.

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
        """Put the averages ``x`` into the parameters, in place: to evaluate, or to save the weights for use.

        The state keeps a copy of ``y`` until `train`, as ``"y"``. Steps and `add_group` are refused until then. Does
        nothing in evaluation mode. What is saved in evaluation mode resumes in it. bfloat16 parameters take ``x``
        rounded to nearest.

        Raises:
            MemoryError: no room for the copy. Nothing has changed.
        """
        _evaluation.switch(self, True)

    def train(self) -> None:
        """Put ``y`` back into the parameters, in place, bit for bit. Does nothing in training mode."""
        _evaluation.switch(self, False)
