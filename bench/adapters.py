"""onepass behind the interfaces of PyTorch and thinc."""

from __future__ import annotations

from typing import Any

from .libraries import ThincOptimizer, Torch
from .peer import TORCH_RULES, Options, imported


class OnepassTorch(Torch):
    """``onepass.integrations.torch``, one changed line in a training loop in PyTorch."""

    name = "onepass for torch"
    rules = TORCH_RULES

    def make(self, rule: str, options: Options) -> Any:
        return getattr(imported("onepass.integrations.torch"), rule)(self.weights, **options.of(rule))


class TorchNoOptimizer(Torch):
    """No step: the time of the rest of a training run in PyTorch."""

    name = "no optimizer"
    takes_steps = False

    def run(self, steps: int) -> None:
        pass


class OnepassThinc(ThincOptimizer):
    """``onepass.integrations.thinc``, one changed line in a configuration of thinc or spaCy."""

    name = "onepass for thinc"

    def make(self, options: Options) -> Any:
        return imported("onepass.integrations.thinc").Adam(
            options.lr, beta1=options.beta1, beta2=options.beta2, eps=options.eps, L2=0.0, grad_clip=0.0
        )
