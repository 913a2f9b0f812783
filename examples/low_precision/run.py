"""Training with state and weights in fewer bits, compared with float32.

    python examples/low_precision/run.py     # about twelve minutes on one core; --quick: a few seconds, as a trial

Adam trains a character transformer, a perceptron, logistic regression on bags of words and a small convolutional
network with float32, bfloat16 and float8 state, with stochastic rounding and to nearest, with bfloat16 weights
(master_bits 32, 24 and 16), and with the 8-bit Adam of bitsandbytes and torchao where they are installed. The learning
rate of a task is the best of five for float32 with the first seed; every storage has the same rate, initial weights,
batches and dropout. Two further experiments measure only the second moments: after the gradients' sizes change, and
after a spike. A third measures the memory of a training run with 64 million parameters.

The program writes a figure, tables, and the results as JSON. It needs PyTorch, ml_dtypes, scikit-learn, matplotlib and
tqdm.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(
    str(Path(__file__).resolve().parents[1])
)  # where this package, comparison, publish.py and train_digits.py are

import numpy as np
from low_precision import report, tracking
from low_precision.figure import draw
from low_precision.memory import memory
from low_precision.tasks import RATES, Task, tasks
from low_precision.training import PEERS, Storage, storages, train
from publish import number, publish, rounded, versions
from train_digits import need

import onepass

PACKAGES = ("numpy", "torch", "ml_dtypes", "scipy", "scikit-learn", *(peer.library for peer in PEERS.values()))


def compare(task: Task, seeds: Sequence[int], rates: Sequence[float], compared: dict[str, Storage]) -> dict[str, Any]:
    """Search the rate for float32 with the first seed, then train with every storage and seed."""
    total = len(rates) + len(seeds) * len(compared)
    with need("tqdm", "tqdm").tqdm(total=total, desc=f"{task.title:34}", unit=" runs") as bar:

        def run(name: str, rate: float, seed: int) -> dict[str, float | None]:
            bar.set_postfix_str(f"{name}, rate {rate:g}, seed {seed}")
            found = train(task, compared[name], rate, seed)
            bar.update()
            return {key: number(math.inf if value is None else value) for key, value in found.items()}

        search = [{"rate": rate, "training": run(report.PLAIN, rate, seeds[0])["training"]} for rate in rates]
        best: Any = min(search, key=lambda one: one["training"] or math.inf)  # None: it diverged
        runs = {name: [run(name, best["rate"], seed) for seed in seeds] for name in compared}
    about = {"title": task.title, "network": task.network, "data": task.data.name, "seeds": [*seeds]}
    sizes = {"parameters": sum(array.size for array in task.model(np.random.default_rng(0)).parameters)}
    length = {"batch": task.batch, "steps": task.steps, "rate": best["rate"], "search": search}
    found = {name: {key: [one[key] for one in own] for key in own[0]} for name, own in runs.items()}
    return {**about, **sizes, **length, "storages": found}


def experiment(args: Namespace) -> dict[str, Any]:
    """Run everything on one thread; return the results."""
    quick = args.quick
    onepass.set_num_threads(1)
    need("torch", "PyTorch").set_num_threads(1)
    compared = storages()
    if quick:
        compared = {name: own for name, own in compared.items() if own.library == "onepass"}
    half, every = (30, 10) if quick else (3000, 100)
    results: dict[str, Any] = {"versions": versions(*PACKAGES), "memory": rounded(memory(2 if quick else 64))}
    results["tracking"] = rounded(tracking.change_of_sizes(range(1 if quick else 5), half, every))
    results["spike"] = rounded(tracking.after_a_spike(0, half, 2 * half, every // 2))
    with need("threadpoolctl", "scikit-learn").threadpool_limits(1):
        results["tasks"] = [
            compare(task, range(args.seeds or task.seeds), RATES[2:3] if quick else RATES, compared)
            for task in tasks(quick)
        ]
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the tables, draw the figure."""
    return publish(
        argv,
        description="Training with state and weights in fewer bits, compared with float32",
        out=Path("out/low_precision.png"),
        experiment=experiment,
        sections=report.SECTIONS,
        draw=draw,
        quick="a trial: a few steps, one rate, and by default two seeds",
        seeds="number of seeds (default: 5 or 10, depending on the task)",
    )


if __name__ == "__main__":
    sys.exit(main())
