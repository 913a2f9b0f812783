"""Results of platforms, and the table of them in docs/installing.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tools" / "platforms" / "results.json"
PAGE = ROOT / "docs" / "installing.md"
BEGIN, END = "<!-- platforms: begin -->", "<!-- platforms: end -->"
HEAD = ("platform", "run", "with", "passed", "failed", "wheel", "date")


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    platform: str  # "Linux with musl, x86-64"
    run: str  # what was run: "the Python test suite", "the core's own tests under wine"
    versions: str  # of compiler, Python, NumPy, emulator
    passed: int  # tests
    failed: int
    date: str  # 2026-11-30
    wheel_bytes: int | None = None  # None: no wheel was built
    note: str = ""  # a limit of the run, after its text: "linked only"


def passed_and_failed(run: str | Path, summary: str, status: int) -> tuple[int, int]:
    """Return the numbers in pytest's summary, or raise an error that names the run if its status does not fit them."""
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", summary)}
    failed = found.get("failed", 0) + found.get("error", 0)
    if "passed" not in found or status != (failed > 0):
        raise RuntimeError(f"{run}: expected a complete run of the tests, got status {status} and {summary!r}")
    return found["passed"], failed


def load() -> dict[str, list[Result]]:
    """Return the results of each target that has been run."""
    if not RESULTS.exists():
        return {}
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {target: [Result(**row) for row in rows] for target, rows in found.items()}


def save(target: str, results: Iterable[Result]) -> None:
    """Replace the results of a target, and write the table into the page."""
    found = {**load(), target: list(results)}
    data = {name: [asdict(row) for row in rows] for name, rows in sorted(found.items())}
    RESULTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table() -> str:
    """Return the table of all results in Markdown."""
    lines = [HEAD, ("---", "---", "---", "--:", "--:", "--:", "---")]
    for rows in load().values():
        for row in rows:
            size = "" if row.wheel_bytes is None else f"{row.wheel_bytes / 1000:.0f} kB"
            run = f"{row.run} ({row.note})" if row.note else row.run
            lines.append((row.platform, run, row.versions, f"{row.passed:,}", f"{row.failed:,}", size, row.date))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
