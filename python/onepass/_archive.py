"""Files: atomic replacement, and the members of an ``.npz`` archive."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from ._types import Array

PathLike = str | os.PathLike[str]

SCALARS = "onepass.npy"  # the member that holds all but the arrays
_CHUNK = 1 << 16  # bytes: what is copied at once stays in cache
# Seconds between attempts to rename. Windows refuses it while any program has the old file open, as virus scanners and
# readers of the file do for a moment.
_PAUSES = [0.01 * 2**n for n in range(7)] if os.name == "nt" else []
_HEADER = re.compile(rb"\{'descr': '([^']{,20})', 'fortran_order': (True|False), 'shape': \(([\d, ]{,999})\), \} *\n")


# ---- Writing ----


@contextmanager
def replaced(path: PathLike) -> Iterator[IO[bytes]]:
    """Open a file that replaces the path atomically at the end of the block, unless the block raises."""
    target = Path(os.path.realpath(os.fsdecode(path)))  # a symbolic link stays one
    mode = _mode(target)
    temporary = target.with_name(f".onepass-{secrets.token_hex(8)}.tmp")
    try:
        with _opened(temporary, target) as file:
            if mode is not None:
                temporary.chmod(mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def _opened(temporary: Path, target: Path) -> IO[bytes]:
    """Open a new file; report errors under the target's name."""
    try:
        return temporary.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _mode(target: Path) -> int | None:
    """The permissions of the file that will be replaced, if there is one and the system has permissions."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):  # /dev/null must not be replaced
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "Not a regular file", str(target))
    # On Windows a mode only tells a file that may not be replaced, and the temporary file could not be deleted either.
    return None if os.name == "nt" else stat.S_IMODE(mode)


def _is_read_only(target: Path) -> bool:
    try:
        return not target.stat().st_mode & stat.S_IWRITE
    except OSError:  # another program may have removed it
        return False


def _rename(temporary: Path, target: Path) -> None:
    for pause in _PAUSES:
        try:
            temporary.replace(target)
            return
        except PermissionError:
            if _is_read_only(target):
                raise
            time.sleep(pause)
    temporary.replace(target)


def write_archive(file: IO[bytes], members: Mapping[str, Array]) -> None:
    archive = zipfile.ZipFile(file, "w")
    try:
        for name, array in members.items():
            _write_array(archive, name, array)
        archive.close()
    except BaseException:
        archive.fp = None  # otherwise closing it would replace this error by an error about the open member
        raise


def _write_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    info = zipfile.ZipInfo(name)  # of 1980, so that equal states give equal files
    info.create_system = 3  # on Windows too
    header = npy.header_data_from_array_1_0(array)
    numbers = array.ravel(order="F" if header["fortran_order"] else "C").view(np.uint8)
    with archive.open(info, "w", force_zip64=True) as member:
        npy.write_array_header_1_0(member, header)
        for start in range(0, numbers.size, _CHUNK):
            # a copy, so that checksum and file agree whatever another thread does to the array
            member.write(numbers[start : start + _CHUNK].tobytes())


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename survives a power failure, if the system can open and flush folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EBADF, errno.EINVAL):
            raise


# ---- Reading ----


class Stored(NamedTuple):
    """An array that is still in its file."""

    shape: tuple[int, ...]
    dtype: str
    fortran_order: bool
    start: int  # bytes before its numbers


class BoundedReader(io.FileIO):
    """File with a limit on single reads, against directories of a million members and huge metadata."""

    longest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.longest:
            raise ValueError(f"its directory or {SCALARS} has {size} bytes, at most {self.longest} are needed")
        return super().read(size) or b""


def read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
    """Return the header of a plain array. NumPy's reader evaluates headers: damaged ones can exhaust the stack."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed; onepass checkpoints are stored uncompressed")
    with archive.open(info) as member:
        magic = exactly(member, npy.MAGIC_LEN)
        length = int.from_bytes(exactly(member, 2), "little")
        match = _HEADER.fullmatch(exactly(member, length))
    if magic != npy.magic(1, 0) or match is None:
        raise ValueError(f"{info.filename} does not have the header of a plain array")
    dtype, fortran_order, shape = match.groups()
    numbers = tuple(int(number) for number in shape.split(b",") if number.strip())
    return Stored(numbers, dtype.decode("ascii"), fortran_order == b"True", npy.MAGIC_LEN + 2 + length)


def read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, stored: Stored, array: Array) -> Array:
    """Fill an array in its own order, whatever the file's."""
    view = array.T if stored.fortran_order else array
    flat = view.reshape(-1) if view.flags.c_contiguous else view.flat  # in the file's order
    with archive.open(info) as member:
        exactly(member, stored.start)
        for start in range(0, array.size, _CHUNK // array.itemsize):
            stop = min(start + _CHUNK // array.itemsize, array.size)
            flat[start:stop] = np.frombuffer(exactly(member, (stop - start) * array.itemsize), array.dtype)
    return array


def exactly(member: IO[bytes], size: int) -> bytes:
    """Return the next bytes. zipfile verifies the checksum with the last bytes."""
    data = member.read(size)
    if len(data) != size:
        raise EOFError(f"{member.name} ends too early")
    return data
