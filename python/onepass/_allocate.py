"""Allocation of state, in memory or in files."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Any

import numpy as np

from ._types import Array

_CACHE_LINE = 64  # bytes


def zeros_like(array: Array) -> Array:
    """Return zeros of the same shape, dtype and order in memory, as far from a cache line's start (see loop.hpp)."""
    return all_zeros_like([array])[0]


def all_zeros_like(arrays: list[Array], folder: str | None = None) -> list[Array]:
    """Return `zeros_like` of each, in one block: small arrays too then lie on the system's huge pages.

    With a folder the block is a file there.
    """
    return all_zeros([(array, np.asarray(array).dtype) for array in arrays], folder)


def all_zeros(like: list[tuple[Array, np.dtype[Any]]], folder: str | None = None) -> list[Array]:
    """Return zeros like each array, with another dtype.

    An array of the same item size lies as far from a cache line's start as the array it is like.
    """
    plain = [(np.asarray(array), dtype) for array, dtype in like]  # subclasses may override these attributes
    size = sum(array.size * dtype.itemsize + 2 * _CACHE_LINE for array, dtype in plain)
    block = np.zeros(size, np.uint8) if folder is None or not size else _mapped(size, folder)
    made, end = [], 0
    for array, dtype in plain:
        offset = address(array) if dtype.itemsize == array.itemsize else 0
        start = end + (offset - address(block) - end) % _CACHE_LINE
        end = start + array.size * dtype.itemsize
        flat = block[start:end].view(dtype)
        made.append(flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F"))
    return made


def _mapped(size: int, folder: str) -> Array:
    """Return zeros in an anonymous file, which is gone with the last array in it."""
    import mmap  # slow to import, and rarely needed
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder, prefix="onepass-") as file:
            _extend(file, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    except OSError as error:  # the error's file name is meaningless
        raise OSError(error.errno, error.strerror, folder) from error


def _extend(file: IO[bytes], size: int) -> None:
    """Preallocate the file, so that a full disk raises here instead of SIGBUS during a step."""
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
    where they are, and may be memory maps of yours. Everything else is unchanged, bits included.

    The files are working room, as a swap file would be: they have no names (on Windows ``onepass-*``), and are gone
    with the optimizer or the process, however it ends. What lasts is what ``save`` writes, flushed to disk and whole or
    not at all, so that training goes on from the last save. Neither ``save`` nor ``load`` needs memory for the state:
    ``load`` uses a second set of files while it checks the first, and converts state in other storage one parameter at
    a time. ``state_dict``, ``pickle`` and ``copy.deepcopy`` copy into memory. A forked child shares the files: it can
    read the state, and must make an optimizer of its own to step.

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
        ...     del opt  # and its files, without which Windows deletes the folder
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
    """Return the address of the first element."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def pin(array: Array) -> list[weakref.ref[Any]]:
    """Return weak references that keep ndarray.resize from moving the memory of an array or of its owner."""
    owners: list[Any] = [array]
    while isinstance(owners[-1].base, np.ndarray):
        owners.append(owners[-1].base)
    return [weakref.ref(owner) for owner in owners]
