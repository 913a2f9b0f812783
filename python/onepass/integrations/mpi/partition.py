"""Partition of parameters among ranks: the elements that each rank steps and keeps state for.

The parameters of one dtype, one after the other, are cut into chunks. Each chunk is cut into one share per rank, in the
order of the ranks: one reduce-scatter and one allgather work on a chunk. All cuts are at the ends of blocks of the
global norm (4,096 elements, counted from the first element of each parameter), so that the sums of the blocks equal the
sums of a single process with all elements. A block has whole groups of the elements that share a scale in float8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ... import _core

Positions = npt.NDArray[np.int64]
Sizes = Sequence[tuple[np.dtype[Any], int]]  # dtype and number of elements of each parameter

# Elements: the largest requested size of a chunk. A chunk has less than twice as many, in less than 2**31 bytes, which
# is where the counts of messages end before MPI 4.
LARGEST_CHUNK = 1 << 26


class Piece(NamedTuple):
    """Consecutive elements of a parameter, counted in memory order."""

    parameter: int
    start: int
    stop: int
    at: int  # offset in the chunk


def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which gradients are added up: float32 for bfloat16 parameters, which are sent as uint16.

    MPI has no bfloat16.
    """
    return np.dtype(np.float32) if dtype == np.uint16 else dtype


class Chunk(NamedTuple):
    """Consecutive elements of the concatenated parameters of a dtype."""

    dtype: np.dtype[Any]  # of the parameters in messages
    start: int
    cuts: list[int]  # start of each rank's share, counted from the chunk's start, and the end of the last share
    pieces: list[Piece]  # pieces of the whole chunk, by parameter

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.cuts[-1]

    def counts(self) -> list[int]:
        """Return the size of each rank's share."""
        return [stop - start for start, stop in pairwise(self.cuts)]

    def share(self, rank: int) -> Iterator[Piece]:
        """Return the pieces of one rank's share, by parameter."""
        begin, end = self.cuts[rank : rank + 2]
        for parameter, start, stop, at in self.pieces:
            first, last = max(begin, at), min(end, at + stop - start)
            if first < last:
                yield Piece(parameter, start + first - at, start + last - at, first)


def partition(sizes: Sizes, ranks: int, chunk: int) -> list[Chunk]:
    """Return chunks of about ``chunk`` elements each.

    Over all chunks of a dtype, the size of a share differs from the mean by at most one block. Therefore a chunk has at
    least two blocks for each rank, even if smaller chunks are requested.
    """
    chunks: list[Chunk] = []
    for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
        params = [index for index, (own, _) in enumerate(sizes) if own == dtype]
        offsets = np.cumsum([0, *(sizes[index][1] for index in params)], dtype=np.int64)
        borders = _block_borders(offsets)
        parts = max(1, int(offsets[-1]) // max(min(chunk, LARGEST_CHUNK), 2 * ranks * _core.norm_block))
        ends = _nearest(borders, offsets[-1] * np.arange(parts + 1, dtype=np.int64) // parts)
        assigned = np.zeros(ranks + 1, np.int64)  # elements of all lower ranks in the chunks so far
        for start, stop in pairwise(ends.tolist()):
            if start == stop:
                continue
            ideal = (
                stop * np.arange(ranks + 1, dtype=np.int64) // ranks - assigned
            )  # compensates the rounding of earlier chunks
            cuts = np.maximum.accumulate(_nearest(borders, start + np.clip(ideal, 0, stop - start)))
            cuts[0], cuts[-1] = start, stop
            assigned += cuts - start
            chunks.append(Chunk(dtype, start, (cuts - start).tolist(), list(_pieces(params, offsets, start, stop))))
    return chunks


def rank_pieces(chunks: Sequence[Chunk], rank: int, parameters: int) -> list[Piece]:
    """Return the pieces of one rank, by parameter.

    A parameter without elements on the rank has an empty piece, so that every rank has every group and counts the steps
    of every parameter.
    """
    pieces = [piece for chunk in chunks for piece in chunk.share(rank)]
    present = {piece.parameter for piece in pieces}
    return sorted([*pieces, *(Piece(index, 0, 0, 0) for index in range(parameters) if index not in present)])


def block_owners(sizes: Sizes, ranks: int, chunks: Sequence[Chunk]) -> Positions:
    """Return the owning rank of each block of the norm, in the order of the parameters."""
    owners: list[Positions] = [np.zeros(0, np.int64)] * len(sizes)
    for dtype in dict.fromkeys(dtype for dtype, _ in sizes):
        starts = np.array([c.start + cut for c in chunks if c.dtype == dtype for cut in c.cuts[:-1]], np.int64)
        offset = 0
        for index, (other, size) in enumerate(sizes):
            if other == dtype:
                blocks = np.arange(offset, offset + size, _core.norm_block)
                owners[index] = (np.searchsorted(starts, blocks, "right") - 1) % ranks
                offset += size
    return np.concatenate(owners)


def _block_borders(offsets: Positions) -> Positions:
    """Return the starts of all blocks, and the end of the last block."""
    starts = [np.arange(start, stop, _core.norm_block) for start, stop in pairwise(offsets.tolist())]
    return np.concatenate([*starts, offsets[-1:]])


def _nearest(borders: Positions, positions: Positions) -> Positions:
    """Return the border nearest to each position."""
    after = np.searchsorted(borders, positions)
    before = np.maximum(after - 1, 0)
    return np.where(borders[after] - positions < positions - borders[before], borders[after], borders[before])


def _pieces(params: list[int], offsets: Positions, start: int, stop: int) -> Iterator[Piece]:
    """Return the pieces between two positions in the concatenated parameters."""
    for k in range(int(np.searchsorted(offsets, start, "right")) - 1, len(params)):
        first, last = max(start, int(offsets[k])), min(stop, int(offsets[k + 1]))
        if first >= stop:
            return
        if first < last:
            yield Piece(params[k], first - int(offsets[k]), last - int(offsets[k]), first - start)
