"""Draw the predictions of the tutorial's network: ``python docs/plot_spirals.py``.

Runs the blocks of docs/tutorial.md and writes docs/images/spirals.png, in the style of the benchmark's images
(`bench/plots.py`). Needs matplotlib and an installed onepass.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # bench is not installed
from bench.plots import FORMATS, IMAGES, STYLE, card

TUTORIAL = Path(__file__).with_name("tutorial.md")
COLOURS = ["#d1242f", "#0969da", "#1a7f37"]
TINTS = ["#f9d7da", "#d4e6fb", "#d5ecdb"]
EDGE = 1.15  # largest coordinate of the plot


def learned() -> dict[str, Any]:
    """Run the tutorial's code blocks in a temporary folder and return their variables."""
    session: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks:
                exec(compile(block, str(TUTORIAL), "exec"), session)
        finally:
            os.chdir(here)
    return session


def draw(path: Path = IMAGES / "spirals.png") -> Path:
    """Draw the image, and print its path."""
    matplotlib.use("agg")
    with matplotlib.rc_context(STYLE):
        panels(learned()).savefig(path, transparent=True, **FORMATS["png"])
    return path


def panels(session: dict[str, Any]) -> Any:
    """Draw the predictions before and after training."""
    figure = card(
        "Three arms of a spiral",
        "Predicted class at each point, before and after training, with the held-out points",
        "docs/tutorial.md",
    )
    line = np.linspace(-EDGE, EDGE, 400, dtype=np.float32)
    plane = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    points, test = session["points"], session["test"]
    untrained = session["new_network"](np.random.default_rng(1))
    for column, (title, network) in enumerate([("before", untrained), ("after", session["network"])]):
        axes = figure.add_axes((0.06 + 0.47 * column, 0.08, 0.41, 0.68))
        taken = session["forward"](network, plane)[-1].argmax(axis=1).reshape(line.size, line.size)
        axes.contourf(line, line, taken, levels=[-0.5, 0.5, 1.5, 2.5], colors=TINTS)
        for arm, colour in enumerate(COLOURS):
            x, y = points[test[session["label"][test] == arm]].T
            axes.scatter(x, y, s=7, color=colour, linewidth=0)
        axes.set_title(f"{title}: accuracy {session['accuracy'](network, test):.1%}", fontsize=11, fontweight="bold")
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


if __name__ == "__main__":
    print(draw())
