"""Figure of the experiment, drawn only from its results: second moments above, final losses below."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from low_precision.report import PLAIN, failures, interval
from publish import FAINT, GRID, INK, write_figure
from train_digits import need

# Okabe and Ito's colours, distinct for colour-blind readers; nearest is dashed.
COLOURS = {"float8": "#d55e00", "bfloat16": "#0072b2", "weights": "#009e73", "float32": "#111827"}
PEER = "#999999"
FAR = 3  # times the loss of float32: such a loss would hide all other differences
SIZE = (14.0, 12.0)  # inches


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture as a PNG."""
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=SIZE, facecolor="white")  # drawn by Agg
    figure.text(0.02, 0.972, "Training with fewer bits", fontsize=22, fontweight="bold", color=INK, va="center")
    track(figure.add_axes((0.06, 0.69, 0.40, 0.20)), results["tracking"])
    spike(figure.add_axes((0.56, 0.69, 0.40, 0.20)), results["spike"])
    for i, task in enumerate(results["tasks"]):
        left, bottom = 0.19 + 0.5 * (i % 2), 0.375 - 0.315 * (i // 2)
        losses(figure.add_axes((left, bottom, 0.28, 0.22)), task)
    write_figure(figure, results, path, dpi=130)


def frame(axes: Any, title: str, about: str) -> None:
    """Write the title above a panel and draw its grid."""
    axes.text(0, 1.14, title, transform=axes.transAxes, fontsize=14, fontweight="bold", color=INK)
    axes.text(0, 1.05, about, transform=axes.transAxes, fontsize=10.5, color=FAINT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, colors=FAINT, labelsize=10, which="both")


def style(name: str) -> dict[str, Any]:
    """Return the colour and the dashes of a storage."""
    return {"color": COLOURS[name.split(",")[0]], "linestyle": "--" if "nearest" in name else "-", "linewidth": 2}


def track(axes: Any, found: dict[str, Any]) -> None:
    """Draw the error of √v by step."""
    for name, own in found["storages"].items():
        axes.plot(found["steps"], np.mean(own["error"], axis=0), label=name, **style(name))
    axes.axvline(found["half"], color=FAINT, linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3, 1], ["0.003", "0.01", "0.03", "0.1", "0.3", "1"])
    axes.set_yticks([], minor=True)
    axes.set_xlabel("step", color=FAINT)
    axes.legend(frameon=False, fontsize=9.5, loc="lower right", ncols=2)
    axes.set_ylim(0.001, 1.2)
    frame(axes, "Gradient sizes change halfway", "Median error of √v compared with float32; lower is better")


def spike(axes: Any, found: dict[str, Any]) -> None:
    """Draw √v of the neighbours of a spike by step."""
    for name, curve in found["storages"].items():
        axes.plot(found["steps"], curve, label=name, **style(name))
    axes.set_ylim(0, None)
    axes.axhline(1, color=FAINT, linewidth=1, linestyle=":")
    axes.set_xlabel("steps after the spike", color=FAINT)
    axes.legend(frameon=False, fontsize=9.5)
    title = f"A gradient of {found['size']:,.0f} in one element"
    frame(axes, title, "Median ratio of the neighbours' √v to the float32 value; 1 is exact")


def losses(axes: Any, task: dict[str, Any]) -> None:
    """Draw the mean loss of each storage with its interval, and float32's interval as a band."""
    names = [*task["storages"]]
    middle, half = interval(task["storages"][PLAIN]["training"])
    if math.isfinite(half):
        axes.axvspan(middle - half, middle + half, color=GRID, zorder=0)
    for place, name in enumerate(names):
        found = task["storages"][name]["training"]
        if failures(found):
            axes.text(middle, place, f"diverged, {failures(found)} of {len(found)} seeds", color=PEER, va="center")
            continue
        mean, half = interval(found)
        if mean > FAR * middle:
            axes.text(middle, place, f"{mean:#.3g}, outside", color=PEER, va="center")
            continue
        colour = COLOURS.get("weights" if "weights" in name else name.split(" ")[0], PEER)
        error = half if math.isfinite(half) else None
        face = "white" if "nearest" in name else colour
        axes.errorbar(mean, place, xerr=error, color=colour, marker="o", markersize=6, markerfacecolor=face, capsize=3)
    labels = [name.replace("master_bits=", "") for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    count = len(task["seeds"])
    frame(axes, task["title"], f"Final training loss, mean of {count} seed{'s' * (count > 1)} with 95 % interval")
    axes.tick_params(axis="y", colors=INK, labelsize=9.5)
    axes.locator_params(axis="x", nbins=5)
