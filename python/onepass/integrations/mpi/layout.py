"""Layout of parameters: their memory, their chunks, and the pieces of one rank's share."""

from __future__ import annotations

import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from ... import _core
from ..._allocate import pin
from ..._flatten import in_line, one_array
from ..._group import Group
from ..._optimizer import Optimizer
from ..._options import OPTIMIZER_CHECKS
from ..._params import GroupParams, ParameterRecord, Part, check_params
from ..._storage import raw
from ..._types import Array, Form
from .partition import Chunk, Piece, Positions, block_owners, partition, rank_pieces


@dataclass(frozen=True)
class Layout:
    """Parameters of a ShardedOptimizer on one rank, cut into chunks and pieces."""

    record: ParameterRecord  # record of the whole parameters, without state
    params: list[Array]  # the parameters as plain arrays, bfloat16 as uint16
    orders: list[Any]  # each parameter's memory order: "C" or "F"
    lines: list[Any]  # one-dimensional views of the parameters in memory order
    flat: dict[np.dtype[Any], Array | None]  # all parameters of a dtype as one array; None if scattered
    group_of: list[int]  # each parameter's group
    chunks: list[Chunk]
    pieces: list[Piece]  # pieces of this rank by parameter: the parameters of its optimizer
    first: list[int]  # index of each parameter's first piece, and the number of pieces
    parts: list[list[int]]  # indices of this rank's pieces in each chunk
    blocks: Blocks


@dataclass(frozen=True)
class Blocks:
    """Blocks of the global norm, which ranks exchange."""

    places: Positions  # positions in parameter order of the blocks of all ranks, ordered by rank
    of_ranks: list[int]  # number of blocks on each rank
    of_params: list[int]  # number of blocks in each parameter


def create_record(form: Form, as_tuple: bool, groups: list[GroupParams]) -> ParameterRecord:
    """Return the record of checked parameters, without groups and state."""
    check_params(ParameterRecord(form, as_tuple), form, groups)
    named = {key: array for params, _ in groups for key, array in params.items()}
    return ParameterRecord(
        form,
        as_tuple,
        keys=tuple(named),
        index={key: index for index, key in enumerate(named)},
        params=tuple(named.values()),
        shapes=tuple(np.asarray(array).shape for array in named.values()),
        parts=tuple(Part(np.asarray(array).size) for array in named.values()),
        pins=tuple(pin(array) for array in named.values()),
    )


def create_layout(record: ParameterRecord, group_sizes: list[int], ranks: int, rank: int, chunk: int) -> Layout:
    """Return the layout, on this rank, of parameters in groups of these sizes."""
    given = [np.asarray(array) for array in record.params]  # subclasses may override attributes
    params = [raw(array) for array in given]
    sizes = [(array.dtype, array.size) for array in params]
    chunks = partition(sizes, ranks, chunk)
    pieces = rank_pieces(chunks, rank, len(params))
    index_of = {piece: index for index, piece in enumerate(pieces)}
    counts = np.bincount([piece.parameter for piece in pieces])
    return Layout(
        record=record,
        params=params,
        orders=["C" if array.flags.c_contiguous else "F" for array in params],
        lines=[in_line(array) for array in params],
        flat={raw(array).dtype: raw(one_array(given, array.dtype)) for array in given},
        group_of=[group for group, size in enumerate(group_sizes) for _ in range(size)],
        chunks=chunks,
        pieces=pieces,
        first=[0, *accumulate(counts.tolist())],
        parts=[[index_of[piece] for piece in each.share(rank)] for each in chunks],
        blocks=_create_blocks(block_owners(sizes, ranks, chunks), ranks, params),
    )


def _create_blocks(owners: Positions, ranks: int, params: list[Array]) -> Blocks:
    return Blocks(
        np.argsort(owners, kind="stable"),
        np.bincount(owners, minlength=ranks).tolist(),
        [-(-array.size // _core.norm_block) for array in params],
    )


def piece_groups(layout: Layout, groups: list[GroupParams]) -> list[dict[str, Any]]:
    """Return the groups of parameters for the optimizer of this rank's pieces."""
    created = [{"params": [], **options} for _, options in groups]
    for piece in layout.pieces:
        created[layout.group_of[piece.parameter]]["params"].append(weights_of(layout, piece))
    return created


def weights_of(layout: Layout, piece: Piece) -> Array:
    """Return a view of the weights of a piece."""
    line = layout.lines[piece.parameter].view(np.asarray(layout.record.params[piece.parameter]).dtype)
    return line[piece.start : piece.stop]  # type: ignore[no-any-return]


def part_of(layout: Layout, piece: Piece) -> Part:
    """Return the place of a piece in its parameter."""
    return Part(layout.params[piece.parameter].size, piece.start, piece.parameter)


def fingerprint_of(layout: Layout, optimizer: Optimizer, **arguments: Any) -> dict[str, Any]:
    """Return the values that must be equal in the constructors of all ranks."""
    labels = [layout.record.label(index) for index in range(len(layout.params))]
    options = [each for index, group in enumerate(optimizer.groups) for each in _described_options(index, group)]
    of_optimizer = {**{name: getattr(optimizer, name) for name in OPTIMIZER_CHECKS}, **arguments}
    return {
        "optimizer": type(optimizer).__name__,
        "parameters": [
            f"{label} of shape {shape}, {array.dtype}, {order} order"
            for label, array, shape, order in zip(labels, layout.record.params, layout.record.shapes, layout.orders)
        ],
        "sizes of groups": str([*Counter(layout.group_of).values()]),
        "options": [*options, *(f"{name}={value!r}" for name, value in of_optimizer.items())],
        "values": [
            f"values in {label} that differ from rank 0 (broadcast them first, as with comm.Bcast): checksum "
            f"{zlib.crc32(line.view(np.uint8)):08x}"
            for label, line in zip(labels, layout.lines)
        ],
    }


def _described_options(index: int, group: Group) -> list[str]:
    """Return a group's options as text; schedules are shown only as "a function"."""
    return [f"{describe_option(name, value)} in group {index}" for name, value in group._values.items()]


def describe_option(name: str, value: Any) -> str:
    """Return an option as text, the same on all ranks: functions are not compared."""
    return f"{name}={'a function' if callable(value) else repr(value)}"
