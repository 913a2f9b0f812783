"""A complete training run: the network of ``examples/train_digits.py`` on scikit-learn's digits.

Here a step is one of the training's: the network's forward and backward pass in NumPy, and then the optimizer's, whose
gradients are new each time. All start from the same weights and see the same batches.
"""

from __future__ import annotations

import importlib.util
import math
import random
import statistics
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

import onepass

from .measure import Budget, Series, WrongResult, no_garbage_collection, point, rounds
from .peer import Options, Peer, Problem
from .records import ROOT, Point

LAYERS = (64, 512, 256, 10)  # the example's own
EPOCHS, BATCH, LR = 15, 128, 2e-3
NETWORK = Problem(
    tuple(size for inputs, outputs in pairwise(LAYERS) for size in (inputs * outputs, outputs)),
    label="a training step of a network of 167 thousand parameters",
)


def why_missing() -> str | None:
    """Return the reason why the digits are missing, or None."""
    if importlib.util.find_spec("sklearn") is None:
        return "scikit-learn, which carries the digits, is not installed"
    return None


@cache
def example() -> Any:
    """Return the example as a module."""
    spec = importlib.util.spec_from_file_location("train_digits", ROOT / "examples" / "train_digits.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time complete training runs with each peer, and compare the others with the first.

    Raises:
        WrongResult: the last loss of a peer that takes steps differs from the first peer's.
    """
    onepass.set_num_threads(problem.threads)
    digits, start = example().scanned_digits(), example().initial_parameters(LAYERS, seed=0)
    batches = math.ceil(len(digits.train_labels) / BATCH)
    series = [Series(kind, steps=EPOCHS * batches) for kind in kinds]
    losses: dict[type[Peer], list[float]] = {kind: [] for kind in kinds}
    with no_garbage_collection():
        for _ in rounds(budget.seconds):
            seed = int(rng.integers(2**32))
            for one in random.sample(series, len(series)):
                ns, loss = train(one.kind, problem, digits, start, seed)
                one.rounds.append([ns])
                losses[one.kind].append(loss)
    wanted = statistics.median(losses[kinds[0]])
    for kind, ends in losses.items():
        # A difference in the last bit can switch a ReLU: after that two runs are only similar.
        if kind.takes_steps and not math.isclose(statistics.median(ends), wanted, rel_tol=0.05):
            raise WrongResult(
                f"with {kind.name} the last epoch's loss is {statistics.median(ends):.4g}, not {wanted:.4g}"
            )
    return point(problem, series)


def train(kind: type[Peer], problem: Problem, digits: Any, start: Any, seed: int) -> tuple[float, float]:
    """Train once; return the nanoseconds per step and the last epoch's loss."""
    peer = kind(problem, [p.flatten() for p in start], Options(lr=LR))
    network = [flat.reshape(p.shape) for flat, p in zip(peer.params(), start, strict=True)]  # views
    rng, gradient_of = np.random.default_rng(seed), example().loss_and_gradients
    count = len(digits.train_labels)
    batches = math.ceil(count / BATCH)
    started = time.perf_counter_ns()
    for _ in range(EPOCHS):
        total = 0.0
        for chosen in np.array_split(rng.permutation(count), batches):
            loss, grads = gradient_of(network, digits.train_images[chosen], digits.train_labels[chosen])
            peer.load([g.reshape(-1) for g in grads])
            peer.run(1)
            total += loss
    return (time.perf_counter_ns() - started) / (EPOCHS * batches), total / batches
