"""Conversion between the state of whole parameters and of this rank's pieces: gathering and splitting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..._flatten import in_line
from ..._optimizer import Optimizer
from ..._state_check import CHECKSUMS
from ..._state_dict import named_params, scalars, snapshot
from ..._storage import is_scale, scale_count, state_part
from ..._types import Array
from .. import needed
from .agreement import together
from .communicator import by_rank
from .layout import Layout
from .partition import Piece

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

StateDict = dict[str, Any]
State = dict[str, Array]  # arrays of one parameter by name


def state_names(optimizer: Optimizer) -> list[str]:
    """Return the names of the state arrays of all parameters."""
    return list(dict.fromkeys(name for state in optimizer._record.states for name in state))


# ---- Gathering ----


def gather_states(
    comm: MPI.Intracomm, layout: Layout, optimizer: Optimizer, call: str, names: list[str], root: int | None = None
) -> list[State]:
    """Return whole state arrays of these names by parameter, on all ranks or on the root; else an empty list."""
    own_states, receives = optimizer._record.states, root in (None, comm.rank)
    with together(
        comm, call
    ) as fingerprint:  # allocate all memory first, while an error on one rank still raises on all ranks
        fingerprint["state"] = names
        states = empty_states(layout, optimizer, names) if receives else []
        lines = [{n: in_line(array, order) for n, array in s.items()} for s, order in zip(states, layout.orders)]
        messages = [*_messages(layout, optimizer, names, comm.size)]
        share = np.empty(max((message.counts[comm.rank] for message in messages), default=0), np.uint8)
        buffer = np.empty(max((sum(message.counts) for message in messages if receives), default=0), np.uint8)
    for name, chunk, counts, places in messages:
        end = 0
        for index in layout.parts[chunk]:
            if name in own_states[index]:
                numbers = own_states[index][name].view(np.uint8)
                share[end : end + numbers.size] = numbers
                end += numbers.size
        if root is None:
            comm.Allgatherv(share[:end], by_rank(buffer, counts))
        else:
            comm.Gatherv(share[:end], by_rank(buffer, counts) if receives else None, root)
        end = 0
        for parameter, place, size in places if receives else ():
            line = lines[parameter][name]
            line[place] = buffer[end : end + size].view(line.dtype)
            end += size
    return states


class _Place(NamedTuple):
    """Part of a parameter's state array that a rank sends."""

    parameter: int
    place: slice
    size: int  # in bytes


class _Message(NamedTuple):
    """State arrays of one name and chunk, as bytes: parameters of a dtype may store state in several dtypes."""

    name: str
    chunk: int
    counts: list[int]  # bytes of each rank
    places: list[_Place]  # ordered by rank


def _messages(layout: Layout, optimizer: Optimizer, names: list[str], ranks: int) -> Iterator[_Message]:
    """Yield the messages that gather arrays of these names, except empty ones."""

    def place(name: str, piece: Piece) -> _Place:
        like = optimizer._record.states[layout.first[piece.parameter]].get(name)
        part = state_part(name, piece.start, piece.stop)
        return _Place(piece.parameter, part, 0 if like is None else (part.stop - part.start) * like.itemsize)

    for name in names:
        for index, chunk in enumerate(layout.chunks):
            by_ranks = [[place(name, piece) for piece in chunk.share(rank)] for rank in range(ranks)]
            counts = [sum(each.size for each in places) for places in by_ranks]
            if any(counts):
                yield _Message(name, index, counts, [each for places in by_ranks for each in places if each.size])


def empty_states(layout: Layout, optimizer: Optimizer, names: list[str]) -> list[State]:
    """Return uninitialized state arrays of these names for whole parameters."""
    own = (optimizer._record.states[first] for first in layout.first[:-1])
    return [
        {name: _empty(name, array, state[name].dtype, order) for name in state if name in names}
        for array, order, state in zip(layout.params, layout.orders, own)
    ]


def _empty(name: str, param: Array, dtype: np.dtype[Any], order: Any) -> Array:
    """Return an uninitialized state array of a whole parameter."""
    return np.empty(scale_count(param.size) if is_scale(name) else param.shape, dtype, order)


def whole_state_dict(layout: Layout, optimizer: Optimizer, states: list[State]) -> StateDict:
    """Return the state dict of an ordinary optimizer with these arrays."""
    mine = snapshot(optimizer)
    numbers = [scalars(optimizer, first) for first in layout.first[:-1]]
    starts = [bisect_left(layout.group_of, number) for number in range(len(mine["param_groups"]) + 1)]
    return {
        **mine,
        "state": {index: own | arrays for index, (own, arrays) in enumerate(zip(numbers, states))},
        "param_groups": [
            {**named_params(layout.record, range(*ends)), **group_options(group)}
            for ends, group in zip(pairwise(starts), mine["param_groups"])
        ],
    }


def whole_schema(layout: Layout, optimizer: Optimizer) -> StateDict:
    """Return a state dict with the shapes and types of a whole one. Large arrays take no memory until written."""
    return whole_state_dict(layout, optimizer, empty_states(layout, optimizer, state_names(optimizer)))


# ---- Splitting ----

Split = Callable[[int, str, Any], list[Array]]  # parameter, name and array -> one part of the array for each piece


def splitter(layout: Layout) -> Split:
    """Return a function that splits a state array into copies of its parts."""

    def split(index: int, name: str, array: Any) -> list[Array]:
        line = in_line(np.asarray(array), layout.orders[index])
        pieces = layout.pieces[layout.first[index] : layout.first[index + 1]]
        return [np.array(line[state_part(name, piece.start, piece.stop)]) for piece in pieces]

    return split


def split_state_dict(layout: Layout, optimizer: Optimizer, whole: Mapping[str, Any], split: Split) -> StateDict:
    """Return the state dict of this rank's optimizer, split from the state dict of an ordinary optimizer."""
    states: dict[int, dict[str, Any]] = {index: {} for index in range(len(layout.pieces))}
    for parameter, state in whole["state"].items():
        pieces = range(layout.first[parameter], layout.first[parameter + 1])
        for name, value in state.items():
            values = [value] * len(pieces) if isinstance(value, (int, float)) else split(parameter, name, value)
            for index, own in zip(pieces, values):
                states[index][name] = own
    split_state = {**whole, "state": states, "param_groups": with_pieces(optimizer, whole["param_groups"])}
    split_state.pop(CHECKSUMS, None)  # of whole parameters
    return split_state


def with_pieces(optimizer: Optimizer, groups: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups of a state dict, with this rank's pieces as their parameters."""
    own = snapshot(optimizer)["param_groups"]
    return [{**group_options(group), "params": mine["params"]} for group, mine in zip(groups, own)]


def group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group of a state dict without its parameters."""
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}
