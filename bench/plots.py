"""The results as images, drawn from a results file alone.

Each is a light card with a frame, so that it reads the same on a white page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import records, report
from .records import Record

IMAGES = records.ROOT / "docs" / "images"

INK, FAINT, GRID, CARD, FRAME = "#1f2328", "#656d76", "#e6e8eb", "#ffffff", "#d0d7de"
COLOURS = {
    "onepass": "#d1242f",
    "stream limit": "#24292f",
    "in-place NumPy": "#0969da",
    "thinc": "#8250df",
    "textbook NumPy": "#1a7f37",
    "pure Python": "#9a6700",
}
SPARE_COLOURS = ("#bf3989", "#0a7ea4", "#57606a", "#bc4c00", "#4d7c0f", "#6e40c9")
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
        if "sizes" in record["cases"]:
            figure = speed(record)
            for suffix, options in FORMATS.items():
                written.append(folder / f"speed.{suffix}")
                figure.savefig(written[-1], transparent=True, **options)
    return written


def speed(record: Record) -> Any:
    """Draw the time of a step against the number of parameters, for all peers."""
    case = record["cases"]["sizes"]
    points = case["points"]
    sizes = [point["elements"] for point in points]
    figure = card(
        "One Adam step on a float32 array, one thread",
        "Time of a step; lower is better. In brackets: how many times onepass's time, at the line's last point.",
        f"{report.machine_line(record['machine'])}; {case['date']}",
    )
    axes = figure.add_axes((0.09, 0.125, 0.665, 0.70))
    axes.set_xscale("log")
    axes.set_yscale("log")
    labels = {}
    spare = iter(SPARE_COLOURS)
    for name in {name: None for point in points for name in point["timings"]}:
        measured = [point for point in points if name in point["timings"]]
        x = [point["elements"] for point in measured]
        y = [point["timings"][name]["median_ns"] for point in measured]
        colour = COLOURS.get(name) or next(spare, FAINT)
        if name == "stream limit":
            axes.plot(x, y, color=colour, linewidth=1.4, linestyle=(0, (4, 2)), zorder=5)
        else:
            width = 3 if name == "onepass" else 1.8
            axes.plot(x, y, color=colour, linewidth=width, marker="o", markersize=width + 2.5, zorder=4)
        ratio = measured[-1]["over_onepass"][name]["of_medians"]
        text = name if name in ("onepass", "stream limit") else f"{name} ({report.times(ratio)})"
        labels[text] = (x[-1], y[-1], colour)
    axes.set_xticks(sizes, [report.count(size) for size in sizes])
    low, high = axes.get_ylim()
    ticks = [ns for exponent in range(1, 12) if low <= (ns := 10.0**exponent) <= high]
    axes.set_yticks(ticks, [tick_label(ns) for ns in ticks])
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.9)
    axes.tick_params(length=0, pad=6)
    axes.set_xlabel("parameters", labelpad=4)
    axes.spines[:].set_visible(False)
    label_ends(axes, labels)
    return figure


def tick_label(ns: float) -> str:
    """Write a power of ten: 100 ns, 10 µs, 1 ms."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:g} {unit}"
    return f"{ns:g} ns"


def card(title: str, subtitle: str, foot: str) -> Any:
    """Make a figure with a light ground and round corners, its title above and its source below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(9.2, 5.4))
    width, height = figure.get_size_inches()
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
    figure.text(0.03, 0.935, title, fontsize=15, fontweight="bold", va="center")
    figure.text(0.03, 0.88, subtitle, fontsize=10, color=FAINT, va="center")
    figure.text(0.97, 0.03, foot, fontsize=7.5, color=FAINT, va="center", ha="right")
    return figure


def label_ends(axes: Any, labels: Mapping[str, tuple[float, float, str]]) -> None:
    """Write each line's name at its end; where names would overlap, they are pushed apart."""
    height = 0.05 * axes.bbox.height
    last = max(x for x, _, _ in labels.values())
    lines = sorted((y, x, text, colour) for text, (x, y, colour) in labels.items() if x == last)
    wanted = [axes.transData.transform((x, y))[1] for y, x, _, _ in lines]
    placed: list[float] = []
    for up in wanted:
        placed.append(max(up, placed[-1] + height) if placed else up)
    shift = sum(w - p for w, p in zip(wanted, placed, strict=True)) / len(wanted)
    ends = {text: up + shift for (_, _, text, _), up in zip(lines, placed, strict=True)}
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
