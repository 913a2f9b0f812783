"""Peers with weights or state in fewer bits, and the memory of each.

All are AdamW, the optimizer that the other libraries have in 8 bits.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from . import measure as timing
from .libraries import TorchFused
from .machine import process_bytes
from .measure import Budget
from .peer import Arrays, Options, Peer, Problem, imported
from .peers import Onepass
from .records import Point

ELEMENTS = 2**25  # arrays of at least 32 MiB, which the allocator returns to the system


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

    name = "onepass, bfloat16 weights with master_bits=24, float8 state"
    storage: ClassVar = {"state_dtype": "float8", "master_bits": 24}


class OnepassBfloat16Weights16(OnepassBfloat16Weights):
    """The same without the lower halves."""

    name = "onepass, bfloat16 weights with master_bits=16, float8 state"
    storage: ClassVar = {"state_dtype": "float8", "master_bits": 16}


STORAGES = (
    OnepassBfloat16State,
    OnepassFloat8State,
    OnepassBfloat16Weights,
    OnepassBfloat16Weights24,
    OnepassBfloat16Weights16,
)


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


def measure(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time each peer, and measure the bytes per parameter that it holds and that its step moves."""
    point = timing.measure(kinds, problem, budget, rng)
    found = {kind.name: memory_of(kind) for kind in kinds if kind.takes_steps}
    if all(held for held, _ in found.values()):
        point["held"] = {name: held for name, (held, _) in found.items()}
        point["moved"] = {name: moved for name, (_, moved) in found.items()}
    return point


@cache
def memory_of(kind: type[Peer]) -> tuple[float, float]:
    """Return the bytes per parameter of weights, gradient and state in this process, and those that one pass moves.

    One pass over memory reads everything and writes all but the gradient. Both are 0 where the system has no /proc. The
    peer has taken steps in this process, so that the memory of its library is not counted.
    """
    sizes = [resident()]
    peer = kind(Problem.of(ELEMENTS, rule="AdamW"), [np.ones(ELEMENTS, np.float32)], Options())
    sizes.append(resident())
    peer.load([np.ones(ELEMENTS, np.float32)])
    sizes.append(resident())
    peer.run(1)
    sizes.append(resident())
    held, gradient = (sizes[3] - sizes[0]) / ELEMENTS, (sizes[2] - sizes[1]) / ELEMENTS
    return timing.rounded(held), timing.rounded(2 * held - gradient)


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    return process_bytes("RssAnon")
