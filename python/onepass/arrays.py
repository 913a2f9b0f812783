"""Arrays: what the core can update in place, what it can read as a gradient, and how state is allocated."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import IO, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from . import _core

Array = npt.NDArray[Any]
# Any: or mypy would not take {...} with arrays of several dtypes for a mapping.
Params = Array | Mapping[Any, Array | Any] | Iterable[Array | Mapping[str, Any]]

Key = TypeVar("Key")

_CACHE_LINE = 64  # bytes


def grouped(params: Params) -> tuple[_core.Optimizer._Form, list[tuple[dict[Any, Any], dict[str, Any]]]]:
    """The form in which parameters came, and the groups: each parameter under its key, and what options they bring."""
    form = _core.Optimizer._Form
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
            "a group's params must be an array or a sequence, not a mapping: names are for parameters that all come in "
            "one mapping"
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


def all_zeros_like(arrays: list[Array], folder: str | None = None) -> list[Array]:
    """What `zeros_like` makes of each, in one block: small arrays too then lie on the system's huge pages.

    With a folder the block is a file there.
    """
    plain = [np.asarray(array) for array in arrays]  # a subclass might say what it likes about its size
    size = sum(array.nbytes + _CACHE_LINE for array in plain)
    block = np.zeros(size, np.uint8) if folder is None or not size else _mapped(size, folder)
    made, end = [], 0
    for array in plain:
        start = end + (address(array) - address(block) - end) % _CACHE_LINE
        end = start + array.nbytes
        flat = block[start:end].view(array.dtype)
        made.append(flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F"))
    return made


def _mapped(size: int, folder: str) -> Array:
    """Zeros in a file that nobody else sees, and that is gone with the last array in it."""
    import mmap  # which take long to import, and not everyone needs them
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder, prefix="onepass-") as file:
            _extend(file, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    except OSError as error:  # of a file whose name says nothing
        raise OSError(error.errno, error.strerror, folder) from error


def _extend(file: IO[bytes], size: int) -> None:
    """Give a file that size: in room of its own, if the system can, for a full disk is else a signal in a step."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # musl's, of a file system that reserves nothing
                raise
    file.truncate(size)


_state_folder: ContextVar[str | None] = ContextVar("state_folder", default=None)


def state_folder() -> str | None:
    """The folder for the state of an optimizer that is made now."""
    return _state_folder.get()


@contextmanager
def state_dir(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Optimizers made in this block, by its thread, keep their state in files in this folder, mapped into memory.

    For state that is larger than memory: the system reads its pages when a step comes to them, in their order, writes
    them back when it needs the room, and counts them as files and not as the memory of the process. Parameters stay
    where they are, and may be memory maps of yours. All else is as ever, with the same bits.

    The files are working room, as a swap file would be: they have no names, and are gone with the optimizer or the
    process, however it ends. What lasts is what ``save`` writes, flushed to disk and whole or not at all, so that
    training goes on from the last save. Neither ``save`` nor ``load`` needs memory for the state: ``load`` uses a
    second set of files while it checks the first. ``state_dict``, ``pickle`` and ``copy.deepcopy`` copy into memory.
    A forked child shares the files: it can read the state, and must make an optimizer of its own to step.

    Args:
        folder: one that exists, on a disk with room; not one that is itself kept in memory, as ``/tmp`` often is.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        OSError: from the optimizer, when there is no room in it.

    Example:
        >>> import numpy as np, onepass, tempfile
        >>> w = np.zeros(3, np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with onepass.state_dir(folder):
        ...         opt = onepass.Adam(w, lr=0.1)
        ...     opt.step(np.array([1, 2, 3], np.float32))
        >>> w
        array([-0.1, -0.1, -0.1], dtype=float32)
    """
    from pathlib import Path  # which takes as long to import as all of onepass

    path = Path(os.fsdecode(folder)).absolute()
    if not stat.S_ISDIR(path.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    token = _state_folder.set(str(path))
    try:
        yield
    finally:
        _state_folder.reset(token)


def address(array: Array) -> int:
    """Where the first element lies."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def pin(array: Array) -> list[weakref.ref[Any]]:
    """Weak references that keep ndarray.resize from moving the memory of an array or of its owner."""
    owners: list[Any] = [array]
    while isinstance(owners[-1].base, np.ndarray):
        owners.append(owners[-1].base)
    return [weakref.ref(owner) for owner in owners]


# ---- One buffer ----


@overload
def flatten(params: Array) -> Array: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: Mapping[Key, Array]) -> dict[Key, Array]: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: tuple[Array, ...]) -> tuple[Array, ...]: ...  # type: ignore[overload-overlap]
@overload
def flatten(params: Iterable[Array]) -> list[Array]: ...
@overload
def flatten(params: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]: ...
def flatten(params: Params) -> Any:
    """Copies of the parameters, in the form in which they came, that lie one behind the other in one array per dtype.

    Each has the shape and order (C or Fortran) of its original and is a view of the array of its dtype, one-dimensional
    and in its ``base``: all weights can be saved, copied, compared or sent to other processes at once. An optimizer
    takes the views as any arrays; `onepass.integrations.mpi.ShardedOptimizer` then sends them without copies.

    Args:
        params: an array, a sequence, a mapping, or groups, as in `Adam`.

    Raises:
        TypeError, ValueError: what an optimizer could not update in place, as in `Adam`.

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
    given: Any = params if isinstance(params, (np.ndarray, Mapping)) else listed("params", params)
    form, groups = grouped(given)
    labelled = [
        ("the parameter" if form is form.array else f"parameter {key!r}", key, array)
        for named, _ in groups
        for key, array in named.items()
    ]
    for label, _, array in labelled:
        check_storage(label, array)
    check_disjoint([(label, array) for label, _, array in labelled])
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
    if form is form.array:
        return views[0]
    if form is form.mapping:
        return views
    if any(isinstance(item, Mapping) for item in given):
        return [{"params": [views[key] for key in named], **options} for named, options in groups]
    return tuple(views.values()) if isinstance(params, tuple) else list(views.values())


def in_line(array: Array, order: Any = None) -> Any:
    """The elements in the order in which an array of that order has them in memory: a view, or what slices copies."""
    order = order or ("C" if array.flags.c_contiguous else "F")
    turned = array if order == "C" else array.T
    return turned.reshape(-1) if turned.flags.c_contiguous else turned.flat


def one_array(arrays: list[Array], dtype: Any) -> Array | None:
    """One array of all of these that have elements, if they lie one behind the other in one; None otherwise."""
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
