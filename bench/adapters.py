"""onepass behind PyTorch's and thinc's own interfaces, in the place of the optimizers that it stands in for."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .libraries import ThincOptimizer, Torch
from .measure import ROUNDS_AT_LEAST, Effort, Series, WrongResult, no_garbage_collection, point
from .peer import RULES, Options, Peer, Problem, imported
from .records import Point


class OnepassTorch(Torch):
    """``onepass.integrations.torch``, one changed line in a training loop of PyTorch's."""

    name = "onepass for torch"
    rules = tuple(rule for rule in RULES if rule != "Lion")

    def make(self, rule: str, options: Options) -> Any:
        return getattr(imported("onepass.integrations.torch"), rule)(self.weights, **options.of(rule))


class TorchNoOptimizer(Torch):
    """No step at all: what the rest of a training in PyTorch takes."""

    name = "no optimizer"
    takes_steps = False

    def run(self, steps: int) -> None:
        pass


class OnepassThinc(ThincOptimizer):
    """``onepass.integrations.thinc``, one changed line in a configuration of thinc's or spaCy's."""

    name = "onepass for thinc"

    def make(self, options: Options) -> Any:
        return imported("onepass.integrations.thinc").Adam(
            options.lr, beta1=options.beta1, beta2=options.beta2, eps=options.eps, L2=0.0, grad_clip=0.0
        )


LAYERS = (8, 64, 64, 4)
BATCH, ITERATIONS = 64, 100
_SHAPES = tuple(shape for inputs, outputs in pairwise(LAYERS) for shape in ((outputs, inputs), (outputs,)))
POLICY = Problem(tuple(math.prod(shape) for shape in _SHAPES), label="a policy network (8-64-64-4)")
POLICY_ITERATION = Problem(POLICY.sizes, label="an iteration of training a policy network (8-64-64-4)")


def measure_iterations(
    kinds: Sequence[type[Peer]], problem: Problem, effort: Effort, rng: np.random.Generator
) -> Point:
    """Time whole iterations (forward, loss, backward, step) with each peer; the first is what others are compared with.

    Raises:
        WrongResult: with a peer that takes steps the loss ends elsewhere than with the first.
    """
    series = [Series(kind, steps=ITERATIONS) for kind in kinds]
    with no_garbage_collection():
        end, rounds = time.monotonic() + effort.seconds, 0
        while rounds < ROUNDS_AT_LEAST or time.monotonic() < end:
            seed, losses = int(rng.integers(2**32)), []
            for one in random.sample(series, len(series)):
                ns, loss = _iterate(one.kind, problem, seed)
                one.samples.append(ns)
                if one.kind.takes_steps:
                    losses.append((loss, one.kind.name))
            if losses and not np.ptp([loss for loss, _ in losses]) <= 1e-4:  # nor NaN
                raise WrongResult(f"after {ITERATIONS} iterations the losses are {losses}")
            rounds += 1
    return point(problem, series)


def _iterate(kind: type[Peer], problem: Problem, seed: int) -> tuple[float, float]:
    """Train a network that a seed makes: the median of an iteration's nanoseconds, and the last loss."""
    torch = imported("torch")
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.2, shape).astype(np.float32) for shape in _SHAPES]
    peer = kind(problem, weights, Options())
    assert isinstance(peer, Torch)
    layers: list[Any] = []
    for (inputs, outputs), weight, bias in zip(pairwise(LAYERS), peer.weights[::2], peer.weights[1::2], strict=True):
        linear = torch.nn.Linear(inputs, outputs)
        linear.weight, linear.bias = weight, bias
        layers += [linear, torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    states = torch.from_numpy(rng.normal(0, 1, (BATCH, LAYERS[0])).astype(np.float32))
    targets = torch.tanh(states @ torch.from_numpy(rng.normal(0, 1, (LAYERS[0], LAYERS[-1])).astype(np.float32)))
    samples = []
    for _ in range(ITERATIONS):
        started = time.perf_counter_ns()
        for weight in peer.weights:
            weight.grad = None
        loss = torch.nn.functional.mse_loss(model(states), targets)
        loss.backward()
        peer.run(1)
        samples.append(time.perf_counter_ns() - started)
    return statistics.median(samples), float(loss.detach())
