"""Comparison of six optimizers, tuned alike, for the page "Choosing an optimizer".

    python examples/choosing.py     # about ten minutes on two cores; --quick: a few seconds, as a trial

AdamW, ScheduleFreeAdamW, AdEMAMix, RAdam, NAdam and Lion train the four tasks of low_precision/tasks.py in float32,
with the same initial weights, batches and dropout, and without weight decay. For each optimizer and task, a search over
learning rates that are half a decade apart finds the one with the lowest mean loss on one half of the held-out data;
the table shows the loss on the other half.

The program writes a figure, a table, and the results as JSON. It needs PyTorch, scikit-learn, matplotlib and tqdm.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from comparison.models import cross_entropy
from low_precision.figure import frame
from low_precision.report import failures, finite, loss, percent, relative
from low_precision.tasks import Task, tasks
from low_precision.training import begin, cosine, warmup_steps
from publish import Results, markdown, number, publish, versions, write_figure
from train_digits import Array, need

import onepass
from onepass import schedules

BASE = "AdamW"  # the others are compared with it
SEARCHED = 2  # seeds of the search
RATES = tuple(float(f"{digit}e{power}") for power in range(-6, 2) for digit in (1, 3))  # half a decade apart


class Optimizer(NamedTuple):
    """Constructor, first rate of the search, schedule of the rate in words, and color in the figure."""

    make: Callable[[list[Array], float, Task], Any]
    rate: float
    schedule: str
    color: str  # Okabe and Ito's, distinct for color-blind readers


def radam(params: list[Array], rate: float, task: Task) -> Any:
    """Return RAdam, which needs no warmup of its rate."""
    return onepass.RAdam(params, schedules.cosine(rate, task.steps))


def ademamix(params: list[Array], rate: float, task: Task, beta3: float = 0.9999) -> Any:
    """Return AdEMAMix with the warmups of its paper."""
    steps, betas = task.steps, (0.9, 0.999, beta3)
    return onepass.AdEMAMix(params, cosine(task, rate), betas, alpha_warmup=steps, beta3_warmup=steps, weight_decay=0)


OPTIMIZERS = {
    BASE: Optimizer(
        lambda p, rate, task: onepass.AdamW(p, cosine(task, rate), weight_decay=0), 0.01, "warmup, cosine", "#111827"
    ),
    "ScheduleFreeAdamW": Optimizer(
        lambda p, rate, task: onepass.ScheduleFreeAdamW(p, rate, warmup_steps=warmup_steps(task)),
        0.01,
        "warmup, constant",
        "#d55e00",
    ),
    "AdEMAMix": Optimizer(ademamix, 0.003, "warmup, cosine", "#0072b2"),
    "AdEMAMix, beta3 = 0.999": Optimizer(functools.partial(ademamix, beta3=0.999), 0.003, "warmup, cosine", "#56b4e9"),
    "RAdam": Optimizer(radam, 0.01, "cosine", "#009e73"),
    "NAdam": Optimizer(lambda p, rate, task: onepass.NAdam(p, cosine(task, rate)), 0.01, "warmup, cosine", "#cc79a7"),
    "Lion": Optimizer(
        lambda p, rate, task: onepass.Lion(p, cosine(task, rate), weight_decay=0), 0.001, "warmup, cosine", "#e69f00"
    ),
}


def train(task: Task, optimizer: Optimizer, rate: float, seed: int) -> list[float | None]:
    """Train once; return the final loss on each half of the held-out data, for the search and for the table."""
    model, batches = begin(task, seed)
    opt = optimizer.make(model.parameters, rate, task)
    for _, gradients in batches:
        opt.step(gradients)
    if isinstance(opt, onepass.ScheduleFreeAdamW):
        opt.eval()
    inputs, labels = task.data.test, task.data.test_labels
    return [number(cross_entropy(model.logits(inputs[half::2]), labels[half::2].ravel())[0]) for half in (0, 1)]


@functools.cache
def prepared(quick: bool) -> list[Task]:
    """Return the tasks, made once in each process."""
    return tasks(quick)


def compare(quick: bool, place: int, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Search the rate of one optimizer on one task with the first seeds, then train with the other seeds.

    The search continues until the best rate is neither the smallest nor the largest; a trial has only the first rate.
    """
    task, optimizer = prepared(quick)[place], OPTIMIZERS[name]
    runs: dict[float, list[list[float | None]]] = {}
    means: dict[float, float] = {}
    best, wanted = optimizer.rate, [optimizer.rate]
    with np.errstate(over="ignore", invalid="ignore"):  # if it diverges
        while wanted:
            for rate in wanted:
                runs[rate] = [train(task, optimizer, rate, seed) for seed in seeds[:SEARCHED]]
                means[rate] = float(np.mean(finite([first for first, _ in runs[rate]])))
            best = min(sorted(means), key=lambda rate: means[rate])
            around = RATES[RATES.index(best) - 1 : RATES.index(best) + 2]
            wanted = [] if quick else [rate for rate in around if rate not in runs]
        found = runs[best] + [train(task, optimizer, best, seed) for seed in seeds[SEARCHED:]]
    search = [{"rate": rate, "mean": number(means[rate])} for rate in sorted(means)]
    return {"schedule": optimizer.schedule, "rate": best, "search": search, "held_out": [second for _, second in found]}


