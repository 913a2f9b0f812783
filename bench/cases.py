"""What is measured, and what is to be reached.

To add a case, add an entry to ``CASES``. Each should take less than a minute; those of a gigabyte take two, those of
training loops four.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from . import loop, report, training
from .adapters import OnepassThinc, OnepassTorch, TorchNoOptimizer
from .libraries import (
    DeepSpeed,
    Numba,
    Optax,
    ScikitLearn,
    Thinc,
    ThincOptimizer,
    TorchClipAverage,
    TorchDefault,
    TorchForeach,
    TorchFused,
)
from .machine import cores, software
from .measure import Effort, check, measure
from .peer import RULES, Peer, Problem
from .peers import (
    InPlaceNumPy,
    NoOptimizer,
    Onepass,
    OnepassAllThreads,
    OnepassClipAverage,
    OnepassFlat,
    OnepassKeepsSubnormals,
    OnepassOneThread,
    PurePython,
    StreamLimit,
    TextbookNumPy,
    TextbookNumPyFreshMemory,
)
from .records import BarRecord, CaseRecord, Comparison, Point, Statistic

Points = Mapping[Problem, Point]


@dataclass(frozen=True)
class Bar:
    """The time of the fastest of these peers on this problem must be at least so many times onepass's."""

    problem: Problem
    peers: tuple[type[Peer], ...]
    at_least: float
    part: Literal["", "step", "iteration"] = ""  # of a training loop, its steps or the whole iterations
    statistic: Statistic = "median_ns"

    def judge(self, points: Points) -> BarRecord:
        found: Comparison | None = points.get(self.problem)
        if found is not None and self.part == "step":
            found = points[self.problem]["step"]
        timings = found["timings"] if found is not None else {}
        measured = [kind.name for kind in self.peers if kind.name in timings]
        name = min(
            measured, key=lambda name: timings[name][self.statistic], default=" or ".join(k.name for k in self.peers)
        )
        ratio = by_rounds = None
        if found is not None and measured:
            ratio = report.ratio(found, name, self.statistic)
            if self.statistic == "median_ns":
                by_rounds = found["over_onepass"][name]["median_of_rounds"]
        part = f"{self.part}: " if self.part else ""
        if self.statistic != "median_ns":
            part = f"{self.part}, {report.STATISTICS[self.statistic]}: "
        what = "of the stream limit" if self.peers == (StreamLimit,) else f"x {name}"
        fastest = ", the fastest other" if len(self.peers) > 1 else ""
        return BarRecord(
            problem=str(self.problem),
            peer=name,
            bar=f"{part}at least {self.at_least:g}{' ' * what.startswith('of')}{what}{fastest}",
            measured=ratio,
            by_rounds=by_rounds,
            holds=None if ratio is None else ratio >= self.at_least,
        )


@dataclass(frozen=True)
class FurtherTensor:
    """What each further tensor costs onepass, from one to many of the same size: at most so many nanoseconds."""

    problem: Problem
    one: Problem
    at_most: float

    def judge(self, points: Points) -> BarRecord:
        many, one = (points[problem]["timings"][Onepass.name]["median_ns"] for problem in (self.problem, self.one))
        each = (many - one) / (len(self.problem.sizes) - len(self.one.sizes))
        return BarRecord(
            problem=str(self.problem),
            peer="",
            bar=f"at most {self.at_most:g} ns a further tensor",
            measured=each,
            by_rounds=None,  # the two are measured one after the other
            holds=each <= self.at_most,
        )


@dataclass(frozen=True)
class Case:
    """Some problems, who is measured on them, and what is to be reached.

    The first peer is onepass, or an adapter of it: the others are compared with it.
    """

    summary: str
    problems: tuple[Problem, ...]
    peers: tuple[type[Peer], ...]
    bars: tuple[Bar | FurtherTensor, ...] = ()
    effort: Effort = field(default_factory=Effort)
    measure: Callable[[Sequence[type[Peer]], Problem, Effort, np.random.Generator], Point] = measure
    why_missing: Callable[[], str | None] = lambda: None
    environment: str = "quiet"  # one of `environment.VARIABLES`
    settings: tuple[str, ...] = ()  # on top, such as OMP_NUM_THREADS=1


TORCH = (TorchFused, TorchForeach, TorchDefault)
FUSED = (TorchFused, DeepSpeed, Numba, Optax)  # who goes over memory once, or nearly
NUMPY_LOOP = (Onepass, OnepassOneThread, OnepassAllThreads, Numba, InPlaceNumPy, TextbookNumPy)
# In the order of the tables.
PEERS = (
    Onepass,
    StreamLimit,
    Numba,
    *TORCH,
    DeepSpeed,
    Optax,
    Thinc,
    InPlaceNumPy,
    ScikitLearn,
    TextbookNumPy,
    PurePython,
)

