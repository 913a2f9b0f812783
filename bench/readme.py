"""README's speed table: made from a results file, and nothing but what stands in it.

``python -m bench.readme`` rewrites what stands between the two marks in README.md; ``--check`` only says whether it is
what the file gives. Without ``--name`` that file is the one that the block already cites, else this machine's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from . import records, report
from .records import Record

BEGIN, END = "<!-- speed table: begin -->", "<!-- speed table: end -->"
COLUMNS = ("onepass", "in-place NumPy", "textbook NumPy", "pure Python", "thinc")


def block(record: Record, name: str) -> str:
    """Make the table and the sentences below it, without the marks."""
    case = record["cases"]["sizes"]
    rows = [["float32 parameters", *COLUMNS, "of the stream limit"], ["--:"] * (len(COLUMNS) + 2)]
    for point in case["points"]:
        timings, ratios = point["timings"], point["over_onepass"]
        row = [report.count(point["elements"])]
        for column in COLUMNS:
            if column not in timings:
                row.append("")
            elif column == "onepass":
                row.append(f"**{report.duration(timings[column]['median_ns'])}**")
            else:
                times = report.times(ratios[column]["of_medians"])
                row.append(f"{report.duration(timings[column]['median_ns'])} ({times})")
        rows.append([*row, f"{ratios['stream limit']['of_medians']:.2f}"])
    rounds = sorted(point["rounds"] for point in case["points"])
    machine, software = record["machine"], case["software"]
    return "\n".join(
        [
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"Time of one Adam step on one tensor, one thread: medians of {rounds[0]} to {rounds[-1]} interleaved "
            f"rounds, in brackets the time over onepass's. The stream limit is the time that the same memory traffic "
            f"takes with next to no arithmetic; on small tensors both are the cost of a call. Measured on "
            f"{case['date']} on {report.machine_line(machine)}, with {report.software_line(software)}; all figures "
            f"are in [{name}.json](bench/results/{name}.json). Measure your own machine with `make bench`.",
        ]
    )


def rewritten(text: str, record: Record, name: str) -> str:
    """Make the block of README's text anew.

    Raises:
        ValueError: the marks are not there, once each and in order.
    """
    parts = re.split(f"({re.escape(BEGIN)}|{re.escape(END)})", text)
    if parts[1::2] != [BEGIN, END]:
        raise ValueError(f"README must hold {BEGIN!r} and {END!r} once each, in this order")
    before, _, _, _, after = parts
    return f"{before}{BEGIN}\n{block(record, name)}\n{END}{after}"


def cited(text: str) -> str | None:
    """Find the name of the results file that README's block cites."""
    inside = text.partition(BEGIN)[2].partition(END)[0]
    found = re.search(r"\(bench/results/([^/)]+)\.json\)", inside)
    return found.group(1) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="Rewrite README's speed table.")
    parser.add_argument("readme", type=Path, nargs="?", default=records.ROOT / "README.md")
    parser.add_argument("--name", help="which bench/results/NAME.json")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the table is not current")
    options = parser.parse_args(arguments)
    text = options.readme.read_text(encoding="utf-8")
    name = options.name or cited(text)
    if name is None:
        from . import machine

        name = machine.slug(machine.describe(), machine.software())
    new = rewritten(text, records.load(records.path_of(name)), name)
    if options.check:
        print("the speed table is current" if new == text else "the speed table is not what its results file gives")
        return int(new != text)
    options.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
