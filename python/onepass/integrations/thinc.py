"""Drop-in optimizers for thinc and spaCy: write ``@optimizers = "onepass.Adam.v1"`` in the configuration.

``onepass.Adam.v1``, ``onepass.RAdam.v1`` and ``onepass.SGD.v1`` take the arguments of thinc's ``Adam.v1``, ``RAdam.v1``
and ``SGD.v1``, including schedules. thinc finds them through entry points: import nothing. Clipping, step, weight decay
and running average happen in one pass over each parameter; thinc needs several. The state is in thinc's attributes
``mom1``, ``mom2``, ``averages`` and ``nr_update``, in thinc's form. thinc itself steps weights if they, their gradient
or their average are not contiguous float32 NumPy arrays of the same shape, for example on a GPU. Subnormal numbers
count as zero, in the weights too; in thinc they do not.

Example:
    >>> import numpy as np
    >>> from thinc.api import registry
    >>> optimizer = registry.resolve({"own": {"@optimizers": "onepass.Adam.v1", "learn_rate": 0.5}})["own"]
    >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
    >>> w, g = optimizer((1, "W"), w, g)
    >>> w.round(3), g
    (array([0.5, 0.5], dtype=float32), array([0., 0.], dtype=float32))
"""

from __future__ import annotations

from typing import Any

import numpy as np

import onepass

from .. import _core
from .._allocate import zeros_like
from . import needed

with needed("thinc"):
    from thinc.optimizers import ADAM_DEFAULTS, SGD_DEFAULTS
    from thinc.optimizers import Optimizer as ThincOptimizer

__all__ = ["SGD", "Adam", "Optimizer", "RAdam"]


class Optimizer(ThincOptimizer):
    """thinc's ``Optimizer`` with a step that makes one pass over the weights."""

    __slots__ = ()

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> Any:
        """Update the weights in place and set the gradient to zero; return both.

        Args:
            key: the key of these weights in the state.
            weights: the parameter.
            gradient: the gradient, with the same number of elements.
            lr_scale: a factor for the learning rate.

        Raises:
            ValueError: a number overflows float32; the gradient has another size, or shares memory with the weights; or
                moments are not contiguous, writeable float32 arrays (thinc's Adam would write out of bounds). Nothing
                has changed.
        """
        beta1, beta2, l2, limit = (self._now(name, key) for name in ("b1", "b2", "L2", "grad_clip"))
        lr = self._now("learn_rate", key)
        moments = beta1 > 0 and beta2 > 0
        # thinc shrinks the weights after the step, not before it: (1 - lr L2)(w - step).
        decay = lr_scale * lr * l2 if self.L2_is_weight_decay else 0.0
        shrink = 1 - decay
        t = self.nr_update.get(key, 0) + 1
        if self.use_radam:  # thinc's RAdam ignores lr_scale
            ours = moments and beta1 < 1 and beta2 < 1
        else:
            lr *= lr_scale
            ours = moments or beta2 == 0
        average = None if self.averages is None else self.averages.get(key)
        if not (
            ours
            and shrink > 0
            and _is_plain(weights)
            and _is_plain(gradient)
            and gradient.shape == weights.shape
            and (average is None or (_is_plain(average) and average.shape == weights.shape))
        ):
            if gradient.size != weights.size:
                raise ValueError(f"the gradient of {key!r}: expected shape {weights.shape}, got {gradient.shape}")
            return super().__call__(key, weights, gradient, lr_scale=lr_scale)
        if len(gradient) < 1:
            return weights, gradient
        if np.may_share_memory(weights, gradient):
            raise ValueError(f"the gradient of {key!r} shares memory with its weights")
        kept = {"mom1": self.mom1, "mom2": self.mom2} if moments else {}
        for name, mom in kept.items():
            if key in mom and not (_is_plain(mom[key]) and mom[key].size == weights.size):
                raise ValueError(
                    f"the {name} of {key!r}: expected a contiguous, writeable array of {weights.size} float32 numbers"
                )
        decayed = gradient
        if l2 and limit and not self.L2_is_weight_decay:  # thinc clips the gradient after adding the decay
            decayed = gradient + np.float32(l2) * weights
            l2 = 0.0
        norm = _core.norm(decayed) if limit else 0.0

        if self.averages is not None and average is None:
            average = zeros_like(weights)
        states = [mom[key] if key in mom else zeros_like(weights).reshape(-1) for mom in kept.values()]
        if moments:
            spec, options = (
                onepass.RAdam._spec if self.use_radam else onepass.Adam._spec,
                {
                    "betas": (beta1, beta2),
                    "eps": self._now("eps", key),
                    "amsgrad": False,
                    "bias_correction": True,
                    "eps_mode": "hat",
                },
            )
        else:
            spec, options = onepass.SGD._spec, {"momentum": 0.0, "dampening": 0.0, "nesterov": False}
        common = _core.CommonOptions(
            lr=lr * shrink,
            weight_decay=decay / (lr * shrink) if decay else l2,
            ema_decay=min((1 + t) / (10 + t), 0.9999),  # as thinc's
            decoupled=self.L2_is_weight_decay,
            averaged=average is not None,
            keep_subnormals=spec.keeps_subnormals(options),
        )
        scale = limit / norm if limit and norm >= limit else 1.0
        rule, numbers = spec.rule_name(options), spec.numbers(options)
        count = t + 1 if self.use_radam else t  # thinc's RAdam counts one ahead
        if not _core.step_once(rule, numbers, common, scale, True, count, weights, decayed, states, average):
            raise ValueError(f"a number of step {t} of {key!r} overflows float32 or is NaN: {lr=}, {norm=}")
        gradient.fill(0)
        self.nr_update[key] = t
        for mom, state in zip(kept.values(), states):
            mom[key] = state
        if self.averages is not None:
            self.averages[key] = average
        return weights, gradient

    def _now(self, name: str, key: Any) -> float:
        """Return the current value of an option, which is a schedule in thinc 9 and a number in thinc 8."""
        option = getattr(self, name)
        return float(option(self.step, **self._schedule_args(key)) if callable(option) else option)


