"""Training loops: the step between the forward and backward passes of a network, as users run it.

Each optimizer trains for a turn of some dozens of iterations, all in random order, round after round. Every turn starts
from the same weights and takes the same batches as the others of its round, so their losses must be alike.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .libraries import Torch
from .measure import Budget, Series, WrongResult, comparison, no_garbage_collection, point, rounds, use_threads
from .peer import Array, Arrays, Options, Peer, Problem, imported
from .records import Point

BATCH, BATCHES = 64, 8
NS_PER_ITERATION = 15_000_000  # at least, in a turn: fast networks take more than 20 iterations in 0.3 s
WARM = 2  # untimed iterations of a turn, at least
TOLERANCE = 1e-4  # relative, between losses: a missing step changes them by 3e-3 or more, rounding by 1e-6
LR = 1e-4  # suits the widest networks too


@dataclass(frozen=True)
class Network(Problem):
    """Fully connected layers of these widths, the input's first."""

    layers: tuple[int, ...] = ()
    activation: str = "relu"

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The weights and biases, in PyTorch's layout."""
        return [shape for inputs, outputs in pairwise(self.layers) for shape in ((outputs, inputs), (outputs,))]


def network(layers: tuple[int, ...], label: str, threads: int = 0, activation: str = "relu") -> Network:
    shapes = Network((), layers=layers).shapes
    sizes = tuple(math.prod(shape) for shape in shapes)
    return Network(sizes, threads=threads, label=label, layers=layers, activation=activation)


def square(width: int) -> Network:
    """Four layers of one width."""
    parameters = 4 * (width * width + width)
    return network((width,) * 5, label=f"four layers of {width} ({parameters:,} parameters)")


def policy(layers: tuple[int, ...], threads: int = 0) -> Network:
    """A policy network, as reinforcement learning trains them."""
    label = f"an iteration of training a policy network ({'-'.join(map(str, layers))})"
    return network(layers, label, threads, activation="tanh")


@dataclass
class Data:
    """Weights at the start of every turn, and the batches."""

    start: Arrays
    inputs: Arrays
    targets: Arrays

    @classmethod
    def of(cls, problem: Network, rng: np.random.Generator) -> Data:
        """Return random weights of the usual size, and outputs that no network fits well: gradients must not vanish."""
        start = [
            rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / shape[-1]) if len(shape) > 1 else 0)
            for shape in problem.shapes
        ]
        ends = (problem.layers[0], problem.layers[-1])
        inputs, targets = ([rng.standard_normal((BATCH, n), np.float32) for _ in range(BATCHES)] for n in ends)
        return cls(start, inputs, targets)


class NumPyTraining:
    """The network in NumPy: each product allocates its gradient, as a user's loop does."""

    def __init__(self, kind: type[Peer], problem: Network, data: Data) -> None:
        self.peer = kind(problem, [p.reshape(-1).copy() for p in data.start], Options(lr=LR))
        params = [flat.reshape(shape) for flat, shape in zip(self.peer.params(), problem.shapes, strict=True)]  # views
        self.layers = [*zip(params[::2], params[1::2], strict=True)]
        self.batches = itertools.cycle([*zip(data.inputs, data.targets, strict=True)])
        self.tanh = problem.activation == "tanh"

    def backward(self) -> float:
        """Take the next batch, and load its gradients into the optimizer."""
        x, y = next(self.batches)
        values = [x]
        for weight, bias in self.layers:
            z = values[-1] @ weight.T
            z += bias
            if len(values) < len(self.layers):
                np.tanh(z, out=z) if self.tanh else np.maximum(z, 0, out=z)
            values.append(z)
        error = values.pop() - y
        delta = error * np.float32(2 / error.size)
        grads: list[Array] = []
        for (weight, _), value in zip(reversed(self.layers), reversed(values), strict=True):
            grads += [delta.sum(axis=0), (delta.T @ value).reshape(-1)]
            if value is not x:
                delta = delta @ weight
                delta *= 1 - value * value if self.tanh else value > 0
        self.peer.load(grads[::-1])
        return float(np.mean(error * error))

    def clear(self) -> None:
        """Do nothing: new gradients free the old ones."""


class TorchTraining:
    """The network in PyTorch."""

    def __init__(self, kind: type[Torch], problem: Network, data: Data) -> None:
        self.torch = torch = imported("torch")
        self.peer = kind(problem, [p.copy() for p in data.start], Options(lr=LR))
        modules: list[Any] = []
        for weight, bias in zip(self.peer.weights[::2], self.peer.weights[1::2], strict=True):
            modules += [
                torch.nn.Linear(1, 1, device="meta"),
                torch.nn.Tanh() if problem.activation == "tanh" else torch.nn.ReLU(),
            ]
            modules[-2].weight, modules[-2].bias = weight, bias
        self.model = torch.nn.Sequential(*modules[:-1])
        pairs = zip(data.inputs, data.targets, strict=True)
        self.batches = itertools.cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs])

    def backward(self) -> float:
        """Take the next batch, and leave its gradients in ``.grad``."""
        x, y = next(self.batches)
        loss = self.torch.nn.functional.mse_loss(self.model(x), y)
        loss.backward()
        return float(loss.detach())

    def clear(self) -> None:
        self.peer.optimizer.zero_grad(set_to_none=True)


def measure(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time each peer's steps and whole iterations, and compare the others with the first.

    Raises:
        WrongResult: the losses of the peers that take steps differ.
    """
    assert isinstance(problem, Network)
    steps, iterations = ([Series(kind, steps=1) for kind in kinds] for _ in range(2))
    with no_garbage_collection():
        for _ in rounds(budget.seconds):
            data, losses = Data.of(problem, rng), []
            for step, iteration in random.sample([*zip(steps, iterations, strict=True)], len(kinds)):
                step_ns, iteration_ns, loss = train(step.kind, problem, data, budget.iterations)
                step.rounds.append(step_ns)
                iteration.rounds.append(iteration_ns)
                if step.kind.takes_steps:
                    losses.append((loss, step.kind.name))
            if losses and not np.ptp([loss for loss, _ in losses]) <= TOLERANCE * losses[0][0]:  # false for NaN
                raise WrongResult(f"after {budget.iterations} iterations the losses are {losses}")
    result = point(problem, iterations)
    result["step"] = comparison(steps)
    return result


def train(kind: type[Peer], problem: Network, data: Data, at_least: int) -> tuple[list[float], list[float], float]:
    """Return the nanoseconds of each step and each iteration of a turn, and the loss of the last common iteration.

    The first iterations are not timed: they bring the new state into memory, and by their end the idle threads of the
    previous peer have stopped spinning.
    """
    use_threads(kind, problem)
    training = TorchTraining(kind, problem, data) if issubclass(kind, Torch) else NumPyTraining(kind, problem, data)
    backward, run, clear, now = training.backward, training.peer.run, training.clear, time.perf_counter_ns
    steps: list[float] = []
    iterations: list[float] = []
    losses: list[float] = []
    length = at_least * NS_PER_ITERATION
    begin = now() + length // 10
    while True:
        started = now()
        losses.append(backward())
        stepping = now()
        run(1)
        stepped = now()
        clear()
        ended = now()
        if len(losses) <= WARM or started < begin:
            continue
        steps.append(stepped - stepping)
        iterations.append(ended - started)
        if len(steps) >= at_least and ended >= begin + length:
            return steps, iterations, losses[at_least - 1]
