"""The method: check the results, then time all peers in turn, round after round.

One round takes one sample of each peer, in random order. A sample is long enough for the clock (`SAMPLE_NS`). Untimed
steps (`WARM_NS`) precede it, so that the caches are as the peer's own steps leave them: after another peer's turn,
arrays that fit into the cache need about ten steps to return to it. The rounds are divided among sessions. Each
session allocates its memory again, because the addresses of the arrays change the time of a step.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

import onepass

from .peer import Arrays, Options, Peer, Problem
from .peers import Onepass
from .records import Comparison, Point, Ratio, Timing

SAMPLE_NS = 200_000
WARM_NS = 2_000_000


@dataclass(frozen=True)
class Budget:
    """Time to spend on one problem."""

    seconds: float = 8.0
    sessions: int = 8
    iterations: int = 20  # at least: of a training loop in each turn of a peer


class WrongResult(Exception):
    """Error about a peer whose results differ from onepass's: its speed would mean nothing."""


def random_arrays(problem: Problem, rng: np.random.Generator) -> Arrays:
    """Return numbers between 0.1 and 1.1 of either sign: no zeros, and no squares that could decay to subnormals."""
    arrays: Arrays = []
    for size in problem.sizes:
        values = rng.random(size, problem.dtype)  # type: ignore[call-overload]
        values *= 2
        values -= 1
        values += np.copysign(values.dtype.type(0.1), values)
        arrays.append(values)
    return arrays


def check(kind: type[Peer], problem: Problem, rng: np.random.Generator, base: type[Onepass] = Onepass) -> None:
    """Raise `WrongResult` unless three steps move the parameters as onepass moves them.

    Only the problem's dtype, rule and threads count: the sizes are small, and with threads one size is large enough
    for them. Epsilon is so large that its placement matters, and averages follow fast.
    """
    options = Options(lr=0.01, eps=0.05, ema_decay=0.5)
    # In float64 torch's NAdam is the least exact: it keeps the product of its momenta in float32.
    rtol, atol = kind.tolerance or ((1e-4, 1e-6) if problem.dtype == "float32" else (1e-7, 1e-9))
    for sizes in ((1, 1), (100, 1003), *[(200_003,)] * (problem.threads != 1)):
        small = replace(problem, sizes=sizes, decayed=False)
        start = random_arrays(small, rng)
        peer = kind(small, [p.copy() for p in start], options)
        expected = base(small, [p.copy() for p in start], options, eps_mode=kind.eps_mode)
        for _ in range(3):
            grads = random_arrays(small, rng)
            for each in (expected, peer):
                each.load(grads)
                each.run(1)
        results = zip(expected.results(), peer.results(), strict=True)
        for before, (wanted, got) in zip(itertools.cycle(start), results):  # averages start at the parameters
            # Compare the changes: parameters are so much larger that they would hide a wrong change.
            difference = np.abs((got - before) - (wanted - before))
            if not np.all(difference <= atol + rtol * np.abs(wanted - before)):
                raise WrongResult(
                    f"{kind.name} differs from onepass after 3 steps on {small}: by up to {np.max(difference):.3g} "
                    f"in changes of about {np.mean(np.abs(wanted - before)):.3g}"
                )


@dataclass
class Series:
    """Samples of one peer: nanoseconds per step, of timed steps after warm ones."""

    kind: type[Peer]
    warm: int = 0
    steps: int = 0
    rounds: list[list[float]] = field(default_factory=list)  # the samples of each

    @property
    def samples(self) -> list[float]:
        """Samples of all rounds."""
        return [*itertools.chain.from_iterable(self.rounds)]

    def plan(self, peer: Peer, grads: Arrays) -> None:
        """Set the number of steps in a sample."""
        self.warm = self.steps = 1
        while (ns := min(self._time(peer, grads) for _ in range(3)) * self.steps) < SAMPLE_NS:
            if self.steps == peer.max_steps:
                break
            self.steps = min(2 * self.steps, peer.max_steps)
        self.warm = min(math.ceil(WARM_NS * self.steps / ns), peer.max_steps)

    def take(self, peer: Peer, grads: Arrays) -> None:
        """Add one sample."""
        self.rounds.append([self._time(peer, grads)])

    def _time(self, peer: Peer, grads: Arrays) -> float:
        peer.load(grads)
        peer.run(self.warm)
        start = time.perf_counter_ns()
        peer.run(self.steps)
        return (time.perf_counter_ns() - start) / self.steps