of = Problem.of
HUNDRED, MANY = of(100), of(100, tensors=148)
TEN_THOUSAND = of(10_000)
CLIP = of(10**7, rule="AdamW")
MILLION, MILLION_ON_TWO = of(10**6), of(10**6, threads=2)
LARGE, LARGE_ON_TWO = of(64 * 10**6), of(64 * 10**6, threads=2)
MILLION_64, MILLION_64_ON_TWO = of(10**6, dtype="float64"), of(10**6, dtype="float64", threads=2)
LARGE_64, LARGE_64_ON_TWO = of(64 * 10**6, dtype="float64"), of(64 * 10**6, dtype="float64", threads=2)


def gpt2(threads: int) -> Problem:
    """The parameters of GPT-2 small, in the order of its checkpoint."""
    width, layers, positions, words = 768, 12, 1024, 50257
    norm = (width, width)
    attention = (width * 3 * width, 3 * width, width * width, width)
    feed_forward = (width * 4 * width, 4 * width, 4 * width * width, width)
    sizes = (words * width, positions * width, *(norm + attention + norm + feed_forward) * layers, *norm)
    return Problem(sizes, threads=threads, label=f"GPT-2 small's {len(sizes)} tensors")


GPT2, GPT2_ON_TWO = gpt2(1), gpt2(2)
HUNDRED_THOUSAND, SIX_HUNDRED_THOUSAND = of(100_000), of(600_000)
POLICY_LAYERS = (8, 64, 64, 4)
POLICY_ITERATION = loop.policy(POLICY_LAYERS, threads=1)
POLICY = Problem(POLICY_ITERATION.sizes, label="a policy network (8-64-64-4)")
LOOPS = {width: loop.square(width) for width in (64, 128, 272, 512, 1024, 2048)}
TORCH_STEP = {272: 1.3, 512: 1.3, 1024: 1.15, 2048: 1.0}  # the bars of a step in PyTorch's loop, against torch fused


