"""Text classification with sparse gradients: find the subpackage of SciPy that a docstring describes.

The features are hashed pairs of adjacent words. The weights have 2**18 rows, of which a batch touches about three in a
hundred. The gradient of the weights is a SciPy matrix in CSR format. `SparseRows.from_csr` converts it, so that a step
reads and writes only these rows.

python examples/sparse_text.py
"""

from __future__ import annotations

import importlib
import re
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
from scipy import sparse

import onepass

SUBPACKAGES = (
    "fft",
    "integrate",
    "interpolate",
    "linalg",
    "ndimage",
    "optimize",
    "signal",
    "sparse",
    "special",
    "stats",
)
ROWS = 2**18
BATCH, EPOCHS = 32, 10


def docstrings() -> tuple[list[str], Any]:
    """Return the docstrings of SciPy's public functions and classes, and the index of the subpackage of each."""
    found: dict[str, int] = {}
    for label, name in enumerate(SUBPACKAGES):
        module = importlib.import_module(f"scipy.{name}")
        for public in module.__all__:
            text = getattr(module, public).__doc__
            if text and len(text) > 200:
                found.setdefault(text, label)  # each text only once
    return list(found), np.array(list(found.values()))


def features(texts: list[str]) -> Any:
    """Return a row of unit length for each text: hashed pairs of adjacent words, without the names of subpackages."""
    rows: list[int] = []
    columns: list[int] = []
    for row, text in enumerate(texts):
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in SUBPACKAGES]
        pairs = {crc32(f"{first} {second}".encode()) % ROWS for first, second in pairwise(words)}
        rows += [row] * len(pairs)
        columns += pairs
    lengths = np.sqrt(np.bincount(rows, minlength=len(texts))).astype(np.float32)
    return sparse.csr_array((1 / lengths[rows], (rows, columns)), shape=(len(texts), ROWS))


def main() -> float:
    """Train, and return the accuracy on held-out texts."""
    texts, labels = docstrings()
    inputs = features(texts)
    rng = np.random.default_rng(0)
    held_out, train = np.split(rng.permutation(len(texts)), [len(texts) // 5])

    weights, bias = np.zeros((ROWS, len(SUBPACKAGES)), np.float32), np.zeros(len(SUBPACKAGES), np.float32)
    optimizer = onepass.Adagrad([weights, bias], lr=0.3)
    for epoch in range(1, EPOCHS + 1):
        losses, touched = [], []
        for batch in np.array_split(rng.permutation(train), len(train) // BATCH):
            x, y = inputs[batch], labels[batch]
            scores = x @ weights + bias
            log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
            losses.append(-log_p[np.arange(len(y)), y].mean())
            error = np.exp(log_p)
            error[np.arange(len(y)), y] -= 1
            error /= len(y)
            gradient = onepass.SparseRows.from_csr((x.T @ sparse.csr_array(error)).tocsr())
            optimizer.step([gradient, error.sum(axis=0)])
            touched.append(len(gradient.indices) / ROWS)
        accuracy = float(np.mean((inputs[held_out] @ weights + bias).argmax(axis=1) == labels[held_out]))
        print(
            f"epoch {epoch:2}: training loss {np.mean(losses):.3f}, rows touched by a step {np.mean(touched):.1%}, "
            f"held-out accuracy {accuracy:.1%}"
        )
    print(f"{len(train):,} training texts, {len(held_out):,} held-out texts, {len(SUBPACKAGES)} subpackages")
    return accuracy


if __name__ == "__main__":
    main()
