"""One case, and how it is checked, measured and recorded."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from . import report
from .machine import cores, software
from .measure import Budget, check, measure
from .peer import Peer, Problem
from .peers import Onepass
from .records import CaseRecord, Point
from .targets import FurtherTensor, Target


@dataclass(frozen=True)
class Case:
    """Problems, the peers that are measured on them, and the targets.

    The first peer is onepass or one of its adapters: the other peers are compared with it.
    """

    summary: str
    problems: tuple[Problem, ...]
    peers: tuple[type[Peer], ...]
    targets: tuple[Target | FurtherTensor, ...] = ()
    budget: Budget = field(default_factory=Budget)
    measure: Callable[[Sequence[type[Peer]], Problem, Budget, np.random.Generator], Point] = measure
    why_missing: Callable[[], str | None] = lambda: None
    environment: str = "quiet"  # one of `environment.VARIABLES`
    settings: tuple[str, ...] = ()  # on top, such as OMP_NUM_THREADS=1


def run(case: Case, quick: bool = False, say: Callable[[str], None] = print) -> CaseRecord | None:
    """Check and measure one case, and print each table once it is complete; return None if a requirement is missing.

    Raises:
        WrongResult: a peer's results differ from onepass's.
    """
    if reason := case.why_missing():
        say(f"not measured: {reason}")
        return None
    rng = np.random.default_rng()
    budget = replace(case.budget, seconds=0.2, sessions=1, iterations=4) if quick else case.budget
    first = case.peers[0]
    if reason := first.why_missing():
        say(f"not measured: {reason}")
        return None
    kinds, base = [], first if issubclass(first, Onepass) and first.tolerance is None else Onepass
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
        points[problem] = case.measure(able, problem, budget, rng)
        say((report.loop_table if "step" in points[problem] else report.table)(points[problem]))
    targets = [target.judge(points) for target in case.targets]
    for judged in targets:
        say(report.target_line(judged))
    return CaseRecord(
        date=datetime.date.today().isoformat(),
        quick=quick,
        environment=environment,
        software=versions,
        points=list(points.values()),
        targets=targets,
    )