def never_slower(kind: type[Peer]) -> tuple[Bar, ...]:
    """Whole iterations with onepass take no longer than with this peer, at 0.3 to 16.8 million parameters."""
    statistics: tuple[Statistic, ...] = ("median_ns", "mean_ns")
    return tuple(Bar(LOOPS[width], (kind,), 1, "iteration", each) for width in TORCH_STEP for each in statistics)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 and so on, and the last number itself."""
    return sorted({2**exponent for exponent in range(most.bit_length())} | {most})


CASES: dict[str, Case] = {
    "small": Case(
        "one tensor of 100 and of 1,000: what a call costs",
        problems=(HUNDRED, of(1_000)),
        peers=(*PEERS, ThincOptimizer),
        bars=(Bar(HUNDRED, (TorchFused,), 80), Bar(HUNDRED, (Thinc,), 2), Bar(HUNDRED, (InPlaceNumPy,), 10)),
    ),
    "many": Case(
        "148 tensors of 100 beside one: what a further tensor costs",
        problems=(MANY, HUNDRED),
        peers=(*PEERS[:-1], ThincOptimizer),
        bars=(Bar(MANY, (TorchFused,), 60), FurtherTensor(MANY, HUNDRED, 150)),
    ),
    "tensors": Case(
        "1 to 1,000 tensors of 100: how the cost grows with their number",
        problems=tuple(of(100, tensors=10**exponent) for exponent in range(4)),
        peers=(Onepass, StreamLimit, *TORCH, Thinc, InPlaceNumPy),
    ),
    "pure-python": Case(
        "10 thousand elements against a loop over lists",
        problems=(TEN_THOUSAND,),
        peers=(Onepass, StreamLimit, PurePython),
        bars=(Bar(TEN_THOUSAND, (PurePython,), 700),),
    ),
    "million": Case(
        "1 million elements, one thread: what the cache allows",
        problems=(MILLION,),
        peers=(*PEERS[:-1], TextbookNumPyFreshMemory),
        bars=(
            Bar(MILLION, (StreamLimit,), 0.85),
            Bar(MILLION, (TorchFused,), 1.3),
            Bar(MILLION, (DeepSpeed,), 1.2),
            Bar(MILLION, (TextbookNumPyFreshMemory,), 30),
        ),
        effort=Effort(seconds=24, sittings=16),
    ),
    "million-2": Case(
        "1 million elements, two threads",
        problems=(MILLION_ON_TWO,),
        peers=(Onepass, StreamLimit, OnepassOneThread, *FUSED),
        bars=(Bar(MILLION_ON_TWO, (TorchFused,), 1.5), Bar(MILLION_ON_TWO, (OnepassOneThread,), 1.5)),
        effort=Effort(seconds=16, sittings=8),
    ),
    "large": Case(
        "64 million elements, one and two threads: what memory allows",
        problems=(LARGE, LARGE_ON_TWO),
        peers=(Onepass, StreamLimit, *FUSED, TextbookNumPy),
        bars=tuple(
            bar
            for problem in (LARGE, LARGE_ON_TWO)
            for bar in (
                Bar(problem, (StreamLimit,), 0.93),
                Bar(problem, FUSED, 0.97),
                Bar(problem, (TextbookNumPy,), 9),
            )
        ),
        effort=Effort(seconds=30, sittings=2),
    ),
    "float64": Case(
        "float64: 1 and 64 million elements, one and two threads",
        problems=(MILLION_64, MILLION_64_ON_TWO, LARGE_64, LARGE_64_ON_TWO),
        peers=(Onepass, StreamLimit, TorchFused, Numba),
        bars=(
            Bar(MILLION_64, (StreamLimit,), 0.85),
            Bar(LARGE_64, (StreamLimit,), 0.93),
            Bar(LARGE_64_ON_TWO, (StreamLimit,), 0.93),
        ),
        effort=Effort(seconds=16, sittings=2),
    ),
    "gpt2": Case(
        "the tensors of GPT-2 small, 124 million elements in all, one and two threads",
        problems=(GPT2, GPT2_ON_TWO),
        peers=(Onepass, OnepassFlat, StreamLimit, *FUSED),
        bars=tuple(
            bar
            for problem in (GPT2, GPT2_ON_TWO)
            for bar in (Bar(problem, FUSED, 0.97), Bar(problem, (OnepassFlat,), 0.97))
        ),
        effort=Effort(seconds=30, sittings=2),
    ),
    "threads": Case(
        "1 and 10 million elements on one thread to as many as there are cores",
        problems=tuple(of(size, threads=n) for size in (10**6, 10**7) for n in powers_of_two(cores())),
        peers=(Onepass, StreamLimit, *FUSED),
        effort=Effort(seconds=8, sittings=4),
    ),
    "clip": Case(
        "10 million elements: AdamW, clipping and averaging in one call against three of torch's",
        problems=(CLIP,),
        peers=(OnepassClipAverage, TorchClipAverage),
        bars=(Bar(CLIP, (TorchClipAverage,), 1.8),),
        effort=Effort(seconds=24, sittings=6),
    ),
    "rules": Case(
        "every rule on 1 million elements, beside torch's class of the same name",
        problems=tuple(of(10**6, dtype=dtype, rule=rule) for dtype in ("float32", "float64") for rule in RULES),
        peers=(Onepass, StreamLimit, *TORCH),
        effort=Effort(seconds=3, sittings=3),
    ),
    "subnormals": Case(
        "100 thousand elements whose state has decayed to subnormal numbers, beside the same with usual state",
        problems=(replace(HUNDRED_THOUSAND, decayed=True), HUNDRED_THOUSAND),
        peers=(Onepass, OnepassKeepsSubnormals, TorchFused, Numba, InPlaceNumPy),
        effort=Effort(seconds=6, sittings=3),
    ),
    "digits": Case(
        "a whole training of a network in NumPy on handwritten digits, the network's own work included",
        problems=(training.NETWORK,),
        peers=(Onepass, NoOptimizer, TorchFused, Thinc, InPlaceNumPy, ScikitLearn, TextbookNumPy),
        effort=Effort(seconds=30),
        measure=training.measure,
        why_missing=training.why_missing,
    ),
    "torch-policy": Case(
        "a small network of PyTorch's: a step through the adapter beside PyTorch's own",
        problems=(POLICY,),
        peers=(OnepassTorch, *TORCH),
        bars=(Bar(POLICY, (TorchFused,), 15),),
    ),
    "torch-training": Case(
        "the same network trained in PyTorch: whole iterations of a batch of 64",
        problems=(POLICY_ITERATION,),
        peers=(OnepassTorch, TorchNoOptimizer, *TORCH),
        bars=(Bar(POLICY_ITERATION, (TorchFused,), 1.15), Bar(POLICY_ITERATION, (TorchDefault,), 1.6)),
        effort=Effort(seconds=20),
        measure=loop.measure,
    ),
    "loop-torch": Case(
        "in PyTorch's training loop, with default settings: steps and whole iterations of networks of 64 to 2,048 wide",
        problems=tuple(LOOPS.values()),
        peers=(OnepassTorch, *TORCH),
        bars=(
            *(Bar(LOOPS[width], (TorchFused,), at_least, "step") for width, at_least in TORCH_STEP.items()),
            *never_slower(TorchFused),
        ),
        effort=Effort(seconds=30),
        measure=loop.measure,
        environment="default",
    ),
    "loop-policy": Case(
        "in PyTorch's training loop, with default settings: policy networks",
        problems=(loop.policy(POLICY_LAYERS), loop.policy((17, 256, 256, 6))),
        peers=(OnepassTorch, *TORCH),
        effort=Effort(seconds=20),
        measure=loop.measure,
        environment="default",
    ),
    "loop-numpy": Case(
        "in NumPy's training loop, with default settings: steps and whole iterations of networks of 64 to 2,048 wide",
        problems=tuple(LOOPS.values()),
        peers=NUMPY_LOOP,
        bars=never_slower(OnepassOneThread),
        effort=Effort(seconds=30),
        measure=loop.measure,
        environment="default",
    ),
    "loop-numpy OPENBLAS_THREAD_TIMEOUT=16": Case(
        "the same with OpenBLAS' idle threads put to sleep early",
        problems=tuple(LOOPS.values()),
        peers=NUMPY_LOOP,
        bars=tuple(Bar(LOOPS[width], (OnepassOneThread,), 1.5, "step") for width in (512, 1024, 2048)),
        effort=Effort(seconds=30),
        measure=loop.measure,
        environment="default",
        settings=("OPENBLAS_THREAD_TIMEOUT=16",),
    ),
    "thinc": Case(
        "600 thousand elements through thinc's interface: the adapter beside thinc's own object",
        problems=(SIX_HUNDRED_THOUSAND,),
        peers=(OnepassThinc, ThincOptimizer),
        bars=(Bar(SIX_HUNDRED_THOUSAND, (ThincOptimizer,), 4),),
    ),
    "sizes": Case(
        "100 to 10 million elements, one thread, all peers that have it: README's table and image",
        problems=tuple(of(10**exponent) for exponent in range(2, 8)),
        peers=tuple(kind for kind in PEERS if kind is not Optax),  # which has no one thread for the larger ones
    ),
}


def find(name: str) -> Case:
    """Give the case of this name, or of the name before the settings on which a variant of it is measured.

    Only what stands in ``CASES`` has bars: they are not meant for other settings.
    """
    if name in CASES:
        return CASES[name]
    base, *settings = name.split(" ")
    return replace(CASES[base], bars=(), settings=tuple(settings))


def run_named(name: str, quick: bool) -> CaseRecord | None:
    """Run what `find` gives: for another process, which can be sent a name only."""
    return run(find(name), quick)


def run(case: Case, quick: bool = False, say: Callable[[str], None] = print) -> CaseRecord | None:
    """Check and measure one case, and print its table as it comes; None if it cannot be measured here.

    Raises:
        WrongResult: a peer that computes something else than onepass.
    """
    if reason := case.why_missing():
        say(f"not measured: {reason}")
        return None
    rng = np.random.default_rng()
    effort = replace(case.effort, seconds=0.2, sittings=1, iterations=4) if quick else case.effort
    first = case.peers[0]
    if reason := first.why_missing():
        say(f"not measured: {reason}")
        return None
    kinds, base = [], first if issubclass(first, Onepass) else Onepass
    for kind in case.peers:
        if reason := kind.why_missing():
            say(f"{kind.name} is not measured: {reason}")
        else:
            kinds.append(kind)
    environment, versions = " ".join([case.environment, *case.settings]), software(kinds)
    say(f"environment: {environment}; {report.software_line(versions)}")
    checked = set()
    points = {}
    for problem in case.problems:
        if problem.threads > cores():
            say(f"{problem}: not measured on {cores()} core")
            continue
        able = [kind for kind in kinds if kind.supports(problem)]
        for kind in able:
            alike = kind, problem.dtype, problem.rule, problem.threads
            if kind.takes_steps and alike not in checked:
                check(kind, problem, rng, base)
                checked.add(alike)
        points[problem] = case.measure(able, problem, effort, rng)
        say((report.loop_table if "step" in points[problem] else report.table)(points[problem]))
    bars = [bar.judge(points) for bar in case.bars]
    for judged in bars:
        say(report.bar_line(judged))
    return CaseRecord(
        date=datetime.date.today().isoformat(),
        quick=quick,
        environment=environment,
        software=versions,
        points=list(points.values()),
        bars=bars,
    )