def one_thread() -> None:
    """Limit this process to one thread: products as small as these are faster so."""
    onepass.set_num_threads(1)
    need("torch", "PyTorch").set_num_threads(1)
    need("threadpoolctl", "scikit-learn").threadpool_limits(1)


def experiment(args: Namespace) -> Results:
    """Compare the optimizers on every task, in as many processes as there are processors; return the results."""
    seeds = range(args.seeds or (2 if args.quick else 5))
    titles = [task.title for task in prepared(args.quick)]
    jobs = [(args.quick, place, name, seeds) for place in range(len(titles)) for name in OPTIMIZERS]
    new = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(onepass.config()["processors"], mp_context=new, initializer=one_thread) as pool:
        found = pool.map(compare, *zip(*jobs, strict=True))
        runs = iter(need("tqdm", "tqdm").tqdm(found, total=len(jobs), unit=" searches"))
        compared = [{"title": title, "optimizers": {name: next(runs) for name in OPTIMIZERS}} for title in titles]
    return {"versions": versions("numpy", "torch", "scipy", "scikit-learn"), "seeds": [*seeds], "tasks": compared}


def table(results: Results) -> str:
    """Final losses of every optimizer on every task, compared with the first optimizer."""
    rows = [["task", "optimizer", "schedule", "learning rate", "held-out loss", f"difference from {BASE}", "loss"]]
    for task in results["tasks"]:
        base = task["optimizers"][BASE]["held_out"]
        for name, own in task["optimizers"].items():
            losses, first = own["held_out"], name == BASE
            known = not (first or failures(losses) or failures(base))
            mean, half = relative(losses, base) if known else (0.0, math.inf)
            where = [percent(mean, half), "tie" if abs(mean) <= half else "lower" if mean < 0 else "higher"]
            about = [task["title"] if first else "", name, own["schedule"], f"{own['rate']:g}", loss(losses)]
            rows.append(about + (where if known else ["", ""]))
    count = len(results["seeds"])
    return (
        f"{markdown(rows)}\n\nMean of {count} seeds with 95 % interval; tie: the interval of the difference contains 0."
    )


def draw(results: Results, path: Path) -> None:
    """Draw the loss of the search by learning rate."""
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=(12.0, 8.4), facecolor="white")
    for place, task in enumerate(results["tasks"]):
        axes = figure.add_axes((0.05 + 0.49 * (place % 2), 0.57 - 0.47 * (place // 2), 0.44, 0.31))
        for name, own in task["optimizers"].items():
            rates, means = zip(*((one["rate"], one["mean"]) for one in own["search"]), strict=True)  # None: diverged
            axes.plot(rates, means, marker="o", markersize=4, label=name, color=OPTIMIZERS[name].color, linewidth=2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(need("matplotlib.ticker", "matplotlib").LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        frame(axes, task["title"], "Held-out loss by learning rate; lower is better")
    figure.legend(*axes.get_legend_handles_labels(), loc="upper center", ncols=len(OPTIMIZERS), frameon=False)
    write_figure(figure, results, path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, draw the figure."""
    return publish(
        argv,
        description="Comparison of six optimizers, tuned alike",
        out=Path("out/choosing.png"),
        experiment=experiment,
        sections={"optimizers": table},
        draw=draw,
        quick="a trial: a few steps, one rate, and by default two seeds",
        seeds="number of seeds (default: 5)",
    )


if __name__ == "__main__":
    sys.exit(main())
