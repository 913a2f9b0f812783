"""Tables of the comparison, computed only from its results: training costs, and a check of published claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from publish import markdown

BATCH = 128  # examples
DECAYING = 10  # a rate that falls as 1/√t starts at this multiple of the rate in the table
MARGIN = 0.05  # the least relative difference of mean costs that counts as clear
EARLY = 3  # epochs of the initial stage, as in figure 3 of the paper


def costs_at(found: dict[str, Any], epoch: int = -1) -> list[float]:
    """Costs of one optimizer in an epoch, one per seed; infinite after it diverged."""
    return [math.inf if run[epoch] is None else run[epoch] for run in found["costs"]]


def mean_cost(found: dict[str, Any], epoch: int = -1) -> float:
    """Mean over the seeds of the cost in an epoch."""
    costs = costs_at(found, epoch)
    return sum(costs) / len(costs)


def costs_in_search(found: dict[str, Any]) -> list[float]:
    """Final costs with the first seed, in the order of the rates."""
    return [math.inf if one["final_cost"] is None else one["final_cost"] for one in found["search"]]


def digits(cost: float) -> str:
    """Three significant digits."""
    return f"{cost:#.3g}" if math.isfinite(cost) else "diverged"


def table(results: dict[str, Any]) -> str:
    """Final costs as a Markdown table, in each problem from the lowest to the highest."""
    rows = [["problem", "optimizer", "training cost", "range", "learning rate", "test accuracy"]]
    for task in results["tasks"]:
        ranking = sorted(task["optimizers"], key=lambda name: (mean_cost(task["optimizers"][name]), name))
        for name in ranking:
            found = task["optimizers"][name]
            rate = f"{found['rate']:g}" + " (edge)" * found["at_the_edge"]
            ends = costs_at(found)
            spread = f"{digits(min(ends))}–{digits(max(ends))}" if math.isfinite(max(ends)) else ""
            accuracy = f"{np.mean(found['test_accuracy']):.1%}"
            title = task["title"] if name == ranking[0] else ""
            rows.append([title, name, digits(mean_cost(found)), spread, rate, accuracy])
    return markdown(rows)


def near_the_best_rate(results: dict[str, Any]) -> tuple[int, int]:
    """Count the rates next to a best rate, and the ones among them that are worse than all optimizers at their best."""
    worse = neighbours = 0
    for task in results["tasks"]:
        searches = [costs_in_search(found) for found in task["optimizers"].values()]
        worst = max(map(min, searches))
        for costs in searches:
            best = costs.index(min(costs))
            near = [cost for place, cost in enumerate(costs) if abs(place - best) == 1]
            worse += sum(cost > worst for cost in near)
            neighbours += len(near)
    return worse, neighbours


def explain(results: dict[str, Any]) -> str:
    """Notes under the table."""
    seeds, rates = results["seeds"], len(next(iter(results["tasks"][0]["optimizers"].values()))["search"])
    worse, neighbours = near_the_best_rate(results)
    edges = any(found["at_the_edge"] for task in results["tasks"] for found in task["optimizers"].values())
    lines = [
        f"Training cost: the cost in the last epoch, mean and range over {len(seeds)} seed{'s' * (len(seeds) > 1)}.",
        f"Learning rate: the best of {rates} rates with seed {seeds[0]}"
        f"{'; edge: the best is the lowest or the highest of them' * edges}.",
        f"In {worse} of {neighbours} cases (seed {seeds[0]}), an optimizer half a decade from its best rate has a "
        "higher cost than all optimizers have at their best rates.",
        "",
    ]
    for task in results["tasks"]:
        rate = f"rates times {DECAYING}/√t" if task["decay"] else "constant rates"
        size = f"{task['examples']:,} examples of {task['features']:,} features"
        steps = task["epochs"] * math.ceil(task["examples"] / BATCH)
        length = f"{task['epochs']} epochs ({steps:,} steps)"
        lines.append(f"- {task['title']}: {task['network']}; {task['data']}, {size}, {length}, {rate}.")
    lines += ["", "AdaGrad's rate is constant on every problem, because its steps fall as 1/√t without a schedule."]
    return "\n".join(lines)


# ---- Published claims ----

IMAGES, WORDS, PERCEPTRON, CONVOLUTION = EVERY = range(4)
ADAM, SGD, ADAGRAD, RMSPROP, ADADELTA = "Adam", "SGD Nesterov", "AdaGrad", "RMSProp", "AdaDelta"
ALL_OTHERS = [(ADAM, SGD), (ADAM, ADAGRAD), (ADAM, RMSPROP), (ADAM, ADADELTA)]
NEITHER = [(ADAM, ADAGRAD), (ADAM, RMSPROP)]


class Claim(NamedTuple):
    """A published statement, and the pairs of optimizers whose costs test it in each of the tasks."""

    source: str
    text: str
    tasks: Sequence[int]
    lower: Sequence[tuple[str, str]] = ()  # the cost of the first is lower
    level: Sequence[tuple[str, str]] = ()  # the cost of the second is not clearly lower
    early: bool = False  # compared after EARLY epochs, not after the last
    often: bool = False  # claimed for most cases, not for all


CLAIMS = [
    Claim("paper, 6.1", "Images: Adam converges like SGD", [IMAGES], level=[(ADAM, SGD), (SGD, ADAM)]),
    Claim("paper, 6.1", "Images: both converge faster than AdaGrad", [IMAGES], [(ADAM, ADAGRAD), (SGD, ADAGRAD)]),
    Claim("paper, 6.1", "Bags of words: AdaGrad outperforms SGD", [WORDS], [(ADAGRAD, SGD)]),
    Claim("paper, 6.1", "Bags of words: Adam converges faster than SGD", [WORDS], [(ADAM, SGD)]),
    Claim("paper, 6.1", "Bags of words: Adam is as fast as AdaGrad", [WORDS], level=[(ADAM, ADAGRAD)]),
    Claim("paper, 6.2", "Perceptron: Adam converges better than all others", [PERCEPTRON], ALL_OTHERS),
    Claim(
        "paper, 6.3",
        "Convolutions: Adam and AdaGrad are faster than SGD at first",
        [CONVOLUTION],
        [(ADAM, SGD), (ADAGRAD, SGD)],
        early=True,
    ),
    Claim(
        "paper, 6.3",
        "Convolutions: Adam and SGD are faster than AdaGrad in the end",
        [CONVOLUTION],
        [(ADAM, ADAGRAD), (SGD, ADAGRAD)],
    ),
    Claim("paper, 6.3", "Convolutions: Adam is slightly better than SGD", [CONVOLUTION], [(ADAM, SGD)]),
    Claim("article", "Adam achieves good results fast", EVERY, ALL_OTHERS, early=True),
    Claim("article", "Adam compares favourably with other methods", EVERY, ALL_OTHERS),
    Claim("article", "Adam often works slightly better than RMSProp", EVERY, [(ADAM, RMSPROP)], often=True),
    Claim("article", "Adam combines the best of AdaGrad and RMSProp", EVERY, level=NEITHER),
]


def lead(task: dict[str, Any], first: str, second: str, epoch: int = -1) -> int:
    """Return 2 if the first optimizer's cost is clearly lower, 1 if only its mean is lower, and otherwise 0.

    Clearly: with every seed, and by MARGIN in the mean. The seeds are paired: both optimizers have the same initial
    weights, batches and dropout.
    """
    ours, theirs = (costs_at(task["optimizers"][name], epoch) for name in (first, second))
    if not sum(ours) < sum(theirs):
        return 0
    return 1 + (sum(ours) <= (1 - MARGIN) * sum(theirs) and all(a < b for a, b in zip(ours, theirs, strict=True)))


def verdict(claim: Claim, results: dict[str, Any]) -> tuple[str, str]:
    """Judge a claim; return the verdict, and the costs or counts behind it."""
    problems = [results["tasks"][number] for number in claim.tasks]
    epoch = min(EARLY, *(task["epochs"] for task in problems)) - 1 if claim.early else -1
    leads = [lead(task, *pair, epoch) for task, pair in product(problems, claim.lower)]
    leads += [2 * (lead(task, second, first) < 2) for task, (first, second) in product(problems, claim.level)]
    clear, held, total = leads.count(2), len(leads) - leads.count(0), len(leads)
    holds = clear > total / 2 if claim.often else clear == total
    word = "holds" if holds else "holds in part" if held > total / 2 else "does not hold"
    when = f" after {epoch + 1} epochs" * claim.early
    if len(problems) > 1 and claim.lower:
        return word, f"Adam's mean is lower{when} in {held} of {total} comparisons, clearly in {clear}"
    if len(problems) > 1:
        return word, f"Adam is clearly worse in {total - held} of {total} comparisons"
    names = dict.fromkeys(name for pair in [*claim.lower, *claim.level] for name in pair)
    costs = (f"{name} {digits(mean_cost(problems[0]['optimizers'][name], epoch))}" for name in names)
    return word, ", ".join(costs) + when


def untuned(results: dict[str, Any], name: str, rate: float) -> tuple[str, str]:
    """Judge the claim that a fixed rate does well on most problems: its cost is not above all costs with best rates."""
    costs, limits = [], []
    for task in results["tasks"]:
        searches = {one: costs_in_search(found) for one, found in task["optimizers"].items()}
        tried = [one["rate"] for one in task["optimizers"][name]["search"]]
        if rate not in tried:
            return "not tested", f"rate {rate:g} was not tried"
        costs.append(searches[name][tried.index(rate)])
        limits.append(max(map(min, searches.values())))
    well = sum(cost <= limit for cost, limit in zip(costs, limits, strict=True))
    word = "holds" if well > len(costs) / 2 else "holds in part" if well else "does not hold"
    ours, worst = (", ".join(map(digits, of_tasks)) for of_tasks in (costs, limits))
    return word, f"rate {rate:g}: {ours}; the worst of the five with its best rate: {worst}"


def claims(results: dict[str, Any]) -> str:
    """Published claims, as a Markdown table with a verdict and the costs behind it."""
    rows = [["claim", "source", "verdict", "training costs"]]
    rows += [[claim.text, claim.source, *verdict(claim, results)] for claim in CLAIMS]
    rows.append(["Adam's default configuration does well on most problems", "article", *untuned(results, ADAM, 0.001)])
    rows.append(["AdaDelta needs no tuning of a learning rate", "Zeiler (2012)", *untuned(results, ADADELTA, 1)])
    return markdown(rows)


SECTIONS = {"table": lambda results: f"{table(results)}\n\n{explain(results)}", "claims": claims}
