"""Tasks of the experiment with storage in fewer bits: data and models, small enough to train in seconds.

The data is what the machine has: scikit-learn's digits, and docstrings of SciPy and scikit-learn as bags of words and
as characters. Each model has matrices of 4,096 elements and more, since smaller tensors keep float32 state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from comparison import data, models
from numpy.lib.stride_tricks import sliding_window_view
from train_digits import Array, need, scanned_digits

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # learning rates of the search, half a decade apart
CONTEXT = 48  # characters that the transformer sees
WORDS = 9_984  # 78 times 128: torchao narrows only tensors of a multiple of 256 elements
HELD_OUT = 200  # windows of held-out characters


class Task(NamedTuple):
    """One problem: data, model, and how long to train."""

    title: str
    network: str
    data: data.Data
    model: Callable[[np.random.Generator], models.Model]
    batch: int
    steps: int
    seeds: int


class DenseLogisticRegression(models.SparseLogisticRegression):
    """Logistic regression on bags of words whose gradient has zeros for the words that are not in the batch."""

    def loss_and_gradients(self, inputs: Any, labels: Array, noise: np.random.Generator | None) -> tuple[float, Any]:
        loss, (rows, bias) = super().loss_and_gradients(inputs, labels, noise)
        weights = np.zeros_like(self.parameters[0])
        weights[rows.indices] = rows.values  # type: ignore[union-attr]
        return loss, [weights, bias]


class Transformer:
    """Character transformer in PyTorch; its tensors share memory with the arrays in `parameters`."""

    def __init__(self, characters: int, width: int, blocks: int, heads: int, rng: np.random.Generator) -> None:
        self.torch, self.heads, self.blocks = need("torch", "PyTorch"), heads, blocks

        def normal(rows: int, columns: int, scale: float) -> Array:
            return rng.standard_normal((rows, columns), np.float32) * np.float32(scale)

        ones, root = np.ones(width, np.float32), math.sqrt(1 / width)
        self.parameters = [normal(characters, width, 0.1), normal(CONTEXT, width, 0.1)]
        for _ in range(blocks):
            self.parameters += [ones.copy(), normal(width, 3 * width, root), normal(width, width, root / 2)]
            self.parameters += [ones.copy(), normal(width, 4 * width, root), normal(4 * width, width, root / 4)]
        self.parameters += [ones.copy(), normal(width, characters, root)]
        self.tensors = [self.torch.from_numpy(array).requires_grad_() for array in self.parameters]

    def scores(self, inputs: Array) -> Any:
        """Compute the scores of the next character, as a tensor with a row for each position of each window."""
        functional = self.torch.nn.functional
        embedding, positions, *rest = self.tensors
        x = embedding[self.torch.from_numpy(np.ascontiguousarray(inputs))] + positions
        count, length, width = x.shape
        for block in range(self.blocks):
            gain, attend, project, gain2, widen, narrow = rest[6 * block : 6 * block + 6]
            parts = (functional.layer_norm(x, (width,), gain) @ attend).view(count, length, 3, self.heads, -1)
            query, key, value = parts.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + mixed.transpose(1, 2).reshape(count, length, width) @ project
            x = x + functional.gelu(functional.layer_norm(x, (width,), gain2) @ widen) @ narrow
        gain, output = rest[-2:]
        return (functional.layer_norm(x, (width,), gain) @ output).flatten(0, 1)

    def logits(self, inputs: Any, noise: np.random.Generator | None = None) -> Array:
        """Compute the scores as an array."""
        with self.torch.no_grad():
            scores: Array = self.scores(inputs).numpy()
        return scores

    def loss_and_gradients(self, inputs: Any, labels: Array, noise: np.random.Generator | None) -> tuple[float, Any]:
        """Compute the mean cross-entropy of a batch, and its gradient with respect to each parameter."""
        truth = self.torch.from_numpy(np.ascontiguousarray(labels).ravel())
        loss = self.torch.nn.functional.cross_entropy(self.scores(inputs), truth)
        return loss.item(), [gradient.numpy() for gradient in self.torch.autograd.grad(loss, self.tensors)]


def characters(package: str, held_out: int) -> data.Data:
    """Return docstrings of a package as windows of characters, with the windows one character later as labels."""
    texts = data.docstrings(package)
    last = -max(1, len(texts) // 10)  # a tenth is held out
    parts = [
        np.frombuffer("\n".join(part).encode("ascii", "replace"), np.uint8) for part in (texts[:last], texts[last:])
    ]
    known, ids = np.unique(np.concatenate(parts), return_inverse=True)
    train, test = (sliding_window_view(part, CONTEXT) for part in np.split(ids.astype(np.int64), [parts[0].size]))
    chosen = np.linspace(0, len(test) - 2, held_out).astype(int)
    name = f"docstrings of {package.partition('.')[0]}, {known.size} different characters"
    return data.Data(name, train[:-1], train[1:], test[chosen], test[chosen + 1])


def tasks(quick: bool = False) -> list[Task]:
    """Return the four tasks; `quick`: with a part of the text and few steps."""
    flat = data.Data(*scanned_digits())
    bags = data.documentation(("scipy.optimize", "sklearn.cluster")) if quick else data.documentation(features=WORDS)
    text = characters("sklearn.cluster", HELD_OUT // 10) if quick else characters("sklearn", HELD_OUT)
    symbols, width = int(text.train.max()) + 1, 64

    def transformer(rng: np.random.Generator) -> models.Model:
        return Transformer(symbols, width, blocks=2, heads=4, rng=rng)

    def perceptron(rng: np.random.Generator) -> models.Model:
        return models.perceptron(64, [128, 128], 10, rng)

    def regression(_: np.random.Generator) -> models.Model:
        return DenseLogisticRegression(bags.train.shape[1], bags.classes)

    def convolutional(rng: np.random.Generator) -> models.Model:
        return models.convolutional((8, 8, 1), [16, 32], 64, 10, rng)

    layers = f"two blocks of {width} channels and 4 heads, {CONTEXT} characters of context"
    lengths = [(3, 2)] * 4 if quick else [(600, 5), (1500, 10), (1500, 10), (600, 10)]  # steps, seeds
    return [
        Task("Character transformer", layers, text, transformer, 16, *lengths[0]),
        Task(
            "Digits, perceptron", "hidden layers of 128 and 128 units, with dropout", flat, perceptron, 64, *lengths[1]
        ),
        Task("Bags of words, logistic regression", "one layer, with dropout", bags, regression, 128, *lengths[2]),
        Task(
            "Digits, convolutional network",
            "3 × 3 convolutions (16 and 32 channels) and a dense layer of 64 units, with dropout",
            data.images(scanned_digits()),
            convolutional,
            64,
            *lengths[3],
        ),
    ]
