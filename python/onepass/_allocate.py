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
    """Return zeros of the same shape, dtype, memory order and offset from a cache line (see loop.hpp)."""
    return all_zeros_like([array])[0]


def all_zeros_like(arrays: list[Array], folder: str | None = None) -> list[Array]:
    """Return `zeros_like` of each array, in one block, so that small arrays share the system's huge pages.

    folder: the block is a file in this folder; None: the block is in memory.
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
    """Keep the state of optimizers that are created in this block in memory-mapped files in this folder.

    Use it for state that is larger than memory. The system reads the pages of the files in order as a step reaches
    them, and writes them back when it needs the memory; they count as pages of files, not as memory of the process.
    Only the thread that enters the block is affected. Parameters stay where they are; they may be memory maps, too.
    Results have the same bits.

    The files are scratch space without names (on Windows ``onepass-*``). They disappear with the optimizer or the
    process, even after a crash. To continue after a crash, load the last file of ``save``, which is written atomically
    and flushed to disk. Neither ``save`` nor ``load`` needs memory for the state: ``load`` uses a second set of files
    while it checks the state, and converts state in other storage one parameter at a time. ``state_dict``, ``pickle``
    and ``copy.deepcopy`` copy the state into memory. A forked child shares the files: it can read the state, but must
    create its own optimizer to step.

    Args:
        folder: an existing folder on a disk with enough free space. ``/tmp`` is often kept in memory: choose another.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder does not exist.
        OSError: raised by the constructor of the optimizer if the disk is full.

    Example:
        >>> import numpy as np, onepass, tempfile
        >>> w = np.zeros(3, np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with onepass.state_dir(folder):
        ...         opt = onepass.Adam(w, lr=0.1)
        ...     opt.step(np.array([1, 2, 3], np.float32))
        ...     del opt  # deletes its files too: Windows cannot delete a folder of open files
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
