"""The comparison in the paper on Adam, remade: five optimizers on four problems, in NumPy.

    python examples/compare_optimizers.py                        # about two minutes; --quick: a few seconds, to try it
    python examples/compare_optimizers.py --mnist DIR --cifar DIR --reviews DIR --epochs 10        # hours

AdaGrad, RMSProp, SGD with Nesterov's momentum, AdaDelta and Adam train logistic regression on images and on bags of
words (with rates that fall as 1/√t, as AdaGrad's steps do by themselves), a perceptron of three layers and a small
convolutional network, the last three with dropout. Each has the same budget: as many rates, half a decade apart, as
many epochs, the same first weights, batches and dropout. The rate with the lowest training cost in the last epoch for
the first seed is then run with the other seeds.

Out come a picture of the training costs, a table, and all the figures as JSON beside the picture. Source: Kingma and
Ba, "Adam: A Method for Stochastic Optimization" (2015), section 6. Needs scikit-learn, matplotlib and tqdm.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import comparison_data as data
import comparison_models as models
import numpy as np
from comparison_data import Data
from comparison_figure import draw
from train_digits import Array, need, positive, read_mnist, scanned_digits

import onepass
from onepass import schedules

Rate = Callable[[int], float] | float


class Optimizer(NamedTuple):
    """How it is made, and the rates among which it is searched; everything else is the library's default."""

    make: Callable[[list[Array], Rate], Any]
    rates: tuple[float, ...]
    decays: bool = False  # its steps fall as 1/√t by themselves: a falling rate would make them fall twice


