"""Train a NumPy network on handwritten digits, with onepass.Adam and with the Adam everybody writes in NumPy.

    python examples/train_digits.py                             # the 1,797 scans that scikit-learn carries
    python examples/train_digits.py --data mnist --epochs 3     # MNIST, from a folder with its four IDX files

Both start from the same weights and train in turn on each batch: the loss curves should coincide. A table and a picture
show the curves, and the time that the optimizers took.

The two optimizers round differently in the last bit. With the default settings there is no larger difference. In a
longer training, or with about one seed in ten, such a bit switches a ReLU, and the curves then differ in their third or
fourth digit; so do two NumPy versions of Adam.

Needs matplotlib, tqdm and, unless --data is given, scikit-learn.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

# Before NumPy is loaded: its OpenBLAS then lets its threads sleep, so that onepass may use every processor.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

import numpy as np
import numpy.typing as npt

import onepass

Array = npt.NDArray[Any]
Step = Callable[[list[Array]], None]  # updates the parameters, given their gradients


def need(module: str, package: str) -> Any:
    """Import an optional module, or end the program with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: this example needs {package}; pip install {package}") from None


# ---- Data ----


class Digits(NamedTuple):
    """Images as rows of float32 in [0, 1], and their classes."""

    name: str
    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def scanned_digits() -> Digits:
    """Load the 8x8 scans of scikit-learn. A fixed fifth of them is held out for the test."""
    scans = need("sklearn.datasets", "scikit-learn").load_digits()
    images, labels = (scans.data / 16).astype(np.float32), scans.target
    test, train = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) // 5])
    return Digits("scikit-learn's digits", images[train], labels[train], images[test], labels[test])


def read_idx(path: Path, dimensions: int) -> Array:
    """Read the unsigned bytes of an IDX file, plain or gzipped. Other files raise a ValueError with the reason.

    The format: two zero bytes, the type (8: unsigned bytes), the number of dimensions, the length of each as a
    big-endian uint32, the elements.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":  # gzip's magic number; the name is not reliable, since some browsers unpack downloads
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from error
    magic, start = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if not data.startswith(magic):
        found = data[:4].hex(" ") or "(empty file)"
        raise ValueError(f"{path}: bad magic number {found}, should be {magic.hex(' ')}")
    if len(data) < start:
        raise ValueError(f"{path}: truncated: {len(data)} bytes, but the header needs {start}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) != (expected := start + math.prod(shape)):
        problem = "truncated" if len(data) < expected else "too long"
        raise ValueError(f"{path}: {problem}: {len(data)} bytes, but shape {shape} takes {expected}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of a file, in either spelling of its name, plain or gzipped."""
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, dotted, f"{name}.gz", f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(f"no {folder / name}, nor {dotted} there, nor either with .gz")


def read_part(folder: Path, part: str) -> tuple[Array, Array]:
    """Read the images, one per row, and the labels of a part of MNIST: "train" or "t10k"."""
    images_path = find_idx(folder, f"{part}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, but {labels_path} {len(labels)} labels")
    if images.size == 0:
        raise ValueError(f"{images_path} holds no images")
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels


def read_mnist(folder: Path) -> Digits:
    """Read MNIST, or a data set in the same format, from the folder with its four files."""
    train, test = read_part(folder, "train"), read_part(folder, "t10k")
    if train[0].shape[1] != test[0].shape[1]:
        raise ValueError(f"{folder}: training images of {train[0].shape[1]} pixels, test images of {test[0].shape[1]}")
    return Digits(folder.resolve().name, *train, *test)


# ---- The network: one list of parameters, with the weights and the biases of each layer in turn ----


def initial_parameters(sizes: Sequence[int], seed: int) -> list[Array]:
    """Initialise as He: normal weights of variance 2 / inputs, biases of 0."""
    rng = np.random.default_rng(seed)
    parameters: list[Array] = []
    for inputs, outputs in pairwise(sizes):
        weights = rng.standard_normal((inputs, outputs), dtype=np.float32)
        parameters += [weights * math.sqrt(2 / inputs), np.zeros(outputs, np.float32)]
    return parameters


def forward(parameters: list[Array], images: Array) -> list[Array]:
    """Return the input of each layer, followed by the logits."""
    values = [images]
    for i in range(0, len(parameters), 2):
        z = values[-1] @ parameters[i] + parameters[i + 1]
        values.append(np.maximum(z, 0) if i + 2 < len(parameters) else z)  # ReLU, but not on the logits
    return values


