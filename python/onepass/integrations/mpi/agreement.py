"""Agreement of ranks: an error on one rank, or a difference between ranks, raises on all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import needed

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

Fingerprint = dict[str, Any]  # values that must be equal on all ranks, compared by their repr
OPTIONS = "options of the groups, or schedules that return other values"  # a difference reported without details


def refusal(comm: MPI.Intracomm, call: str, error: BaseException | None, fingerprint: Fingerprint) -> Any:
    """Return the exception that this rank must raise, or None if no rank failed and all ranks agree.

    Collective. Without an error or a difference: one reduction of three numbers.
    """
    digest = int.from_bytes(hashlib.blake2b(repr((call, fingerprint)).encode(), digest_size=7).digest(), "little")
    numbers = np.array([error is not None, digest, -digest], np.int64)
    message = None if error is None else _describe(error)
    comm.Allreduce(MPI.IN_PLACE, numbers, MPI.MAX)
    if numbers[0]:
        rank, message = next(_present(comm.allgather(message)))
        return RuntimeError(f"rank {rank} raised {message}") if error is None else error
    if numbers[1] != -numbers[2]:
        differences = comm.allgather(_difference(comm.bcast((call, fingerprint), root=0), (call, fingerprint)))
        rank, difference = next(_present(differences), (comm.size - 1, "something else than rank 0"))
        return ValueError(f"the ranks disagree: rank {rank} has {difference}")
    return None


@contextmanager
def together(comm: MPI.Intracomm, call: str) -> Iterator[Fingerprint]:
    """Block that succeeds or raises on all ranks: an error or a different fingerprint on one rank raises on all ranks.

    Collective at its end. The block may fill the fingerprint.
    """
    error: BaseException | None = None
    fingerprint: Fingerprint = {}
    try:
        yield fingerprint
    except BaseException as failed:  # also interrupts: the other ranks wait for this rank
        error = failed
    refused = refusal(comm, call, error, fingerprint)
    if refused is not None:
        raise refused


def _present(messages: list[str | None]) -> Iterator[tuple[int, str]]:
    """Return each rank with a message, and the message."""
    return ((rank, message) for rank, message in enumerate(messages) if message is not None)


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:  # raised by the error's __str__
        return type(error).__name__


def _difference(rank_0: tuple[str, Fingerprint], own: tuple[str, Fingerprint]) -> str | None:
    """Return a description of the first difference from rank 0."""
    (first_call, first), (call, fingerprint) = rank_0, own
    if call != first_call:
        return f"called {call}, rank 0 {first_call}"
    for name, theirs in first.items():
        mine = fingerprint.get(name)
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
