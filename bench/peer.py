"""What a peer is, and what it is given: the problem, Adam's options, the arrays."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import onepass
from onepass import _reference

from . import report

Array = npt.NDArray[Any]
Arrays = list[Array]


@dataclass(frozen=True)
class Options:
    """Adam's options, for all peers alike."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # this and the average's decay: only for those who take them
    ema_decay: float = 0.999

    def of(self, rule: str) -> dict[str, Any]:
        """Give the keywords of this rule, which onepass and torch have alike."""
        values = {"betas": (self.beta1, self.beta2), "eps": self.eps, "momentum": self.beta1}
        return {"lr": self.lr, **{keyword: values[keyword] for keyword in RULES[rule]}}


def _shared_options(rule: str) -> tuple[str, ...]:
    options = inspect.signature(getattr(onepass, rule)).parameters
    return tuple(name for name in ("betas", "eps") if name in options) or ("momentum",)


# Every rule of onepass, with the options that are given besides the learning rate.
RULES = {rule: _shared_options(rule) for rule in _reference.RULES}


@dataclass(frozen=True)
class Problem:
    """What is stepped: one-dimensional tensors of these sizes, by this rule, on so many threads."""

    sizes: tuple[int, ...]
    dtype: str = "float32"
    threads: int = 1  # 0: as many as each takes by default
    rule: str = "Adam"
    decayed: bool = False  # state that gradients of zero have made subnormal, and more such gradients
    label: str = ""  # what to say of the tensors where their sizes differ

    @classmethod
    def of(
        cls, elements: int, tensors: int = 1, dtype: str = "float32", threads: int = 1, rule: str = "Adam"
    ) -> Problem:
        """So many tensors of so many elements each."""
        return cls((elements,) * tensors, dtype, threads, rule)

    @property
    def elements(self) -> int:
        """Of all tensors together."""
        return sum(self.sizes)

    def __str__(self) -> str:
        first, tensors = report.count(self.sizes[0]), len(self.sizes)
        if self.label:
            what = self.label
        else:
            what = f"{first} elements" if tensors == 1 else f"{report.count(tensors)} tensors of {first} elements"
        threads = {0: "default threads", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        parts = [what, self.dtype, threads]
        parts += [self.rule] * (self.rule != "Adam") + ["subnormal state"] * self.decayed
        return ", ".join(parts)


class Peer(ABC):
    """One way to take steps. ``params`` are its own to change; state starts at zero."""

    name: ClassVar[str]
    module: ClassVar[str | None] = None  # what must be importable besides NumPy
    packages: ClassVar[tuple[str, ...]] = ()  # whose versions are noted, by their names for pip
    eps_mode: ClassVar[str] = "paper"  # where it puts epsilon, in onepass's terms
    takes_steps: ClassVar[bool] = True  # False: a yardstick, with no result to check
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    rules: ClassVar[tuple[str, ...]] = ("Adam",)
    own_threads: ClassVar[int | None] = None  # onepass's number of threads, in place of the problem's
    max_elements: ClassVar[int] = 10**12  # beyond, it would only make everyone wait
    max_steps: ClassVar[int] = 10**6  # how many steps it can take on one gradient and stay on the usual path

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.problem = problem
        self.p = params
        self.m = [np.zeros_like(p) for p in params]
        self.v = [np.zeros_like(p) for p in params]
        self.tensors: list[tuple[Any, ...]] = []
        self.options = options
        self.t = 0

    def load(self, grads: Arrays) -> None:
        """Take these gradients for the coming steps, and lay out what their loop needs. Not timed."""
        self.tensors = [*zip(self.p, grads, self.m, self.v, strict=True)]

    @abstractmethod
    def run(self, steps: int) -> None:
        """Take so many steps, in a loop as a user of it would write it. This is what is timed."""

    def params(self) -> Arrays:
        """Give the parameters as they are now."""
        return self.p

    def results(self) -> Arrays:
        """Give what is checked: the parameters, and their averages behind them where a step writes those."""
        return self.params()

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        """Whether it can be measured on this problem. Who has no threads of its own takes one, whatever others use."""
        return problem.dtype in cls.dtypes and problem.rule in cls.rules and problem.elements <= cls.max_elements

    @classmethod
    def why_missing(cls) -> str | None:
        """Why it cannot be measured here, or None if it can."""
        if cls.module is not None:
            try:
                importlib.import_module(cls.module)
            except ImportError as error:
                return f"{cls.module} cannot be imported ({error})"
        return None


def imported(module: str) -> Any:
    """A module of which no types are known; `Peer.why_missing` has seen to it that it is there."""
    return importlib.import_module(module)
