"""Data-parallel training on MPI (mpi4py): every process, a rank, keeps the optimizer's state of its own share alone.

ZeRO's first stage: the gradients of all ranks are summed by a reduce-scatter that leaves each with the sum for its
share of the elements, an ordinary optimizer steps the share, and an allgather hands the new weights to all. That sends
no more than summing all gradients everywhere would, and the state is divided by the number of ranks.

    mpiexec -n 4 python -m mpi4py train.py

(``-m mpi4py`` so that an exception on one rank ends all of them, where they would wait for it forever.)

Example:
    >>> import numpy as np, onepass
    >>> from mpi4py import MPI
    >>> from onepass.integrations.mpi import ShardedOptimizer
    >>> w = np.ones(3, np.float32)
    >>> opt = ShardedOptimizer(MPI.COMM_SELF, onepass.AdamW, w, lr=0.5, weight_decay=0.0)
    >>> opt.step(np.array([1, 0, -1], np.float32))  # on each rank its own gradients: their average counts
    >>> w
    array([0.5, 1. , 1.5], dtype=float32)
"""

from .sharded import ShardedOptimizer

__all__ = ["ShardedOptimizer"]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
