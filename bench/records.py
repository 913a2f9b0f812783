"""What a results file holds, and how it is read, merged and written.

One file per machine. Each case keeps its own date and versions, so a run of one case leaves the others as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"

Statistic = Literal["median_ns", "mean_ns", "p90_ns"]


class Tail(TypedDict, total=False):
    """Statistics that show the stalls which a median hides; files written before they existed have none."""

    mean_ns: float
    p90_ns: float


class Timing(Tail):
    """Nanoseconds a step: median and quartiles over the rounds, of samples of so many steps."""

    median_ns: float
    q1_ns: float
    q3_ns: float
    steps_per_sample: int


class Ratio(TypedDict):
    """A peer's time over onepass's: of the two medians, and the median of what each round gave."""

    of_medians: float
    median_of_rounds: float


class Comparison(TypedDict):
    """The time of each peer, the first of which is onepass, and its ratio to onepass's."""

    timings: dict[str, Timing]
    over_onepass: dict[str, Ratio]


class Parts(TypedDict, total=False):
    """The optimizer's share of an iteration, where a point is one of whole iterations."""

    step: Comparison


class Point(Comparison, Parts):
    """One problem, and what each peer took for it."""

    problem: str
    elements: int  # of all tensors together
    tensors: int
    dtype: str
    threads: int  # 0: as many as each takes by default
    rule: str
    streams: int  # arrays that a step of the rule reads or writes
    rounds: int


class BarRecord(TypedDict):
    """What was to be reached, and what was: None where it could not be measured."""

    problem: str
    peer: str  # whose time over onepass's it is; "" if the bar is no ratio
    bar: str  # at least this ratio, or at most this time
    measured: float | None
    by_rounds: float | None  # the median of what each round gave
    holds: bool | None


class Software(TypedDict):
    """Versions."""

    onepass: str
    compiler: str
    instruction_set: str
    python: str
    numpy: str
    peers: dict[str, str]


class CaseRecord(TypedDict):
    """One case: when and with what it was measured, and what came out."""

    date: str
    quick: bool
    environment: str  # one of `environment.VARIABLES`, and what was set besides
    software: Software
    points: list[Point]
    bars: list[BarRecord]


class Machine(TypedDict):
    """On what: the caches are those that one core sees."""

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


def save(path: Path, machine: Machine, cases: dict[str, CaseRecord]) -> Record:
    """Write these cases into the file, beside those that it already holds."""
    kept: dict[str, Any] = dict(load(path)["cases"]) if path.exists() else {}
    record = Record(machine=machine, cases=dict(sorted({**kept, **cases}.items())))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record
