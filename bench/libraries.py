"""Other libraries' optimizers: one class each, in the form that is fastest there.

Libraries that take several tensors get them at once. Libraries with threads use the problem's number.
"""

from __future__ import annotations

import functools
import io
import math
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .machine import cores
from .peer import TORCH_RULES, Arrays, Options, Peer, Problem, imported


class Torch(Peer):
    """PyTorch's class of the rule's name, on NumPy's memory, with the gradients in ``.grad`` as in programs."""

    module = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    form: ClassVar[dict[str, bool]] = {}

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.torch = imported("torch")
        if problem.threads:
            self.torch.set_num_threads(problem.threads)
        self.weights = [self.torch.nn.Parameter(self.torch.from_numpy(p)) for p in params]
        self.optimizer = self.make(problem.rule, options)

    def make(self, rule: str, options: Options) -> Any:
        return getattr(self.torch.optim, rule)(self.weights, **options.of(rule), **self.form)

    def load(self, grads: Arrays) -> None:
        for w, g in zip(self.weights, grads, strict=True):
            w.grad = self.torch.from_numpy(g)

    def run(self, steps: int) -> None:
        step = self.optimizer.step
        for _ in range(steps):
            step()

    def params(self) -> Arrays:
        return [w.detach().numpy() for w in self.weights]


class TorchFused(Torch):
    """PyTorch's single-pass C++ kernel, for the rules that have one."""

    name = "torch fused"
    rules: ClassVar[tuple[str, ...]] = ("Adam", "AdamW", "Adagrad", "SGD")
    form: ClassVar = {"fused": True}


class TorchForeach(Torch):
    """PyTorch's form that applies each operation to all tensors."""

    name = "torch foreach"
    rules = TORCH_RULES
    form: ClassVar = {"foreach": True}


class TorchDefault(Torch):
    """PyTorch's default on a CPU: a tensor at a time, an operation at a time."""

    name = "torch default"
    rules = TorchForeach.rules


class ScheduleFree(Torch):
    """Schedule-Free AdamW of its authors, in their default form, which is PyTorch's foreach."""

    name = "schedulefree"
    module = "schedulefree"
    packages = ("schedulefree", "torch")
    rules = ("ScheduleFreeAdamW",)

    def make(self, rule: str, options: Options) -> Any:
        optimizer = imported("schedulefree").AdamWScheduleFree(self.weights, **options.of(rule))
        optimizer.train()
        return optimizer


class TorchClipAverage(Torch):
    """A step, clipping and averaging in three calls of PyTorch, each in its fastest form."""

    name = "torch, three calls"
    rules = ("AdamW",)
    dtypes = ("float32",)  # PyTorch adds 1e-6 to the norm, which fails the check in float64

    def make(self, rule: str, options: Options) -> Any:
        swa = imported("torch.optim.swa_utils")
        self.limit = options.clip_norm
        # A copy, because clipping changes the gradients.
        self.model = self.torch.nn.ParameterList([w.detach().clone() for w in self.weights])
        self.weights = list(self.model)
        self.averaged = swa.AveragedModel(self.model, multi_avg_fn=swa.get_ema_multi_avg_fn(options.ema_decay))
        self.averaged.update_parameters(self.model)  # the first update only copies
        return getattr(self.torch.optim, rule)(self.weights, **options.of(rule), fused=True)

    def load(self, grads: Arrays) -> None:
        for w, g in zip(self.weights, grads, strict=True):
            w.grad = self.torch.from_numpy(g).clone()

    def run(self, steps: int) -> None:
        clip = self.torch.nn.utils.clip_grad_norm_
        for _ in range(steps):
            clip(self.weights, self.limit)
            self.optimizer.step()
            self.averaged.update_parameters(self.model)

    def results(self) -> Arrays:
        return [*self.params(), *(w.detach().numpy() for w in self.averaged.module)]


class DeepSpeed(Torch):
    """DeepSpeed's optimizer for state in CPU memory, compiled at its first use."""

    name = "DeepSpeed CPUAdam"
    module = "deepspeed"
    packages = ("deepspeed", "torch")
    dtypes = ("float32",)
    rules = ("Adam", "AdamW")

    def make(self, rule: str, options: Options) -> Any:
        decoupled = rule == "AdamW"
        kind = imported("deepspeed.ops.adam").DeepSpeedCPUAdam
        # 0.01 is the default of AdamW in onepass and PyTorch.
        return kind(self.weights, **options.of(rule), weight_decay=0.01 * decoupled, adamw_mode=decoupled)

    @classmethod
    @functools.cache
    def why_missing(cls) -> str | None:
        """Compile the extension, which takes a minute or two the first time and is then in the user's cache."""
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed searches PATH for ninja, where a virtual environment that is not activated is missing.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        printed = io.StringIO()  # very verbose
        with redirect_stdout(printed), redirect_stderr(printed):
            if reason := super().why_missing():
                return reason
            try:
                imported("deepspeed.ops.op_builder").CPUAdamBuilder().load()
            except Exception as error:  # any error of the compiler, or a missing one
                return f"its extension cannot be built ({str(error).splitlines()[0]})"
        return None


