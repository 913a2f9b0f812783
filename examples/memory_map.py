"""Step a parameter that does not fit in memory: weights and moments in files, a chunk at a time.

Every operation of Adam acts on one element only, so chunks give the same bits as the whole. `onepass.adam_step` is the
kernel on arrays that the caller keeps, and these may be slices of memory maps.

    python examples/memory_map.py [--elements 4000000] [--chunk 250000] [--steps 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from train_digits import positive

import onepass

Vector = npt.NDArray[np.float32]


def gradient_of(param: Vector, start: int) -> Vector:
    """Return the gradient of 1/2 |param - target|². Only the needed part of the target is computed."""
    target = np.sin(0.001 * np.arange(start, start + len(param))).astype(np.float32)
    gradient: Vector = param - target
    return gradient


def train(folder: Path, elements: int, chunk: int, steps: int) -> Path:
    """Train weights in new files, which start as zeros, with Adam; return the path of the weights."""
    paths = {name: folder / f"{name}.f32" for name in ("param", "exp_avg", "exp_avg_sq")}
    for path in paths.values():
        if path.exists():  # continuing would need its number of steps
            raise FileExistsError(f"{path} is there already")
    maps = {name: np.memmap(path, np.float32, "w+", shape=(elements,)) for name, path in paths.items()}
    for step in range(1, steps + 1):
        for start in range(0, elements, chunk):
            part = {name: whole[start : start + chunk] for name, whole in maps.items()}
            g = gradient_of(part["param"], start)
            onepass.adam_step(part["param"], g, part["exp_avg"], part["exp_avg_sq"], step, lr=0.1)
    for whole in maps.values():
        whole.flush()  # to the disk: before, the system writes pages at any time
    return folder / "param.f32"


def main(arguments: list[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=positive, default=4_000_000)
    parser.add_argument("--chunk", type=positive, default=250_000)
    parser.add_argument("--steps", type=positive, default=3)
    parser.add_argument("--folder", type=Path, help="for the files, which are kept (default: a temporary one)")
    options = parser.parse_args(arguments)
    temporary = contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    with temporary as folder:
        try:
            path = train(Path(folder), options.elements, options.chunk, options.steps)
        except FileExistsError as error:
            parser.error(str(error))
        weights = np.memmap(path, np.float32, "r")
        print(f"{3 * path.stat().st_size / 1e6:.0f} MB in three files, {4 * 4 * options.chunk / 1e6:.1f} MB in a chunk")
        whole = np.zeros(options.elements, np.float32)
        optimizer = onepass.Adam(whole, lr=0.1)
        for _ in range(options.steps):
            optimizer.step(gradient_of(whole, 0))
        print(f"elements that differ from a step over the whole: {np.count_nonzero(whole != weights)}")
        del weights  # a mapped file cannot be deleted everywhere


if __name__ == "__main__":
    main()
