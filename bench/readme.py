"""The tables in README and docs/benchmarks.md: made from a results file, and nothing but what stands in it.

``python -m bench.readme`` rewrites whatever stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``;
``--check`` only says whether it is what the file gives. Names are those of ``BLOCKS``, ``case NAME`` for the table of
one case and ``figure NAME`` for an image that `plots` draws. Without ``--name`` the file is the one that README already
cites, else this machine's.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from . import records, report
from .records import Point, Record

DOCUMENTS = (records.ROOT / "README.md", records.ROOT / "docs" / "benchmarks.md")
MARK = re.compile(r"<!-- ([A-Za-z0-9_=,. -]+): (begin|end) -->")
COLUMNS = ("onepass", "torch fused", "Numba", "thinc", "in-place NumPy", "textbook NumPy", "pure Python")
RULE_COLUMNS = ("torch fused", "torch foreach", "torch default")
NO_STEP = ("stream limit", "no optimizer")  # what is measured beside the others and takes no step of Adam

# What each image shows, and the case that it is of; None: of several.
FIGURES: dict[str, tuple[str | None, str]] = {
    "bars": (None, "How many times as fast as other ways to take the same step onepass is, wherever a bar was set"),
    "speed": ("sizes", "Time of one Adam step against the number of parameters, for all peers"),
    "tensors": ("tensors", "Time of one Adam step against the number of tensors of 100 elements"),
    "threads": ("threads", "Elements stepped in a nanosecond against the number of threads"),
}


def table(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Write rows, the first of which is the head; so many columns are aligned to the left, the others to the right."""
    marks = ["---" if column < left else "--:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:]))


def cell(point: Point, name: str, among: Sequence[str], own: str = "onepass") -> str:
    """Write a peer's time, bold if none of the others is faster, and in brackets how many times onepass's it is.

    Nothing where it was not measured, and no brackets for onepass itself, whose name in this case is `own`.
    """
    if name not in point["timings"]:
        return ""
    median = report.duration(point["timings"][name]["median_ns"])
    text = f"**{median}**" if name == ranking(point, among)[0] else median
    return text if name == own else f"{text} ({report.times(point['over_onepass'][name]['of_medians'])})"


def ranking(point: Point, among: Sequence[str]) -> list[str]:
    """Those of these peers that were measured and take a step, the fastest first."""
    measured = [name for name in among if name in point["timings"] and name not in NO_STEP]
    return sorted(measured, key=lambda name: point["timings"][name]["median_ns"])


def of_limit(point: Point, name: str) -> str:
    """Write which share of the stream limit's speed a peer has."""
    if "stream limit" not in point["timings"] or name not in point["timings"]:
        return ""
    return f"{report.limit_ns(point) / point['timings'][name]['median_ns']:.2f}"


def speed_table(record: Record, name: str) -> str:
    """README's table and the sentences below it."""
    case = record["cases"]["sizes"]
    columns = [column for column in COLUMNS if any(column in point["timings"] for point in case["points"])]
    rows = [["float32 parameters", *columns, "of the stream limit"]]
    for point in case["points"]:
        cells = [cell(point, column, columns) for column in columns]
        rows.append([report.count(point["elements"]), *cells, of_limit(point, "onepass")])
    rounds = sorted(point["rounds"] for point in case["points"])
    return (
        f"{table(rows)}\n\n"
        f"Time of one Adam step on one tensor, one thread: medians of {rounds[0]} to {rounds[-1]} interleaved "
        f"rounds, the fastest in bold, in brackets the time over onepass's. Numba's loop is compiled with `fastmath`, "
        f"which may round differently. The stream limit is the time that the same memory traffic takes with next to no "
        f"arithmetic; on small tensors both are the cost of a call. Measured on "
        f"{case['date']} on {report.machine_line(record['machine'])}, environment: {case['environment']}, with "
        f"{report.software_line(case['software'])}; "
        f"all figures are in [{name}.json](bench/results/{name}.json). Measure your own machine with `make bench`."
    )


def speed_figure(record: Record, name: str) -> str:
    """README's image, and for those who cannot see it who is how fast at both of its ends."""
    points = record["cases"]["sizes"]["points"]
    orders = []
    for point in (points[0], points[-1]):
        order = ", ".join(ranking(point, list(point["timings"])))
        orders.append(f"{report.count(point['elements'])} parameters, the fastest first: {order}")
    alt = f"{FIGURES['speed'][1]}. At {'; at '.join(orders)}."
    return f"![{alt}](docs/images/speed.png)"


def machine(record: Record, name: str) -> str:
    """Say on what the page's figures were measured."""
    return f"{report.machine_line(record['machine'])}: [{name}.json](../bench/results/{name}.json)."


def bars(record: Record, name: str) -> str:
    """All bars, each with what was measured."""
    rows = [["case", "measured on", "bar", "measured", ""]]
    for key, case in record["cases"].items():
        for bar in case["bars"]:
            measured, result = "", "not measured"
            if bar["measured"] is not None:
                measured = f"{report.digits(bar['measured'])}{'' if bar['peer'] else ' ns'}"
                result = "holds" if bar["holds"] else "**missed**"
            rows.append([f"`{key}`", bar["problem"], bar["bar"], measured, result])
    return table(rows, left=3)


def rules(record: Record, name: str) -> str:
    """The rules beside each other."""
    case = record["cases"].get("rules")
    if case is None:
        return not_measured("rules")
    rows = [["rule", "dtype", "arrays", "onepass", "ns/element", "GB/s", "of the stream limit", *RULE_COLUMNS]]
    for point in case["points"]:
        ns, moved = point["timings"]["onepass"]["median_ns"], point["streams"] * point["elements"]
        rows.append(
            [
                point["rule"],
                point["dtype"],
                str(point["streams"]),
                cell(point, "onepass", ("onepass", *RULE_COLUMNS)),
                report.digits(ns / point["elements"]),
                report.digits(moved * {"float32": 4, "float64": 8}[point["dtype"]] / ns),
                of_limit(point, "onepass"),
                *(cell(point, column, ("onepass", *RULE_COLUMNS)) for column in RULE_COLUMNS),
            ]
        )
    return f"{table(rows, left=2)}\n\n{measured_with(record, 'rules')}"


def tables(record: Record, case: str) -> str:
    """Everybody's times in one case: a table with a column for each problem."""
    if case not in record["cases"]:
        return not_measured(case)
    points = record["cases"][case]["points"]
    if "step" in points[0]:
        return "\n\n".join([*map(loop_table, points), measured_with(record, case)])
    names = list(dict.fromkeys(name for point in points for name in point["timings"]))
    limits = any("stream limit" in point["timings"] for point in points)
    head = [text for point in points for text in (point["problem"], *["of the limit"] * limits)]
    rows = [["", *head]]
    for name in names:
        cells = (
            text
            for point in points
            for text in (cell(point, name, names, own=names[0]), *[of_limit(point, name)] * limits)
        )
        rows.append([name, *cells])
    return f"{table(rows, left=1)}\n\n{measured_with(record, case)}"


def loop_table(point: Point) -> str:
    """Everybody's times in one training loop: a column for each statistic of a step and of an iteration."""
    parts = {"step": point["step"], "iteration": point}
    rows = [[point["problem"], *(f"{what}, {text}" for what in parts for text in report.STATISTICS.values())]]
    for row, name in enumerate(point["timings"]):
        cells = [
            report.duration(part["timings"][name][each])
            + (f" ({report.times(report.ratio(part, name, each))})" if row else "")
            for part in parts.values()
            for each in report.STATISTICS
        ]
        rows.append([name, *cells])
    return table(rows, left=1)


# The training loops that README shows: the case, whose time is compared with onepass's, and the head of its columns.
LOOPS = (
    ("loop-torch", "torch fused", "onepass for torch", "PyTorch"),
    ("loop-numpy", "onepass, one thread", "onepass", "NumPy"),
)


def loops(record: Record, name: str) -> str:
    """The step in training loops: its time with onepass and with another, and how many times as fast both parts are."""
    columns: list[dict[int, list[str]]] = []
    head = ["parameters"]
    for case, other, own, library in LOOPS:
        if case not in record["cases"]:
            continue
        head += [f"{library}: step, {other}", f"step, {own}", "ratio of steps", "ratio of iterations"]
        columns.append(
            {
                point["elements"]: [
                    *(report.duration(point["step"]["timings"][peer]["median_ns"]) for peer in (other, own)),
                    *(report.times(report.ratio(part, other, "median_ns")) for part in (point["step"], point)),
                ]
                for point in record["cases"][case]["points"]
            }
        )
    if not columns:
        return not_measured(LOOPS[0][0])
    rows = [head]
    for elements in sorted({elements for column in columns for elements in column}):
        cells = [cell for column in columns for cell in column.get(elements, [""] * 4)]
        rows.append([f"{report.digits(elements / 10**6)} million", *cells])
    return table(rows)


def image(record: Record, name: str) -> str:
    """One of the images, if its case was measured."""
    case, alt = FIGURES[name]
    if case is not None and case not in record["cases"]:
        return not_measured(case)
    return f"![{alt}](images/{name}.png)"


def measured_with(record: Record, case: str) -> str:
    """Say when this case was measured, with which versions and in how many rounds."""
    found = record["cases"][case]
    rounds = sorted(point["rounds"] for point in found["points"])
    many = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
    software = report.software_line(found["software"])
    return f"{found['date']}, medians of {many} rounds, environment: {found['environment']}, {software}."


def not_measured(case: str) -> str:
    name, *settings = case.split(" ")
    how = f"make bench CASE={name}" + (f' ARGS="--env {" --env ".join(settings)}"' if settings else "")
    return f"Not measured on this machine yet: `{how}`."


BLOCKS: dict[str, Callable[[Record, str], str]] = {
    "speed figure": speed_figure,
    "speed table": speed_table,
    "machine": machine,
    "bars": bars,
    "rules": rules,
    "loop": loops,
}


def block(what: str, record: Record, name: str) -> str:
    """Make one block's text, without its marks.

    Raises:
        ValueError: there is no such block.
    """
    if what.startswith("case "):
        return tables(record, what.removeprefix("case "))
    if what.startswith("figure "):
        return image(record, what.removeprefix("figure "))
    if what not in BLOCKS:
        raise ValueError(f"no block is named {what!r}; there are {', '.join(BLOCKS)}, 'case NAME' and 'figure NAME'")
    return BLOCKS[what](record, name)


def rewritten(text: str, record: Record, name: str) -> str:
    """Make all blocks of the text anew.

    Raises:
        ValueError: there are none, or a begin or an end is alone.
    """
    marks = [(mark.group(1), mark.group(2)) for mark in MARK.finditer(text)]
    begun = [what for what, end in marks if end == "begin"]
    if not begun or marks != [(what, end) for what in begun for end in ("begin", "end")]:
        raise ValueError("<!-- NAME: begin --> and <!-- NAME: end --> must follow each other")
    for what in begun:
        begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{block(what, record, name)}\n{end}{rest.partition(end)[2]}"
    return text


def cited(text: str) -> str | None:
    """Find the name of the results file that the text cites."""
    found = re.search(r"\((?:\.\./)?bench/results/([^/)]+)\.json\)", text)
    return found.group(1) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="Rewrite the tables of the benchmarks.")
    parser.add_argument("documents", type=Path, nargs="*", default=DOCUMENTS)
    parser.add_argument("--name", help="which bench/results/NAME.json")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is not current")
    options = parser.parse_args(arguments)
    texts = {document: document.read_text(encoding="utf-8") for document in options.documents}
    name = options.name or next(filter(None, map(cited, texts.values())), None)
    if name is None:
        from .machine import describe, slug, software

        name = slug(describe(), software())
    record = records.load(records.path_of(name))
    stale = 0
    for document, text in texts.items():
        new = rewritten(text, record, name)
        if options.check:
            print(f"{document.name} {'is current' if new == text else 'is not what its results file gives'}")
            stale += new != text
        else:
            document.write_text(new, encoding="utf-8")
    return int(stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