def _is_plain(array: Any) -> bool:
    """Return True if the kernels can read and write the array."""
    # carray: contiguous, writeable and aligned
    return type(array) is np.ndarray and array.dtype == np.float32 and array.flags.carray


def Adam(
    learn_rate: Any = ADAM_DEFAULTS["learn_rate"],
    *,
    L2: Any = ADAM_DEFAULTS["L2"],
    beta1: Any = ADAM_DEFAULTS["beta1"],
    beta2: Any = ADAM_DEFAULTS["beta2"],
    eps: Any = ADAM_DEFAULTS["eps"],
    grad_clip: Any = ADAM_DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = bool(ADAM_DEFAULTS["L2_is_weight_decay"]),
    use_averages: bool = True,
) -> Optimizer:
    """Create an optimizer with the arguments of ``thinc.api.Adam``; registered as ``onepass.Adam.v1``.

    Example:
        >>> optimizer = Adam(0.5)
        >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> w, g = optimizer((1, "W"), w, g)
        >>> w.round(3)
        array([0.5, 0.5], dtype=float32)
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
    )


def RAdam(
    learn_rate: Any = ADAM_DEFAULTS["learn_rate"],
    *,
    beta1: Any = ADAM_DEFAULTS["beta1"],
    beta2: Any = ADAM_DEFAULTS["beta2"],
    eps: Any = ADAM_DEFAULTS["eps"],
    L2: Any = ADAM_DEFAULTS["L2"],
    L2_is_weight_decay: bool = bool(ADAM_DEFAULTS["L2_is_weight_decay"]),
    grad_clip: Any = ADAM_DEFAULTS["grad_clip"],
    use_averages: bool = True,
) -> Optimizer:
    """Create an optimizer with the arguments of ``thinc.api.RAdam``; registered as ``onepass.RAdam.v1``.

    Example:
        >>> optimizer = RAdam(0.5)
        >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> w, g = optimizer((1, "W"), w, g)
        >>> w.round(3)
        array([0.814, 0.814], dtype=float32)
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        use_averages=use_averages,
        use_radam=True,
    )


def SGD(
    learn_rate: Any,
    *,
    L2: Any = SGD_DEFAULTS["L2"],
    grad_clip: Any = SGD_DEFAULTS["grad_clip"],
    L2_is_weight_decay: bool = bool(SGD_DEFAULTS["L2_is_weight_decay"]),
    use_averages: bool = True,
) -> Optimizer:
    """Create an optimizer with the arguments of ``thinc.api.SGD``; registered as ``onepass.SGD.v1``.

    Example:
        >>> optimizer = SGD(0.5)  # thinc's default clips the gradient's norm to 1
        >>> w, g = np.ones(2, np.float32), np.ones(2, np.float32)
        >>> w, g = optimizer((1, "W"), w, g)
        >>> w.round(3)
        array([0.646, 0.646], dtype=float32)
    """
    return Optimizer(
        learn_rate,
        L2=L2,
        grad_clip=grad_clip,
        L2_is_weight_decay=L2_is_weight_decay,
        beta1=0.0,
        beta2=0.0,
        use_averages=use_averages,
    )
