"""Data-parallel training on MPI (mpi4py): each process, a rank, keeps only its share of the optimizer's state.

ZeRO's first stage: a reduce-scatter adds up the gradients of all ranks and gives each rank the sums of its share of the
elements, an ordinary optimizer steps the share, and an allgather gives the new weights to all ranks. These messages
take no more bytes than summing all gradients on all ranks, and the state is divided by the number of ranks.

Start four ranks with ``mpiexec -n 4 python -m mpi4py train.py``. With ``-m mpi4py``, an exception on one rank ends all
ranks. Without it, the other ranks would wait forever.

Example:
    >>> import numpy as np, onepass
    >>> from mpi4py import MPI
    >>> from onepass.integrations.mpi import ShardedOptimizer
    >>> w = np.ones(3, np.float32)
    >>> opt = ShardedOptimizer(MPI.COMM_SELF, onepass.AdamW, w, lr=0.5, weight_decay=0.0)
    >>> opt.step(np.array([1, 0, -1], np.float32))  # this rank's gradients
    >>> w
    array([0.5, 1. , 1.5], dtype=float32)
"""

from .sharded import ShardedOptimizer

__all__ = ["ShardedOptimizer"]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
