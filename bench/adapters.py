"""onepass behind PyTorch's and thinc's own interfaces, in the place of the optimizers that it stands in for."""

from __future__ import annotations

from typing import Any

from .libraries import ThincOptimizer, Torch
from .peer import RULES, Options, imported


class OnepassTorch(Torch):
    """``onepass.integrations.torch``, one changed line in a training loop of PyTorch's."""

    name = "onepass for torch"
    rules = tuple(rule for rule in RULES if rule != "Lion")

    def make(self, rule: str, options: Options) -> Any:
        return getattr(imported("onepass.integrations.torch"), rule)(self.weights, **options.of(rule))


class TorchNoOptimizer(Torch):
    """No step at all: what the rest of a training in PyTorch takes."""

    name = "no optimizer"
    takes_steps = False

    def run(self, steps: int) -> None:
        pass


class OnepassThinc(ThincOptimizer):
    """``onepass.integrations.thinc``, one changed line in a configuration of thinc's or spaCy's."""

    name = "onepass for thinc"

    def make(self, options: Options) -> Any:
        return imported("onepass.integrations.thinc").Adam(
            options.lr, beta1=options.beta1, beta2=options.beta2, eps=options.eps, L2=0.0, grad_clip=0.0
        )
