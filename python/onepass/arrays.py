"""Arrays: what the core can update in place, what it can read as a gradient, and how state is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core

Array = npt.NDArray[Any]
Params = Array | Iterable[Array] | Mapping[Any, Array]

_CACHE_LINE = 64  # bytes


def named(params: Params) -> tuple[_core.Optimizer.Form, dict[Any, Any]]:
    """The form in which parameters came, and each under its key."""
    form = _core.Optimizer.Form
    if isinstance(params, np.ndarray):
        return form.array, {0: params}
    if isinstance(params, Mapping):
        named = dict(params)
        kind = form.mapping
    elif hasattr(params, "__iter__") and not isinstance(params, (str, bytes, bytearray)):
        named = dict(enumerate(params))
        kind = form.sequence
    else:
        raise TypeError(f"params must be an array, or a sequence or mapping of arrays, not {type(params).__name__}")
    if not named:
        raise ValueError("params holds no parameters")
    return kind, named


def check_storage(label: str, array: Any) -> None:
    """Refuse what cannot be updated in place."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array, not {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .data")
    if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
        raise TypeError(f"{label} must be of dtype float32 or float64 in native byte order, not {array.dtype.str!r}")
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only and could not be updated: pass a writeable array or a copy")
    if not array.flags.forc:
        raise ValueError(
            f"{label} is not contiguous: keep it in an array of its own, say numpy.ascontiguousarray(it), and pass that"
        )
    if not array.flags.aligned:
        raise ValueError(f"{label} is not aligned to its dtype: pass a copy")


def check_disjoint(arrays: Mapping[str, Array]) -> None:
    """Refuse contiguous arrays that share memory."""
    extents = sorted((address(array), array.nbytes, label) for label, array in arrays.items() if array.size)
    for (start, size, label), (next_start, next_size, next_label) in pairwise(extents):
        if (start, size) == (next_start, next_size):
            raise ValueError(f"{next_label} is the same memory as {label}: pass it once")
        if next_start < start + size:
            raise ValueError(f"{next_label} overlaps {label} in memory: pass arrays that share nothing, or a copy")


def checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """The gradient as a plain array, or the error that says what is wrong with it."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    if not isinstance(grad, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array of real floating-point numbers, not {type(grad).__name__}")
    if isinstance(grad, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass grad.filled(0)")
    if grad.dtype.kind != "f":
        raise TypeError(f"{label} must be of a real floating-point dtype, not {grad.dtype}")
    if grad.shape != shape:
        raise ValueError(f"{label} has shape {grad.shape}, its parameter {shape}: they must be equal")
    return np.asarray(grad)


def copy_into(scratch: Array, grad: Array) -> Array:
    """The scratch array, now with the gradient's values in its dtype and order."""
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="same_kind")
    return scratch


def zeros_like(array: Array) -> Array:
    """Zeros of the same shape, dtype and order in memory, as far from a cache line's start (see sweep.hpp)."""
    room = np.zeros(array.size + _CACHE_LINE // array.itemsize, array.dtype)
    start = (address(array) - address(room)) % _CACHE_LINE // array.itemsize
    flat = room[start : start + array.size]
    return flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")


def address(array: Array) -> int:
    """Where the first element lies."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def pin(array: Array) -> list[weakref.ref[Any]]:
    """Weak references that keep ndarray.resize from moving the memory of an array or of its owner."""
    owners: list[Any] = [array]
    while isinstance(owners[-1].base, np.ndarray):
        owners.append(owners[-1].base)
    return [weakref.ref(owner) for owner in owners]
