"""Peers that need only onepass, NumPy and Python: one class each.

`measure.check` compares every peer that takes steps with onepass before it is timed.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import weakref
from contextlib import suppress
from typing import Any

import numpy as np

import onepass
import onepass._core as _core

from .machine import cores
from .peer import RULES, Array, Arrays, Options, Peer, Problem


class Onepass(Peer):
    """``opt.step([g])``, as users write it."""

    name = "onepass"
    rules = tuple(RULES)

    def __init__(self, problem: Problem, params: Arrays, options: Options, eps_mode: str = "paper") -> None:
        self.p = params
        place = {} if eps_mode == "paper" else {"eps_mode": eps_mode}  # an option of some rules only
        keywords = {**options.of(problem.rule), **place, **self.more(options)}
        self.optimizer = getattr(onepass, problem.rule)(params, **keywords)

    def more(self, options: Options) -> dict[str, Any]:
        """Return further keywords."""
        return {}

    def load(self, grads: Arrays) -> None:
        self.grads = grads

    def run(self, steps: int) -> None:
        step, grads = self.optimizer.step, self.grads
        for _ in range(steps):
            step([*grads])  # a new list, as in a user's program


class OnepassOneThread(Onepass):
    """onepass on one thread, whatever the problem says."""

    name = "onepass, one thread"
    own_threads = 1


class OnepassAllThreads(Onepass):
    """onepass on a thread for each core that this process may use."""

    name = "onepass, all threads"
    own_threads = cores()


class OnepassFlat(Onepass):
    """onepass on one flat array of as many elements."""

    name = "onepass, one flat array"

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.sizes = problem.sizes
        super().__init__(problem, [np.concatenate(params)], options)
        self.flat = np.empty_like(self.p[0])

    def load(self, grads: Arrays) -> None:
        np.concatenate(grads, out=self.flat)
        super().load([self.flat])

    def params(self) -> Arrays:
        return np.split(self.p[0], np.cumsum(self.sizes)[:-1])


class OnepassSparse(Onepass):
    """onepass with ``SparseRows`` of up to 1,600 rows, evenly spread; small problems are dense, which `check` needs."""

    name = "onepass, SparseRows"

    def __init__(self, problem: Problem, params: Arrays, options: Options, eps_mode: str = "paper") -> None:
        self.width = problem.width
        super().__init__(problem, [self.table(p) for p in params], options, eps_mode)

    def table(self, array: Array) -> Array:
        width = math.gcd(array.size, self.width)  # the sizes that are checked are no multiples of the width
        return array.reshape((-1, width) if width > 1 else -1)

    def load(self, grads: Arrays) -> None:
        self.rows = []
        for grad in map(self.table, grads):
            indices = np.linspace(0, len(grad) - 1, min(1_600, len(grad)), dtype=np.int64)
            self.rows.append((indices, grad[indices]))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.step([onepass.SparseRows(*pair) for pair in self.rows])

    def params(self) -> Arrays:
        return [p.reshape(-1) for p in self.p]


class OnepassKeepsSubnormals(Onepass):
    """onepass with ``flush_denormals=False``."""

    name = "onepass, keeping subnormals"

    def more(self, options: Options) -> dict[str, Any]:
        return {"flush_denormals": False}


class OnepassClipAverage(Onepass):
    """onepass with clipped gradients and averaged parameters, all in one call."""

    name = "onepass, one call"

    def more(self, options: Options) -> dict[str, Any]:
        return {"clip_norm": options.clip_norm, "ema_decay": options.ema_decay}

    def results(self) -> Arrays:
        return [*self.p, *self.optimizer.ema]


class StreamBaseline(Peer):
    """The seven streams of Adam with an addition per array, in a loop of onepass's core."""

    name = "stream baseline"
    takes_steps = False
    rules = tuple(RULES)

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.p = params
        state = onepass.Adam(params).state  # the same kind of memory as onepass's
        self.m = [state[i]["exp_avg"] for i in range(len(params))]
        self.v = [state[i]["exp_avg_sq"] for i in range(len(params))]

    def run(self, steps: int) -> None:
        stream = _core.stream_baseline  # adds the gradient to each array, which grows linearly and never overflows
        for _ in range(steps):
            for p, g, m, v in self.tensors:
                stream(p, g, m, v)


class NoOptimizer(Peer):
    """No step: the time of the rest of a training run."""

    name = "no optimizer"
    takes_steps = False

    def run(self, steps: int) -> None:
        pass


