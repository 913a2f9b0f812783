"""Contents of a results file, and functions that read, merge and write it.

One file per machine. Each case keeps its own date and versions, so a run of one case leaves the others as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

Statistic = Literal["median_ns", "mean_ns", "p90_ns", "fastest_ns"]


class FurtherStatistics(TypedDict, total=False):
    """Statistics that older files do not have: of stalls, which a median hides, and of the step disturbed least."""

    mean_ns: float
    p90_ns: float
    fastest_ns: float


class Timing(FurtherStatistics):
    """Nanoseconds per step: median and quartiles over the rounds, and the number of steps in a sample."""

    median_ns: float
    q1_ns: float
    q3_ns: float
    steps_per_sample: int


class Ratio(TypedDict):
    """A peer's time divided by onepass's: ratio of the medians, and median of the ratios in each round."""

    of_medians: float
    median_of_rounds: float


class Comparison(TypedDict):
    """Time of each peer, and its ratio to the time of onepass, the first peer."""

    timings: dict[str, Timing]
    over_onepass: dict[str, Ratio]


class Parts(TypedDict, total=False):
    """Parts of some points only: the steps within whole iterations, sizes by name, and bytes per parameter by peer."""

    step: Comparison
    bytes: dict[str, float]
    held: dict[str, float]  # weights, gradient and state
    moved: dict[str, float]  # by one pass over them


class Point(Comparison, Parts):
    """One problem, and the time of each peer on it."""

    problem: str
    elements: int  # of all tensors together
    tensors: int
    dtype: str
    threads: int  # 0: the default number of each peer
    rule: str
    streams: int  # arrays that a step reads plus arrays that it writes
    rounds: int


class TargetRecord(TypedDict):
    """A target and the measured value, which is None where a peer is missing."""

    problem: str
    peer: str  # "" if the target is a time and not a ratio to onepass's time
    target: str  # "at least" a ratio or a percentage, or "at most" a time
    wanted: float  # the same as a ratio or in nanoseconds
    measured: float | None
    by_rounds: float | None  # the median of the ratios in each round
    met: bool | None


class Software(TypedDict):
    """Versions."""

    onepass: str
    compiler: str
    instruction_set: str
    python: str
    numpy: str
    peers: dict[str, str]


class CaseRecord(TypedDict):
    """One case: its date, environment and versions, and its results."""

    date: str
    quick: bool
    environment: str  # one of `environment.VARIABLES`, and the settings on top of it
    software: Software
    points: list[Point]
    targets: list[TargetRecord]


class Machine(TypedDict):
    """The machine, with the caches of one core."""

    cpu: str
    cores: int
    caches: dict[str, str]
    memory_gib: int
    system: str
    architecture: str


class Record(TypedDict):
    """A results file."""

    machine: Machine
    cases: dict[str, CaseRecord]


def path_of(name: str) -> Path:
    return RESULTS / f"{name}.json"


def load(path: Path) -> Record:
    return cast(Record, json.loads(path.read_text(encoding="utf-8")))


def with_case(record: Record, case: str) -> Record:
    """Return the record itself if it has the case, else the record of another machine that has it, if any."""
    others = map(load, sorted(RESULTS.glob("*.json")))
    return next((each for each in (record, *others) if case in each["cases"]), record)


def save(path: Path, machine: Machine, cases: dict[str, CaseRecord]) -> None:
    """Write these cases into the file, and keep the other cases that it has."""
    kept: dict[str, Any] = dict(load(path)["cases"]) if path.exists() else {}
    record = Record(machine=machine, cases=dict(sorted({**kept, **cases}.items())))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
