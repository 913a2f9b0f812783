"""Base class of peers, and its arguments: the problem, Adam's options, the arrays."""

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
    """Adam's options, the same for all peers."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # this and the decay of the average: only for peers that take them
    ema_decay: float = 0.999

    def of(self, rule: str) -> dict[str, Any]:
        """Return the keywords of this rule, which are the same in onepass and torch."""
        betas = _reference.defaults(rule).get("betas", ())
        values = {"betas": (self.beta1, self.beta2, *betas[2:]), "eps": self.eps, "momentum": self.beta1}
        return {"lr": self.lr, **{keyword: values[keyword] for keyword in RULES[rule]}}


def _shared_options(rule: str) -> tuple[str, ...]:
    options = inspect.signature(getattr(onepass, rule)).parameters
    return tuple(name for name in ("betas", "eps") if name in options) or ("momentum",)


# Every rule of onepass, with its options other than the learning rate.
RULES = {rule: _shared_options(rule) for rule in _reference.RULES}
# The rules of torch.optim.
TORCH_RULES = tuple(rule for rule in RULES if rule not in ("Lion", "AdEMAMix", "ScheduleFreeAdamW"))


@dataclass(frozen=True)
class Problem:
    """One-dimensional tensors of these sizes, and the rule and the number of threads that step them."""

    sizes: tuple[int, ...]
    dtype: str = "float32"
    threads: int = 1  # 0: the default number of each peer
    rule: str = "Adam"
    decayed: bool = False  # state that gradients of zero have made subnormal, and more such gradients
    ranks: int = 1  # number of processes among which the state is divided
    on_disk: bool = False  # state in files
    width: int = 1  # elements in a row of a table, for sparse gradients
    label: str = ""  # name of tensors of different sizes

    @classmethod
    def of(cls, elements: int, tensors: int = 1, **more: Any) -> Problem:
        """Return a problem of tensors of one size."""
        return cls((elements,) * tensors, **more)

    @property
    def elements(self) -> int:
        """Total size of all tensors."""
        return sum(self.sizes)

    def __str__(self) -> str:
        first, tensors = report.count(self.sizes[0]), len(self.sizes)
        tensors_of = "" if tensors == 1 else f"{report.count(tensors)} tensors of "
        threads = {0: "default threads", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        parts = [self.label or f"{tensors_of}{first} elements", self.dtype, threads]
        parts += [self.rule] * (self.rule != "Adam") + ["subnormal state"] * self.decayed
        parts += [f"{self.ranks} ranks"] * (self.ranks > 1) + ["state on disk"] * self.on_disk
        return ", ".join(parts)


class Peer(ABC):
    """One way to take steps. It may change ``params``; its state starts at zero."""

    name: ClassVar[str]
    module: ClassVar[str | None] = None  # must be importable
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions are recorded
    eps_mode: ClassVar[str] = "paper"  # the place of epsilon, in onepass's terms
    takes_steps: ClassVar[bool] = True  # False: no result to check
    tolerance: ClassVar[tuple[float, float] | None] = (
        None  # relative and absolute, of changes; None: of rounding errors
    )
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    rules: ClassVar[tuple[str, ...]] = ("Adam",)
    own_threads: ClassVar[int | None] = None  # onepass's number of threads, in place of the problem's
    max_elements: ClassVar[int] = 10**12  # a larger problem takes too long
    max_steps: ClassVar[int] = 10**6  # most steps on one gradient without a slow special case

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.problem = problem
        self.p = params
        self.m = [np.zeros_like(p) for p in params]
        self.v = [np.zeros_like(p) for p in params]
        self.tensors: list[tuple[Any, ...]] = []
        self.options = options
        self.t = 0

    def load(self, grads: Arrays) -> None:
        """Prepare the coming steps with these gradients. Not timed."""
        self.tensors = [*zip(self.p, grads, self.m, self.v, strict=True)]

    @abstractmethod
    def run(self, steps: int) -> None:
        """Take steps in a loop as a user writes it. Only this is timed."""

    def params(self) -> Arrays:
        """Return the current parameters."""
        return self.p

    def results(self) -> Arrays:
        """Return the arrays that are checked: the parameters, then their averages if a step writes them."""
        return self.params()

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        """Return whether the peer can be measured on this problem; peers without threads always run on one."""
        return problem.dtype in cls.dtypes and problem.rule in cls.rules and problem.elements <= cls.max_elements

    @classmethod
    def why_missing(cls) -> str | None:
        """Return the reason why the peer cannot be measured here, or None."""
        if cls.module is not None:
            try:
                importlib.import_module(cls.module)
            except ImportError as error:
                return f"{cls.module} cannot be imported ({error})"
        return None


def imported(module: str) -> Any:
    """Import a module without known types; `Peer.why_missing` has checked that it is installed."""
    return importlib.import_module(module)
