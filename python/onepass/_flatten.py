"""Parameters that are adjacent in one array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

import numpy as np

from ._allocate import address
from ._checks import check_disjoint, check_storage
from ._params import as_list, label, normalize_params
from ._types import Array, Params

Key = TypeVar("Key")


@overload
def flatten(params: Array) -> Array: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: Mapping[Key, Array]) -> dict[Key, Array]: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: tuple[Array, ...]) -> tuple[Array, ...]: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: tuple[Mapping[str, Any], ...]) -> tuple[dict[str, Any], ...]: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: Iterable[Array]) -> list[Array]: ...
@overload
def flatten(params: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]: ...
def flatten(params: Params) -> Any:
    """Copy parameters into one array per dtype, and return views of it in the form of the argument.

    Each view has the shape and order (C or Fortran) of its original. Its ``base`` is the one-dimensional array of its
    dtype, which contains all weights, so that they can be saved, copied, compared or sent to other processes at once.
    Optimizers accept the views like any arrays; `onepass.integrations.mpi.ShardedOptimizer` sends them without copies.

    Args:
        params: an array, a sequence, a mapping, or groups, as in `Adam`.

    Raises:
        TypeError, ValueError: an optimizer could not update the parameters in place, as in `Adam`.

    Example:
        >>> import numpy as np, onepass
        >>> w, b = onepass.flatten([np.ones((2, 2), np.float32), np.zeros(1, np.float32)])
        >>> w.base is b.base
        True
        >>> b.base
        array([1., 1., 1., 1., 0.], dtype=float32)
        >>> w *= 3
        >>> b.base
        array([3., 3., 3., 3., 0.], dtype=float32)
    """
    given: Any = params if isinstance(params, (np.ndarray, Mapping)) else as_list("params", params)
    form, groups = normalize_params(given)
    labelled = [(label(form, key), key, array) for named, _ in groups for key, array in named.items()]
    for name, _, array in labelled:
        check_storage(name, array)
    check_disjoint([(name, array) for name, _, array in labelled])
    sizes: dict[np.dtype[Any], int] = {}
    for _, _, array in labelled:
        sizes[array.dtype] = sizes.get(array.dtype, 0) + array.size
    buffers = {dtype: np.empty(size, dtype) for dtype, size in sizes.items()}
    ends = dict.fromkeys(buffers, 0)
    views: dict[Any, Array] = {}
    for _, key, array in labelled:
        plain = np.asarray(array)
        start = ends[plain.dtype]
        ends[plain.dtype] = start + plain.size
        order: Any = "C" if plain.flags.c_contiguous else "F"
        views[key] = buffers[plain.dtype][start : start + plain.size].reshape(plain.shape, order=order)
        np.copyto(views[key], plain)
    if isinstance(given, list) and isinstance(given[0], Mapping):
        flat = [
            {**group, "params": _in_form_of(group["params"], {key: views[key] for key in named})}
            for group, (named, _) in zip(given, groups)
        ]
        return tuple(flat) if isinstance(params, tuple) else flat
    return _in_form_of(params, views)


def _in_form_of(params: Any, views: dict[Any, Array]) -> Any:
    """Return views of parameters by key in the form of the parameters: an array, a mapping, a tuple or a list."""
    if isinstance(params, np.ndarray):
        return next(iter(views.values()))
    if isinstance(params, Mapping):
        return views
    return tuple(views.values()) if isinstance(params, tuple) else list(views.values())


def in_line(array: Array, order: Any = None) -> Any:
    """Return the elements in memory order of the given order: a view, or a flat iterator whose slices are copies."""
    order = order or ("C" if array.flags.c_contiguous else "F")
    contiguous = array if order == "C" else array.T
    return contiguous.reshape(-1) if contiguous.flags.c_contiguous else contiguous.flat


def one_array(arrays: list[Array], dtype: Any) -> Array | None:
    """Return one array of all nonempty arrays of a dtype if they are adjacent in one array, otherwise None."""
    full = [array for array in arrays if array.dtype == dtype and array.size]
    if len(full) < 2:
        return in_line(full[0]) if full else np.empty(0, dtype)
    base: Any = full[0]
    while isinstance(base.base, np.ndarray):
        base = base.base
    if base.ndim != 1 or base.dtype != dtype or not base.flags.c_contiguous or not base.flags.writeable:
        return None
    place = address(full[0])
    start = (place - address(base)) // base.itemsize
    for array in full:
        if address(array) != place:
            return None
        place += array.nbytes
    stop = (place - address(base)) // base.itemsize
    return np.asarray(base)[start:stop] if stop <= base.size else None
