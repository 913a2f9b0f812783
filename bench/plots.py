"""The results as images, drawn from a results file alone.

Each is a light card with a frame, so that it reads the same on a white page and on a dark one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from . import records, report
from .records import BarRecord, Point, Record

IMAGES = records.ROOT / "docs" / "images"

INK, FAINT, GRID, CARD, FRAME = "#1f2328", "#656d76", "#e6e8eb", "#ffffff", "#d0d7de"
COLOURS = {
    "onepass": "#d1242f",
    "stream limit": "#24292f",
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
}
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


def draw(record: Record, folder: Path = IMAGES) -> list[Path]:
    """Draw all images that the record has the figures for, and say where they are."""
    try:
        import matplotlib
    except ImportError:
        print("no image is drawn: matplotlib is not installed")
        return []
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, (case, figure_of) in FIGURES.items():
            if case is not None and case not in record["cases"]:
                continue
            if (figure := figure_of(record)) is None:
                continue
            for suffix, options in FORMATS.items():
                written.append(folder / f"{name}.{suffix}")
                figure.savefig(written[-1], transparent=True, **options)
    return written


def speed(record: Record) -> Any:
    """Draw the time of a step against the number of parameters, for all peers."""
    case = record["cases"]["sizes"]
    figure = card(
        "One Adam step on a float32 array, one thread",
        "Time of a step; lower is better. In brackets: how many times onepass's time, at the line's last point.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
        height=6.2,
    )
    axes = figure.add_axes((0.09, 0.11, 0.655, 0.735))
    draw_times(axes, case["points"], "elements", "parameters")
    return figure


def tensors(record: Record) -> Any:
    """Draw the time of a step against the number of small tensors."""
    case = record["cases"]["tensors"]
    figure = card(
        "One Adam step on many tensors of 100 elements",
        "Time of a step; lower is better. In brackets: how many times onepass's time, at the line's last point.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
    )
    axes = figure.add_axes((0.09, 0.125, 0.655, 0.70))
    draw_times(axes, case["points"], "tensors", "tensors")
    return figure


def draw_times(axes: Any, points: Sequence[Point], across: Literal["elements", "tensors"], title: str) -> None:
    """Draw the time of a step against one of the problem's numbers, a line for each peer, its name at its end."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(y=0.1)  # room for the names
    labels = {}
    for name in names(points):
        measured = [point for point in points if name in point["timings"]]
        x = [point[across] for point in measured]
        y = [point["timings"][name]["median_ns"] for point in measured]
        line(axes, name, x, y)
        ratio = measured[-1]["over_onepass"][name]["of_medians"]
        text = name if name in ("onepass", "stream limit") else f"{name} ({report.times(ratio)})"
        labels[text] = (x[-1], y[-1], colour(name))
    sizes = [point[across] for point in points]
    axes.set_xticks(sizes, [report.count(size) for size in sizes])
    low, high = axes.get_ylim()
    ticks = [ns for exponent in range(1, 12) if low <= (ns := 10.0**exponent) <= high]
    axes.set_yticks(ticks, [tick_label(ns) for ns in ticks])
    plain(axes)
    axes.set_xlabel(title, labelpad=4)
    label_ends(axes, labels)


def threads(record: Record) -> Any:
    """Draw how many elements are stepped in a nanosecond against the number of threads."""
    case = record["cases"]["threads"]
    points = case["points"]
    sizes = sorted({point["elements"] for point in points})
    figure = card(
        "Adam on more threads",
        "Elements a nanosecond, float32; higher is better.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
    )
    for column, size in enumerate(sizes):
        axes = figure.add_axes((0.07 + 0.49 * column, 0.14, 0.24, 0.64))
        labels = {}
        here = [point for point in points if point["elements"] == size]
        for name in names(here):
            measured = [point for point in here if name in point["timings"]]
            x = [point["threads"] for point in measured]
            y = [size / point["timings"][name]["median_ns"] for point in measured]
            line(axes, name, x, y)
            labels[name] = (x[-1], y[-1], colour(name))
        counts = sorted({point["threads"] for point in here})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlim(0.85 * counts[0], 1.1 * counts[-1])
        axes.set_ylim(bottom=0)
        plain(axes)
        axes.set_title(f"{report.count(size)} elements", fontsize=11, color=INK, loc="left")
        axes.set_xlabel("threads", labelpad=4)
        label_ends(axes, labels)
    return figure


