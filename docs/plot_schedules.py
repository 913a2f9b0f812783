"""Draw every schedule, the learning rate against the step: ``python docs/plot_schedules.py``.

Writes docs/images/schedules.svg and .png, in the style of the benchmark's images (`bench/plots.py`): a light card with
a frame, so that it reads the same on a white page and on a dark one. Needs matplotlib and an installed onepass.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

from onepass import schedules

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # bench is not installed
from bench.plots import FAINT, FORMATS, GRID, IMAGES, STYLE, card

STEPS = 100
# Source text and colour of each schedule.
EXAMPLES = [
    ("inverse_sqrt(1e-3)", "#d1242f"),
    ("inverse_time(1e-3, decay=0.1)", "#0969da"),
    ("exponential(1e-3, rate=0.5, steps=20)", "#8250df"),
    ("piecewise([30, 60], [1e-3, 4e-4, 1e-4])", "#1a7f37"),
    ("linear(1e-3, end=2e-4, steps=80)", "#9a6700"),
    ("cosine(1e-3, steps=80)", "#bf3989"),
    ("warmup(1e-3, steps=20)", "#0a7ea4"),
    ("warmup(cosine(1e-3, 80), steps=20)", "#bc4c00"),
]
COLUMNS, ROWS = 4, 2


def draw(folder: Path = IMAGES) -> list[Path]:
    """Draw the image in each format, and print the paths."""
    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        figure = panels()
        for suffix, options in FORMATS.items():
            written.append(folder / f"schedules.{suffix}")
            figure.savefig(written[-1], transparent=True, **options)
    return written


def panels() -> Any:
    """Draw one panel for each example."""
    figure = card(
        "Learning-rate schedules",
        "Learning rate by step t = 1, 2, …",
        "onepass.schedules",
    )
    ts = range(1, STEPS + 1)
    left, bottom, right, top, across, down = 0.07, 0.115, 0.97, 0.745, 0.032, 0.135
    width = (right - left - (COLUMNS - 1) * across) / COLUMNS
    height = (top - bottom - (ROWS - 1) * down) / ROWS
    for index, (code, colour) in enumerate(EXAMPLES):
        row, column = divmod(index, COLUMNS)
        axes = figure.add_axes((left + column * (width + across), top - height - row * (height + down), width, height))
        schedule = eval(code, vars(schedules).copy())
        rates = [schedule(t) for t in ts]
        step = "mid" if code.startswith("piecewise") else None  # vertical jumps
        axes.fill_between(ts, rates, step=step, color=colour, alpha=0.08, linewidth=0, zorder=3)
        line = {"drawstyle": f"steps-{step}" if step else "default", "linewidth": 2.6, "solid_capstyle": "round"}
        axes.plot(ts, rates, color=colour, zorder=4, **line)
        axes.set_xlim(-3, STEPS + 4)
        axes.set_ylim(-0.00006, 0.00106)
        axes.set_xticks([1, 50, 100], ["1", "50", "100"] if row == ROWS - 1 else [])
        axes.set_yticks([0, 0.0005, 0.001], ["0", "5e-4", "1e-3"] if column == 0 else [])
        axes.grid(color=GRID, linewidth=0.9, zorder=0)
        axes.tick_params(length=0, pad=5, labelsize=9)
        axes.spines[:].set_visible(False)
        name, _, arguments = code.partition("(")
        axes.text(0, 1.17, name, transform=axes.transAxes, fontsize=11, fontweight="bold", color=colour)
        axes.text(
            0,
            1.05,
            f"({arguments}",
            transform=axes.transAxes,
            fontsize=7.5,
            family="DejaVu Sans Mono",
            color=FAINT,
        )
    return figure


if __name__ == "__main__":
    for path in draw():
        print(path)
