"""Duplicates of communicators, processors of a node, and buffers in mpi4py's format."""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

from ... import _core
from ..._types import Array
from .. import needed

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

_keyvals: list[int] = []  # key of the communicator attribute that lists its duplicates


def dup_comm(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a duplicate for one owner, so that its messages match no other messages. Collective.

    The duplicate is freed lazily after its owner is garbage-collected. Freeing is collective too, and ranks collect
    garbage at different moments. The duplicate is therefore freed when the same communicator is duplicated again, or
    when that communicator is freed.
    """
    if not _keyvals:
        _keyvals.append(MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, made: _free_collected(comm, made)))
    duplicates: Any = comm.Get_attr(_keyvals[0])
    if duplicates is None:
        duplicates = []
        comm.Set_attr(_keyvals[0], duplicates)
    own = comm.Dup()
    _free_collected(own, duplicates)
    duplicates.append((MPI.Intracomm(own), weakref.ref(own)))
    return own


def _free_collected(comm: MPI.Intracomm, duplicates: list[Any]) -> None:
    """Free the duplicates whose owners are garbage-collected on all ranks."""
    collected = {index for index, (_, owned) in enumerate(duplicates) if owned() is None}
    for index in sorted(set.intersection(*comm.allgather(collected)), reverse=True):
        duplicates.pop(index)[0].Free()


def share_processors(comm: MPI.Intracomm) -> None:
    """Divide the processors of a node among its ranks, unless the number of threads is already set. Collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        ranks_on = Counter(processor for each in node.allgather(list(own)) for processor in each)
        ranks = node.size
    finally:
        node.Free()
    if ranks > 1 and not _core.requested_threads() and not os.environ.get("OMP_NUM_THREADS"):
        share = int(sum(Fraction(1, ranks_on[processor]) for processor in own))
        _core.set_num_threads(max(1, min(share, _core.get_num_threads())))


def by_rank(buffer: Array, counts: Sequence[int]) -> Any:
    """Return a buffer with these numbers of elements of each rank, in mpi4py's format."""
    return [buffer, (counts, [0, *accumulate(counts[:-1])])]