OPTIMIZERS = {
    "AdaGrad": Optimizer(lambda p, lr: onepass.Adagrad(p, lr), (0.003, 0.01, 0.03, 0.1, 0.3, 1), decays=True),
    "RMSProp": Optimizer(lambda p, lr: onepass.RMSprop(p, lr), (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)),
    "SGD Nesterov": Optimizer(
        lambda p, lr: onepass.SGD(p, lr, momentum=0.9, nesterov=True), (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    ),
    "AdaDelta": Optimizer(lambda p, lr: onepass.Adadelta(p, lr), (0.1, 0.3, 1, 3, 10, 30)),
    "Adam": Optimizer(lambda p, lr: onepass.Adam(p, lr), (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)),
}
DECAYING = 10  # times as high do rates begin that fall as 1/√t


class Task(NamedTuple):
    """A problem of the comparison."""

    title: str
    data: Data
    model: Callable[[np.random.Generator], models.Model]
    epochs: int
    decay: bool = False  # of the rate, as 1/√t


def tasks(mnist: Path | None, cifar: Path | None, reviews: Path | None) -> list[Task]:
    """The four, on the sets in the folders given, with networks nearly as large as the paper's, or on embedded ones."""
    flat = data.rows(read_mnist(mnist) if mnist else scanned_digits())
    pictures = data.read_cifar(cifar) if cifar else data.images(scanned_digits())
    bags = data.read_reviews(reviews) if reviews else data.documentation()
    pixels, words = flat.train.shape[1], bags.train.shape[1]

    hidden = [1000, 1000] if mnist else [128, 128]
    channels, dense = ([64, 64, 128], 1000) if cifar else ([16, 32], 64)

    def regression(_: np.random.Generator) -> models.Model:
        return models.logistic_regression(pixels, flat.classes)

    def sparse_regression(_: np.random.Generator) -> models.Model:
        return models.SparseLogisticRegression(words, bags.classes)

    def perceptron(rng: np.random.Generator) -> models.Model:
        return models.perceptron(pixels, hidden, flat.classes, rng)

    def convolutional(rng: np.random.Generator) -> models.Model:
        return models.convolutional(pictures.train.shape[1:], channels, dense, pictures.classes, rng)

    units, kernels = "-".join(map(str, hidden)), "-".join(f"c{n}" for n in channels)
    return [
        Task("Logistic regression, images", flat, regression, epochs=40, decay=True),
        Task("Logistic regression, bags of words", bags, sparse_regression, epochs=20, decay=True),
        Task(f"Perceptron, {units}, dropout", flat, perceptron, epochs=50),
        Task(f"Convolutional network, {kernels}-{dense}, dropout", pictures, convolutional, epochs=15),
    ]


# ---- Training ----


def train(
    task: Task, optimizer: Optimizer, rate: float, seed: int, epochs: int, batch: int = 128
) -> tuple[Array, float]:
    """The mean cost of the batches in each epoch, as the training met them, and the share of the test that is right.

    A training that diverges has infinite costs from there on. First weights, batches and dropout depend on nothing but
    the seed.
    """
    first, order, noise = (np.random.default_rng([seed, purpose]) for purpose in range(3))
    model = task.model(first)
    falls = task.decay and not optimizer.decays
    steps = optimizer.make(model.parameters, schedules.inverse_sqrt(DECAYING * rate) if falls else rate)
    inputs, labels = task.data.train, task.data.train_labels
    costs = np.full(epochs, math.inf)
    with np.errstate(over="ignore", invalid="ignore"):  # when it diverges
        for epoch in range(epochs):
            batches = np.array_split(order.permutation(len(labels)), math.ceil(len(labels) / batch))
            total = 0.0
            for chosen in batches:
                loss, gradients = model.loss_and_gradients(inputs[chosen], labels[chosen], noise)
                steps.step(gradients)
                total += loss * len(chosen)
            if not math.isfinite(total):
                break
            costs[epoch] = total / len(labels)
        test = task.data.test
        parts = [model.logits(test[i : i + 1000]) for i in range(0, test.shape[0], 1000)]
    return costs, float(np.mean(np.concatenate(parts).argmax(axis=1) == task.data.test_labels))


def compare(task: Task, seeds: Sequence[int], searched: slice, epochs: int) -> dict[str, Any]:
    """All optimizers on one task: the search with the first seed, the best rate with every seed."""
    found: dict[str, Any] = {}
    total = sum(len(optimizer.rates[searched]) + len(seeds) - 1 for optimizer in OPTIMIZERS.values())
    with need("tqdm", "tqdm").tqdm(total=total, desc=f"{task.title[:34]:34}", unit=" trainings") as bar:
        for name, optimizer in OPTIMIZERS.items():
            runs = {}
            for rate in optimizer.rates[searched]:
                bar.set_postfix_str(f"{name}, rate {rate:g}")
                runs[rate] = train(task, optimizer, rate, seeds[0], epochs)
                bar.update()
            best = min(runs, key=lambda rate: float(runs[rate][0][-1]))
            kept = [runs[best]]
            for seed in seeds[1:]:
                bar.set_postfix_str(f"{name}, rate {best:g}, seed {seed}")
                kept.append(train(task, optimizer, best, seed, epochs))
                bar.update()
            found[name] = {
                "search": [{"rate": rate, "final_cost": number(costs[-1])} for rate, (costs, _) in runs.items()],
                "rate": best,
                "at_the_edge": len(runs) > 2 and best in (min(runs), max(runs)),
                "costs": [[number(cost) for cost in costs] for costs, _ in kept],
                "test_accuracy": [number(accuracy) for _, accuracy in kept],
            }
        bar.set_postfix_str("")
    examples, features = task.data.train.shape[0], math.prod(task.data.train.shape[1:])
    about = {"data": task.data.name, "examples": examples, "features": features, "decay": task.decay, "epochs": epochs}
    return {"title": task.title, **about, "optimizers": found}


def number(value: float) -> float | None:
    """Five significant digits; JSON has no infinity."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


# ---- What came out ----


def ranking(task: dict[str, Any]) -> list[tuple[float, str]]:
    """The mean final cost of each optimizer, the lowest first; of one that diverged it is infinite."""
    finals = {name: [costs[-1] for costs in found["costs"]] for name, found in task["optimizers"].items()}
    return sorted((math.inf if None in costs else sum(costs) / len(costs), name) for name, costs in finals.items())


def table(results: dict[str, Any]) -> str:
    """What the picture ends with, in Markdown, each problem's optimizers from the lowest cost to the highest."""
    rows = [["problem", "optimizer", "training cost", "its range", "learning rate", "test accuracy"], ["---"] * 6]
    for task in results["tasks"]:
        for place, (mean, name) in enumerate(ranking(task)):
            found = task["optimizers"][name]
            rate = f"{found['rate']:g}" + " (edge)" * found["at_the_edge"]
            ends = [costs[-1] for costs in found["costs"]]
            cost, spread = "diverged", ""
            if math.isfinite(mean):
                cost, spread = f"{mean:#.3g}", f"{min(ends):#.3g}–{max(ends):#.3g}"
            right = f"{np.mean(found['test_accuracy']):.1%}"
            rows.append(["" if place else task["title"], name, cost, spread, rate, right])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows)


def beside_the_best(results: dict[str, Any]) -> tuple[int, int]:
    """How many of the rates next to a best one cost more than every optimizer at its best; and how many there are."""
    worse = neighbours = 0
    for task in results["tasks"]:
        searches = []
        for found in task["optimizers"].values():
            tried = sorted(found["search"], key=lambda one: float(one["rate"]))
            searches.append([math.inf if one["final_cost"] is None else one["final_cost"] for one in tried])
        worst = max(map(min, searches))
        for costs in searches:
            best = costs.index(min(costs))
            beside = [cost for place, cost in enumerate(costs) if abs(place - best) == 1]
            worse += sum(cost > worst for cost in beside)
            neighbours += len(beside)
    return worse, neighbours


