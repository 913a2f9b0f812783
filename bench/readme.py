"""Tables and images of README and docs, made from the results files only.

``python -m bench.readme`` draws the images and rewrites the text between ``<!-- NAME: begin -->`` and
``<!-- NAME: end -->``; ``--check`` only compares the text. A block is one of ``BLOCKS``, ``case NAME`` for the table of
one case or ``figure NAME`` for an image. Without ``--name`` the results file is the one that README cites, else the one
of this machine.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from . import plots, records, report
from .records import Point, Record, Statistic

DOCUMENTS = tuple(
    records.ROOT / path
    for path in ("README.md", "docs/benchmarks.md", "docs/benchmarks-distributed.md", "docs/benchmarks-bits.md")
)
MARK = re.compile(r"<!-- ([A-Za-z0-9_=,. -]+): (begin|end) -->")
COLUMNS = ("onepass", "Numba", "torch fused", "in-place NumPy", "textbook NumPy")  # of README's table
RULE_COLUMNS = ("torch fused", "torch foreach", "torch default", "schedulefree")
# Complete training steps in README: the case, the peer that onepass is compared with, and the network.
GAINS = (
    ("torch-training", "torch fused", "PyTorch, a policy network"),
    ("loop-torch", "torch fused", "PyTorch, four square layers"),
    ("digits", "textbook NumPy", "NumPy, a perceptron on handwritten digits"),
    ("loop-numpy", "textbook NumPy", "NumPy, four square layers"),
)
NO_STEP = ("stream baseline", "no optimizer")  # peers without a step of Adam
OF_BASELINE = "of the stream baseline"
HELD = "bytes held per parameter"
FEWER_BITS = "bits-bandwidth"


def table(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Return a Markdown table whose first row is the head and whose first `left` columns are aligned to the left."""
    marks = ["---" if column < left else "--:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:]))


def cell(point: Point, name: str, among: Sequence[str], own: str = "onepass") -> str:
    """Return a peer's time, bold if it is the fastest of these peers, and in brackets its ratio to onepass's time.

    The text is empty without a measurement, and has no brackets for onepass, whose name in this case is `own`.
    """
    if name not in point["timings"]:
        return ""
    text = report.duration(point["timings"][name][statistic(point)])
    if statistic(point) == "median_ns" and name == ranking(point, among)[0]:
        text = f"**{text}**"
    return text if name == own else f"{text} ({report.times(report.ratio(point, name, statistic(point)))})"


def statistic(point: Point) -> Statistic:
    """Return the statistic that tables show: the fastest step if other programs may disturb the ranks or the disk."""
    return "fastest_ns" if "bytes" in point else "median_ns"


def ranking(point: Point, among: Sequence[str]) -> list[str]:
    """Return the peers among these that were measured and take a step, the fastest first."""
    measured = [name for name in among if name in point["timings"] and name not in NO_STEP]
    return sorted(measured, key=lambda name: point["timings"][name]["median_ns"])


def of_baseline(point: Point, name: str) -> str:
    """Return a peer's speed as a percentage of the stream baseline."""
    if "stream baseline" not in point["timings"] or name not in point["timings"]:
        return ""
    return report.percent(report.baseline_ns(point, name) / point["timings"][name]["median_ns"])


def headline(record: Record, name: str) -> str:
    """Return README's sentence about the time of a step."""
    points = record["cases"]["sizes"]["points"]
    sizes = [report.count(point["elements"]) for point in points]
    ratios = [report.ratio(point, "in-place NumPy", "median_ns") for point in points]
    times = {name: report.duration(timing["median_ns"]) for name, timing in points[0]["timings"].items()}
    torch = f", PyTorch's fused Adam {times['torch fused']}" if "torch fused" in times else ""
    return (
        f"From {sizes[0]} to {sizes[-1]} parameters, a step is {report.digits(min(ratios))} to "
        f"{report.digits(max(ratios))} times as fast as in-place NumPy. On {sizes[0]} parameters it takes "
        f"{times['onepass']}{torch}."
    )


def speed_table(record: Record, name: str) -> str:
    """Return README's table of steps: every second size and the largest."""
    points = record["cases"]["sizes"]["points"]
    points = [*points[:-1:2], points[-1]]
    columns = [column for column in COLUMNS if any(column in point["timings"] for point in points)]
    rows = [["float32 parameters", *columns]]
    for point in points:
        rows.append([report.count(point["elements"]), *(cell(point, column, columns) for column in columns)])
    return f"{table(rows)}\n\n{versions(record, ['sizes'])}"


def speed_figure(record: Record, name: str) -> str:
    """Return README's image, with the order of its peers at both ends as its description."""
    points = record["cases"]["sizes"]["points"]
    orders = []
    for point in (points[0], points[-1]):
        order = ", ".join(ranking(point, plots.SPEED_PEERS))
        orders.append(f"{report.count(point['elements'])} parameters, the fastest first: {order}")
    alt = f"{plots.FIGURES['speed'].alt}. At {'; at '.join(orders)}."
    return f"![{alt}](docs/images/speed.png)"


def speed_source(record: Record, name: str) -> str:
    """Return the conditions under which README's figure and table were measured."""
    return (
        f"{measured_with(record, 'sizes')} All figures are in [{name}.json](bench/results/{name}.json). Numba's loop "
        "is compiled with `fastmath`, which may round differently. The stream baseline is a loop with the same memory "
        "traffic and one addition per array."
    )


def gains(record: Record, name: str) -> str:
    """Return README's table of complete training steps: the time with a peer's optimizer, divided by onepass's time."""
    rows = [["network", "compared with", "speed-up of a complete training step"]]
    for case, peer, label in GAINS:
        points = records.with_case(record, case)["cases"].get(case, {"points": []})["points"]
        ratios = [report.ratio(point, peer, "median_ns") for point in points if peer in point["timings"]]
        if ratios:
            ends = dict.fromkeys(report.times(ratio) for ratio in (min(ratios), max(ratios)))
            sizes = dict.fromkeys(rounded(point["elements"]) for point in (points[0], points[-1]))
            rows.append([f"{label}, {' to '.join(sizes)} parameters", peer, " to ".join(ends)])
    if not rows[1:]:
        return not_measured(GAINS[0][0])
    return f"{table(rows, left=2)}\n\n{versions(record, [case for case, *_ in GAINS])}"


def rounded(number: int) -> str:
    """Write a number, in millions with three digits if it is at least one: 4,996, 16.8 million."""
    return f"{report.digits(number / 10**6)} million" if number >= 10**6 else f"{number:,}"


def machine(record: Record, name: str) -> str:
    """Return the machine of the page's figures."""
    return f"{report.machine_line(record['machine'])}: [{name}.json](../bench/results/{name}.json)."


def targets(record: Record, name: str) -> str:
    """Return all targets with the measured values."""
    rows = [["case", "problem", "target", "measured", ""]]
    for key, case in record["cases"].items():
        for target in case["targets"]:
            measured, result = "", "not measured"
            if target["measured"] is not None:
                measured = report.measured(target, target["measured"])
                result = "met" if target["met"] else "**missed**"
            rows.append([f"`{key}`", target["problem"], target["target"], measured, result])
    return table(rows, left=3)


def rules(record: Record, name: str) -> str:
    """Return a table of all rules."""
    record = records.with_case(record, "rules")
    if "rules" not in record["cases"]:
        return not_measured("rules")
    rows = [["rule", "dtype", "arrays", "onepass", "ns/element", "GB/s", OF_BASELINE, *RULE_COLUMNS]]
    for point in record["cases"]["rules"]["points"]:
        ns, moved = point["timings"]["onepass"]["median_ns"], point["streams"] * point["elements"]
        rows.append(
            [
                point["rule"],
                point["dtype"],
                str(point["streams"]),
                cell(point, "onepass", ("onepass", *RULE_COLUMNS)),
                report.digits(ns / point["elements"]),
                report.digits(moved * {"float32": 4, "float64": 8}[point["dtype"]] / ns),
                of_baseline(point, "onepass"),
                *(cell(point, column, ("onepass", *RULE_COLUMNS)) for column in RULE_COLUMNS),
            ]
        )
    return f"{table(rows, left=2)}\n\n{measured_with(record, 'rules')}"


def tables(record: Record, case: str) -> str:
    """Return the times in one case, with a column for each problem; then the speeds relative to the stream baseline."""
    record = records.with_case(record, case)
    if case not in record["cases"]:
        return not_measured(case)
    points = record["cases"][case]["points"]
    if "step" in points[0]:
        return "\n\n".join([*map(loop_table, points), measured_with(record, case)])
    names = plots.names(points)
    corner, *head = columns_of(points)
    rows = [[corner, *head]]
    rows += [[name, *(cell(point, name, names, own=names[0]) for point in points)] for name in names]
    sizes = [{key: report.size(number) for key, number in point.get("bytes", {}).items()} for point in points]
    rows += [
        [key, *(each.get(key, "") for each in sizes)] for key in dict.fromkeys(key for each in sizes for key in each)
    ]
    if "held" in points[-1]:
        rows = [[*row, HELD if row is rows[0] else held_by(points[-1], row[0])] for row in rows]
    written = [table(rows, left=1)]
    if "stream baseline" in names:
        names.remove("stream baseline")
        shares = [[name, *(of_baseline(point, name) for point in points)] for name in names]
        written.append(table([[OF_BASELINE, *head], *shares], left=1))
    return "\n\n".join([*written, measured_with(record, case)])


def fewer_bits(record: Record, name: str) -> str:
    """Return README's table of storages: bytes, and the time of a step relative to float32."""
    record = records.with_case(record, FEWER_BITS)
    if FEWER_BITS not in record["cases"]:
        return not_measured(FEWER_BITS)
    points = record["cases"][FEWER_BITS]["points"]
    rows = [["weights and state", HELD, *(f"time of a step, {point['problem'].split(', ')[2]}" for point in points)]]
    for peer in plots.names(points):
        if peer.startswith("onepass"):
            ratios = (report.times(report.ratio(point, peer, "median_ns")) for point in points)
            rows.append([plots.storage(peer), held_by(points[-1], peer), *ratios])
    return (
        f"{table(rows, left=1)}\n\nAdamW, {points[0]['problem'].split(',')[0]}; times relative to float32. "
        f"{versions(record, [FEWER_BITS])[:-1]} on {report.machine_line(record['machine'])}."
    )


def versions(record: Record, names: Sequence[str]) -> str:
    """Return the sentence about the versions of onepass with which these cases were measured."""
    found = (records.with_case(record, name)["cases"].get(name) for name in names)
    return f"Measured with onepass {' and '.join(sorted({case['software']['onepass'] for case in found if case}))}."


def held_by(point: Point, name: str) -> str:
    """Return the bytes per parameter that a peer holds."""
    held = point.get("held", {})
    return report.digits(held[name]) if name in held else ""


def columns_of(points: Sequence[Point]) -> list[str]:
    """Return the attributes that all problems share, and then the rest of each problem's name."""
    named = [point["problem"].split(", ") for point in points]
    shared = [part for part in named[0][1:] if all(part in parts for parts in named)]
    return [", ".join(shared), *(", ".join(part for part in parts if part not in shared) for parts in named)]


def loop_table(point: Point) -> str:
    """Return the times in one training loop, with a column for each statistic of a step and of an iteration."""
    parts = {"step": point["step"], "iteration": point}
    rows = [[point["problem"], *(f"{part}, {text}" for part in parts for text in report.STATISTICS.values())]]
    for row, name in enumerate(point["timings"]):
        cells = [
            report.duration(part["timings"][name][each])
            + (f" ({report.times(report.ratio(part, name, each))})" if row else "")
            for part in parts.values()
            for each in report.STATISTICS
        ]
        rows.append([name, *cells])
    return table(rows, left=1)


# The training loops in README: the case, the peer that is compared with onepass, and the head of its columns.
LOOPS = (
    ("loop-torch", "torch fused", "onepass for torch", "PyTorch"),
    ("loop-numpy", "textbook NumPy", "onepass", "NumPy"),
)


def loops(record: Record, name: str) -> str:
    """Return the steps in training loops: times with onepass and a peer, and the speed-up of steps and iterations."""
    columns: list[dict[int, list[str]]] = []
    head = ["parameters"]
    machines: dict[str, None] = {}
    for case, other, own, library in LOOPS:
        found = records.with_case(record, case)
        if case not in found["cases"]:
            continue
        machines[report.machine_line(found["machine"])] = None
        head += [f"{library}: step, {other}", f"step, {own}", "ratio of steps", "ratio of iterations"]
        columns.append(
            {
                point["elements"]: [
                    *(report.duration(point["step"]["timings"][peer]["median_ns"]) for peer in (other, own)),
                    *(report.times(report.ratio(part, other, "median_ns")) for part in (point["step"], point)),
                ]
                for point in found["cases"][case]["points"]
            }
        )
    if not columns:
        return not_measured(LOOPS[0][0])
    rows = [head]
    for elements in sorted({elements for column in columns for elements in column}):
        cells = [cell for column in columns for cell in column.get(elements, [""] * 4)]
        rows.append([f"{report.digits(elements / 10**6)} million", *cells])
    return f"{table(rows)}\n\nMeasured on {'; '.join(machines)}, in the default environment."


def image(record: Record, name: str) -> str:
    """Return one of the images, if its case was measured."""
    case = plots.FIGURES[name].case
    if case is not None and case not in records.with_case(record, case)["cases"]:
        return not_measured(case)
    return f"![{plots.FIGURES[name].alt}](images/{name}.png)"


def measured_with(record: Record, case: str) -> str:
    """Return date, rounds, machine, environment and versions of a case."""
    found = record["cases"][case]
    rounds = sorted(point["rounds"] for point in found["points"])
    many = f"{rounds[0]}" if rounds[0] == rounds[-1] else f"{rounds[0]} to {rounds[-1]}"
    software = report.software_line(found["software"])
    machine = report.machine_line(record["machine"])
    statistics = "medians" if statistic(found["points"][0]) == "median_ns" else "the fastest"
    return (
        f"{found['date']}, {statistics} of {many} rounds on {machine}, environment: {found['environment']}, {software}."
    )


def not_measured(case: str) -> str:
    name, *settings = case.split(" ")
    how = f"make bench CASE={name}" + (f' ARGS="--env {" --env ".join(settings)}"' if settings else "")
    return f"Not measured on this machine yet: `{how}`."


BLOCKS: dict[str, Callable[[Record, str], str]] = {
    "speed figure": speed_figure,
    "headline": headline,
    "speed table": speed_table,
    "speed source": speed_source,
    "gains": gains,
    "machine": machine,
    "targets": targets,
    "rules": rules,
    "loop": loops,
    "fewer bits": fewer_bits,
}


def block(key: str, record: Record, name: str) -> str:
    """Return one block's text, without its marks.

    Raises:
        ValueError: there is no such block.
    """
    if key.startswith("case "):
        return tables(record, key.removeprefix("case "))
    if key.startswith("figure "):
        return image(record, key.removeprefix("figure "))
    if key not in BLOCKS:
        raise ValueError(f"no block is named {key!r}; there are {', '.join(BLOCKS)}, 'case NAME' and 'figure NAME'")
    return BLOCKS[key](record, name)


def rewritten(text: str, record: Record, name: str) -> str:
    """Return the text with new blocks.

    Raises:
        ValueError: there are no blocks, a begin or an end is missing, or it is not on its own line.
    """
    marks = [(mark.group(1), mark.group(2)) for mark in MARK.finditer(text)]
    keys = [key for key, end in marks if end == "begin"]
    if not keys or marks != [(key, end) for key in keys for end in ("begin", "end")]:
        raise ValueError("<!-- NAME: begin --> and <!-- NAME: end --> must follow each other")
    for key in keys:
        begin, end = f"<!-- {key}: begin -->", f"<!-- {key}: end -->"
        before, _, rest = text.partition(begin)
        indent = before[before.rfind("\n") + 1 :]  # of a block in a list
        if indent.strip():
            raise ValueError(f"{begin}: expected its own line, got {indent!r} before it")
        shown = textwrap.indent(f"{block(key, record, name)}\n{end}", indent)
        text = f"{before}{begin}\n{shown}{rest.partition(end)[2]}"
    return text


def cited(text: str) -> str | None:
    """Return the name of the results file that the text cites."""
    found = re.search(r"\((?:\.\./)?bench/results/([^/)]+)\.json\)", text)
    return found.group(1) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="Rewrite tables and images.")
    parser.add_argument("documents", type=Path, nargs="*", default=DOCUMENTS)
    parser.add_argument("--name", help="take bench/results/NAME.json")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is not current")
    options = parser.parse_args(arguments)
    texts = {document: document.read_text(encoding="utf-8") for document in options.documents}
    name = options.name or next(filter(None, map(cited, texts.values())), None)
    if name is None:
        from .machine import describe, slug, software

        name = slug(describe(), software())
    stale = 0
    for document, text in texts.items():
        own = options.name or cited(text) or name
        new = rewritten(text, records.load(records.path_of(own)), own)
        if options.check:
            print(f"{document.name} {'is current' if new == text else 'differs from its results file'}")
            stale += new != text
        else:
            document.write_text(new, encoding="utf-8")
    if not options.check:
        plots.draw(records.load(records.path_of(name)))
    return int(stale > 0)


if __name__ == "__main__":
    raise SystemExit(main())
