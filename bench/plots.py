"""Images of the results in a results file.

Each is a light card with a frame, which looks the same on a white page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import records, report
from .records import Point, Record, TargetRecord

IMAGES = records.ROOT / "docs" / "images"

INK, FAINT, GRID, CARD, FRAME = "#1f2328", "#656d76", "#e6e8eb", "#ffffff", "#d0d7de"
COLOURS = {
    "onepass": "#d1242f",
    "stream baseline": "#24292f",
    "Numba": "#0a7ea4",
    "torch fused": "#bc4c00",
    "torch foreach": "#d4a72c",
    "torch default": "#e38b5c",
    "DeepSpeed CPUAdam": "#bf3989",
    "optax under jit": "#57606a",
    "thinc": "#8250df",
    "in-place NumPy": "#0969da",
    "scikit-learn": "#4d7c0f",
    "textbook NumPy": "#1a7f37",
    "pure Python": "#9a6700",
    "onepass, bfloat16 state": "#8250df",
    "onepass, float8 state": "#0969da",
    "onepass, bfloat16 weights, float8 state": "#1a7f37",
    "onepass, bfloat16 weights with master_bits=24, float8 state": "#9a6700",
    "onepass, bfloat16 weights with master_bits=16, float8 state": "#bf3989",
    "torch fused, all bfloat16": "#d4a72c",
}
SHARE = 4  # GB/s of memory bandwidth for each core of a busy socket
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "svg.hashsalt": "onepass",  # the same file for the same figures
}
FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None}},
    "png": {"dpi": 200, "metadata": {"Software": None}},
}


class Figure(NamedTuple):
    """An image: its case (None: of several cases), the text for readers who cannot see it, and its function."""

    case: str | None
    alt: str
    draw: Callable[[Record], Any]


def draw(record: Record, folder: Path = IMAGES) -> list[Path]:
    """Draw the images of all measured cases, and return their paths."""
    try:
        import matplotlib
    except ImportError:
        print("no image is drawn: matplotlib is not installed")
        return []
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure_of in FIGURES.items():
            own = record if figure_of.case is None else records.with_case(record, figure_of.case)
            if figure_of.case not in (None, *own["cases"]) or (figure := figure_of.draw(own)) is None:
                continue
            for suffix, options in FORMATS.items():
                written.append(folder / f"{name}.{suffix}")
                figure.savefig(written[-1], transparent=True, **options)
    return written


# README's figure has at most six curves, so that they can be distinguished.
SPEED_PEERS = ("onepass", "stream baseline", "Numba", "torch fused", "in-place NumPy", "textbook NumPy")


def speed(record: Record) -> Any:
    """Draw the time of a step against the number of parameters, for a few peers."""
    return times(record, "sizes", "One Adam step on a float32 array, one thread", "elements", 5.0, SPEED_PEERS)


def speed_all(record: Record) -> Any:
    """Draw the time of a step against the number of parameters, for all peers."""
    return times(record, "sizes", "One Adam step on a float32 array, one thread", "elements", height=6.2)


def tensors(record: Record) -> Any:
    """Draw the time of a step against the number of small tensors."""
    return times(record, "tensors", "One Adam step on many tensors of 100 elements", "tensors", height=5.4)


def times(
    record: Record,
    name: str,
    title: str,
    across: Literal["elements", "tensors"],
    height: float,
    peers: Sequence[str] | None = None,
) -> Any:
    """Draw the time of a step against one of the problem's numbers, for these peers or for all."""
    from matplotlib.ticker import EngFormatter

    case = record["cases"][name]
    figure = card(
        title,
        "Time of a step; lower is better. In brackets: time relative to onepass's, at the line's last point.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
        height=height,
    )
    axes = figure.add_axes((0.11, 0.68 / height, 0.635, 1 - 1.63 / height), xscale="log", yscale="log")
    axes.margins(y=0.1)  # room for the names
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    axes.set_ylabel("time of a step", labelpad=2)
    draw_lines(axes, case["points"], across, peers)
    return figure


def threads(record: Record) -> Any:
    """Draw elements per nanosecond against the number of threads."""
    case = record["cases"]["threads"]
    figure = card(
        "Adam on more threads",
        "Elements per nanosecond, float32; higher is better.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
    )
    for column, size in enumerate(sorted({point["elements"] for point in case["points"]})):
        points = [point for point in case["points"] if point["elements"] == size]
        axes = figure.add_axes((0.07 + 0.49 * column, 0.14, 0.24, 0.64))
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.85 * points[0]["threads"], 1.1 * points[-1]["threads"])
        axes.set_title(f"{report.count(size)} elements", fontsize=11, color=INK, loc="left")
        draw_lines(axes, points, "threads")
    return figure