class InPlaceNumPy(Peer):
    """As few passes as possible, without allocations, and with the bias corrections folded into two numbers.

    ``lr·m_hat / (sqrt(v_hat) + eps)`` is ``a·m / (sqrt(v) + e)``. The numbers are arrays without dimensions and the
    outputs third arguments: on 100 elements that is twice as fast as Python numbers and ``out=``.
    """

    name = "in-place NumPy"

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.scratch = [np.empty_like(p) for p in params]

    def load(self, grads: Arrays) -> None:
        self.tensors = [*zip(self.p, grads, self.m, self.v, self.scratch, strict=True)]

    def run(self, steps: int) -> None:
        o = self.options
        multiply, add, subtract, divide, sqrt = np.multiply, np.add, np.subtract, np.divide, np.sqrt
        numbers = (o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2, 0.0, 0.0)
        b1, rest1, b2, rest2, a, e = (np.array(number, self.p[0].dtype) for number in numbers)
        for _ in range(steps):
            self.t += 1
            root = math.sqrt(1 - o.beta2**self.t)
            a[...] = o.lr * root / (1 - o.beta1**self.t)
            e[...] = o.eps * root
            for p, g, m, v, s in self.tensors:
                multiply(m, b1, m)
                multiply(g, rest1, s)
                add(m, s, m)
                multiply(v, b2, v)
                multiply(g, g, s)
                multiply(s, rest2, s)
                add(v, s, v)
                sqrt(v, s)
                add(s, e, s)
                divide(m, s, s)
                multiply(s, a, s)
                subtract(p, s, p)


class TextbookNumPy(Peer):
    """The formula of the paper, with an array for every intermediate result."""

    name = "textbook NumPy"

    def load(self, grads: Arrays) -> None:
        self.grads = grads

    def run(self, steps: int) -> None:
        lr, b1, b2, eps = self.options.lr, self.options.beta1, self.options.beta2, self.options.eps
        p, m, v = self.p, self.m, self.v
        for _ in range(steps):
            self.t += 1
            for i, g in enumerate(self.grads):
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g**2
                m_hat = m[i] / (1 - b1**self.t)
                v_hat = v[i] / (1 - b2**self.t)
                p[i] -= lr * m_hat / (np.sqrt(v_hat) + eps)


class TextbookNumPyFreshMemory(TextbookNumPy):
    """Textbook NumPy in a separate process, which has never freed anything larger than these arrays.

    glibc then gives memory back to the system as soon as it is freed, and the next intermediate result costs its page
    faults again. The message to that process and back is part of the time: some 50 µs a sample.
    """

    name = "textbook NumPy, fresh memory"

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        folder = tempfile.TemporaryDirectory()
        files = [(f"{folder.name}/{name}{i}", p.dtype, p.shape) for name in "pg" for i, p in enumerate(params)]
        arrays: Arrays = [np.memmap(name, dtype, "w+", shape=shape) for name, dtype, shape in files]
        self.p, self.g = arrays[: len(params)], arrays[len(params) :]
        for mine, given in zip(self.p, params, strict=True):
            mine[...] = given
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        process = spawn.Process(target=_textbook_process, args=(theirs, problem, files, options), daemon=True)
        process.start()
        theirs.close()
        self.connection.recv()  # the process is ready
        weakref.finalize(self, _end, process, self.connection, folder)

    def load(self, grads: Arrays) -> None:
        for mine, given in zip(self.g, grads, strict=True):
            mine[...] = given

    def run(self, steps: int) -> None:
        self.connection.send(steps)
        self.connection.recv()


def _textbook_process(
    connection: Any, problem: Problem, files: list[tuple[str, Any, tuple[int, ...]]], options: Options
) -> None:
    """Take steps on the arrays in these files, parameters first, when the connection sends their number."""
    arrays: Arrays = [np.memmap(name, dtype, "r+", shape=shape) for name, dtype, shape in files]
    peer = TextbookNumPy(problem, [array.view(np.ndarray) for array in arrays[: len(arrays) // 2]], options)
    peer.load([array.view(np.ndarray) for array in arrays[len(arrays) // 2 :]])
    connection.send(None)
    with suppress(EOFError):
        while True:
            peer.run(connection.recv())
            connection.send(None)


def _end(process: Any, connection: Any, folder: tempfile.TemporaryDirectory[str]) -> None:
    connection.close()
    process.join()
    folder.cleanup()


class PurePython(Peer):
    """The formula, element by element, on lists of floats."""

    name = "pure Python"
    max_elements = 100_000

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.p, self.m, self.v = ([array.tolist() for array in arrays] for arrays in (self.p, self.m, self.v))

    def load(self, grads: Arrays) -> None:
        super().load([grad.tolist() for grad in grads])

    def run(self, steps: int) -> None:
        lr, b1, b2, eps = self.options.lr, self.options.beta1, self.options.beta2, self.options.eps
        for _ in range(steps):
            self.t += 1
            correction1, correction2 = 1 - b1**self.t, 1 - b2**self.t
            for p, grad, m, v in self.tensors:
                for i, g in enumerate(grad):
                    m[i] = b1 * m[i] + (1 - b1) * g
                    v[i] = b2 * v[i] + (1 - b2) * g * g
                    m_hat = m[i] / correction1
                    v_hat = v[i] / correction2
                    p[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)

    def params(self) -> Arrays:
        return [np.array(p) for p in self.p]