def explain(results: dict[str, Any]) -> str:
    """How the table came about."""
    seeds, rates = results["seeds"], len(next(iter(results["tasks"][0]["optimizers"].values()))["search"])
    worse, neighbours = beside_the_best(results)
    alone = " and ".join(name for name, optimizer in OPTIMIZERS.items() if optimizer.decays)
    at_the_edge = any(found["at_the_edge"] for task in results["tasks"] for found in task["optimizers"].values())
    edge = "; edge: the lowest or the highest of them" * at_the_edge
    lines = [
        f"Training cost: of the last epoch, the mean of {len(seeds)} seed{'s' * (len(seeds) > 1)} and its range.",
        f"Learning rate: the best of {rates}, tried with seed {seeds[0]}{edge}.",
        "With a rate half a decade off its best, an optimizer cost more than every optimizer at its best "
        f"in {worse} of {neighbours} cases.",
        "",
    ]
    for task in results["tasks"]:
        rate = f"rates times {DECAYING}/√t" if task["decay"] else "constant rates"
        size = f"{task['examples']:,} examples of {task['features']:,} features"
        lines.append(f"- {task['title']}: {task['data']}, {size}, {task['epochs']} epochs, {rate}.")
    lines += ["", f"{alone}'s rate is constant throughout: its steps fall as 1/√t by themselves."]
    return "\n".join(lines)


def around(page: Path) -> tuple[str, str]:
    """What of the page comes before the table, and what after, the marks with it."""
    begin, end = "<!-- comparison: begin -->\n", "<!-- comparison: end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page}: lacks {begin.strip()} or {end}")
    return before + begin, end + after


def put_into_page(page: Path, text: str) -> None:
    """Replace what stands between the page's marks for the table."""
    before, after = around(page)
    page.write_text(f"{before}{text}\n{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description="The comparison in the paper on Adam, remade in NumPy.")
    option = parser.add_argument
    option(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="MNIST's four IDX files, plain or .gz, for the first and third problem",
    )
    option("--reviews", type=Path, metavar="DIR", help="train/ and test/labeledBow.feat, as of the IMDB reviews")
    option(
        "--cifar", type=Path, metavar="DIR", help="CIFAR-10, binary version: data_batch_1.bin to 5 and test_batch.bin"
    )
    option("--epochs", type=positive, help="passes over the training data (default: by problem, 15 to 50)")
    option("--seed", type=int, default=0, help="the first seed (default: 0)")
    option("--seeds", type=positive, help="how many seeds the best rates run with (default: 3)")
    option(
        "--quick", action="store_true", help="two rates and, by default, one seed and 3 epochs: to see that it works"
    )
    option(
        "--out", type=Path, metavar="PNG", default=Path("out/comparison.png"), help="the picture; JSON goes beside it"
    )
    option("--page", type=Path, metavar="MD", help="a page with marks, into which the table is put")
    args = parser.parse_args(argv)

    need("matplotlib.figure", "matplotlib")  # say so now if it is missing, not after the training
    figures = args.out.with_suffix(".json")
    try:
        if figures == args.out:
            raise ValueError(f"{args.out}: should be the picture, the figures go there")
        if args.page:
            around(args.page)
        every = tasks(args.mnist, args.cifar, args.reviews)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"compare_optimizers.py: {error}", file=sys.stderr)
        return 1
    searched = slice(2, 4) if args.quick else slice(None)
    seeds = range(args.seed, args.seed + (args.seeds or (1 if args.quick else 3)))
    epochs = args.epochs or (3 if args.quick else None)
    versions = {"onepass": onepass.config()["version"], "NumPy": np.__version__, "Python": platform.python_version()}
    versions |= {package: need(package, "scikit-learn").__version__ for package in ("scipy", "sklearn")}
    results: dict[str, Any] = {"versions": versions, "seeds": list(seeds)}
    # Products as small as these are faster on one thread of BLAS, above all where other programs run.
    with need("threadpoolctl", "scikit-learn").threadpool_limits(1):
        results["tasks"] = [compare(task, seeds, searched, epochs or task.epochs) for task in every]

    print(f"{table(results)}\n\n{explain(results)}")
    figures.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw(results, args.out)
    if args.page:
        put_into_page(args.page, f"{table(results)}\n\n{explain(results)}")
    print(f"\nplot: {args.out}, figures: {figures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