def loss_and_gradients(parameters: list[Array], images: Array, labels: Array) -> tuple[float, list[Array]]:
    """Return the mean cross-entropy of the softmax, and its gradient with respect to each parameter."""
    *inputs, logits = forward(parameters, images)
    logits = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = np.arange(len(labels)), labels

    delta = np.exp(log_p)
    delta[truth] -= 1  # softmax minus one-hot: the gradient with respect to the logits
    delta /= len(labels)
    gradients = []
    for i in reversed(range(0, len(parameters), 2)):
        gradients += [delta.sum(axis=0), inputs[i // 2].T @ delta]
        if i > 0:
            delta = (delta @ parameters[i].T) * (inputs[i // 2] > 0)  # back through the weights and the ReLU
    return -float(log_p[truth].mean()), gradients[::-1]


def accuracy(parameters: list[Array], images: Array, labels: Array) -> float:
    """Return the fraction of the images whose largest logit is the right one."""
    return float(np.mean(forward(parameters, images)[-1].argmax(axis=1) == labels))


# ---- Training ----


class TextbookAdam:
    """Adam as it is usually written in NumPy: the formulas of the paper, each of which creates new arrays."""

    def __init__(self, parameters: list[Array], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.m = [np.zeros_like(p) for p in parameters]
        self.v = [np.zeros_like(p) for p in parameters]

    def step(self, gradients: list[Array]) -> None:
        """Update the parameters."""
        b1, b2, eps = 0.9, 0.999, 1e-8
        self.t += 1
        for i, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            m_hat = self.m[i] / (1 - b1**self.t)
            v_hat = self.v[i] / (1 - b2**self.t)
            p -= self.lr * m_hat / (np.sqrt(v_hat) + eps)


Contender = tuple[str, Step, list[Array]]  # name, optimizer's step, parameters that it updates in place


class Run(NamedTuple):
    """Results of one contender: losses and the optimizer's seconds by epoch and step, and totals."""

    name: str
    losses: Array
    seconds: Array
    total_seconds: float
    test_accuracy: float


def train(contenders: Sequence[Contender], digits: Digits, epochs: int, batch: int, seed: int) -> list[Run]:
    """Train all contenders in turn on each of the shuffled batches of nearly equal size."""
    rng = np.random.default_rng(seed)
    count = len(digits.train_labels)
    steps = math.ceil(count / batch)
    losses, network, optimizer = np.empty((3, len(contenders), epochs, steps))  # the latter two in seconds
    with need("tqdm", "tqdm").tqdm(total=epochs * steps, unit=" steps") as bar:
        for epoch in range(epochs):
            for i, chosen in enumerate(np.array_split(rng.permutation(count), steps)):
                images, labels = digits.train_images[chosen], digits.train_labels[chosen]
                for which, (_, step, parameters) in enumerate(contenders):
                    started = perf_counter()
                    losses[which, epoch, i], gradients = loss_and_gradients(parameters, images, labels)
                    before = perf_counter()
                    step(gradients)
                    network[which, epoch, i], optimizer[which, epoch, i] = before - started, perf_counter() - before
                bar.set_postfix(loss=f"{losses[0, epoch, i]:.4f}", refresh=False)
                bar.update()
    accuracies = [accuracy(parameters, digits.test_images, digits.test_labels) for _, _, parameters in contenders]
    names = [name for name, _, _ in contenders]
    totals = (network + optimizer).sum(axis=(1, 2))
    return [Run(*run) for run in zip(names, losses, optimizer, totals, accuracies)]


# ---- Results ----


def report(ours: Run, textbook: Run) -> str:
    """Return a table of the two runs."""
    machine = onepass.config()
    lines = [f"onepass {machine['version']} ({machine['instruction_set']}), NumPy {np.__version__}", ""]
    lines += [f"{'':30}{ours.name:>14}{textbook.name:>16}{'ratio':>8}"]
    curves = ours.losses.mean(axis=1), textbook.losses.mean(axis=1)
    for epoch, (a, b) in enumerate(zip(*curves, strict=True), start=1):
        lines += [f"{f'loss in epoch {epoch}':30}{a:#14.4g}{b:#16.4g}"]
    lines += [f"{'test accuracy':30}{ours.test_accuracy:14.2%}{textbook.test_accuracy:16.2%}"]
    for what, measured in (
        ("optimizer, median step, ms", [1e3 * float(np.median(run.seconds)) for run in (ours, textbook)]),
        ("optimizer, all steps, ms", [1e3 * float(run.seconds.sum()) for run in (ours, textbook)]),
        ("complete training run, ms", [1e3 * run.total_seconds for run in (ours, textbook)]),
    ):
        lines += [f"{what:30}{measured[0]:14,.3f}{measured[1]:16,.3f}{measured[1] / measured[0]:8.1f}"]
    by_epoch = np.max(np.abs(curves[0] / curves[1] - 1))
    by_step = np.max(np.abs(ours.losses - textbook.losses))
    lines += ["", f"The loss curves differ by at most {by_step:.1e} (epoch means by {by_epoch:.1e}, relative)."]
    return "\n".join(lines)


def plot(ours: Run, textbook: Run, title: str, path: Path) -> None:
    """Draw both loss curves in one panel, and the time of a step, as a PNG."""
    pale, dark = "#f7b267", "#1d3557"
    figure = need("matplotlib.figure", "matplotlib").Figure(figsize=(12, 5), layout="constrained")  # drawn by Agg
    figure.get_layout_engine().set(w_pad=0.2, h_pad=0.15)
    figure.suptitle(title, fontsize=17, color=dark)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])

    # Average curves that are too dense to see.
    starts = np.arange(0, ours.losses.size, math.ceil(ours.losses.size / 120))
    sizes = np.diff(starts, append=ours.losses.size)
    for run, style in (
        (textbook, {"color": pale, "linewidth": 8, "solid_capstyle": "round"}),
        (ours, {"color": dark, "linewidth": 1.8, "linestyle": (0, (4, 2))}),
    ):
        label = f"{run.name}: {run.test_accuracy:.1%} test accuracy"
        left.semilogy(starts + sizes / 2, np.add.reduceat(run.losses.ravel(), starts) / sizes, label=label, **style)
    left.set(xlabel="step", ylabel="training loss")
    left.yaxis.set_major_formatter("{x:g}")
    left.legend(frameon=False, fontsize=12)
    left.grid(alpha=0.25)

    micros = [1e6 * float(np.median(run.seconds)) for run in (ours, textbook)]
    bars = right.barh([ours.name, textbook.name], micros, color=[dark, pale], height=0.45)
    right.bar_label(bars, [f"{value:,.0f} µs" for value in micros], padding=6, fontsize=14, color=dark)
    ratio = f"{micros[1] / micros[0]:.0f}× as fast"
    right.text(0.02 * max(micros), 0.4, ratio, ha="left", va="center", fontsize=26, fontweight="bold", color=dark)
    right.set(xlabel="time in an optimizer step (median)", xticks=[], xlim=(0, 1.25 * max(micros)))
    right.tick_params(axis="y", length=0, labelsize=13)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.label.set_size(13)
        axes.yaxis.label.set_size(13)
    right.spines["bottom"].set_visible(False)
    figure.savefig(path, dpi=150, format="png")


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Train twice, print the table, draw the picture."""
    about = "Train a NumPy network on handwritten digits, with onepass.Adam and with a textbook NumPy Adam."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--epochs", type=positive, default=15, help="passes over the training images")
    option("--batch", type=positive, default=128, help="images in a step, at most")
    option("--lr", type=float, default=2e-3, help="learning rate")
    option("--hidden", type=positive, nargs="*", default=[512, 256], metavar="N", help="widths of the hidden layers")
    option("--seed", type=int, default=0, help="for the first weights and the order of the images")
    option(
        "--data", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="MNIST: its four IDX files, plain or .gz"
    )
    option("--out", type=Path, metavar="PNG", default=Path("out/digits.png"), help="where the plot goes")
    args = parser.parse_args(argv)

    need("matplotlib.figure", "matplotlib")  # if it is missing, fail before the training
    try:
        digits = read_mnist(args.data) if "data" in args else scanned_digits()
        classes = 1 + max(int(digits.train_labels.max()), int(digits.test_labels.max()))
        start = initial_parameters([digits.train_images.shape[1], *args.hidden, classes], args.seed)
        ours, textbook = ([p.copy() for p in start] for _ in range(2))
        contenders: list[Contender] = [
            ("onepass.Adam", onepass.Adam(ours, lr=args.lr).step, ours),
            ("textbook Adam", TextbookAdam(textbook, args.lr).step, textbook),
        ]
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"train_digits.py: {error}", file=sys.stderr)
        return 1

    first, second = train(contenders, digits, args.epochs, args.batch, args.seed)
    print(report(first, second))
    size = sum(p.size for p in start)
    plot(first, second, f"Adam on {digits.name}, {size:,} parameters: the same losses in less time", args.out)
    print(f"plot: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
