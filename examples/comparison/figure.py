"""Figure of the comparison, drawn only from its results: the training cost by epoch, one panel per problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from publish import FAINT, GRID, INK, write_figure
from train_digits import need

# Okabe and Ito's colours, distinct for colour-blind readers; the name at the end of each line repeats the information.
COLOURS = {"AdaGrad": "#009e73", "RMSProp": "#cc79a7", "SGD Nesterov": "#0072b2", "AdaDelta": "#e69f00"}
COLOURS["Adam"] = "#111827"
SIZE = (13.0, 9.0)  # inches
LINE = 15.0  # points between two names


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture as a PNG."""
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=SIZE, facecolor="white")  # drawn by Agg
    seeds = len(results["seeds"])
    rates = len(next(iter(results["tasks"][0]["optimizers"].values()))["search"])
    title = "Training cost of five optimizers on four problems"
    figure.text(0.05, 0.955, title, fontsize=22, fontweight="bold", color=INK, va="center")
    many = f"Mean of {seeds} seeds, band from lowest to highest" if seeds > 1 else "One seed"
    about = f"Cost by epoch; lower is better. {many}. Each optimizer with the best of {rates} learning rates."
    figure.text(0.05, 0.915, about, fontsize=12, color=FAINT, va="center")
    for i, task in enumerate(results["tasks"]):
        left, bottom = 0.05 + 0.5 * (i % 2), 0.52 - 0.445 * (i // 2)
        panel(figure.add_axes((left, bottom, 0.295, 0.305)), task)
    write_figure(figure, results, path, dpi=140)


def panel(axes: Any, task: dict[str, Any]) -> None:
    """Draw one problem: a line, a band and a name for each optimizer."""
    ends, lowest, highest = {}, [], []
    for name, found in task["optimizers"].items():
        costs = np.array([[math.nan if cost is None else cost for cost in run] for run in found["costs"]])
        epochs, mean = np.arange(1, costs.shape[1] + 1), costs.mean(axis=0)
        if not np.isfinite(mean[-1]):
            continue  # it diverged: the table reports it
        colour, (width, order) = COLOURS[name], (3.2, 3) if name == "Adam" else (2, 2)
        axes.fill_between(epochs, costs.min(axis=0), costs.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        axes.plot(epochs, mean, color=colour, linewidth=width, zorder=order, solid_capstyle="round")
        ends[name] = float(mean[-1])
        lowest.append(costs.min())
        highest.append(costs[:, :2].min(axis=1).max())  # not the first: it would take half the height
    axes.set_yscale("log")
    if ends:
        axes.set_ylim(0.88 * min(lowest), 1.06 * max(highest))
    axes.set_xlim(1, max(2, task["epochs"]))
    axes.set_xticks(sorted({1, *range(0, task["epochs"] + 1, max(1, task["epochs"] // 4))} - {0}))
    ticks(axes)
    decay = ", rate / √t" if task["decay"] else ""
    axes.text(0, 1.105, task["title"], transform=axes.transAxes, fontsize=14, fontweight="bold", color=INK)
    about = f"{task['data']}, {task['examples']:,} × {task['features']:,}{decay}"
    axes.text(0, 1.04, about, transform=axes.transAxes, fontsize=10.5, color=FAINT)
    axes.set_xlabel("epoch", color=FAINT, fontsize=11)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, colors=FAINT, labelsize=10.5, which="both")
    name_ends(axes, ends)


def ticks(axes: Any) -> None:
    """Label 1, 2 and 5 times the powers of ten; on a short axis, also 3 and 4."""
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high / low > 4 else (1, 2, 3, 4, 5)
    marks = [m * 10.0**e for e in range(-9, 10) for m in steps if low <= m * 10.0**e <= high]
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.set_yticks([], minor=True)


def name_ends(axes: Any, ends: dict[str, float]) -> None:
    """Write each line's name and cost at its right end, apart where they would overlap."""
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # in points
    low, high = (math.log(limit) for limit in axes.get_ylim())
    names = sorted(ends, key=lambda name: ends[name])
    wanted = [(math.log(ends[name]) - low) / (high - low) * height for name in names]
    for name, want, place in zip(names, wanted, spread(wanted, LINE, lowest=LINE / 2), strict=True):
        style = {"transform": axes.transAxes, "color": COLOURS[name]}
        axes.plot([1.005, 1.03], [want / height, place / height], linewidth=1, clip_on=False, **style)
        weight, text = "bold" if name == "Adam" else "normal", f"{name}  {ends[name]:#.3g}"
        axes.text(1.037, place / height, text, fontsize=11, fontweight=weight, va="center", **style)


def spread(wanted: Sequence[float], least: float, lowest: float) -> list[float]:
    """Move ascending places as little as possible so that they are `least` apart, and none is below `lowest`."""
    groups: list[tuple[float, int]] = []  # the middle of each, and its number of members
    for place in wanted:
        middle, members = place, 1
        while groups and middle - groups[-1][0] < least * (members + groups[-1][1]) / 2:
            below, more = groups.pop()
            middle, members = (middle * members + below * more) / (members + more), members + more
        groups.append((max(middle, lowest + least * (members - 1) / 2), members))
    return [middle + least * (i - (members - 1) / 2) for middle, members in groups for i in range(members)]
