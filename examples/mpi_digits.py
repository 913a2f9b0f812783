"""Train on handwritten digits on one or two processes: the same bits on both.

    pip install ".[mpi]" mpich scikit-learn
    mpiexec -n 2 python -m mpi4py examples/mpi_digits.py --save out/digits
    python examples/mpi_digits.py                       # the same on one

Each process, a rank, has the whole network but half of each batch, and keeps half of the optimizer's state. The last
line is a checksum of the trained weights. It is that of one rank, which takes the two halves of a batch one after the
other: what is computed is then the same, and a sum of two numbers does not depend on who adds them.

With --save, each rank writes its state to a folder, and rank 0 saves the weights there too; --load continues
from there, on one rank or on two.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from sklearn.datasets import load_digits

import onepass
from onepass.integrations.mpi import ShardedOptimizer

Array = npt.NDArray[Any]
PARTS = 2  # of a batch


def loss_and_gradients(params: dict[str, Array], images: Array, labels: Array) -> tuple[float, dict[str, Array]]:
    """Return the mean cross-entropy of a network with one hidden layer, and its gradients."""
    hidden = np.maximum(images @ params["W1"] + params["b1"], 0)
    logits = hidden @ params["W2"] + params["b2"]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    truth = np.arange(len(labels)), labels
    delta = np.exp(log_p)
    delta[truth] -= 1
    delta /= len(labels)
    back = (delta @ params["W2"].T) * (hidden > 0)
    gradients = {"W1": images.T @ back, "b1": back.sum(axis=0), "W2": hidden.T @ delta, "b2": delta.sum(axis=0)}
    return -float(log_p[truth].mean()), gradients


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--save", type=Path, help="a folder for the state, with the weights in weights.npz")
    parser.add_argument("--load", type=Path, help="the folder to continue from")
    options = parser.parse_args()
    comm = MPI.COMM_WORLD
    if PARTS % comm.size:
        raise SystemExit(f"a batch has {PARTS} halves: run this on 1 or 2 ranks, not {comm.size}")

    scans = load_digits()
    images, labels = (scans.data / 16).astype(np.float32), scans.target
    rng = np.random.default_rng(0)  # the same numbers on every rank
    params: dict[str, Any] = onepass.flatten(  # so that weights are sent without a copy
        {
            "W1": (rng.standard_normal((64, 128)) * np.sqrt(2 / 64)).astype(np.float32),
            "b1": np.zeros(128, np.float32),
            "W2": (rng.standard_normal((128, 10)) * np.sqrt(2 / 128)).astype(np.float32),
            "b2": np.zeros(10, np.float32),
        }
    )
    optimizer = ShardedOptimizer(comm, onepass.AdamW, params, lr=2e-3, clip_norm=1.0, average=False)
    if options.load:
        with np.load(options.load / "weights.npz") as weights:
            for name, array in params.items():
                array[...] = weights[name]
        optimizer.load(options.load)

    for epoch in range(1, options.epochs + 1):
        losses = 0.0
        batches = np.split(rng.permutation(1792), 1792 // 128)
        for batch in batches:
            halves = np.split(batch, PARTS)[comm.rank :: comm.size]
            found = [loss_and_gradients(params, images[half], labels[half]) for half in halves]
            losses += sum(loss for loss, _ in found) / PARTS / len(batches)
            own = {name: sum((gradients[name] for _, gradients in found[1:]), found[0][1][name]) for name in params}
            optimizer.step(own, grad_scale=1 / PARTS)
        mean = comm.allreduce(losses)
        if comm.rank == 0:
            print(f"epoch {epoch}: loss {mean:.4f}, norm of the last gradient {optimizer.grad_norm:.4f}")

    if options.save:
        optimizer.save(options.save)
        if comm.rank == 0:
            np.savez(options.save / "weights.npz", **params)
    state = sum(x.nbytes for each in optimizer.optimizer.state.values() for x in each.values() if hasattr(x, "nbytes"))
    sizes_of_state = comm.gather(state)
    if sizes_of_state is not None:
        print("state on each rank:", ", ".join(f"{number:,} bytes" for number in sizes_of_state))
        print("weights", hashlib.sha256(params["W1"].base.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
