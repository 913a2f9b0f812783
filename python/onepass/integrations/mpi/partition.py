"""How parameters are shared out among processes: which elements each of them steps and keeps the state of.

The parameters of one dtype, one behind the other, are cut into chunks, and each chunk into a share for each process, in
their order, so that a chunk is what one reduce-scatter and one allgather work on. All cuts are where a block of the
global norm ends (4,096 elements, counted from each parameter's first), so that the blocks' sums are those of a process
that has everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ... import _core

Positions = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """Some of a parameter's elements, counted in the order in which they lie in memory."""

    parameter: int
    start: int
    stop: int
    at: int  # where they begin in their chunk


class Chunk(NamedTuple):
    """Some of the elements of all parameters of a dtype, counted through these parameters."""

    dtype: np.dtype[Any]
    start: int
    cuts: list[int]  # where each process's share begins, counted from the chunk's start, and where the last one's ends
    pieces: list[Piece]  # of the whole chunk, by parameter

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.cuts[-1]

    def counts(self) -> list[int]:
        """The size of each share."""
        return [stop - start for start, stop in pairwise(self.cuts)]

    def share(self, rank: int) -> Iterator[Piece]:
        """The pieces of one process's share, by parameter."""
        begin, end = self.cuts[rank : rank + 2]
        for parameter, start, stop, at in self.pieces:
            first, last = max(begin, at), min(end, at + stop - start)
            if first < last:
                yield Piece(parameter, start + first - at, start + last - at, first)


def shared_out(params: Sequence[tuple[np.dtype[Any], int]], ranks: int, chunk: int) -> list[Chunk]:
    """The chunks of parameters of these dtypes and sizes, of about that many elements each.

    Over all chunks of a dtype, a share has the same number of elements as any other to within one block either way of
    the mean. For that a chunk has at least two blocks for each process, whatever was asked for.
    """
    chunks: list[Chunk] = []
    for dtype in dict.fromkeys(dtype for dtype, _ in params):
        which = [index for index, (own, _) in enumerate(params) if own == dtype]
        offsets = np.cumsum([0, *(params[index][1] for index in which)])
        borders = _borders(offsets)
        parts = max(1, int(offsets[-1]) // max(chunk, 2 * ranks * _core.norm_block))
        ends = _nearest(borders, offsets[-1] * np.arange(parts + 1) // parts)
        taken = np.zeros(ranks + 1, np.int64)  # by all processes before each, in the chunks so far
        for start, stop in pairwise(ends.tolist()):
            if start == stop:
                continue
            wanted = stop * np.arange(ranks + 1) // ranks - taken  # what puts right what was rounded before
            cuts = np.maximum.accumulate(_nearest(borders, start + np.clip(wanted, 0, stop - start)))
            cuts[0], cuts[-1] = start, stop
            taken += cuts - start
            pieces = list(_pieces(which, offsets, start, stop))
            chunks.append(Chunk(dtype, start, (cuts - start).tolist(), pieces))
    return chunks


def owners(params: Sequence[tuple[np.dtype[Any], int]], ranks: int, chunks: Sequence[Chunk]) -> Positions:
    """Which process has each block of the norm, counted through the parameters."""
    found: list[Positions] = [np.zeros(0, np.int64)] * len(params)
    for dtype in dict.fromkeys(dtype for dtype, _ in params):
        own = [chunk for chunk in chunks if chunk.dtype == dtype]
        starts = np.array([chunk.start + cut for chunk in own for cut in chunk.cuts[:-1]], np.int64)
        offset = 0
        for index, (other, size) in enumerate(params):
            if other == dtype:
                blocks = np.arange(offset, offset + size, _core.norm_block)
                found[index] = (np.searchsorted(starts, blocks, "right") - 1) % ranks
                offset += size
    return np.concatenate(found)


def _borders(offsets: Positions) -> Positions:
    """Where blocks begin, and the end."""
    starts = [np.arange(start, stop, _core.norm_block) for start, stop in pairwise(offsets.tolist())]
    return np.concatenate([*starts, offsets[-1:]])


def _nearest(borders: Positions, wanted: Positions) -> Positions:
    """The border that is nearest to each position."""
    after = np.searchsorted(borders, wanted)
    before = np.maximum(after - 1, 0)
    return np.where(borders[after] - wanted < wanted - borders[before], borders[after], borders[before])


def _pieces(which: list[int], offsets: Positions, start: int, stop: int) -> Iterator[Piece]:
    for k in range(int(np.searchsorted(offsets, start, "right")) - 1, len(which)):
        first, last = max(start, int(offsets[k])), min(stop, int(offsets[k + 1]))
        if first >= stop:
            return
        if first < last:
            yield Piece(which[k], first - int(offsets[k]), last - int(offsets[k]), first - start)
