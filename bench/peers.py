"""Who is measured: one class per peer, all with the same few methods.

To add one, write a class and put it in ``PEERS``. `measure.check` holds it against onepass before it is timed.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import tempfile
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import onepass
import onepass._core as _core

Array = npt.NDArray[Any]
Arrays = list[Array]


@dataclass(frozen=True)
class Options:
    """Adam's options, for all peers alike."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # this and the average's decay: only for those who take them
    ema: float = 0.999


@dataclass(frozen=True)
class Problem:
    """What is stepped: so many one-dimensional tensors of so many elements."""

    elements: int
    tensors: int = 1
    dtype: str = "float32"
    threads: int = 1


class Peer(ABC):
    """One way to take Adam steps. ``params`` are its own to change; state starts at zero."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None  # what must be installed besides NumPy
    eps_mode: ClassVar[str] = "paper"  # where it puts epsilon, in onepass's terms
    takes_steps: ClassVar[bool] = True  # False: a yardstick, with no result to check
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64")
    max_threads: ClassVar[int] = 1
    max_elements: ClassVar[int] = 10**12  # beyond, it would only make everyone wait
    max_steps: ClassVar[int] = 10**6  # how many steps it can take on one gradient and stay on the usual path

    def __init__(self, params: Arrays, options: Options) -> None:
        self.p = params
        self.m = [np.zeros_like(p) for p in params]
        self.v = [np.zeros_like(p) for p in params]
        self.tensors: list[tuple[Any, ...]] = []
        self.options = options
        self.t = 0

    def load(self, grads: Arrays) -> None:
        """Take these gradients for the coming steps, and lay out what their loop needs. Not timed."""
        self.tensors = [*zip(self.p, grads, self.m, self.v, strict=True)]

    @abstractmethod
    def run(self, steps: int) -> None:
        """Take so many steps, in a loop as a user of it would write it. This is what is timed."""

    def params(self) -> Arrays:
        """Give the parameters as they are now."""
        return self.p

    def results(self) -> Arrays:
        """Give what is checked: the parameters, and their averages behind them where a step writes those."""
        return self.params()

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        return (
            problem.dtype in cls.dtypes
            and problem.threads <= cls.max_threads
            and problem.elements * problem.tensors <= cls.max_elements
        )

    @classmethod
    def why_missing(cls) -> str | None:
        """Why it cannot be measured here, or None if it can."""
        if cls.package is not None:
            try:
                importlib.import_module(cls.package)
            except ImportError as error:
                return f"{cls.package} cannot be imported ({error})"
        return None


class Onepass(Peer):
    """``opt.step([g])``, as a user has it."""

    name = "onepass"
    max_threads = 4096

    def __init__(self, params: Arrays, options: Options, eps_mode: str = "paper") -> None:
        self.p = params
        betas = (options.beta1, options.beta2)
        self.optimizer = onepass.Adam(params, lr=options.lr, betas=betas, eps=options.eps, eps_mode=eps_mode)

    def load(self, grads: Arrays) -> None:
        self.grads = grads

    def run(self, steps: int) -> None:
        step, grads = self.optimizer.step, self.grads
        for _ in range(steps):
            step([*grads])  # a list made anew, as a program's gradients are


class OnepassOneThread(Onepass):
    """The same on one thread, whatever the others use."""

    name = "onepass, one thread"

    def run(self, steps: int) -> None:
        before = onepass.get_num_threads()
        onepass.set_num_threads(1)
        super().run(steps)
        onepass.set_num_threads(before)


class OnepassClipAverage(Onepass):
    """AdamW with the gradients clipped and the parameters averaged, all in one call."""

    name = "onepass, one call"

    def __init__(self, params: Arrays, options: Options, eps_mode: str = "paper") -> None:
        self.p = params
        self.optimizer = onepass.AdamW(
            params,
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            eps_mode=eps_mode,
            clip_norm=options.clip_norm,
            ema=options.ema,
        )

    def results(self) -> Arrays:
        return [*self.p, *self.optimizer.ema]


class TorchClipAverage(Peer):
    """The same in three calls of PyTorch's, each in the fastest of its forms, in memory of PyTorch's own."""

    name = "torch, three calls"
    package = "torch"
    dtypes = ("float32",)  # it adds 1e-6 to the norm, which the check would find in float64

    def __init__(self, params: Arrays, options: Options) -> None:
        torch: Any = importlib.import_module("torch")
        swa: Any = importlib.import_module("torch.optim.swa_utils")
        torch.set_num_threads(1)
        self.torch, self.options = torch, options
        self.model = torch.nn.ParameterList([torch.from_numpy(p).clone() for p in params])
        self.weights = list(self.model)
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=options.lr, betas=(options.beta1, options.beta2), eps=options.eps, fused=True
        )
        self.averaged = swa.AveragedModel(self.model, multi_avg_fn=swa.get_ema_multi_avg_fn(options.ema))
        self.averaged.update_parameters(self.model)  # the first update only copies

    def load(self, grads: Arrays) -> None:
        for w, g in zip(self.weights, grads, strict=True):
            w.grad = self.torch.from_numpy(g).clone()  # clipping changes it

    def run(self, steps: int) -> None:
        clip, limit = self.torch.nn.utils.clip_grad_norm_, self.options.clip_norm
        for _ in range(steps):
            clip(self.weights, limit)
            self.optimizer.step()
            self.averaged.update_parameters(self.model)

    def params(self) -> Arrays:
        return [w.detach().numpy() for w in self.weights]

    def results(self) -> Arrays:
        return [*self.params(), *(w.detach().numpy() for w in self.averaged.module)]


class StreamLimit(Peer):
    """The same seven streams with trivial arithmetic: what no sweep over this memory can beat."""

    name = "stream limit"
    takes_steps = False
    max_threads = 4096

    def __init__(self, params: Arrays, options: Options) -> None:
        self.p = params
        state = onepass.Adam(params).state  # memory of the kind that onepass has
        self.m = [state[i]["exp_avg"] for i in range(len(params))]
        self.v = [state[i]["exp_avg_sq"] for i in range(len(params))]

    def run(self, steps: int) -> None:
        stream = _core.stream_limit  # adds the gradient to each: grows linearly, and never overflows
        for _ in range(steps):
            for p, g, m, v in self.tensors:
                stream(p, g, m, v)


class Thinc(Peer):
    """The bare call, which leaves the bias correction to its caller and the gradient at zero."""

    name = "thinc"
    package = "thinc"
    eps_mode = "hat"
    dtypes = ("float32",)
    max_steps = 256  # the first clears the gradient, and after some 800 more the first moment would be subnormal

    def __init__(self, params: Arrays, options: Options) -> None:
        from thinc.backends.numpy_ops import NumpyOps

        super().__init__(params, options)
        self.adam = NumpyOps().adam
        self.own_grads = [np.zeros_like(p) for p in params]

    def load(self, grads: Arrays) -> None:
        for own, grad in zip(self.own_grads, grads, strict=True):
            np.copyto(own, grad)
        super().load(self.own_grads)

    def run(self, steps: int) -> None:
        adam, o = self.adam, self.options
        self.t += steps  # right for one step at a time, which is what is checked
        learn_rate = o.lr * math.sqrt(1 - o.beta2**self.t) / (1 - o.beta1**self.t)
        for _ in range(steps):
            for p, g, m, v in self.tensors:
                adam(p, g, m, v, o.beta1, o.beta2, o.eps, learn_rate)


class InPlaceNumPy(Peer):
    """As few passes as Adam's own m and v allow, nothing allocated, the corrections folded into two numbers.

    ``lr·m_hat / (sqrt(v_hat) + eps)`` is ``a·m / (sqrt(v) + e)``. The numbers are arrays without dimensions and the
    outputs third arguments: on 100 elements that is twice as fast as Python numbers and ``out=``.
    """

    name = "in-place NumPy"

    def __init__(self, params: Arrays, options: Options) -> None:
        super().__init__(params, options)
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
    """The formula as it stands in the paper, an array for every intermediate result."""

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
    """The same in a process of its own, which has never freed anything larger than these arrays.

    glibc then gives memory back to the system as soon as it is freed, and the next intermediate result costs its page
    faults again. The message to that process and back is part of the time: some 50 µs a sample.
    """

    name = "textbook NumPy, fresh memory"

    def __init__(self, params: Arrays, options: Options) -> None:
        folder = tempfile.TemporaryDirectory()
        files = [(f"{folder.name}/{name}{i}", p.dtype, p.shape) for name in "pg" for i, p in enumerate(params)]
        arrays: Arrays = [np.memmap(name, dtype, "w+", shape=shape) for name, dtype, shape in files]
        self.p, self.g = arrays[: len(params)], arrays[len(params) :]
        for mine, given in zip(self.p, params, strict=True):
            mine[...] = given
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        process = spawn.Process(target=_textbook_process, args=(theirs, files, options), daemon=True)
        process.start()
        theirs.close()
        self.connection.recv()  # it is ready
        weakref.finalize(self, _end, process, self.connection, folder)

    def load(self, grads: Arrays) -> None:
        for mine, given in zip(self.g, grads, strict=True):
            mine[...] = given

    def run(self, steps: int) -> None:
        self.connection.send(steps)
        self.connection.recv()


def _textbook_process(connection: Any, files: list[tuple[str, Any, tuple[int, ...]]], options: Options) -> None:
    """Take steps on arrays in these files, parameters first, as often as the connection says."""
    arrays: Arrays = [np.memmap(name, dtype, "r+", shape=shape) for name, dtype, shape in files]
    peer = TextbookNumPy([array.view(np.ndarray) for array in arrays[: len(arrays) // 2]], options)
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
    """The formula, element by element, on lists of Python's floats."""

    name = "pure Python"
    max_elements = 100_000

    def __init__(self, params: Arrays, options: Options) -> None:
        super().__init__(params, options)
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


# In the order of the tables. The first is what all are compared with.
PEERS: tuple[type[Peer], ...] = (Onepass, StreamLimit, InPlaceNumPy, Thinc, TextbookNumPy, PurePython)
