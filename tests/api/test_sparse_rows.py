"""Sparse gradients: `SparseRows`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onepass
from support import ones, refused

F = np.float32


def test_adjacent_values_of_a_repeated_row_are_summed_in_order() -> None:
    for values, total in [([1e8, 1, -1e8], 0), ([1e8, -1e8, 1], 1), ([1, 1e8, -1e8], 0)]:
        w = np.zeros((5, 1), F)
        rows = np.array([*values, 2], F).reshape(4, 1)
        onepass.SGD(w, lr=1).step(onepass.SparseRows([3, 3, 3, 0], rows))
        assert w.ravel().tolist() == [-2, 0, 0, -total, 0]


def test_separated_values_of_a_repeated_row_are_summed_in_order() -> None:
    w = np.zeros((5, 1), F)
    onepass.SGD(w, lr=1).step(
        onepass.SparseRows([3, 1, 3, 1, 3, 1], np.array([[1e8], [1], [1], [1e8], [-1e8], [-1e8]], F))
    )
    assert w.ravel().tolist() == [0, 0, 0, 0, 0]


def test_a_step_with_zero_sparse_rows_changes_no_parameter() -> None:
    w = ones(3, 2)
    optimizer = onepass.AdamW(w, lr=0.5, weight_decay=0.5)
    optimizer.step(onepass.SparseRows([], np.zeros((0, 2), F)))
    assert (w == 1).all() and optimizer.state[0]["step"] == 1


@pytest.mark.parametrize(
    ("indices", "values", "error", "message"),
    [
        ([0.0, 1.0], ones(2, 3), TypeError, "indices: expected integers, got float64"),
        ([True, False], ones(2, 3), TypeError, "indices: expected integers, got bool"),
        ([[0, 1]], ones(2, 3), ValueError, "indices: expected one dimension"),
        (0, ones(1, 3), ValueError, "indices: expected one dimension"),
        ([0, -1], ones(2, 3), IndexError, "indices holds -1"),
        (np.array([2**64 - 1], np.uint64), ones(1, 3), IndexError, "no array has that many rows"),
        ([0, 1], ones(3, 3), ValueError, "values: expected 2 rows, one for each index, got shape (3, 3)"),
        ([0], np.float32(1), TypeError, "values: expected a NumPy array"),
        ([0], np.array(1, F), ValueError, "values: expected 1 row, one for each index, got shape ()"),
        ([0, 1], ones(2, 3, dtype=int), TypeError, "values: expected a real floating-point dtype"),
        ([0, 1], [[1.0] * 3] * 2, TypeError, "values: expected a NumPy array"),
    ],
)
def test_wrong_sparse_rows_are_refused(indices: Any, values: Any, error: Any, message: str) -> None:
    with refused(error, message):
        onepass.SparseRows(indices, values)


def test_sparse_rows_that_do_not_fit_their_parameter_are_refused() -> None:
    optimizer = onepass.Adam([ones(2), ones(4, 3)])
    for rows, error, message in [
        (onepass.SparseRows([0, 4], ones(2, 3)), IndexError, "gradient 1 names row 4, but its parameter has 4 rows"),
        (onepass.SparseRows([2**62], ones(1, 3)), IndexError, "gradient 1 names row"),
        (onepass.SparseRows([0], ones(1, 2)), ValueError, "gradient 1: expected rows of shape (3,), got (2,)"),
        (onepass.SparseRows([0], ones(1)), ValueError, "gradient 1: expected rows of shape (3,), got ()"),
        (onepass.SparseRows([0], ones(1, 3, 1)), ValueError, "gradient 1: expected rows of shape (3,), got (3, 1)"),
    ]:
        with refused(error, message, optimizer):
            optimizer.step([ones(2), rows])
    for param in [np.ones((4, 3), F, order="F"), np.array(1, F)]:
        optimizer = onepass.Adam([param])
        with refused(ValueError, "gradient 0: expected a parameter in C order for SparseRows", optimizer):
            optimizer.step([onepass.SparseRows([0], ones(1, 3))])
    single = onepass.Adam(ones(4, 3))
    with refused(IndexError, "the gradient names row 9", single):
        single.step(onepass.SparseRows([9], ones(1, 3)))
    several = onepass.Adam([ones(4, 3)])
    with refused(TypeError, "the gradients: expected a sequence", several):
        several.step(onepass.SparseRows([0], ones(1, 3)))


def test_replaced_values_of_sparse_rows_are_checked_again() -> None:
    optimizer, rows = onepass.SGD(np.zeros((3, 2))), onepass.SparseRows([1], np.ones((1, 2)))
    rows.values = np.ones((2, 2))
    with refused(ValueError, "has 1 indices but 2 rows of values", optimizer):
        optimizer.step(rows)
    assert repr(rows) == "SparseRows(1 row of shape (2,), float64)"
