"""The networks of compare_optimizers.py in NumPy: layers that go forward and back, and a regression on sparse rows.

Each has a list of parameters and gives the loss and the gradients, in that order, of a batch. Images are arrays
(batch, height, width, channels) or, for dense layers, rows of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from train_digits import Array

from onepass import SparseRows

Gradient = Array | SparseRows


class Model(Protocol):
    """What the training asks of a network."""

    parameters: list[Array]

    def logits(self, inputs: Any, noise: np.random.Generator | None = None) -> Array:
        """The scores of the classes; with `noise`, units are dropped."""

    def loss_and_gradients(
        self, inputs: Any, labels: Array, noise: np.random.Generator | None
    ) -> tuple[float, list[Gradient]]:
        """The mean cross-entropy of a batch, and its gradient with respect to each parameter."""


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean cross-entropy of the softmax, and its gradient with respect to the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    truth = np.arange(len(labels)), labels
    delta = np.exp(log_p)
    delta[truth] -= 1  # softmax minus one-hot
    return -float(log_p[truth].mean()), delta / len(labels)


# ---- Layers: forward keeps what the way back needs ----


class Layer:
    """A step of a network; most have no parameters."""

    parameters: Sequence[Array] = ()

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        """What comes out; with `noise`, units are dropped."""
        raise NotImplementedError

    def gradients(self, delta: Array) -> list[Array]:
        """Those with respect to the parameters, given the one with respect to what came out."""
        return []

    def back(self, delta: Array) -> Array:
        """The gradient with respect to what went in, given the one with respect to what came out."""
        raise NotImplementedError


class Dense(Layer):
    """x W + b, from normal weights of variance gain / inputs (2 is He's initialisation); without `rng` from zeros."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator | None = None, gain: float = 2.0) -> None:
        weights = np.zeros((inputs, outputs), np.float32)
        if rng is not None:
            weights += rng.standard_normal(weights.shape, np.float32) * math.sqrt(gain / inputs)
        self.parameters = [weights, np.zeros(outputs, np.float32)]

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        self.x = x.reshape(len(x), -1)
        return self.x @ self.parameters[0] + self.parameters[1]

    def gradients(self, delta: Array) -> list[Array]:
        return [self.x.T @ delta, delta.sum(axis=0)]

    def back(self, delta: Array) -> Array:
        return delta @ self.parameters[0].T


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        self.passes = x > 0
        return x * self.passes

    def back(self, delta: Array) -> Array:
        return delta.reshape(self.passes.shape) * self.passes


class Dropout(Layer):
    """Each unit is dropped with this probability while training; the others are scaled up to make good for it."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        if noise is None:
            return x
        kept = noise.random(x.shape, np.float32) >= self.rate
        self.mask: Array = kept.astype(x.dtype) / x.dtype.type(1 - self.rate)
        dropped: Array = x * self.mask
        return dropped

    def back(self, delta: Array) -> Array:
        return delta.reshape(self.mask.shape) * self.mask


class Convolution(Layer):
    """A size × size kernel over images with a border of zeros: the output is as large as the input.

    Every window is a row of a matrix, so that the whole is one product with the kernels as columns.
    """

    def __init__(self, size: int, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        self.size, fan_in = size, inputs * size * size
        kernels = rng.standard_normal((fan_in, outputs), np.float32) * math.sqrt(2 / fan_in)
        self.parameters = [kernels, np.zeros(outputs, np.float32)]

    def windows(self, x: Array) -> Array:
        """A row of size × size × channels numbers for each pixel."""
        edge = self.size // 2
        padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        views = sliding_window_view(padded, (self.size, self.size), axis=(1, 2))  # the window's axes are the last
        return views.transpose(0, 1, 2, 4, 5, 3).reshape(x[..., 0].size, -1)

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        self.rows, self.channels = self.windows(x), x.shape[3]
        return (self.rows @ self.parameters[0] + self.parameters[1]).reshape(*x.shape[:3], -1)

    def gradients(self, delta: Array) -> list[Array]:
        flat = delta.reshape(-1, delta.shape[3])
        return [self.rows.T @ flat, flat.sum(axis=0)]

    def back(self, delta: Array) -> Array:
        # What a pixel adds to its neighbours' windows, seen from the pixel: a convolution, the kernels turned round.
        kernels = self.parameters[0].reshape(self.size, self.size, self.channels, -1)
        turned = kernels[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, self.channels)
        return (self.windows(delta) @ turned).reshape(*delta.shape[:3], self.channels)


class MaxPool(Layer):
    """The largest of each 2 × 2 pixels; the first of equal ones takes the gradient."""

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        count, height, width, channels = x.shape
        blocks = x.reshape(count, height // 2, 2, width // 2, 2, channels)
        self.fours: Array = np.stack([blocks[:, :, i, :, j] for i in (0, 1) for j in (0, 1)])
        largest: Array = self.fours.max(axis=0)
        self.largest = largest
        return largest

    def back(self, delta: Array) -> Array:
        count, height, width, channels = self.largest.shape
        delta = delta.reshape(self.largest.shape)
        towards = np.empty((count, height, 2, width, 2, channels), delta.dtype)
        open_still = np.ones(delta.shape, bool)
        for place, pixels in enumerate(self.fours):
            first = open_still & (pixels == self.largest)
            open_still &= ~first
            towards[:, :, place // 2, :, place % 2] = delta * first
        return towards.reshape(count, 2 * height, 2 * width, channels)


class Network:
    """Layers one after the other, and the cross-entropy of the softmax at the end.

    The loss is this plus l2/2 times the sum of all parameters' squares.
    """

    def __init__(self, layers: list[Layer], l2: float = 0.0) -> None:
        self.layers, self.l2 = layers, l2
        self.parameters = [parameter for layer in layers for parameter in layer.parameters]

    def logits(self, inputs: Any, noise: np.random.Generator | None = None) -> Array:
        x: Array = inputs
        for layer in self.layers:
            x = layer.forward(x, noise)
        return x

    def loss_and_gradients(
        self, inputs: Any, labels: Array, noise: np.random.Generator | None
    ) -> tuple[float, list[Gradient]]:
        loss, delta = cross_entropy(self.logits(inputs, noise), labels)
        gradients: list[Array] = []
        for layer in reversed(self.layers):
            gradients[:0] = layer.gradients(delta)
            if layer is not self.layers[0]:
                delta = layer.back(delta)
        if self.l2:
            loss += self.l2 / 2 * sum(float(np.vdot(p, p)) for p in self.parameters)
            gradients = [g + self.l2 * p for g, p in zip(gradients, self.parameters, strict=True)]
        return loss, list(gradients)


# ---- The four of the comparison ----


def logistic_regression(inputs: int, classes: int, l2: float = 1e-3) -> Network:
    """One dense layer, from zeros: the problem is convex, and the penalty keeps its solution finite."""
    return Network([Dense(inputs, classes)], l2)


def perceptron(
    inputs: int, hidden: Sequence[int], classes: int, rng: np.random.Generator, rate: float = 0.5
) -> Network:
    """Hidden layers of ReLUs, of which half are dropped while training."""
    layers: list[Layer] = []
    for outputs in hidden:
        layers += [Dense(inputs, outputs, rng), ReLU(), Dropout(rate)]
        inputs = outputs
    return Network([*layers, Dense(inputs, classes, rng, gain=1)])


def convolutional(
    shape: Sequence[int],
    channels: Sequence[int],
    hidden: int,
    classes: int,
    rng: np.random.Generator,
    rate: float = 0.5,
) -> Network:
    """3 × 3 convolutions, each halved by a 2 × 2 maximum, then a dense layer of which half is dropped."""
    height, width, inputs = shape
    layers: list[Layer] = []
    for outputs in channels:
        if height % 2 or width % 2:
            raise ValueError(f"images of {shape[0]}×{shape[1]} pixels cannot be halved {len(channels)} times")
        layers += [Convolution(3, inputs, outputs, rng), MaxPool(), ReLU()]
        height, width, inputs = height // 2, width // 2, outputs
    layers += [Dense(height * width * inputs, hidden, rng), ReLU(), Dropout(rate)]
    return Network([*layers, Dense(hidden, classes, rng, gain=1)])


class SparseLogisticRegression:
    """Logistic regression on SciPy's sparse rows: the gradient names only the features that occur in the batch.

    With dropout of the features, as the paper has it for bags of words, a dropped word does not occur.
    """

    def __init__(self, inputs: int, classes: int, rate: float = 0.5) -> None:
        self.parameters = [np.zeros((inputs, classes), np.float32), np.zeros(classes, np.float32)]
        self.rate = rate

    def logits(self, inputs: Any, noise: np.random.Generator | None = None) -> Array:
        scores: Array = inputs @ self.parameters[0] + self.parameters[1]
        return scores

    def loss_and_gradients(
        self, inputs: Any, labels: Array, noise: np.random.Generator | None
    ) -> tuple[float, list[Gradient]]:
        batch = inputs.copy()
        if noise is not None:
            batch.data *= (noise.random(batch.data.size) >= self.rate) / (1 - self.rate)
            batch.eliminate_zeros()
        features, where = np.unique(batch.indices, return_inverse=True)
        compact = type(batch)((batch.data, where, batch.indptr), shape=(batch.shape[0], features.size))
        weights, bias = self.parameters
        loss, delta = cross_entropy(compact @ weights[features] + bias, labels)
        return loss, [SparseRows(features, compact.T @ delta), delta.sum(axis=0)]