def measure(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time each peer on this problem, and compare the others with the first."""
    settle_allocator()
    series = [Series(kind) for kind in kinds]
    for session in range(budget.sessions):
        params, grads = random_arrays(problem, rng), random_arrays(problem, rng)
        pairs = [(one, one.kind(problem, [p.copy() for p in params], Options())) for one in series]
        if problem.decayed:
            grads = decay([peer for _, peer in pairs], grads)
        with no_garbage_collection():
            if session == 0:
                for one, peer in pairs:
                    use_threads(one.kind, problem)
                    one.plan(peer, grads)
            for _ in rounds(budget.seconds / budget.sessions):
                for one, peer in random.sample(pairs, len(pairs)):
                    use_threads(one.kind, problem)
                    one.take(peer, grads)
    return point(problem, series)


def rounds(seconds: float) -> Iterator[None]:
    """Yield until the time is over, at least twice."""
    end = time.monotonic() + seconds
    yield from (None, None)
    while time.monotonic() < end:
        yield


def use_threads(kind: type[Peer], problem: Problem) -> None:
    """Set the number of onepass's threads for this peer."""
    onepass.set_num_threads(kind.own_threads or problem.threads or None)


def decay(peers: Sequence[Peer], grads: Arrays) -> Arrays:
    """Make the state of all peers subnormal, and return the gradients of zero that keep it so.

    One gradient is so small that the second moment is subnormal at once. Then the first moment decays until it gets
    stuck: 0.9 times a few of the smallest numbers rounds back to the same number.
    """
    limits = np.finfo(grads[0].dtype)
    small, steps = math.sqrt(limits.tiny), math.log(math.sqrt(limits.tiny) / limits.smallest_subnormal)
    zeros = [np.zeros_like(g) for g in grads]
    for peer in peers:
        peer.load([g * g.dtype.type(small) for g in grads])
        peer.run(1)
        peer.load(zeros)
        peer.run(math.ceil(steps / -math.log(Options.beta1)))
    return zeros


def point(problem: Problem, series: Sequence[Series]) -> Point:
    """Summarize the series, relative to the first."""
    sums = comparison(series)
    return Point(
        problem=str(problem),
        elements=problem.elements,
        tensors=len(problem.sizes),
        dtype=problem.dtype,
        threads=problem.threads,
        rule=problem.rule,
        streams=streams(problem.rule),
        rounds=len(series[0].rounds),
        timings=sums["timings"],
        over_onepass=sums["over_onepass"],
    )


def comparison(series: Sequence[Series]) -> Comparison:
    """Summarize each series, relative to the first."""
    return Comparison(
        timings={one.kind.name: timing(one) for one in series},
        over_onepass={one.kind.name: ratio(one, series[0]) for one in series},
    )


def streams(rule: str) -> int:
    """Count the arrays that a step reads plus those that it writes: parameter and state twice, the gradient once."""
    optimizer = getattr(onepass, rule)(np.ones(2, np.float32), **Options().of(rule))
    states = [value for value in optimizer.state[0].values() if np.size(value) == 2]
    return 2 * len(states) + 3


def settle_allocator() -> None:
    """Make the cost of an allocation independent of the earlier ones in this process.

    glibc returns freed blocks to the system, so that the next blocks cost page faults, until it has seen a larger block
    freed: 32 MiB is the largest that it learns from. Without this a step of textbook NumPy on 1 million elements takes
    2 ms or 12 ms by chance. With it the faster one is measured; `peers.TextbookNumPyFreshMemory` is the slower one.
    """
    np.ones(31 * 2**20, np.uint8)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch the garbage collector off, as `timeit` does."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def timing(series: Series) -> Timing:
    samples = series.samples
    q1, median, q3, p90 = (rounded(x) for x in np.quantile(samples, (0.25, 0.5, 0.75, 0.9)))
    mean = rounded(statistics.fmean(samples))
    return Timing(
        median_ns=median,
        q1_ns=q1,
        q3_ns=q3,
        mean_ns=mean,
        p90_ns=p90,
        fastest_ns=rounded(min(samples)),
        steps_per_sample=series.steps,
    )


def ratio(series: Series, onepass: Series) -> Ratio:
    pairs = zip(series.rounds, onepass.rounds, strict=True)
    return Ratio(
        of_medians=rounded(statistics.median(series.samples) / statistics.median(onepass.samples)),
        median_of_rounds=rounded(statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)),
    )


def rounded(value: float) -> float:
    """Round to five digits: more would only be noise."""
    return float(f"{value:.5g}")
