"""Datasets of the comparison: images and bags of words, embedded or read from a folder.

Embedded are scikit-learn's digits and, as text, the docstrings of SciPy and scikit-learn. A folder can hold MNIST (IDX
files), CIFAR-10 (binary version) or bags of words in the layout of the IMDB reviews (svmlight format). A damaged file
raises a ValueError that names it.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from train_digits import Array, Digits, need

CIFAR_SHAPE = (3, 32, 32)  # channels, rows, columns
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the pixels
CIFAR_CLASSES = 10


class Data(NamedTuple):
    """Inputs, one example per row (an array or SciPy's sparse rows), and the class of each example."""

    name: str
    train: Any
    train_labels: Array
    test: Any
    test_labels: Array

    @property
    def classes(self) -> int:
        """Number of classes."""
        return 1 + max(int(self.train_labels.max()), int(self.test_labels.max()))


def images(digits: Digits) -> Data:
    """Square grey images of shape (height, width, 1)."""
    side = round(digits.train_images.shape[1] ** 0.5)
    train, test = (part.reshape(-1, side, side, 1) for part in (digits.train_images, digits.test_images))
    return Data(digits.name, train, digits.train_labels, test, digits.test_labels)


# ---- CIFAR-10 ----


def read_cifar_file(path: Path) -> tuple[Array, Array]:
    """Read one file of CIFAR-10's binary version: float32 images in [0, 1] of shape (32, 32, 3), and their labels."""
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % CIFAR_RECORD:
        raise ValueError(f"{path}: expected whole records of {CIFAR_RECORD} bytes, got {data.size} bytes")
    records = data.reshape(-1, CIFAR_RECORD)
    labels = records[:, 0]
    if (wrong := np.flatnonzero(labels >= CIFAR_CLASSES)).size:
        raise ValueError(f"{path}: record {wrong[0]}: expected a label below {CIFAR_CLASSES}, got {labels[wrong[0]]}")
    pixels = records[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return pixels.astype(np.float32) / 255, labels.astype(np.intp)


def read_cifar(folder: Path) -> Data:
    """Read data_batch_1.bin to data_batch_5.bin and test_batch.bin, and subtract the mean training image."""
    parts = [read_cifar_file(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    train, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test, test_labels = read_cifar_file(folder / "test_batch.bin")
    mean = train.mean(axis=0)
    return Data(folder.resolve().name, train - mean, labels, test - mean, test_labels)


# ---- Bags of words ----


def read_reviews_file(path: Path) -> tuple[Any, Array]:
    """Read one file in svmlight format: sparse rows of 0 and 1 (1: the word occurs), and labels (1: positive)."""
    load = need("sklearn.datasets", "scikit-learn").load_svmlight_file
    if not path.is_file():
        raise FileNotFoundError(f"no {path}")
    try:
        bags, stars = load(str(path), dtype=np.float32, zero_based=True)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not in svmlight format: {error}") from error
    if len(stars) == 0:
        raise ValueError(f"{path}: no reviews")
    if (wrong := np.flatnonzero(~np.isin(stars, [1, 2, 3, 4, 7, 8, 9, 10]))).size:
        raise ValueError(f"{path}: review {wrong[0]}: expected 1 to 4 or 7 to 10 stars, got {stars[wrong[0]]:g}")
    bags.eliminate_zeros()
    bags.data[:] = 1
    return bags, (stars >= 7).astype(np.intp)


def read_reviews(folder: Path, features: int = 10_000) -> Data:
    """Read train/labeledBow.feat and test/labeledBow.feat, and keep the most frequent words, as the paper does."""
    (train, labels), (test, test_labels) = (
        read_reviews_file(folder / part / "labeledBow.feat") for part in ("train", "test")
    )
    test.resize(test.shape[0], max(test.shape[1], train.shape[1]))
    frequency = np.asarray(train.sum(axis=0)).ravel()
    kept = np.sort(np.argsort(-frequency, kind="stable")[:features])
    return Data(folder.resolve().name, train[:, kept], labels, test[:, kept], test_labels)


def docstrings(package: str) -> list[str]:
    """Unique docstrings of 20 or more words in the files of an installed package, without its tests."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is missing; install it with: pip install scikit-learn")
    found: dict[str, None] = {}
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if {"tests", "externals", "_lib", "_external"} & set(path.relative_to(root).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the syntax of files that are not ours
            nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
        while nodes:
            node = nodes.pop()
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]  # no expressions
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= 20:
                    found[text] = None
    return list(found)


def documentation(packages: Sequence[str] = ("scipy", "sklearn"), features: int = 10_000) -> Data:
    """Docstrings as bags of words, with their package as class. A fifth is held out; package names are no words."""
    texts = [docstrings(package) for package in packages]
    every = np.array([text for group in texts for text in group], dtype=object)
    labels = np.repeat(np.arange(len(texts)), [len(group) for group in texts])
    test, train = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) // 5])
    counter = need("sklearn.feature_extraction.text", "scikit-learn").CountVectorizer(
        binary=True,
        max_features=features,
        token_pattern=r"[a-z]{2,}",
        stop_words=["scipy", "sklearn", "scikit", "numpy", "np", "versionadded", "versionchanged"],
        dtype=np.float32,
    )
    bags, held_out = counter.fit_transform(every[train]), counter.transform(every[test])
    return Data("docstrings of SciPy and scikit-learn", bags, labels[train], held_out, labels[test])
