"""What compare_optimizers.py trains on: images and bags of words, embedded or read from a folder.

Embedded are the digits that scikit-learn carries and, as text, the docstrings of SciPy and scikit-learn themselves,
which are where scikit-learn is. From a folder: MNIST (IDX, by train_digits.py), CIFAR-10 (its binary version) and bags
of words laid out as in the IMDB movie reviews (svmlight). A file that is damaged is a ValueError that names it.
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
    """Inputs, an example a row (an array or SciPy's sparse rows), and the class of each."""

    name: str
    train: Any
    train_labels: Array
    test: Any
    test_labels: Array

    @property
    def classes(self) -> int:
        """How many there are."""
        return 1 + max(int(self.train_labels.max()), int(self.test_labels.max()))


def rows(digits: Digits) -> Data:
    """Images as rows of pixels."""
    return Data(*digits)


def images(digits: Digits) -> Data:
    """Square images in grey as (height, width, 1)."""
    side = round(digits.train_images.shape[1] ** 0.5)
    shape = (-1, side, side, 1)
    return Data(*digits)._replace(train=digits.train_images.reshape(shape), test=digits.test_images.reshape(shape))


# ---- CIFAR-10 ----


def read_cifar_file(path: Path) -> tuple[Array, Array]:
    """The images, float32 in [0, 1] as (count, 32, 32, 3), and the labels in a file of CIFAR-10's binary version."""
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % CIFAR_RECORD:
        raise ValueError(f"{path}: {data.size} bytes, which are no whole number of records of {CIFAR_RECORD}")
    records = data.reshape(-1, CIFAR_RECORD)
    labels = records[:, 0]
    if (wrong := np.flatnonzero(labels >= CIFAR_CLASSES)).size:
        raise ValueError(f"{path}: record {wrong[0]} has the label {labels[wrong[0]]}, but there are {CIFAR_CLASSES}")
    pixels = records[:, 1:].reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
    return pixels.astype(np.float32) / 255, labels.astype(np.intp)


def read_cifar(folder: Path) -> Data:
    """CIFAR-10 from the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin; the mean is taken off."""
    parts = [read_cifar_file(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    train, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test, test_labels = read_cifar_file(folder / "test_batch.bin")
    mean = train.mean(axis=0)
    train -= mean
    test -= mean
    return Data(folder.resolve().name, train, labels, test, test_labels)


# ---- Bags of words ----


def read_reviews(folder: Path, features: int = 10_000) -> Data:
    """Bags of words laid out as the IMDB reviews are: labeledBow.feat in train/ and in test/, in svmlight's format.

    Labels are stars: up to 4 is negative, from 7 on positive. Kept are whether a word occurs, not how often, and as the
    paper has it only the words that are most frequent.
    """
    load = need("sklearn.datasets", "scikit-learn").load_svmlight_file
    parts = []
    for part in ("train", "test"):
        path = folder / part / "labeledBow.feat"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}")
        try:
            bags, stars = load(str(path), dtype=np.float32, zero_based=True)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not in svmlight's format: {error}") from error
        if len(stars) == 0:
            raise ValueError(f"{path}: holds no reviews")
        if (wrong := np.flatnonzero(~np.isin(stars, [1, 2, 3, 4, 7, 8, 9, 10]))).size:
            raise ValueError(f"{path}: review {wrong[0]} has {stars[wrong[0]]:g} stars, should be 1 to 4 or 7 to 10")
        parts.append((bags, (stars >= 7).astype(np.intp)))
    (train, labels), (test, test_labels) = parts
    test.resize(test.shape[0], max(test.shape[1], train.shape[1]))
    for bags in (train, test):
        bags.eliminate_zeros()
        bags.data[:] = 1
    frequency = np.asarray(train.sum(axis=0)).ravel()
    kept = np.sort(np.argsort(-frequency, kind="stable")[:features])
    return Data(folder.resolve().name, train[:, kept], labels, test[:, kept], test_labels)


def docstrings(package: str) -> list[str]:
    """The docstrings of 20 words and more in an installed package's files, without its tests, each once."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is missing; pip install scikit-learn brings it")
    found: dict[str, None] = {}
    root = Path(spec.submodule_search_locations[0])
    for path in sorted(root.rglob("*.py")):
        if {"tests", "externals", "_lib", "_external"} & set(path.relative_to(root).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the syntax of files that are not ours
            tree = ast.parse(path.read_bytes())
        nodes: list[ast.AST] = [tree]
        while nodes:
            node = nodes.pop()
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]  # no expressions
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text.split()) >= 20:
                    found[text] = None
    return list(found)


def documentation(packages: Sequence[str] = ("scipy", "sklearn"), features: int = 10_000) -> Data:
    """From which package a docstring is: bags of words, without the packages' names. A fifth is held out to test."""
    texts = [docstrings(package) for package in packages]
    every = np.array([text for those in texts for text in those], dtype=object)
    labels = np.repeat(np.arange(len(texts)), [len(those) for those in texts])
    test, train = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) // 5])
    counter = need("sklearn.feature_extraction.text", "scikit-learn").CountVectorizer(
        binary=True,
        max_features=features,
        token_pattern=r"[a-z]{2,}",
        stop_words=["scipy", "sklearn", "scikit", "numpy", "np", "versionadded", "versionchanged"],
        dtype=np.float32,
    )
    bags = counter.fit_transform(every[train])
    return Data(
        "docstrings of SciPy and scikit-learn", bags, labels[train], counter.transform(every[test]), labels[test]
    )
