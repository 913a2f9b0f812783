"""Checkpoints: state dicts as files.

A file is a plain ``.npz``: each array of state under ``state/<index>/<name>``, all else as JSON in ``onepass``.
"""

from __future__ import annotations

import errno
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ._archive import (
    SCALARS,
    BoundedReader,
    PathLike,
    Stored,
    exactly,
    read_array,
    read_header,
    replaced,
    write_archive,
)
from ._checks import shown
from ._conversion import Conversion, is_stored_alike
from ._state_check import StateDict, check, other_options, upgraded
from ._types import Array

VERSION = 1
MANIFEST = "manifest.json"  # of a folder that ShardedOptimizer wrote
_LONGEST = 1 << 20  # bytes: more than the longest schedule takes


# ---- The two halves of a file ----


def _arrays(state_dict: StateDict) -> dict[tuple[int, str], Array]:
    """All arrays of state, by parameter and name."""
    states = sorted(state_dict["state"].items())
    return {(i, name): x for i, state in states for name, x in sorted(state.items()) if isinstance(x, np.ndarray)}


def _scalars(state_dict: StateDict) -> bytes:
    """All the rest, as JSON."""
    states = [state for _, state in sorted(state_dict["state"].items())]
    numbers = [{name: x for name, x in state.items() if not isinstance(x, np.ndarray)} for state in states]
    return json.dumps({**state_dict, "state": numbers}, sort_keys=True).encode()


def _member(index: int, name: str) -> str:
    return f"state/{index}/{name}.npy"


# ---- Writing ----


def write(path: PathLike, state_dict: StateDict) -> None:
    """Write a state dict to one ``.npz`` file at exactly this path.

    At every moment, also after a crash, the path holds the whole old file or the whole new one. A process that is
    killed while it writes may leave a file ``.onepass-*.tmp`` next to it, which can be deleted.
    """
    members = {SCALARS: np.frombuffer(_scalars(state_dict), np.uint8)}
    members |= {_member(*key): array for key, array in _arrays(state_dict).items()}
    with replaced(path) as file:
        write_archive(file, members)


# ---- Reading ----


def read(
    path: PathLike,
    like: StateDict,
    take: Callable[[int, str, Array], Any] = lambda index, name, array: array,
    allocate: Callable[[list[Array]], Iterable[Array]] = lambda arrays: map(np.empty_like, arrays),
    conversion: Conversion | None = None,
) -> dict[str, Any]:
    """Read a state dict that an optimizer whose own is `like` can take.

    Names, shapes, dtypes and sizes are checked before the first array is allocated, every checksum is verified, and
    nothing in the file is evaluated or unpickled. `take(index, name, array)` returns the value to keep for an array
    of a parameter; `allocate` returns the arrays to read into, given arrays like the optimizer's own. With a
    conversion, the file may store numbers in more or in fewer bits: they are converted, one parameter at a time.

    Raises:
        OSError: the file cannot be opened, or there is no room for its arrays.
        ValueError: it is damaged, was not written by `write`, or does not fit.
    """
    name = os.fsdecode(path)
    without_room: list[OSError] = []

    def reserve(arrays: list[Array]) -> Iterator[Array]:
        try:
            yield from allocate(arrays)
        except OSError as error:  # a full disk does not make a damaged file
            without_room.append(error)
            raise

    with _opened_to_read(name) as file:
        try:
            file.longest = _LONGEST + 4 * len(_scalars(like)) + 512 * (len(_arrays(like)) + len(like["state"]))
            with zipfile.ZipFile(file) as archive:
                return _load(archive, like, take, reserve, conversion)
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises a dozen kinds
            if error in without_room:
                raise
            detail = str(error) or type(error).__name__
            if type(error) not in (TypeError, ValueError):  # not an error of this module
                detail = f"the file is damaged or not a checkpoint ({detail})"
            raise ValueError(f"cannot load {name!r}: {detail}") from error