def draw_lines(
    axes: Any,
    points: Sequence[Point],
    across: Literal["elements", "tensors", "threads"],
    peers: Sequence[str] | None = None,
) -> None:
    """Draw a labelled line for each peer: seconds per step, or against threads elements per nanosecond."""
    labels = {}
    for name in (name for name in names(points) if peers is None or name in peers):
        measured = [point for point in points if name in point["timings"]]
        x = [point[across] for point in measured]
        y = [point["timings"][name]["median_ns"] / 1e9 for point in measured]
        text, colour, width = name, COLOURS.get(name, FAINT), 3 if name == "onepass" else 1.8
        if across == "threads":
            y = [point["elements"] / seconds / 1e9 for point, seconds in zip(measured, y, strict=True)]
        elif name not in ("onepass", "stream baseline"):
            text = f"{name} ({report.times(measured[-1]['over_onepass'][name]['of_medians'])})"
        if name == "stream baseline":
            axes.plot(x, y, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), zorder=5)
        else:
            axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=width + 2.5, zorder=4)
        labels[text] = (x[-1], y[-1], colour)
    if across == "threads":
        axes.set_ylim(bottom=0)
    numbers = sorted({point[across] for point in points})
    axes.set_xticks(numbers, [report.count(number) for number in numbers])
    axes.set_xlabel({"elements": "parameters"}.get(across, across), labelpad=4)
    plain(axes)
    label_ends(axes, labels)


def bits(record: Record) -> Any | None:
    """Draw the time of a step against the bytes that it moves, and the least time that memory bandwidth allows."""
    case = record["cases"]["bits-bandwidth"]
    points = [point for point in case["points"] if "moved" in point]
    if not points:
        return None
    figure = card(
        "AdamW in fewer bits: time against bytes moved",
        f"Time of a step per parameter, {report.count(points[0]['elements'])} parameters; lower is better. "
        "Lines: least time that memory allows.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
        width=9.6,
    )
    axes = figure.add_axes((0.08, 0.13, 0.5, 0.7), xscale="log", yscale="log")
    ends = (9, 31)  # bytes
    for point, fill, dashes in zip(points, ("full", "none"), ("-", "--"), strict=False):
        threads = f"{point['threads']} thread{'s' * (point['threads'] > 1)}"
        for name, moved in point["moved"].items():
            time = point["timings"][name]["median_ns"] / point["elements"]
            style = {"marker": "o" if name.startswith("onepass") else "s", "color": COLOURS[name], "fillstyle": fill}
            label = storage(name) if fill == "full" else None
            axes.plot(moved, time, linestyle="none", markersize=8, zorder=4, label=label, **style)
        axes.plot([], [], "o", markersize=8, color=FAINT, fillstyle=fill, label=threads)
        speed = 4 * point["streams"] * point["elements"] / point["timings"]["stream baseline"]["median_ns"]
        text = f"{report.digits(speed)} GB/s: bandwidth of {threads}"
        axes.plot(ends, [x / speed for x in ends], dashes, color=FAINT, linewidth=1.4, label=text)
    text = f"{SHARE} GB/s per core: a busy socket (computed)"
    axes.plot(ends, [x / SHARE for x in ends], ":", color=FAINT, linewidth=1.8, label=text)
    axes.set_xlim(ends)
    times = (0.25, 0.5, 1, 2, 4, 8)
    axes.set_yticks(times, [f"{time:g} ns" for time in times])
    bytes_moved = (10, 12, 14, 16, 20, 28)
    axes.set_xticks(bytes_moved, map(str, bytes_moved))
    axes.set_xlabel("bytes moved per parameter", labelpad=4)
    plain(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)
    return figure


def storage(name: str) -> str:
    """Return a peer's name without onepass, or float32 for onepass itself."""
    return "float32" if name == "onepass" else name.removeprefix("onepass, ")


