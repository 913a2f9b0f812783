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
Params = Array | Iterable[Array] | Mapping[Any, Array] | Iterable[Mapping[str, Any]]

_CACHE_LINE = 64  # bytes


def grouped(params: Params) -> tuple[_core.Optimizer.Form, list[tuple[dict[Any, Any], dict[str, Any]]]]:
    """The form in which parameters came, and the groups: each parameter under its key, and what options they bring."""
    form = _core.Optimizer.Form
    groups: list[tuple[dict[Any, Any], dict[str, Any]]]
    if isinstance(params, np.ndarray):
        return form.array, [({0: params}, {})]
    if isinstance(params, Mapping):
        kind, groups = form.mapping, [(dict(params), {})]
    else:
        kind, items = form.sequence, listed("params", params)
        if any(isinstance(item, Mapping) for item in items):
            groups = listed_groups(items)
        else:
            groups = [(dict(enumerate(items)), {})]
    if not all(named for named, _ in groups) or not groups:
        raise ValueError("params holds no parameters" if len(groups) < 2 else "a group holds no parameters")
    return kind, groups


def listed(name: str, params: Any) -> list[Any]:
    """The items of a sequence or of any other iterable of arrays."""
    if not hasattr(params, "__iter__") or isinstance(params, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be an array, or a sequence or mapping of arrays, not {type(params).__name__}")
    return list(params)


def listed_groups(items: list[Any]) -> list[tuple[dict[Any, Any], dict[str, Any]]]:
    """The groups of a list of mappings; their parameters are numbered from the first group's first."""
    groups: list[tuple[dict[Any, Any], dict[str, Any]]] = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise TypeError(f"params mixes groups and other things: item {index} is of type {type(item).__name__}")
        options = dict(item)
        if "params" not in options:
            raise ValueError(f"group {index} has no 'params': it has {list(options)}")
        params = options.pop("params")
        first = sum(len(named) for named, _ in groups)
        groups.append((dict(enumerate(group_params(params), first)), options))
    return groups


def group_params(params: Any) -> list[Any]:
    """The parameters of one of several groups, whose gradients come in a sequence."""
    if isinstance(params, np.ndarray):
        return [params]
    if isinstance(params, Mapping):
        raise TypeError(
            "a group's params must be an array or a sequence, not a mapping: options are arguments of add_group, and "
            "names are for parameters that all came in one mapping"
        )
    return listed("a group's params", params)


def check_storage(label: str, array: Any) -> None:
    """Refuse what cannot be updated in place."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array, not {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .data")
    array = np.asarray(array)  # a subclass might say what it likes about its layout
    if not array.dtype.isnative:
        raise TypeError(f"{label} must be in native byte order, not {array.dtype.str!r}: pass a converted copy")
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"{label} must be of dtype float32 or float64, not {array.dtype.name}")
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only and could not be updated: pass a writeable array or a copy")
    if not array.flags.forc:
        raise ValueError(
            f"{label} is not contiguous: keep it in an array of its own, say numpy.ascontiguousarray(it), and pass that"
        )
    if not array.flags.aligned:
        raise ValueError(f"{label} is not aligned to its dtype: pass a copy")


def check_disjoint(arrays: list[tuple[str, Array]]) -> None:
    """Refuse contiguous arrays that share memory; each comes with what to call it."""
    plain = [(label, np.asarray(array)) for label, array in arrays]
    extents = sorted((address(array), array.nbytes, label) for label, array in plain if array.size)
    for (start, size, label), (next_start, next_size, next_label) in pairwise(extents):
        if (start, size) == (next_start, next_size):
            raise ValueError(f"{next_label} is the same memory as {label}: pass it once")
        if next_start < start + size:
            raise ValueError(f"{next_label} overlaps {label} in memory: pass arrays that share nothing, or a copy")


def real_floating(label: str, array: Any) -> None:
    """Refuse what is no array of real floating-point numbers."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array of real floating-point numbers, not {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .filled(0)")
    if array.dtype.kind != "f":
        raise TypeError(
            f"{label} must be of a real floating-point dtype, not {array.dtype}: say .astype(numpy.float32)"
        )


def checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """The gradient as a plain array, or the error that says what is wrong with it."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    real_floating(label, grad)
    plain: Array = np.asarray(grad)  # a subclass might say what it likes about its shape
    if plain.shape != shape:
        raise ValueError(f"{label} has shape {plain.shape}, its parameter {shape}: they must be equal")
    return plain


def copy_into(scratch: Array, grad: Array) -> Array:
    """The scratch array, now with the gradient's values in its dtype and order."""
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="same_kind")
    return scratch


def zeros_like(array: Array) -> Array:
    """Zeros of the same shape, dtype and order in memory, as far from a cache line's start (see sweep.hpp)."""
    return all_zeros_like([array])[0]


def all_zeros_like(arrays: list[Array]) -> list[Array]:
    """What `zeros_like` makes of each, in one block: small arrays too then lie on the system's huge pages."""
    plain = [np.asarray(array) for array in arrays]  # a subclass might say what it likes about its size
    block = np.zeros(sum(array.nbytes + _CACHE_LINE for array in plain), np.uint8)
    made, end = [], 0
    for array in plain:
        start = end + (address(array) - address(block) - end) % _CACHE_LINE
        end = start + array.nbytes
        flat = block[start:end].view(array.dtype)
        made.append(flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F"))
    return made


def copy_of(array: Array) -> Array:
    """A copy that lies as `zeros_like` would."""
    copy = zeros_like(array)
    np.copyto(copy, array)
    return copy


def address(array: Array) -> int:
    """Where the first element lies."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def pin(array: Array) -> list[weakref.ref[Any]]:
    """Weak references that keep ndarray.resize from moving the memory of an array or of its owner."""
    owners: list[Any] = [array]
    while isinstance(owners[-1].base, np.ndarray):
        owners.append(owners[-1].base)
    return [weakref.ref(owner) for owner in owners]