def _opened_to_read(name: str) -> BoundedReader:
    try:
        return BoundedReader(name)
    except OSError:
        if not (Path(name) / MANIFEST).is_file():
            raise
    hint = "load the folder with a ShardedOptimizer, or save with gathered=True"
    why = f"expected a file, got a folder of ShardedOptimizer ({hint})"
    raise IsADirectoryError(errno.EISDIR, why, name)


def _load(
    archive: zipfile.ZipFile,
    like: StateDict,
    take: Callable[[int, str, Array], Any],
    allocate: Callable[[list[Array]], Iterable[Array]],
    conversion: Conversion | None,
) -> dict[str, Any]:
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("duplicate archive member")
    if SCALARS not in infos:
        raise ValueError(f"not a onepass checkpoint (missing member {SCALARS!r})")
    found = _load_scalars(archive, infos[SCALARS])
    if not any(_member(index, "y") in infos for index in like["state"]):
        like = _in_training_mode(like)
    stored = like
    if conversion is not None:
        for index, name in product(like["state"], ("param", "param_low", "y")):  # whose dtypes no option says
            if (member := _member(index, name)) in infos and isinstance(found["state"].get(index), dict):
                found["state"][index][name] = read_header(archive, infos[member])
        stored = {**like, "state": conversion.layouts(like, found, is_file=True)}
    wanted = {_member(*key): (*key, array) for key, array in _arrays(stored).items()}
    params = {_member(index, "param") for index in like["state"]}
    if params <= wanted.keys() and not params & infos.keys():
        raise ValueError("it was saved without parameters: use save(path, params=True)")
    for member, (index, name, _) in wanted.items():
        if member in infos and isinstance(found["state"].get(index), dict):
            found["state"][index][name] = read_header(archive, infos[member])
    check(found, stored)
    if unknown := infos.keys() - {SCALARS} - wanted.keys() - params:
        reason = other_options([], [member.rpartition("/")[2].removesuffix(".npy") for member in unknown])
        raise ValueError(reason or f"it has unknown members {shown(sorted(unknown))}")
    for member, (index, name, array) in wanted.items():
        if infos[member].file_size != found["state"][index][name].start + array.nbytes:
            raise ValueError(f"{member} has {infos[member].file_size} bytes, wrong for {array.shape} {array.dtype}")
    free = iter(allocate([*_arrays(like).values()]))
    for index, own in sorted(like["state"].items()):
        layout, entries = stored["state"][index], found["state"][index]
        headers = {name: entries.pop(name) for name in [*entries] if isinstance(entries[name], Stored)}
        members = {name: infos[_member(index, name)] for name in headers}
        names = sorted(name for name in own if isinstance(own[name], np.ndarray))
        if conversion is None or is_stored_alike(own, layout, lambda name: not headers[name].fortran_order):  # noqa: B023
            for name in names:
                array = read_array(archive, members[name], headers[name], next(free))
                entries[name] = take(index, name, array)
        else:
            saved = {
                name: read_array(archive, members[name], headers[name], _empty(array, headers[name]))
                for name, array in layout.items()
                if isinstance(array, np.ndarray)
            }
            converted = {name: next(free) for name in names}
            conversion.fill(index, saved, converted)
            entries |= {name: take(index, name, array) for name, array in converted.items()}
    for group in found["param_groups"]:
        options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        group |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
    return found


def _in_training_mode(like: StateDict) -> StateDict:
    """Return an optimizer's own state dict without copies of weights."""
    states = {index: {name: state[name] for name in state if name != "y"} for index, state in like["state"].items()}
    return {**like, "state": states}


def _load_scalars(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> dict[str, Any]:
    """The state dict without its arrays."""
    stored = read_header(archive, info)
    with archive.open(info) as member:
        found = json.loads(exactly(member, info.file_size)[stored.start :])
    if not isinstance(found, dict) or not isinstance(found.get("state"), list):
        raise ValueError(f"{info.filename} holds no state dict")
    found = {**found, "state": dict(enumerate(found["state"]))}
    return upgraded(found)  # type: ignore[no-any-return]


def _empty(like: Array, stored: Stored) -> Array:
    """Return an array in the file's order, in which the scales of float8 numbers are."""
    return np.empty(like.shape, like.dtype, "F" if stored.fortran_order else "C")