def targets(record: Record) -> Any | None:
    """Draw the ratios to other peers' times that have a target, except for means, which are close to the medians."""
    from matplotlib.patheffects import withStroke

    judged = [
        target
        for case in record["cases"].values()
        for target in case["targets"]
        if target["by_rounds"] is not None and target["peer"] != "stream baseline"
    ]
    judged.sort(key=lambda target: target["measured"] or 0)
    if not judged:
        return None
    labels = [target_label(target) for target in judged]
    left, width, height = 0.4 + 0.058 * max(map(len, labels)), 4.5, 1.75 + 0.27 * len(judged)  # inches
    figure = card(
        "Speed-up over alternatives",
        "Time of the alternative divided by onepass's time. Black tick: target set in advance; pale: target missed.",
        report.machine_line(record["machine"]),
        width=left + width + 0.7,
        height=height,
    )
    axes = figure.add_axes((left / (left + width + 0.7), 0.65 / height, width / (left + width + 0.7), 1 - 1.6 / height))
    axes.axvline(1, color=FAINT, linewidth=1, zorder=0)
    outline = [withStroke(linewidth=2.8, foreground=CARD)]  # so that a tick is legible on a bar and on a line
    for row, target in enumerate(judged):
        ratio, wanted = target["measured"] or 0, target["wanted"]
        axes.barh(row, ratio - 0.5, left=0.5, height=0.6, color=COLOURS["onepass"], alpha=1 if target["met"] else 0.4)
        axes.plot([wanted] * 2, [row - 0.3, row + 0.3], color=INK, linewidth=1.6, path_effects=outline)
        axes.annotate(
            report.times(ratio),
            (max(ratio, wanted), row),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)
    axes.set_yticks(range(len(judged)), labels, fontsize=8.5)
    axes.set_xticks([1, 10, 100, 1000], ["1×", "10×", "100×", "1,000×"])
    axes.set_ylim(-0.6, len(judged) - 0.4)
    plain(axes)
    axes.grid(visible=False, axis="y")
    return figure


def target_label(target: TargetRecord) -> str:
    """Name the problem of a target, the part of a training loop if it is one, and the peer."""
    part = target["target"].partition("at least")[0].rstrip(": ")
    return ", ".join([target["problem"], *[part] * bool(part)]) + f": {target['peer']}"


FIGURES = {
    "speed": Figure("sizes", "Time of one Adam step against the number of parameters", speed),
    "speed-all": Figure("sizes", "Time of one Adam step against the number of parameters, for all peers", speed_all),
    "targets": Figure(None, "Speed-up of onepass over other ways to take the same step, with the targets", targets),
    "threads": Figure("threads", "Elements stepped per nanosecond against the number of threads", threads),
    "bits": Figure("bits-bandwidth", "Time of one AdamW step against the bytes that it moves, in each storage", bits),
    "tensors": Figure("tensors", "Time of one Adam step against the number of tensors of 100 elements", tensors),
}


def names(points: Sequence[Point]) -> list[str]:
    """Return the measured peers in order."""
    return [*dict.fromkeys(name for point in points for name in point["timings"])]


def plain(axes: Any) -> None:
    """Remove frame and tick marks, and draw a grid."""
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    axes.spines[:].set_visible(False)


def card(title: str, subtitle: str, foot: str, width: float = 9.2, height: float = 5.4) -> Any:
    """Return a figure on a light card with round corners, its title above and its source below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(width, height))
    inset, corner = 0.02, 0.12  # inches
    ground = FancyBboxPatch(
        (inset, inset),
        width - 2 * inset,
        height - 2 * inset,
        boxstyle=f"round,pad=0,rounding_size={corner}",
        facecolor=CARD,
        edgecolor=FRAME,
        linewidth=1,
        transform=figure.dpi_scale_trans,
        zorder=-1,
    )
    figure.add_artist(ground)
    left, right = 0.28 / width, 1 - 0.28 / width
    figure.text(left, 1 - 0.35 / height, title, fontsize=15, fontweight="bold", va="center")
    figure.text(left, 1 - 0.65 / height, subtitle, fontsize=10, color=FAINT, va="center")
    figure.text(right, 0.16 / height, foot, fontsize=7.5, color=FAINT, va="center", ha="right")
    return figure


def label_ends(axes: Any, labels: Mapping[str, tuple[float, float, str]]) -> None:
    """Write each line's name at its end, and push names apart that would overlap."""
    height = 13 * axes.figure.dpi / 72  # of a line of text
    last = max(x for x, _, _ in labels.values())
    lines = sorted((y, x, text, colour) for text, (x, y, colour) in labels.items() if x == last)
    # Groups of names: the height of their middle, and their number. Groups that overlap become one.
    groups: list[tuple[float, int]] = []
    for y, x, _, _ in lines:
        middle, members = axes.transData.transform((x, y))[1], 1
        while groups and middle - groups[-1][0] < height * (members + groups[-1][1]) / 2:
            below, more = groups.pop()
            middle, members = (middle * members + below * more) / (members + more), members + more
        groups.append((middle, members))
    placed = [middle + height * (i - (members - 1) / 2) for middle, members in groups for i in range(members)]
    ends = {text: up for (_, _, text, _), up in zip(lines, placed, strict=True)}
    for text, (x, y, colour) in labels.items():
        across, up = axes.transData.transform((x, y))
        axes.annotate(
            text,
            axes.transData.inverted().transform((across, ends.get(text, up))),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold" if text == "onepass" else "normal",
            annotation_clip=False,
        )
