"""Comparison of five optimizers on four problems in NumPy, after the Adam paper.

    python examples/comparison/run.py                        # about two minutes; --quick: a few seconds, as a trial
    python examples/comparison/run.py --mnist DIR --cifar DIR --reviews DIR --epochs 10        # hours

AdaGrad, RMSProp, SGD with Nesterov momentum, AdaDelta and Adam train logistic regression on images and on bags of words
(with rates that fall as 1/√t, as AdaGrad's steps do without a schedule), a multilayer perceptron and a small
convolutional network, the last three with dropout. Each optimizer has the same budget: the same number of rates, half a
decade apart, the same number of epochs, and the same initial weights, batches and dropout. The rate with the lowest
training cost in the last epoch with the first seed is then run with the other seeds.

The program writes a figure, a table, a check of published claims, and the results as JSON. Source: Kingma and Ba,
"Adam: A Method for Stochastic Optimization" (2015), section 6. Needs scikit-learn, matplotlib and tqdm.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where this package, publish.py and train_digits.py are

import numpy as np
import publish
from comparison import data, models, report
from comparison.figure import draw
from train_digits import Array, need, positive, read_mnist, scanned_digits

import onepass
from onepass import schedules

Rate = Callable[[int], float] | float


class Optimizer(NamedTuple):
    """Constructor and grid of learning rates; all other options keep the library's defaults."""

    make: Callable[[list[Array], Rate], Any]
    rates: tuple[float, ...]
    decays: bool = False  # its steps fall as 1/√t at a constant rate; with a falling rate they would fall as 1/t