def bars(record: Record) -> Any | None:
    """Draw how many times onepass's time the others take, wherever a bar was set."""
    judged = [
        bar
        for case in record["cases"].values()
        for bar in case["bars"]
        if bar["by_rounds"] is not None and bar["peer"] != "stream limit"  # no means, which stand near the medians
    ]
    judged.sort(key=lambda bar: bar["measured"] or 0)
    if not judged:
        return None
    height = 1.75 + 0.27 * len(judged)
    figure = card(
        "How many times as fast as others",
        "The other's time over onepass's. The tick is the bar, set before measuring; pale where it was missed.",
        report.machine_line(record["machine"]),
        width=10.4,
        height=height,
    )
    axes = figure.add_axes((0.5, 0.65 / height, 0.43, 1 - 1.6 / height))
    for row, bar in enumerate(judged):
        ratio = bar["measured"] or 0
        wanted = float(re.findall(r"at least ([0-9.]+)", bar["bar"])[0])
        axes.barh(row, ratio - 0.5, left=0.5, height=0.6, color=COLOURS["onepass"], alpha=1 if bar["holds"] else 0.4)
        axes.plot([wanted, wanted], [row - 0.42, row + 0.42], color=INK, linewidth=1.6)
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
    axes.set_yticks(range(len(judged)), [bar_label(bar) for bar in judged], fontsize=8.5)
    axes.set_xticks([1, 10, 100, 1000], ["1×", "10×", "100×", "1,000×"])
    axes.set_ylim(-0.6, len(judged) - 0.4)
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.axvline(1, color=FAINT, linewidth=1)
    return figure


def bar_label(bar: BarRecord) -> str:
    """Name what a bar is of: the problem, the part of a training loop if it is one, and the peer."""
    part = bar["bar"].partition("at least")[0].rstrip(": ")
    return ", ".join([bar["problem"], *[part] * bool(part)]) + f": {bar['peer']}"


# What is drawn, and of which case; None: of several.
FIGURES: dict[str, tuple[str | None, Callable[[Record], Any]]] = {
    "speed": ("sizes", speed),
    "bars": (None, bars),
    "threads": ("threads", threads),
    "tensors": ("tensors", tensors),
}


def names(points: Sequence[Point]) -> list[str]:
    """Everybody who was measured, in order."""
    return [*dict.fromkeys(name for point in points for name in point["timings"])]


def colour(name: str) -> str:
    return COLOURS.get(name, FAINT)


def line(axes: Any, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw a peer's line: the limit dashed, onepass's wider than the others'."""
    if name == "stream limit":
        axes.plot(x, y, color=colour(name), linewidth=1.4, linestyle=(0, (4, 2)), zorder=5)
    else:
        width = 3 if name == "onepass" else 1.8
        axes.plot(x, y, color=colour(name), linewidth=width, marker="o", markersize=width + 2.5, zorder=4)


def plain(axes: Any) -> None:
    """Leave a grid, and nothing else that is not a figure."""
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=6)
    axes.spines[:].set_visible(False)


def tick_label(ns: float) -> str:
    """Write a power of ten: 100 ns, 10 µs, 1 ms."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns:g} ns"


def card(title: str, subtitle: str, foot: str, width: float = 9.2, height: float = 5.4) -> Any:
    """Make a figure with a light ground and round corners, its title above and its source below."""
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
    """Write each line's name at its end; where names would overlap, they are pushed apart."""
    height = 13 * axes.figure.dpi / 72  # of a line of text
    last = max(x for x, _, _ in labels.values())
    lines = sorted((y, x, text, colour) for text, (x, y, colour) in labels.items() if x == last)
    # Groups of names: how high their middle is to be, and how many they are. Groups that overlap become one.
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
