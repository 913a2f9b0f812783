"""Communicator duplication, collective error handling, thread counts."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import _core
from ..._types import Array
from .. import needed

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

OPTIONS = "options of the groups, or schedules that say something else"  # a thing to agree on that has no short words


_keyvals: list[int] = []  # of a communicator's duplicates among its attributes


def own_comm(comm: MPI.Intracomm) -> MPI.Intracomm:
    """Return a duplicate for one owner, so that nothing else is ever matched with its messages. Collective.

    It is freed lazily after its owner is garbage-collected. Freeing is collective too, and ranks forget at different
    moments, so it waits for the next duplicate of the same communicator, or until that is freed.
    """
    if not _keyvals:
        _keyvals.append(MPI.Comm.Create_keyval(delete_fn=lambda comm, keyval, made: _free_forgotten(comm, made)))
    made: Any = comm.Get_attr(_keyvals[0])
    if made is None:
        made = []
        comm.Set_attr(_keyvals[0], made)
    own = comm.Dup()
    _free_forgotten(own, made)
    made.append((MPI.Intracomm(own), weakref.ref(own)))
    return own


def _free_forgotten(comm: MPI.Intracomm, made: list[Any]) -> None:
    """Free those duplicates that all ranks have forgotten."""
    forgotten = {index for index, (_, known) in enumerate(made) if known() is None}
    for index in sorted(set.intersection(*comm.allgather(forgotten)), reverse=True):
        made.pop(index)[0].Free()


def agree(comm: MPI.Intracomm, call: str, error: BaseException | None, said: Mapping[str, Any]) -> None:
    """Raise on all ranks where one of them has an error, is in another call, or does not say the same.

    Collective: one reduction of three numbers while all is well. What could raise is done before or after it.
    """
    digest = int.from_bytes(hashlib.blake2b(repr((call, said)).encode(), digest_size=7).digest(), "little")
    numbers = np.array([error is not None, digest, -digest], np.int64)
    words = None if error is None else _words(error)
    comm.Allreduce(MPI.IN_PLACE, numbers, MPI.MAX)
    if numbers[0]:
        told = comm.allgather(words)
        if error is not None:
            raise error
        rank, words = next((rank, words) for rank, words in enumerate(told) if words is not None)
        raise RuntimeError(f"rank {rank} raised {words}")
    if numbers[1] != -numbers[2]:
        their_call, first = comm.bcast((call, said), root=0)
        told = comm.allgather(_difference(their_call, first, call, said))
        different = ((rank, words) for rank, words in enumerate(told) if words is not None)
        rank, words = next(different, (comm.size - 1, "something else than rank 0"))
        raise ValueError(f"the ranks disagree: rank {rank} has {words}")


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # it cannot say what it is
        return type(error).__name__


def _difference(their_call: str, first: Mapping[str, Any], call: str, said: Mapping[str, Any]) -> str | None:
    """What differs from rank 0, in words. Things are compared by what they look like, as in the digest."""
    if call != their_call:
        return f"called {call}, rank 0 {their_call}"
    for name, theirs in first.items():
        mine = said.get(name)
        if repr(mine) == repr(theirs):
            continue
        if name == OPTIONS:
            return f"other {name} than rank 0"
        if not (isinstance(mine, list) and isinstance(theirs, list)):
            return f"{name} {mine}, rank 0 {theirs}"
        if len(mine) != len(theirs):
            return f"{len(mine)} {name}, rank 0 {len(theirs)}"
        one, other = next((a, b) for a, b in zip(mine, theirs) if repr(a) != repr(b))
        return f"{one}, rank 0 {str(other).rpartition(': ')[2]}"
    return None


def share_processors(comm: MPI.Intracomm) -> None:
    """Give each rank of a node its part of the processors, unless somebody says how many threads to use."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    try:
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        all_of_node = Counter(processor for each in node.allgather(list(mine)) for processor in each)
        ranks = node.size
    finally:
        node.Free()
    if ranks > 1 and not _core.requested_threads() and not os.environ.get("OMP_NUM_THREADS"):
        share = int(sum(Fraction(1, all_of_node[processor]) for processor in mine))
        _core.set_num_threads(max(1, min(share, _core.get_num_threads())))


def displacements(counts: npt.ArrayLike) -> list[int]:
    """Return the index at which each rank's elements begin."""
    return [0, *np.cumsum(counts)[:-1].tolist()]


def by_rank(room: Array, counts: list[int]) -> Any:
    """A buffer with that many elements of each rank, as mpi4py takes it."""
    return [room, (counts, displacements(counts))]
