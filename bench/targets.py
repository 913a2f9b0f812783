"""Targets, and how they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from . import report
from .peer import Peer, Problem
from .peers import Onepass, StreamBaseline
from .records import Comparison, Point, Statistic, TargetRecord

Points = Mapping[Problem, Point]


@dataclass(frozen=True)
class Target:
    """The least ratio of a peer's time to onepass's on a problem; of several peers the fastest counts."""

    problem: Problem
    peers: tuple[type[Peer], ...]
    at_least: float
    part: Literal["", "step", "iteration"] = ""  # the part of a training loop
    statistic: Statistic = "median_ns"

    def judge(self, points: Points) -> TargetRecord:
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
        mean = [report.STATISTICS[self.statistic]] * (self.statistic != "median_ns")
        part = ", ".join([self.part, *mean]) + ": " if self.part else ""
        least = f"{self.at_least:g}\N{MULTIPLICATION SIGN} {name}"
        if self.peers == (StreamBaseline,):
            least = f"{100 * self.at_least:g} % of the stream baseline"
        return TargetRecord(
            problem=str(self.problem),
            peer=name,
            target=f"{part}at least {least}{', the fastest other' if len(self.peers) > 1 else ''}",
            wanted=self.at_least,
            measured=ratio,
            by_rounds=by_rounds,
            met=None if ratio is None else ratio >= self.at_least,
        )


@dataclass(frozen=True)
class FurtherTensor:
    """The most nanoseconds that each further tensor of the same size may take."""

    problem: Problem
    one: Problem
    at_most: float

    def judge(self, points: Points) -> TargetRecord:
        many, one = (points[problem]["timings"][Onepass.name]["median_ns"] for problem in (self.problem, self.one))
        each = (many - one) / (len(self.problem.sizes) - len(self.one.sizes))
        return TargetRecord(
            problem=str(self.problem),
            peer="",
            target=f"at most {self.at_most:g} ns a further tensor",
            wanted=self.at_most,
            measured=each,
            by_rounds=None,  # the two problems are measured one after the other
            met=each <= self.at_most,
        )