OPTIMIZERS = {
    "AdaGrad": Optimizer(lambda p, lr: onepass.Adagrad(p, lr), (0.003, 0.01, 0.03, 0.1, 0.3, 1), decays=True),
    "RMSProp": Optimizer(lambda p, lr: onepass.RMSprop(p, lr), (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)),
    "SGD Nesterov": Optimizer(
        lambda p, lr: onepass.SGD(p, lr, momentum=0.9, nesterov=True), (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    ),
    "AdaDelta": Optimizer(lambda p, lr: onepass.Adadelta(p, lr), (0.1, 0.3, 1, 3, 10, 30)),
    "Adam": Optimizer(lambda p, lr: onepass.Adam(p, lr), (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)),
}


class Task(NamedTuple):
    """One problem of the comparison."""

    title: str
    network: str
    data: data.Data
    model: Callable[[np.random.Generator], models.Model]
    epochs: int
    decay: bool = False  # of the rate, as 1/√t


def tasks(mnist: Path | None, cifar: Path | None, reviews: Path | None) -> list[Task]:
    """Return the four problems, on embedded data or, with larger networks, on the datasets in the folders."""
    flat = data.Data(*(read_mnist(mnist) if mnist else scanned_digits()))
    pictures = data.read_cifar(cifar) if cifar else data.images(scanned_digits())
    bags = data.read_reviews(reviews) if reviews else data.documentation()
    pixels, words, shape = flat.train.shape[1], bags.train.shape[1], pictures.train.shape[1:]
    hidden = [1000, 1000] if mnist else [128, 128]
    channels, dense = ([64, 64, 128], 1000) if cifar else ([16, 32], 64)
    units, kernels = ", ".join(f"{n:,}" for n in hidden), ", ".join(map(str, channels))

    def regression(_: np.random.Generator) -> models.Model:
        return models.logistic_regression(pixels, flat.classes)

    def sparse_regression(_: np.random.Generator) -> models.Model:
        return models.SparseLogisticRegression(words, bags.classes)

    def perceptron(rng: np.random.Generator) -> models.Model:
        return models.perceptron(pixels, hidden, flat.classes, rng)

    def convolutional(rng: np.random.Generator) -> models.Model:
        return models.convolutional(shape, channels, dense, pictures.classes, rng)

    layers = f"3 × 3 convolutions ({kernels} channels) and a dense layer ({dense:,} units), with dropout"
    return [
        Task("Logistic regression, images", "one layer", flat, regression, 40, decay=True),
        Task("Logistic regression, bags of words", "one layer, with dropout", bags, sparse_regression, 20, decay=True),
        Task("Multilayer perceptron", f"hidden layers ({units} units) with dropout", flat, perceptron, 50),
        Task("Convolutional network", layers, pictures, convolutional, 15),
    ]


def train(task: Task, optimizer: Optimizer, rate: float, seed: int, epochs: int) -> tuple[Array, float]:
    """Return the training cost of each epoch (the mean over its batches) and the test accuracy.

    Costs are infinite from the epoch in which the training diverges. Initial weights, batches and dropout depend only
    on the seed.
    """
    first, order, noise = (np.random.default_rng([seed, purpose]) for purpose in range(3))
    model = task.model(first)
    falls = task.decay and not optimizer.decays
    opt = optimizer.make(model.parameters, schedules.inverse_sqrt(report.DECAYING * rate) if falls else rate)
    inputs, labels = task.data.train, task.data.train_labels
    costs = np.full(epochs, math.inf)
    with np.errstate(over="ignore", invalid="ignore"):  # if it diverges
        for epoch in range(epochs):
            total = 0.0
            for chosen in np.array_split(order.permutation(len(labels)), math.ceil(len(labels) / report.BATCH)):
                loss, gradients = model.loss_and_gradients(inputs[chosen], labels[chosen], noise)
                opt.step(gradients)
                total += loss * len(chosen)
            if not math.isfinite(total):
                break
            costs[epoch] = total / len(labels)
        test = task.data.test
        parts = [model.logits(test[i : i + 1000]) for i in range(0, test.shape[0], 1000)]
    return costs, float(np.mean(np.concatenate(parts).argmax(axis=1) == task.data.test_labels))


def compare(task: Task, seeds: Sequence[int], searched: slice, epochs: int) -> dict[str, Any]:
    """Run all optimizers on one task: the search with the first seed, then the best rate with every seed."""
    found: dict[str, Any] = {}
    total = sum(len(optimizer.rates[searched]) + len(seeds) - 1 for optimizer in OPTIMIZERS.values())
    with need("tqdm", "tqdm").tqdm(total=total, desc=f"{task.title:34}", unit=" runs") as bar:

        def run(name: str, rate: float, seed: int) -> tuple[Array, float]:
            bar.set_postfix_str(f"{name}, rate {rate:g}, seed {seed}")
            result = train(task, OPTIMIZERS[name], rate, seed, epochs)
            bar.update()
            return result

        for name, optimizer in OPTIMIZERS.items():
            runs = {rate: run(name, rate, seeds[0]) for rate in optimizer.rates[searched]}
            best = min(runs, key=lambda rate: float(runs[rate][0][-1]))
            repeated = [runs[best], *(run(name, best, seed) for seed in seeds[1:])]
            found[name] = {
                "search": [
                    {"rate": rate, "final_cost": publish.number(costs[-1])} for rate, (costs, _) in runs.items()
                ],
                "rate": best,
                "at_the_edge": len(runs) > 2 and best in (min(runs), max(runs)),
                "costs": [[publish.number(cost) for cost in costs] for costs, _ in repeated],
                "test_accuracy": [publish.number(accuracy) for _, accuracy in repeated],
            }
    about = {"title": task.title, "network": task.network, "data": task.data.name}
    sizes = {"examples": task.data.train.shape[0], "features": math.prod(task.data.train.shape[1:])}
    return {**about, **sizes, "decay": task.decay, "epochs": epochs, "optimizers": found}


def experiment(args: argparse.Namespace) -> publish.Results:
    """Compare the optimizers on every problem; return the results."""
    with publish.readable_errors():
        problems = tasks(args.mnist, args.cifar, args.reviews)
    searched = slice(2, 4) if args.quick else slice(None)
    seeds = range(args.seed, args.seed + (args.seeds or (1 if args.quick else 3)))
    epochs = args.epochs or (3 if args.quick else None)
    results = {"versions": publish.versions("numpy", "scipy", "scikit-learn"), "seeds": list(seeds)}
    # Products as small as these are faster with one BLAS thread, above all on a busy machine.
    with need("threadpoolctl", "scikit-learn").threadpool_limits(1):
        results["tasks"] = [compare(task, seeds, searched, epochs or task.epochs) for task in problems]
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the tables, draw the figure."""
    return publish.publish(
        argv,
        description="Comparison of five optimizers on four problems, after the Adam paper",
        out=Path("out/comparison.png"),
        experiment=experiment,
        sections=report.SECTIONS,
        draw=draw,
        quick="a trial: two rates, and by default one seed and 3 epochs",
        seeds="number of seeds for the best rates (default: 3)",
        options={
            "--mnist": {"type": Path, "metavar": "DIR", "help": "MNIST: its four IDX files, plain or .gz"},
            "--reviews": {"type": Path, "metavar": "DIR", "help": "IMDB reviews: {train,test}/labeledBow.feat"},
            "--cifar": {
                "type": Path,
                "metavar": "DIR",
                "help": "CIFAR-10, binary: data_batch_1.bin to 5, test_batch.bin",
            },
            "--epochs": {"type": positive, "help": "passes over the training data (default: 15 to 50)"},
            "--seed": {"type": int, "default": 0, "help": "first seed (default: 0)"},
        },
    )


if __name__ == "__main__":
    sys.exit(main())
