"""Training with each storage: the arrays in memory between steps, the optimizer, and the losses."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from comparison.models import Model, cross_entropy
from low_precision.tasks import Task
from train_digits import Array, need

import onepass
from onepass import schedules

BETAS = (0.9, 0.999)
NARROW_FROM = 4096  # elements: smaller tensors keep float32 state


class Storage(NamedTuple):
    """Storage of weights and state."""

    options: Mapping[str, Any] = {}
    narrow_weights: bool = False  # weights and gradients in bfloat16
    library: str = "onepass"


FLOAT8 = {"state_dtype": "float8"}
NEAREST = {"rounding": "nearest"}
OWN = {
    "float32": Storage(),
    "bfloat16 state": Storage({"state_dtype": "bfloat16"}),
    "bfloat16 state, nearest": Storage({"state_dtype": "bfloat16", **NEAREST}),
    "float8 state": Storage(FLOAT8),
    "float8 state, nearest": Storage({**FLOAT8, **NEAREST}),
    "bfloat16 weights, master_bits=32": Storage({**FLOAT8, "master_bits": 32}, True),
    "bfloat16 weights, master_bits=24": Storage({**FLOAT8, "master_bits": 24}, True),
    "bfloat16 weights, master_bits=16": Storage({**FLOAT8, "master_bits": 16}, True),
    "bfloat16 weights, master_bits=16, nearest": Storage({"master_bits": 16, **NEAREST}, True),  # float32 state
}
PEERS = {
    "bitsandbytes Adam8bit": Storage(library="bitsandbytes"),
    "torchao Adam8bit": Storage(library="torchao"),
}


def storages() -> dict[str, Storage]:
    """Return the storages of onepass and those of the peers that are installed."""
    return OWN | {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(peer.library)}


class Peer:
    """8-bit Adam of bitsandbytes or torchao on arrays, with the interface of onepass's that is used here."""

    def __init__(self, library: str, params: list[Array], rate: float) -> None:
        self.torch = need("torch", "PyTorch")
        self.params = [self.torch.nn.Parameter(self.torch.from_numpy(array)) for array in params]  # shares memory
        module = importlib.import_module(f"{library}.optim")
        self.optimizer = module.Adam8bit(self.params, lr=rate, betas=BETAS)

    def step(self, gradients: list[Array]) -> None:
        """Take a step."""
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = self.torch.from_numpy(np.ascontiguousarray(gradient))
        self.optimizer.step()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], self.torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def begin(task: Task, seed: int) -> tuple[Model, Iterator[tuple[float, list[Any]]]]:
    """Return a model, and the loss and gradients of each batch, computed when they are drawn.

    Initial weights, batches and dropout depend only on the seed.
    """
    first, order, noise = (np.random.default_rng([seed, purpose]) for purpose in range(3))
    model = task.model(first)

    def batches() -> Iterator[tuple[float, list[Any]]]:
        for _ in range(task.steps):
            rows = order.integers(task.data.train.shape[0], size=task.batch)
            yield model.loss_and_gradients(task.data.train[rows], task.data.train_labels[rows], noise)

    return model, batches()


def warmup_steps(task: Task) -> int:
    """Return the length of the warmup."""
    return max(1, task.steps // 20)


def cosine(task: Task, rate: float) -> schedules.warmup:
    """Return the schedule of a training run: a warmup, then a rate that falls to 0."""
    warm = warmup_steps(task)
    return schedules.warmup(schedules.cosine(rate, steps=task.steps - warm), steps=warm)


def train(task: Task, storage: Storage, rate: float, seed: int) -> dict[str, float | None]:
    """Train once; return the final losses and how far the second moments are from float32 ones."""
    model, batches = begin(task, seed)
    stored = model.parameters
    if storage.narrow_weights:
        bfloat16 = need("ml_dtypes", "ml_dtypes").bfloat16
        stored = [array.astype(bfloat16) for array in model.parameters]
        copy(stored, model.parameters)
    opt: Any
    set_rate: Callable[[float], None]
    if storage.library == "onepass":
        opt = onepass.Adam(stored, rate, BETAS, seed=seed, **storage.options)
        set_rate = lambda value: setattr(opt, "lr", value)  # noqa: E731
    else:
        opt = Peer(storage.library, stored, rate)
        set_rate = opt.set_rate
    schedule = cosine(task, rate)
    exact = [np.zeros(array.shape, np.float32) for array in stored]  # second moments
    losses = []
    for step, (loss, gradients) in enumerate(batches, 1):
        if storage.narrow_weights:
            gradients = [gradient.astype(bfloat16) for gradient in gradients]
        set_rate(schedule(step))
        opt.step(gradients)
        if storage.narrow_weights:
            copy(stored, model.parameters)
        for v, gradient in zip(exact, gradients, strict=True):
            v *= np.float32(BETAS[1])
            v += np.float32(1 - BETAS[1]) * np.square(gradient.astype(np.float32))
        losses.append(loss)
    labels = task.data.test_labels
    logits = model.logits(task.data.test)
    root, error = roots(opt, exact) if storage.library == "onepass" else (None, None)
    return {
        "training": float(np.mean(losses[-max(1, task.steps // 10) :])),
        "held_out": cross_entropy(logits, labels.ravel())[0],
        "root": root,
        "root_error": error,
    }


def copy(sources: list[Array], destinations: list[Array]) -> None:
    """Copy arrays, with a conversion of dtypes."""
    for source, destination in zip(sources, destinations, strict=True):
        destination[...] = source


def roots(opt: Any, exact: list[Array]) -> tuple[float, float]:
    """Return the median of √v over its float32 value along the same gradients, and the median error of √v.

    The error is the absolute natural logarithm of the ratio. Tensors that always have float32 state do not count.
    """
    ratios = []
    for key, v in enumerate(exact):
        if v.size >= NARROW_FROM:
            stored, fed = opt.decoded_state(key)["exp_avg_sq"], v > 1e-30
            ratios.append(np.sqrt(stored[fed] / v[fed]))
    every = np.concatenate(ratios)
    return float(np.median(every)), float(np.median(abs(np.log(every))))
