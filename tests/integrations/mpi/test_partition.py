"""Partition of parameters among ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mpi4py")

from onepass.integrations.mpi.partition import LARGEST_CHUNK, Chunk, block_owners, partition
from support import DTYPES, Array

BLOCK = 4096
dtypes = st.sampled_from([np.dtype(dtype) for dtype in DTYPES])
sizes = st.one_of(
    st.integers(0, 3), st.integers(0, 3 * BLOCK), st.integers(BLOCK - 1, BLOCK + 1), st.integers(0, 10**6)
)
kinds = st.lists(st.tuples(dtypes, sizes), min_size=1, max_size=8)


@given(kinds, st.integers(1, 9), st.integers(1, 10**5))
def test_every_element_is_in_one_share_and_shares_differ_by_at_most_a_block(
    params: list[tuple[Any, int]], ranks: int, chunk: int
) -> None:
    chunks = partition(params, ranks, chunk)
    held = [np.zeros(size, int) for _, size in params]
    taken: dict[tuple[Any, int], int] = {}
    for each in chunks:
        assert len(each.cuts) == ranks + 1 and each.cuts[0] == 0
        assert sum(each.counts()) == each.size == sum(stop - start for _, start, stop, _ in each.pieces) > 0
        places: list[int] = []
        for rank in range(ranks):
            for index, start, stop, at in each.share(rank):
                assert params[index][0] == each.dtype
                assert start % BLOCK == 0 and (stop % BLOCK == 0 or stop == params[index][1])
                assert each.cuts[rank] <= at < at + stop - start <= each.cuts[rank + 1]
                held[index][start:stop] += 1
                places += range(at, at + stop - start, BLOCK)
                taken[each.dtype, rank] = taken.get((each.dtype, rank), 0) + stop - start
        assert places == sorted(places)
    assert all((count == 1).all() for count in held)
    for dtype in {dtype for dtype, _ in params}:
        mean = sum(size for own, size in params if own == dtype) / ranks
        assert all(abs(taken.get((dtype, rank), 0) - mean) <= BLOCK for rank in range(ranks))


@given(kinds, st.integers(1, 5))
def test_block_owner_has_the_elements_of_the_block(params: list[tuple[Any, int]], ranks: int) -> None:
    chunks = partition(params, ranks, 1)
    owner: list[Array] = [np.full(size, -1) for _, size in params]
    for chunk in chunks:
        for rank in range(ranks):
            for index, start, stop, _ in chunk.share(rank):
                owner[index][start:stop] = rank
    assert block_owners(params, ranks, chunks).tolist() == [rank for each in owner for rank in each[::BLOCK]]


def test_chunks_have_about_the_requested_size_if_ranks_are_few() -> None:
    size = 100_000_000
    chunks = partition([(np.dtype(np.float32), size)], 4, 1 << 20)
    assert len(chunks) == size // (1 << 20)
    assert all(abs(chunk.size - size / len(chunks)) <= BLOCK for chunk in chunks)
    many = partition([(np.dtype(np.float32), size)], 1000, 1 << 20)
    assert all(min(chunk.counts()) > 0 for chunk in many)
    assert isinstance(many[0], Chunk)


@pytest.mark.parametrize("size", [2 * LARGEST_CHUNK - 1, 2 * LARGEST_CHUNK, 9 * LARGEST_CHUNK + 5])
def test_the_bytes_of_a_chunk_of_any_requested_size_fit_32_bits(size: int) -> None:
    chunks = partition([(np.dtype(np.float64), size)], 3, 1 << 40)
    assert sum(chunk.size for chunk in chunks) == size
    assert max(chunk.size for chunk in chunks) * 8 < 2**31
