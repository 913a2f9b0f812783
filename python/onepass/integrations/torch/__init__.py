"""PyTorch's optimizers on the CPU in one pass: write ``onepass.integrations.torch.Adam`` for ``torch.optim.Adam``.

The classes are subclasses of PyTorch's, with their arguments, parameter groups, hooks, closures, state and state dicts:
learning-rate schedulers, ``GradScaler``, checkpoints and everything else that works on those works on these, and a
state dict of either goes into the other. Parameters and state are PyTorch's tensors; onepass's kernels update them in
place, on PyTorch's threads, as many as ``torch.get_num_threads()`` returns (or fewer, if you set a smaller number with
`onepass.set_num_threads`), and take subnormal numbers for zero (unless ``flush_denormals=False``).

The tensors are the only state: they may be replaced, moved into shared memory, loaded and changed at any time between
steps. A parameter with a gradient must be on the CPU, of dtype float32 or float64; parameters without gradients may be
anything. ``capturable`` and ``differentiable`` are refused; ``foreach`` and ``fused`` choose among PyTorch's own
implementations, none of which runs here. A sparse gradient touches its rows only, in the parameter and in its state:
momentum does not move the others (PyTorch's SGD moves all, its Adam, Adamax, NAdam, RMSprop and Adadelta refuse such
gradients).

Every class also takes onepass's own options by keyword: ``clip_norm``, ``clip_value``, ``nonfinite``, ``ema_decay``
(see ``optimizer.ema`` and ``optimizer.averaged()``), ``flush_denormals``, and Adam's ``eps_mode`` and
``bias_correction``. Defaults are PyTorch's.

A step for which everything must be looked at again, such as the first one or one along a sparse gradient, is counted in
``optimizer.slow_steps``.

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
from ._optimizer import OnePass

with needed("torch"):
    import torch

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RMSprop", "step_in_backward"]


class _CoreAdam(onepass.Adam):
    """Adam whose kind of weight decay is an option of the group, as PyTorch has it."""

    __slots__ = ()
    _spec = replace(
        onepass.Adam._spec,
        checks={**onepass.Adam._spec.checks, "decoupled_weight_decay": _checks.flag},
        decoupled="decoupled_weight_decay",
    )


class Adam(OnePass, torch.optim.Adam):
    """``torch.optim.Adam`` with its arguments, stepped by `onepass.Adam`.

    Example:
        >>> import torch, onepass.integrations.torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = onepass.integrations.torch.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    _kind = _CoreAdam
    _missing: ClassVar = {"decoupled_weight_decay": False}


class AdamW(OnePass, torch.optim.AdamW):
    """``torch.optim.AdamW`` with its arguments, stepped by `onepass.AdamW`."""

    _kind = _CoreAdam
    _missing: ClassVar = {"decoupled_weight_decay": True}


class Adamax(OnePass, torch.optim.Adamax):
    """``torch.optim.Adamax`` with its arguments, stepped by `onepass.Adamax`."""

    _kind = onepass.Adamax


class NAdam(OnePass, torch.optim.NAdam):
    """``torch.optim.NAdam`` with its arguments, stepped by `onepass.NAdam`."""

    _kind = onepass.NAdam


class RMSprop(OnePass, torch.optim.RMSprop):
    """``torch.optim.RMSprop`` with its arguments, stepped by `onepass.RMSprop`."""

    _kind = onepass.RMSprop


class Adagrad(OnePass, torch.optim.Adagrad):
    """``torch.optim.Adagrad`` with its arguments, stepped by `onepass.Adagrad`."""

    _kind = onepass.Adagrad


class Adadelta(OnePass, torch.optim.Adadelta):
    """``torch.optim.Adadelta`` with its arguments, stepped by `onepass.Adadelta`."""

    _kind = onepass.Adadelta


class SGD(OnePass, torch.optim.SGD):
    """``torch.optim.SGD`` with its arguments, stepped by `onepass.SGD`."""

    _kind = onepass.SGD


class Lion(OnePass):
    """Lion, which torch.optim has not, stepped by `onepass.Lion`."""

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


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
