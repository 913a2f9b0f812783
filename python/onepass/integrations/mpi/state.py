"""Conversion between the state of whole parameters and of this rank's pieces: gathering and splitting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..._allocate import all_zeros_like
from ..._flatten import in_line
from ..._optimizer import Optimizer
from ..._state_check import CHECKSUMS
from ..._state_dict import named_params, scalars, snapshot
from ..._types import Array
from .. import needed
from .agreement import together
from .communicator import by_rank
from .layout import Layout, chunk_buffers

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

StateDict = dict[str, Any]
State = dict[str, Array]  # arrays of one parameter by name


def state_names(optimizer: Optimizer) -> list[str]:
    """Return the names of the state arrays of all parameters."""
    return list(dict.fromkeys(name for state in optimizer._record.states for name in state))


def allocate_like(optimizer: Optimizer, array: Array) -> Array:
    """Return zeros with the array's shape, dtype and order, in a file if the optimizer's state is in files."""
    return all_zeros_like([array], optimizer._state_folder)[0]


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
        shares = chunk_buffers(layout.chunks, lambda chunk: chunk.counts()[comm.rank])
        buffers = chunk_buffers(layout.chunks, lambda chunk: chunk.size if receives else 0)
    for name in names:
        for chunk, part in zip(layout.chunks, layout.parts):
            present = {piece.parameter for piece in chunk.pieces if name in own_states[layout.first[piece.parameter]]}
            if not present:
                continue
            begin, end = chunk.cuts[comm.rank : comm.rank + 2]
            share, buffer = shares[chunk.dtype][: end - begin], buffers[chunk.dtype][: chunk.size]
            for index in part:
                parameter, start, stop, at = layout.pieces[index]
                if parameter in present:
                    share[at - begin : at - begin + stop - start] = own_states[index][name]
            if root is None:
                comm.Allgatherv(share, by_rank(buffer, chunk.counts()))
            else:
                comm.Gatherv(share, by_rank(buffer, chunk.counts()) if receives else None, root)
            for parameter, start, stop, at in chunk.pieces if receives else ():
                if parameter in present:
                    lines[parameter][name][start:stop] = buffer[at : at + stop - start]
    return states


def empty_states(layout: Layout, optimizer: Optimizer, names: list[str]) -> list[State]:
    """Return uninitialized state arrays of these names for whole parameters."""
    own = (optimizer._record.states[first] for first in layout.first[:-1])
    return [
        {name: np.empty(array.shape, array.dtype, order) for name in state if name in names}
        for array, order, state in zip(layout.params, layout.orders, own)
    ]


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
        return [np.array(line[piece.start : piece.stop]) for piece in pieces]

    return split


def split_state_dict(layout: Layout, optimizer: Optimizer, whole: Mapping[str, Any], split: Split) -> StateDict:
    """Return the state dict of this rank's optimizer, split from the state dict of an ordinary optimizer."""
    states: dict[int, dict[str, Any]] = {index: {} for index in range(len(layout.pieces))}
    names = state_names(optimizer)
    for parameter, state in whole["state"].items():
        pieces = range(layout.first[parameter], layout.first[parameter + 1])
        for name, value in state.items():
            values = split(parameter, name, value) if name in names else [value] * len(pieces)
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
