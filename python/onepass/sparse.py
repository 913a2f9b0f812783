"""Sparse gradients: only some rows are not zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import plural, real_floating
from ._types import Array


class SparseRows:
    """Sparse gradient: values for some rows of a parameter.

    Pass it to `step` in place of an array. The step reads and changes only these rows of the parameter and of its
    state, including the moments and the running average. The parameter's own step count increases by one as usual.
    Weight decay, clipping and all other options apply only to these rows.

    It is faster than a dense gradient if the step touches a small part of the elements: few rows, or long rows. For
    one-dimensional parameters a dense gradient is usually faster: measure with your shapes.

    Args:
        indices: the row numbers, a sequence or one-dimensional array of integers, in any order. If a row occurs more
            than once, its values are summed in the given order, in the parameter's dtype.
        values: an array of a real floating dtype, with one row for each index.

    Raises:
        TypeError: the indices are not integers, or the values are not an array of real floating-point numbers.
        ValueError: the indices are not one-dimensional, or the numbers of indices and values differ.
        IndexError: an index is negative; `step` raises it if an index is past the end.

    Example:
        >>> import numpy as np, onepass
        >>> embedding = np.zeros((5, 2), np.float32)
        >>> opt = onepass.SGD(embedding, lr=0.5)
        >>> opt.step(onepass.SparseRows([3, 1, 3], np.array([[1, 1], [2, 2], [4, 4]], np.float32)))
        >>> embedding[[1, 3]]
        array([[-1. , -1. ],
               [-2.5, -2.5]], dtype=float32)
    """

    __slots__ = {"indices": "The rows, as int64.", "values": "One row for each index."}

    indices: npt.NDArray[np.int64]
    values: Array

    def __init__(self, indices: npt.ArrayLike, values: Array) -> None:
        rows = np.asarray(indices)
        if rows.dtype.kind not in "iu" and rows.size:
            raise TypeError(f"indices: expected integers, got {rows.dtype}")
        if rows.ndim != 1:
            raise ValueError(f"indices: expected one dimension, got shape {rows.shape}")
        real_floating("values", values)
        values = np.asarray(values)  # subclasses may override these attributes
        if values.ndim == 0 or values.shape[0] != rows.size:
            raise ValueError(
                f"values: expected {plural(rows.size, 'row')}, one for each index, got shape {values.shape}"
            )
        if rows.size and int(rows.min()) < 0:
            raise IndexError(f"indices holds {int(rows.min())}: rows count from 0")
        if rows.size and int(rows.max()) >= 2**63:
            raise IndexError(f"indices holds {int(rows.max())}: no array has that many rows")
        self.indices = rows.astype(np.int64)
        self.values = values

    def __repr__(self) -> str:
        return f"SparseRows({plural(len(self.indices), 'row')} of shape {self.values.shape[1:]}, {self.values.dtype})"

    @classmethod
    def from_csr(cls, matrix: Any) -> SparseRows:
        """Convert a sparse matrix in CSR format, such as `scipy.sparse.csr_array`, to its nonempty rows.

        Args:
            matrix: anything with the attributes ``indptr``, ``indices``, ``data`` and ``shape`` of the CSR format.

        Raises:
            TypeError: the matrix has another format: use its ``tocsr()``.

        Example:
            >>> import numpy as np, onepass, types
            >>> indptr, indices, data = np.array([0, 0, 2]), np.array([2, 0]), np.array([1.0, 3.0])
            >>> matrix = types.SimpleNamespace(indptr=indptr, indices=indices, data=data, shape=(2, 3))
            >>> rows = onepass.SparseRows.from_csr(matrix)
            >>> rows.indices, rows.values
            (array([1]), array([[3., 0., 1.]]))
        """
        try:
            counts, size = np.diff(matrix.indptr), int(matrix.indptr[-1])
            if getattr(matrix, "format", "csr") != "csr" or len(matrix.shape) != 2 or len(counts) != matrix.shape[0]:
                raise AttributeError
            rows = np.flatnonzero(counts)
            values = np.zeros((rows.size, matrix.shape[1]), np.asarray(matrix.data).dtype)
            which = np.repeat(np.arange(rows.size), counts[rows])
            np.add.at(values, (which, matrix.indices[:size]), matrix.data[:size])
        except AttributeError:
            hint = "use its tocsr()" if hasattr(matrix, "tocsr") else "pass a dense gradient to step directly"
            raise TypeError(f"matrix: expected CSR format, got {type(matrix).__name__} ({hint})") from None
        return cls(rows, values)
