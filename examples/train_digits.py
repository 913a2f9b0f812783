"""Train a NumPy network on handwritten digits, with onepass.Adam and with the textbook's Adam.

    python examples/train_digits.py                                 # the 1,797 scans that scikit-learn carries
    python examples/train_digits.py --data mnist/ --epochs 3        # MNIST, from a folder with its four IDX files

Both optimizers start from the same weights and see the same batches, so their loss curves should lie on top of each
other; what differs is the time they take. A table and a picture show both. Time is measured around the optimizer's
step alone: the network's own work, the same for both, is not part of the comparison.

Needs matplotlib, scikit-learn (unless --data is given) and tqdm.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import math
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import onepass

Array = npt.NDArray[Any]


def need(module: str, package: str) -> Any:
    """An optional module, or the way to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: this example needs {package}: pip install {package}") from None


# ---- Data ----


class Digits(NamedTuple):
    """Images as rows of float32 in [0, 1], and the digit that each one shows."""

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def scanned_digits() -> Digits:
    """scikit-learn's 1,797 scans of 8x8 pixels; a fifth of them, always the same, is held out for the test."""
    scans = need("sklearn.datasets", "scikit-learn").load_digits()
    images = (scans.data / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [len(order) // 5])
    return Digits("scikit-learn's digits", images[train], scans.target[train], images[test], scans.target[test])


IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> Array:
    """The array in an IDX file, plain or compressed with gzip.

    Two zero bytes, a byte for the type, a byte for the number of dimensions; each dimension as a big-endian uint32;
    the elements. Raises ValueError, with the file's name, for anything else.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":  # gzip's magic number: browsers unpack downloads and keep the name, or the reverse
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise ValueError(f"{path}: not an IDX file: it starts with {data[:4].hex(' ') or 'nothing'}")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise ValueError(f"{path}: truncated: {len(data)} bytes do not hold the sizes of {data[3]} dimensions")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    dtype = np.dtype(IDX_TYPES[data[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "too long"
        raise ValueError(f"{path}: {problem}: {len(data)} bytes, but an array of shape {shape} makes {expected}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def find_idx(folder: Path, name: str) -> Path:
    """The file of that name in either of its spellings, plain or compressed."""
    spellings = [name, name.replace("-idx", ".idx")]
    for candidate in (folder / (spelling + suffix) for suffix in ("", ".gz") for spelling in spellings):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder} holds no {spellings[0]} (nor {spellings[1]}, nor either with .gz)")


def read_images(folder: Path, part: str) -> tuple[Array, Array]:
    """The images and labels of one part of MNIST, "train" or "t10k"."""
    images_path, labels_path = find_idx(folder, f"{part}-images-idx3-ubyte"), find_idx(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, dimensions in (images_path, images, 3), (labels_path, labels, 1):
        if array.dtype != np.uint8 or array.ndim != dimensions or not array.size:
            found = f"{array.dtype} of shape {array.shape}"
            raise ValueError(f"{path}: must hold unsigned bytes in {dimensions} dimensions, not {found}")
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels


def read_mnist(folder: Path) -> Digits:
    """MNIST, or another data set in its format, from the folder with its four files."""
    train, test = read_images(folder, "train"), read_images(folder, "t10k")
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(f"{folder}: training images have {train[0].shape[1]} pixels, test images {test[0].shape[1]}")
    return Digits(folder.resolve().name, *train, *test)


# ---- The network: parameters are a list, [weights, biases] of each layer ----


def initial_parameters(sizes: Sequence[int], seed: int) -> list[Array]:
    """He's initialisation: normal weights of variance 2 / (number of inputs), no biases."""
    rng = np.random.default_rng(seed)
    parameters = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        weights = rng.standard_normal((inputs, outputs), dtype=np.float32) * np.float32(math.sqrt(2 / inputs))
        parameters += [weights, np.zeros(outputs, np.float32)]
    return parameters


def forward(parameters: list[Array], images: Array) -> list[Array]:
    """What each layer puts out: the images first, the logits last."""
    outputs = [images]
    for i in range(0, len(parameters), 2):
        z = outputs[-1] @ parameters[i] + parameters[i + 1]
        outputs.append(np.maximum(z, 0) if i + 2 < len(parameters) else z)  # ReLU, but not on the logits
    return outputs


def loss_and_gradients(parameters: list[Array], images: Array, labels: Array) -> tuple[float, list[Array]]:
    """The mean cross-entropy of the softmax, and its gradient with respect to each parameter."""
    outputs = forward(parameters, images)
    logits = outputs[-1] - outputs[-1].max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    shown = np.arange(len(labels)), labels
    loss = -float(log_p[shown].mean())

    delta = np.exp(log_p)  # softmax minus one-hot is the gradient with respect to the logits
    delta[shown] -= 1
    delta /= np.float32(len(labels))
    gradients = []
    for i in reversed(range(0, len(parameters), 2)):
        inputs = outputs[i // 2]
        gradients += [delta.sum(axis=0), inputs.T @ delta]
        if i:
            delta = (delta @ parameters[i].T) * (inputs > 0)  # through the weights, then through the ReLU
    return loss, gradients[::-1]


def accuracy(parameters: list[Array], images: Array, labels: Array) -> float:
    """The share of the images whose largest logit is the right one."""
    return float(np.mean(forward(parameters, images)[-1].argmax(axis=1) == labels))


# ---- Training ----


class TextbookAdam:
    """Adam in NumPy as everybody writes it, one line of the paper after the other; each makes new arrays."""

    def __init__(self, parameters: list[Array], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.m = [np.zeros_like(p) for p in parameters]
        self.v = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[Array]) -> None:
        b1, b2, eps = 0.9, 0.999, 1e-8
        self.t += 1
        for i, (p, g) in enumerate(zip(self.parameters, gradients)):
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            m_hat = self.m[i] / (1 - b1**self.t)
            v_hat = self.v[i] / (1 - b2**self.t)
            p -= self.lr * m_hat / (np.sqrt(v_hat) + eps)


class Run(NamedTuple):
    """What one training showed: the loss and the optimizer's seconds of each step, and how it ended."""

    name: str
    losses: Array  # (epochs, steps)
    seconds: Array  # (epochs, steps)
    accuracy: float
    total: float


def train(name: str, parameters: list[Array], step: Callable[[list[Array]], None], digits: Digits, epochs: int, batch: int, seed: int) -> Run:
    """Train the parameters in place on shuffled batches; `step` is the optimizer's."""
    rng = np.random.default_rng(seed)
    count = len(digits.train_labels)
    steps = math.ceil(count / batch)
    losses, seconds = np.empty((2, epochs, steps))
    started = perf_counter()
    with need("tqdm", "tqdm").tqdm(total=epochs * steps, desc=f"{name:>14}", unit="step") as bar:
        for epoch in range(epochs):
            for i, chosen in enumerate(np.array_split(rng.permutation(count), steps)):
                loss, gradients = loss_and_gradients(parameters, digits.train_images[chosen], digits.train_labels[chosen])
                before = perf_counter()
                step(gradients)
                seconds[epoch, i] = perf_counter() - before
                losses[epoch, i] = loss
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update()
    total = perf_counter() - started
    return Run(name, losses, seconds, accuracy(parameters, digits.test_images, digits.test_labels), total)
