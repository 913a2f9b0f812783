"""Tables of the experiment, computed only from its results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from publish import markdown
from train_digits import need

PLAIN, FLOAT8 = "float32", "float8 state"
PAIRS = [("bfloat16 state", "bfloat16 state, nearest"), ("float8 state", "float8 state, nearest")]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval (Student's t; infinite for a single value)."""
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return mean, math.inf
    quantile = float(need("scipy.special", "scikit-learn").stdtrit(count - 1, 0.975))
    return mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count)


def relative(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference between runs with the same seeds and the half-width of its interval, in % of base."""
    mean, half = interval([a - b for a, b in zip(values, base, strict=True)])
    scale = 100 / float(np.mean(base))
    return mean * scale, half * scale


def failures(losses: Sequence[float | None]) -> int:
    """Count the seeds with which a run diverged: JSON has null for its loss."""
    return sum(value is None for value in losses)


def finite(losses: Sequence[float | None]) -> list[float]:
    """Return the losses, or infinities if a run diverged."""
    return [math.inf] * len(losses) if failures(losses) else [value for value in losses if value is not None]


def verdict(losses: Sequence[float | None], plain: Sequence[float]) -> str:
    """Compare a mean loss with the 95 % interval of float32's mean: inside, below or above."""
    mean, half = interval(plain)
    own = float(np.mean(finite(losses)))
    return "inside" if abs(own - mean) <= half else "below" if own < mean else "above"


def percent(mean: float, half: float) -> str:
    """Format a relative difference with its interval."""
    rounded = round(mean, 1) or 0.0  # no -0.0
    return f"{rounded:+.1f} %" + (f" ± {half:.1f}" if math.isfinite(half) else "")


def loss(values: Sequence[float | None]) -> str:
    """Format a mean loss with its interval; both have the same number of decimals."""
    if failed := failures(values):
        return f"diverged, {failed} of {len(values)} seeds"
    mean, half = interval(finite(values))
    decimals = max(0, 2 - math.floor(math.log10(mean)))
    return f"{mean:.{decimals}f}" + (f" ± {half:.{decimals}f}" if math.isfinite(half) else "")


def memory(results: dict[str, Any]) -> str:
    """Bytes per parameter, of the arrays and of the process."""
    found = results["memory"]
    rows = [
        ["in memory", "bytes per parameter", f"peak of a process, {found['parameters'] / 1e6:.0f} million parameters"]
    ]
    for case in found["cases"]:
        peak = (
            "not measured"
            if case["peak"] is None
            else f"{case['peak']:.2f} ({case['peak'] / case['bytes'] - 1:+.1%})".replace("%", " %")
        )
        rows.append([case["title"], f"{case['bytes']:.2f}", peak])
    return markdown(rows)


def tracking(results: dict[str, Any]) -> str:
    """Errors of √v before the change of the gradients' sizes and after it."""
    found = results["tracking"]
    half = found["steps"].index(found["half"])
    rows = [["state", "rounding", "error before the change", "error at the end", "bias at the end"]]
    for name, own in found["storages"].items():
        before, after = (float(np.mean([run[place] for run in own["error"]])) for place in (half, -1))
        bias = float(np.mean([run[-1] for run in own["bias"]]))
        rows.append([*name.split(", "), f"{before:.3f}", f"{after:.3f}", f"{bias:+.3f}"])
    count, length = len(found["seeds"]), found["steps"][-1]
    seeds = f"Mean of {count} seeds" if count > 1 else "One seed"
    return f"{markdown(rows)}\n\n{seeds}; {length:,} steps, the change after {found['half']:,}."


def spike(results: dict[str, Any]) -> str:
    """Summary of the effect of a spike on the neighbours of an element."""
    found = results["spike"]
    ratios, steps = found["storages"]["float8, stochastic"], found["steps"]
    late = [step for step, ratio in zip(steps, ratios, strict=True) if ratio > 1.5]
    rows = [["steps after the spike", *(f"{steps[place]:,}" for place in places(steps))]]
    rows += [[name, *(f"{curve[place]:.2f}" for place in places(steps))] for name, curve in found["storages"].items()]
    until = f"{late[-1]:,} steps after the spike" if late else "at no time"
    return f"{markdown(rows)}\n\nWith float8 and stochastic rounding, the ratio is above 1.5 until {until}."


def places(steps: Sequence[int]) -> list[int]:
    """Return seven places along the steps, the first and the last included."""
    return sorted({round(place) for place in np.linspace(0, len(steps) - 1, 7)})


def convergence(results: dict[str, Any]) -> str:
    """Final losses of every storage on every task."""
    rows = [["task", "storage", "training loss", "difference", "float32's interval", "held-out loss", "√v"]]
    for task in results["tasks"]:
        plain = task["storages"][PLAIN]["training"]
        for name, found in task["storages"].items():
            first = name == PLAIN
            own, root = found["training"], [*filter(None, found["root"])]
            difference = "" if first or failures(own) else percent(*relative(own, plain))
            where = [difference, "" if first else verdict(own, plain)]
            ratio = f"{np.mean(root):.2f}" if root else ""
            rows.append([task["title"] if first else "", name, loss(own), *where, loss(found["held_out"]), ratio])
    return f"{markdown(rows)}\n\n{explain(results)}"


def explain(results: dict[str, Any]) -> str:
    """Notes under the table of losses."""
    lines = []
    for task in results["tasks"]:
        size = f"{task['parameters']:,} parameters"
        length = f"{task['steps']:,} steps with batches of {task['batch']}, highest rate {task['rate']:g}"
        lines.append(
            f"- {task['title']}: {task['network']}; {task['data']}; {size}, {length}, {len(task['seeds'])} seeds."
        )
    missing = [name for name in ("bitsandbytes", "torchao") if name not in results["versions"]]
    if missing:
        lines += ["", f"Not installed, so not compared: {' and '.join(missing)}."]
    return "\n".join(lines)


def criterion(results: dict[str, Any]) -> str:
    """Judge the criterion: float8 state with stochastic rounding is inside float32's interval on every task."""
    lines = []
    for task in results["tasks"]:
        plain, own = (task["storages"][name]["training"] for name in (PLAIN, FLOAT8))
        where, difference = verdict(own, plain), percent(*relative(own, plain))
        word = "holds" if where == "inside" else f"does not hold: {where} the interval"
        lines.append(f"- {task['title']}: {word} (float32 {loss(plain)}, float8 {loss(own)}, difference {difference}).")
    held = sum(": holds (" in line for line in lines)
    return f"The criterion holds on {held} of {len(lines)} tasks:\n\n" + "\n".join(lines)


def nearest(results: dict[str, Any]) -> str:
    """Compare rounding to nearest with stochastic rounding."""
    rows = [
        [
            "task",
            "state",
            "training loss",
            "held-out loss",
            "√v (error), stochastic",
            "√v (error), nearest",
            "lower loss",
        ]
    ]
    for task in results["tasks"]:
        for stochastic, other in PAIRS:
            ours, theirs = task["storages"][stochastic], task["storages"][other]
            differences = [relative(theirs[kind], ours[kind]) for kind in ("training", "held_out")]
            roots = [f"{np.mean(x['root']):.2f} ({np.mean(x['root_error']):.3f})" for x in (ours, theirs)]
            better = [better_rounding(*difference) for difference in differences]
            words = " / ".join(better)
            title = task["title"] if stochastic == PAIRS[0][0] else ""
            rows.append([title, stochastic.split()[0], *(percent(*d) for d in differences), *roots, words])
    return markdown(rows)


def better_rounding(mean: float, half: float) -> str:
    """Name the rounding whose loss is lower, if the interval of the difference does not contain 0."""
    return "neither" if abs(mean) <= half else "nearest" if mean < 0 else "stochastic"


SECTIONS = {
    "memory": memory,
    "tracking": tracking,
    "spike": spike,
    "convergence": convergence,
    "criterion": criterion,
    "nearest": nearest,
}
