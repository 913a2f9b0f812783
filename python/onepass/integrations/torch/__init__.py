"""Drop-in optimizers for PyTorch on the CPU: replace ``torch.optim.Adam`` by ``onepass.integrations.torch.Adam``.

The classes are subclasses of PyTorch's optimizers, with their arguments, parameter groups, hooks, closures, state and
state dicts. Learning-rate schedulers, ``GradScaler``, checkpoints and all other tools for PyTorch's optimizers work,
and each class loads the state dict of its PyTorch counterpart, and the reverse. Parameters and state are PyTorch's
tensors. onepass's kernels update the tensors in place on PyTorch's threads: ``torch.get_num_threads()`` of them, or
fewer, if you set a smaller number with `onepass.set_num_threads`. The kernels treat subnormal numbers as zero, unless
``flush_denormals=False``.

The tensors are the only state: you may replace, load and change them, and move them into shared memory, at any time
between steps. A parameter with a gradient must be on the CPU and have dtype float32, float64 or bfloat16; a parameter
without a gradient may have any device and dtype. ``capturable`` and ``differentiable`` are refused; ``foreach`` and
``fused`` select among PyTorch's own implementations, none of which runs here. A sparse gradient updates only its own
rows, in the parameter and in the state: momentum does not move the remaining rows. (PyTorch's SGD moves all rows;
PyTorch's Adam, Adamax, NAdam, RAdam, RMSprop and Adadelta refuse sparse gradients.)

Every class also takes onepass's own options by keyword: ``clip_norm``, ``clip_value``, ``nonfinite``, ``ema_decay``
(see ``optimizer.ema`` and ``optimizer.averaged()``), ``flush_denormals``, and Adam's ``eps_mode`` and
``bias_correction``. The defaults are PyTorch's. ``state_dtype``, ``master_bits``, ``rounding`` and ``seed`` store state
and bfloat16 parameters in fewer bits, in tensors of PyTorch's dtypes (see ``optimizer.decoded_state_dict()`` and
`cast_model`).

``optimizer.slow_steps`` counts the steps that leave the fast path, such as the first step or a step with a sparse
gradient.

Example:
    >>> import torch, onepass.integrations.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = onepass.integrations.torch.Adam([w], lr=0.5)
    >>> w.sum().backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 0.5000])
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import onepass

from ... import _checks
from .. import needed
from ._backward import step_in_backward
from ._cast import cast_model
from ._optimizer import OnePass
from ._schedule_free import ScheduleFreeAdamW

with needed("torch"):
    import torch

__all__ = ["SGD", "AdEMAMix", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop"]
__all__ += ["ScheduleFreeAdamW", "cast_model", "step_in_backward"]


class _CoreAdam(onepass.Adam):
    """Adam with the kind of weight decay as an option of the group, as in PyTorch."""

    __slots__ = ()
    _spec = replace(
        onepass.Adam._spec,
        checks={**onepass.Adam._spec.checks, "decoupled_weight_decay": _checks.flag},
        decoupled="decoupled_weight_decay",
    )


class Adam(OnePass, torch.optim.Adam):
    """`onepass.Adam` with the interface and arguments of ``torch.optim.Adam``.

    Example:
        >>> import torch, onepass.integrations.torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = onepass.integrations.torch.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    _kind = _CoreAdam
    _missing: ClassVar = {**OnePass._missing, "decoupled_weight_decay": False}


class AdamW(OnePass, torch.optim.AdamW):
    """`onepass.AdamW` with the interface and arguments of ``torch.optim.AdamW``."""

    _kind = _CoreAdam
    _missing: ClassVar = {**OnePass._missing, "decoupled_weight_decay": True}


class Adamax(OnePass, torch.optim.Adamax):
    """`onepass.Adamax` with the interface and arguments of ``torch.optim.Adamax``."""

    _kind = onepass.Adamax


class NAdam(OnePass, torch.optim.NAdam):
    """`onepass.NAdam` with the interface and arguments of ``torch.optim.NAdam``."""

    _kind = onepass.NAdam
    _missing: ClassVar = {**OnePass._missing, "decoupled_weight_decay": False}


class RAdam(OnePass, torch.optim.RAdam):
    """`onepass.RAdam` with the interface and arguments of ``torch.optim.RAdam``."""

    _kind = onepass.RAdam
    _missing: ClassVar = {**OnePass._missing, "decoupled_weight_decay": False}


class RMSprop(OnePass, torch.optim.RMSprop):
    """`onepass.RMSprop` with the interface and arguments of ``torch.optim.RMSprop``."""

    _kind = onepass.RMSprop


class Adagrad(OnePass, torch.optim.Adagrad):
    """`onepass.Adagrad` with the interface and arguments of ``torch.optim.Adagrad``."""

    _kind = onepass.Adagrad


class Adadelta(OnePass, torch.optim.Adadelta):
    """`onepass.Adadelta` with the interface and arguments of ``torch.optim.Adadelta``."""

    _kind = onepass.Adadelta


class SGD(OnePass, torch.optim.SGD):
    """`onepass.SGD` with the interface and arguments of ``torch.optim.SGD``."""

    _kind = onepass.SGD


class Lion(OnePass):
    """`onepass.Lion` with the interface of PyTorch's optimizers; torch.optim has no Lion."""

    _kind = onepass.Lion

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        """Take the options of `onepass.Lion`."""
        checks = self._kind._spec.checks
        given = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {name: checks[name](name, value) for name, value in given.items()}, **options)


class AdEMAMix(OnePass):
    """`onepass.AdEMAMix` with the interface of PyTorch's optimizers; torch.optim has no AdEMAMix."""

    _kind = onepass.AdEMAMix

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        """Take the options of `onepass.AdEMAMix`."""
        checks = self._kind._spec.checks
        given = {
            "lr": lr,
            "betas": betas,
            "alpha": alpha,
            "alpha_warmup": alpha_warmup,
            "beta3_warmup": beta3_warmup,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, {name: checks[name](name, value) for name, value in given.items()}, **options)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
