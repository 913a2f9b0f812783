"""Small datasets in the file format of MNIST."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from support import Array


def idx(array: Array) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, images: int = 90, dotted: bool = False, zipped: bool = False) -> None:
    """Write the four files of MNIST with ten patterns that are easy to distinguish."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (10, 5, 4))
    for part, count in (("train", images), ("t10k", 30)):
        labels = np.arange(count) % 10
        pixels = patterns[labels] + rng.integers(0, 40, (count, 5, 4))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte"
            data = idx(array.astype(np.uint8))
            name = name.replace("-idx", ".idx") if dotted else name
            (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
