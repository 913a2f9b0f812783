"""Models of the comparison in NumPy: layers with a forward and a backward pass, and regression on sparse rows.

Each model has a list of parameters and computes the loss of a batch and the gradients, in the order of the parameters.
Images are arrays (batch, height, width, channels) or, for dense layers, rows of pixels.
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
    """Interface of a trainable model."""

    parameters: list[Array]

    def logits(self, inputs: Any, noise: np.random.Generator | None = None) -> Array:
        """Compute the scores of the classes; with `noise`, units are dropped."""

    def loss_and_gradients(
        self, inputs: Any, labels: Array, noise: np.random.Generator | None
    ) -> tuple[float, list[Gradient]]:
        """Compute the mean cross-entropy of a batch, and its gradient with respect to each parameter."""


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """The mean cross-entropy of the softmax, and its gradient with respect to the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    truth = np.arange(len(labels)), labels
    delta = np.exp(log_p)
    delta[truth] -= 1  # softmax minus one-hot
    return -float(log_p[truth].mean()), delta / len(labels)


# ---- Layers: the forward pass stores what the backward pass needs ----


class Layer:
    """Base class of layers; by default without parameters."""

    parameters: Sequence[Array] = ()

    def forward(self, x: Array, noise: np.random.Generator | None) -> Array:
        """Compute the output; with `noise`, units are dropped."""
        raise NotImplementedError

    def gradients(self, delta: Array) -> list[Array]:
        """Compute the gradients of the parameters from the gradient of the output."""
        return []

    def back(self, delta: Array) -> Array:
        """Compute the gradient of the input from the gradient of the output."""
        raise NotImplementedError


class Dense(Layer):
    """x W + b; initial weights are normal with variance gain / inputs (2: He's initialisation), or 0 without `rng`."""

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
    """Dropout: in training, each unit is zero with probability `rate`, and the others are scaled by 1 / (1 - rate)."""

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
    """Convolution with size × size kernels and zero padding, so that the output is as large as the input.

    Every window becomes a row of a matrix: the convolution is one product with the kernels as columns.
    """

    def __init__(self, size: int, inputs: int, outputs: int, rng: np.random.Generator) -> None:
        self.size, fan_in = size, inputs * size * size
        kernels = rng.standard_normal((fan_in, outputs), np.float32) * math.sqrt(2 / fan_in)
        self.parameters = [kernels, np.zeros(outputs, np.float32)]

    def windows(self, x: Array) -> Array:
        """Matrix with a row of size × size × channels numbers for each pixel."""
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
        # A pixel occurs in the windows of its neighbours: its gradient is a convolution with the kernels rotated.
        kernels = self.parameters[0].reshape(self.size, self.size, self.channels, -1)
        rotated = kernels[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, self.channels)
        return (self.windows(delta) @ rotated).reshape(*delta.shape[:3], self.channels)


class MaxPool(Layer):
    """Maximum over 2 × 2 pixels; of equal pixels, the first one receives the gradient."""

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
        gradient = np.empty((count, height, 2, width, 2, channels), delta.dtype)
        unassigned = np.ones(delta.shape, bool)
        for place, pixels in enumerate(self.fours):
            first = unassigned & (pixels == self.largest)
            unassigned &= ~first
            gradient[:, :, place // 2, :, place % 2] = delta * first
        return gradient.reshape(count, 2 * height, 2 * width, channels)


class Network:
    """Sequence of layers with a softmax at the end.

    The loss is the mean cross-entropy plus l2 / 2 times the sum of the squares of all parameters.
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


# ---- Models of the four problems ----


def logistic_regression(inputs: int, classes: int, l2: float = 1e-3) -> Network:
    """One dense layer, initially 0: the problem is convex, and the penalty keeps the solution finite."""
    return Network([Dense(inputs, classes)], l2)


def perceptron(
    inputs: int, hidden: Sequence[int], classes: int, rng: np.random.Generator, rate: float = 0.5
) -> Network:
    """Hidden layers of ReLUs with dropout."""
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
    """3 × 3 convolutions, each with a 2 × 2 maximum and a ReLU, then a dense layer with dropout."""
    height, width, inputs = shape
    layers: list[Layer] = []
    for outputs in channels:
        if height % 2 or width % 2:
            raise ValueError(f"cannot halve images of {shape[0]}×{shape[1]} pixels {len(channels)} times")
        layers += [Convolution(3, inputs, outputs, rng), MaxPool(), ReLU()]
        height, width, inputs = height // 2, width // 2, outputs
    layers += [Dense(height * width * inputs, hidden, rng), ReLU(), Dropout(rate)]
    return Network([*layers, Dense(hidden, classes, rng, gain=1)])


class SparseLogisticRegression:
    """Logistic regression on SciPy's sparse rows, with dropout of the features, as in the paper.

    The gradient has rows only for the features that occur in the batch and are not dropped.
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
