"""Peers with weights or state in fewer bits. AdamW, the optimizer that the other libraries have in 8 bits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .libraries import TorchFused
from .peer import Arrays, Options, Problem, imported
from .peers import Onepass


class OnepassNarrow(Onepass):
    """onepass with float32 weights and narrower state."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    rules: ClassVar[tuple[str, ...]] = ("AdamW",)
    tolerance = (0.3, 0.03)  # stochastic rounding: three steps are compared
    storage: ClassVar[dict[str, Any]] = {}

    def more(self, options: Options) -> dict[str, Any]:
        return self.storage


class OnepassBfloat16State(OnepassNarrow):
    """Moments in bfloat16."""

    name = "onepass, bfloat16 state"
    storage: ClassVar = {"state_dtype": "bfloat16"}


class OnepassFloat8State(OnepassNarrow):
    """Moments in float8."""

    name = "onepass, float8 state"
    storage: ClassVar = {"state_dtype": "float8"}


class OnepassBfloat16Weights(OnepassNarrow):
    """Weights and gradients in bfloat16, the lower halves of the weights and float8 moments in the state."""

    name = "onepass, bfloat16 weights, float8 state"
    module = "ml_dtypes"
    packages: ClassVar[tuple[str, ...]] = ("ml_dtypes",)
    storage: ClassVar = {"state_dtype": "float8"}

    def __init__(self, problem: Problem, params: Arrays, options: Options, eps_mode: str = "paper") -> None:
        self.bfloat16 = imported("ml_dtypes").bfloat16
        super().__init__(problem, [p.astype(self.bfloat16) for p in params], options, eps_mode)

    def load(self, grads: Arrays) -> None:
        self.grads = [g.astype(self.bfloat16) for g in grads]

    def params(self) -> Arrays:
        return [p.astype(np.float32) for p in self.p]


class OnepassBfloat16Weights24(OnepassBfloat16Weights):
    """The same with 24 bits of each weight."""

    name = "onepass, bfloat16 weights of 24 bits, float8 state"
    storage: ClassVar = {"state_dtype": "float8", "master_bits": 24}


class TorchFusedBfloat16(TorchFused):
    """PyTorch's fused step with weights, gradients and state in bfloat16, which rounds each step's change away."""

    name = "torch fused, all bfloat16"
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    rules: ClassVar[tuple[str, ...]] = ("AdamW",)
    tolerance = (0.3, 0.03)

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.weights = [self.torch.nn.Parameter(w.detach().bfloat16()) for w in self.weights]
        self.optimizer = self.make(problem.rule, options)

    def load(self, grads: Arrays) -> None:
        for w, g in zip(self.weights, grads, strict=True):
            w.grad = self.torch.from_numpy(g).bfloat16()

    def params(self) -> Arrays:
        return [w.detach().float().numpy() for w in self.weights]


class EightBits:
    """Common settings of the AdamW with state in 8 bits of other libraries."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    rules: ClassVar[tuple[str, ...]] = ("AdamW",)
    tolerance: ClassVar[tuple[float, float] | None] = (0.3, 0.03)
    max_steps: ClassVar[int] = 4  # bitsandbytes takes a second for a step


class Bitsandbytes8bit(EightBits, TorchFused):
    """bitsandbytes' AdamW with state in 8 bits, on the CPU."""

    name = "bitsandbytes AdamW8bit"
    module = "bitsandbytes"
    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes", "torch")

    def make(self, rule: str, options: Options) -> Any:
        return imported("bitsandbytes").optim.AdamW8bit(self.weights, **options.of(rule))


class Torchao8bit(EightBits, TorchFused):
    """torchao's AdamW with state in 8 bits, compiled by PyTorch."""

    name = "torchao AdamW8bit"
    module = "torchao"
    packages: ClassVar[tuple[str, ...]] = ("torchao", "torch")

    def make(self, rule: str, options: Options) -> Any:
        return imported("torchao.optim").AdamW8bit(self.weights, **options.of(rule))
