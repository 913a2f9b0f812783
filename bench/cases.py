"""What is measured, and what is to be reached.

To add a case, add an entry to ``CASES``. Each should take less than a minute.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from . import report
from .machine import software
from .measure import Effort, check, measure
from .peers import (
    PEERS,
    InPlaceNumPy,
    Onepass,
    OnepassClipAverage,
    OnepassOneThread,
    Peer,
    Problem,
    PurePython,
    StreamLimit,
    TextbookNumPyFreshMemory,
    Thinc,
    TorchClipAverage,
)
from .records import BarRecord, CaseRecord, Point


@dataclass(frozen=True)
class Bar:
    """The peer's time on this problem must be at least so many times onepass's."""

    problem: Problem
    peer: type[Peer]
    at_least: float

    def __str__(self) -> str:
        unit = " of the stream limit" if self.peer is StreamLimit else f"x {self.peer.name}"
        return f"{report.count(self.problem.elements)} elements, at least {self.at_least:g}{unit}"

    def judge(self, points: Mapping[Problem, Point]) -> BarRecord:
        ratio = points[self.problem]["over_onepass"].get(self.peer.name)
        return BarRecord(
            bar=str(self),
            at_least=self.at_least,
            ratio_of_medians=ratio["of_medians"] if ratio else None,
            median_ratio_of_rounds=ratio["median_of_rounds"] if ratio else None,
            holds=ratio["of_medians"] >= self.at_least if ratio else None,
        )


@dataclass(frozen=True)
class Case:
    """Some problems, who is measured on them, and what is to be reached.

    The first peer is onepass: the others are checked against it and compared with it.
    """

    summary: str
    problems: tuple[Problem, ...]
    peers: tuple[type[Peer], ...] = PEERS
    bars: tuple[Bar, ...] = ()
    effort: Effort = field(default_factory=Effort)


HUNDRED, TEN_THOUSAND, MILLION, TEN_MILLION = (Problem(elements) for elements in (100, 10_000, 10**6, 10**7))
MILLION_ON_TWO = Problem(10**6, threads=2)

CASES: dict[str, Case] = {
    "small": Case(
        "one tensor of 100 and of 1,000: what a call costs",
        problems=(HUNDRED, Problem(1_000)),
        bars=(Bar(HUNDRED, Thinc, 2), Bar(HUNDRED, InPlaceNumPy, 10)),
    ),
    "pure-python": Case(
        "10 thousand elements against a loop over lists",
        problems=(TEN_THOUSAND,),
        peers=(Onepass, StreamLimit, PurePython),
        bars=(Bar(TEN_THOUSAND, PurePython, 700),),
    ),
    "million": Case(
        "1 million elements, one thread: what memory allows",
        problems=(MILLION,),
        peers=(*PEERS, TextbookNumPyFreshMemory),
        bars=(Bar(MILLION, StreamLimit, 0.85), Bar(MILLION, TextbookNumPyFreshMemory, 30)),
        effort=Effort(seconds=16, sittings=16),
    ),
    "threads": Case(
        "1 and 10 million elements on two threads",
        problems=(MILLION_ON_TWO, Problem(10**7, threads=2)),
        peers=(Onepass, StreamLimit, OnepassOneThread),
        bars=(Bar(MILLION_ON_TWO, OnepassOneThread, 1.5),),
        effort=Effort(seconds=16, sittings=8),
    ),
    "clip": Case(
        "10 million elements: AdamW, clipping and averaging in one call against three of torch's",
        problems=(TEN_MILLION,),
        peers=(OnepassClipAverage, TorchClipAverage),
        bars=(Bar(TEN_MILLION, TorchClipAverage, 1.8),),
        effort=Effort(seconds=24, sittings=6),
    ),
    "sizes": Case(
        "100 to 10 million elements, all peers: README's table and image",
        problems=tuple(Problem(10**exponent) for exponent in range(2, 8)),
    ),
}


def run(case: Case, quick: bool = False, say: Callable[[str], None] = print) -> CaseRecord:
    """Check and measure one case, and print its table as it comes.

    Raises:
        WrongResult: a peer that computes something else than onepass.
    """
    rng = np.random.default_rng()
    effort = replace(case.effort, seconds=0.2, sittings=1) if quick else case.effort
    kinds, base = [], case.peers[0]
    assert issubclass(base, Onepass)
    for kind in case.peers:
        if reason := kind.why_missing():
            say(f"{kind.name} is not measured: {reason}")
            continue
        if kind.takes_steps:
            for dtype in sorted({problem.dtype for problem in case.problems if kind.supports(problem)}):
                check(kind, dtype, rng, base)
        kinds.append(kind)
    points = {}
    for problem in case.problems:
        points[problem] = measure([kind for kind in kinds if kind.supports(problem)], problem, effort, rng)
        say(report.table(points[problem]))
    bars = [bar.judge(points) for bar in case.bars]
    for judged in bars:
        say(report.bar_line(judged))
    return CaseRecord(
        date=datetime.date.today().isoformat(),
        quick=quick,
        software=software(case.peers),
        points=list(points.values()),
        bars=bars,
    )