class Numba(Peer):
    """One loop over all four arrays, compiled with ``fastmath``: serial on one thread, parallel on more."""

    name = "Numba"
    module = "numba"
    packages = ("numba",)

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.adam = _numba_adam(problem.threads != 1)
        numba = imported("numba")
        numba.set_num_threads(problem.threads or numba.config.NUMBA_NUM_THREADS)

    def run(self, steps: int) -> None:
        o, adam, number = self.options, self.adam, self.p[0].dtype.type
        b1, rest1, b2, rest2 = (number(x) for x in (o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2))
        for _ in range(steps):
            self.t += 1
            root = math.sqrt(1 - o.beta2**self.t)
            a, e = number(o.lr * root / (1 - o.beta1**self.t)), number(o.eps * root)
            for p, g, m, v in self.tensors:
                adam(p, g, m, v, b1, rest1, b2, rest2, a, e)

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        return super().supports(problem) and problem.threads <= imported("numba").config.NUMBA_NUM_THREADS


@functools.cache
def _numba_adam(parallel: bool) -> Any:
    numba = imported("numba")

    # With Python's rules for division every divisor is tested for zero, which prevents vectorisation.
    @numba.njit(parallel=parallel, fastmath=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def adam(p: Any, g: Any, m: Any, v: Any, b1: Any, rest1: Any, b2: Any, rest2: Any, a: Any, e: Any) -> None:
        for i in numba.prange(p.size):
            # Locals: reading m[i] and v[i] back waits for stores, up to 3 times as slow for some addresses.
            m_i = b1 * m[i] + rest1 * g[i]
            v_i = b2 * v[i] + rest2 * g[i] * g[i]
            m[i], v[i] = m_i, v_i
            p[i] -= a * m_i / (np.sqrt(v_i) + e)

    return adam


class Optax(Peer):
    """``optax.adam`` under ``jax.jit`` with donated arrays, which it can overwrite."""

    name = "optax under jit"
    module = "optax"
    packages = ("optax", "jax")
    dtypes = ("float32",)  # float64 is a switch for the whole process

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.jax, self.optax = imported("jax"), imported("optax")
        rule = self.optax.adam(options.lr, options.beta1, options.beta2, options.eps)

        def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = rule.update(grads, state, params)
            return self.optax.apply_updates(params, updates), state

        self.step = self.jax.jit(step, donate_argnums=(0, 1))
        self.values = [self.jax.numpy.array(p) for p in params]
        self.state = rule.init(self.values)

    def load(self, grads: Arrays) -> None:
        self.grads = [self.jax.numpy.array(g) for g in grads]

    def run(self, steps: int) -> None:
        values, state, grads, step = self.values, self.state, self.grads, self.step
        for _ in range(steps):
            values, state = step(values, state, grads)
        self.values, self.state = values, state
        self.jax.block_until_ready(values)

    def params(self) -> Arrays:
        return [np.asarray(value) for value in self.values]

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        """XLA uses all cores, except for arrays that are too small to divide."""
        return super().supports(problem) and (problem.threads == cores() or problem.elements <= 1_000)

    @classmethod
    def why_missing(cls) -> str | None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        return super().why_missing()


class Thinc(Peer):
    """Bare kernel call, which expects bias correction from its caller and clears the gradient."""

    name = "thinc"
    module = "thinc.backends.numpy_ops"
    packages = ("thinc",)
    eps_mode = "hat"
    dtypes = ("float32",)
    max_steps = 256  # the first step clears the gradient, and after about 800 more the first moment is subnormal

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.adam = imported("thinc.backends.numpy_ops").NumpyOps().adam
        self.own_grads = [np.zeros_like(p) for p in params]

    def load(self, grads: Arrays) -> None:
        for own, grad in zip(self.own_grads, grads, strict=True):
            np.copyto(own, grad)
        super().load(self.own_grads)

    def run(self, steps: int) -> None:
        adam, o = self.adam, self.options
        self.t += steps  # exact for one step at a time, as in the check
        learn_rate = o.lr * math.sqrt(1 - o.beta2**self.t) / (1 - o.beta1**self.t)
        for _ in range(steps):
            for p, g, m, v in self.tensors:
                adam(p, g, m, v, o.beta1, o.beta2, o.eps, learn_rate)


class ThincOptimizer(Thinc):
    """``Adam`` object around the same call, with a key for each tensor."""

    name = "thinc's Adam object"
    module = "thinc.api"

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        super().__init__(problem, params, options)
        self.optimizer = self.make(options)

    def make(self, options: Options) -> Any:
        return imported("thinc.api").Adam(
            options.lr, beta1=options.beta1, beta2=options.beta2, eps=options.eps, L2=0.0, grad_clip=0.0
        )

    def run(self, steps: int) -> None:
        optimizer = self.optimizer
        for _ in range(steps):
            for i, (p, g, _m, _v) in enumerate(self.tensors):
                optimizer((i, "W"), p, g)


class ScikitLearn(Peer):
    """Optimizer inside ``MLPClassifier``."""

    name = "scikit-learn"
    module = "sklearn.neural_network._stochastic_optimizers"
    packages = ("scikit-learn",)
    eps_mode = "hat"

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        self.p = params
        self.optimizer = imported("sklearn.neural_network._stochastic_optimizers").AdamOptimizer(
            params, options.lr, options.beta1, options.beta2, options.eps
        )

    def load(self, grads: Arrays) -> None:
        self.grads = grads

    def run(self, steps: int) -> None:
        update, params, grads = self.optimizer.update_params, self.p, self.grads
        for _ in range(steps):
            update(params, grads)
