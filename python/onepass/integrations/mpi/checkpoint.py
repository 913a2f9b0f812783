"""Checkpoints of several ranks: a folder with a file from each rank, and a manifest."""

from __future__ import annotations

import json
import operator
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import _archive, _checkpoint
from ..._allocate import all_zeros_like
from ..._checkpoint import MANIFEST
from ..._conversion import Conversion, warn_of_losses
from ..._core import norm_block
from ..._optimizer import Optimizer
from ..._params import ParameterRecord
from ..._state_dict import snapshot, warn_of_other_params
from ..._storage import state_part
from ..._types import Array
from .. import needed
from .agreement import together
from .layout import Layout, part_of, weights_of
from .partition import Piece, sum_dtype
from .state import (
    StateDict,
    group_options,
    split_state_dict,
    splitter,
    whole_schema,
    with_pieces,
)

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

VERSION = 1  # version of the manifest's format
_SHARE_FILE = re.compile(r"[0-9a-f]{16}-\d+\.npz")


# ---- Saving ----


def save_set(comm: MPI.Intracomm, layout: Layout, optimizer: Optimizer, folder: Path) -> None:
    """Write a file from each rank, then the manifest, and delete the files of older sets. Collective."""
    with together(comm, "save"):
        if comm.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
    token = comm.bcast(secrets.token_hex(8) if comm.rank == 0 else None, root=0)
    names = [f"{token}-{rank}.npz" for rank in range(comm.size)]
    own = folder / names[comm.rank]
    try:
        with together(comm, "save"):
            _checkpoint.write(own, snapshot(optimizer))
    except BaseException:
        with suppress(OSError):
            own.unlink()
        raise
    pieces = comm.gather([list(piece[:3]) for piece in layout.pieces], root=0)
    with together(comm, "save"):
        if pieces is not None:
            files = [{"name": name, "pieces": each} for name, each in zip(names, pieces)]
            _write_manifest(folder, token, {"version": VERSION, "parameters": _described(layout), "files": files})
            for old in folder.iterdir():
                if _SHARE_FILE.fullmatch(old.name) and old.name not in names:
                    with suppress(OSError):
                        old.unlink()


def _write_manifest(folder: Path, token: str, manifest: dict[str, Any]) -> None:
    """Write the manifest of a set; on failure delete the set's files, unless the manifest is already in place."""
    try:
        with _archive.replaced(folder / MANIFEST) as file:
            file.write(json.dumps(manifest).encode())
    except BaseException:
        with suppress(OSError):
            if not _has_token(folder / MANIFEST, token):
                for each in manifest["files"]:
                    (folder / each["name"]).unlink(missing_ok=True)
        raise


def _has_token(manifest: Path, token: str) -> bool:
    """Return True if this is the manifest of the set with this token."""
    try:
        return token.encode() in manifest.read_bytes()
    except FileNotFoundError:
        return False


def _described(layout: Layout) -> list[Any]:
    """Return the parameters as the manifest describes them: shape, dtype of the arithmetic, order."""
    return [
        [list(array.shape), sum_dtype(array.dtype).str, order] for array, order in zip(layout.params, layout.orders)
    ]


# ---- Loading ----


def read_path(layout: Layout, optimizer: Optimizer, path: str | os.PathLike[str]) -> StateDict:
    """Return the state dict of this rank's optimizer, read from a folder of shares or an ordinary optimizer's file."""
    whole = Path(os.fsdecode(path))
    try:
        if whole.is_dir():
            return read_set(layout, optimizer, whole)
        schema, conversion = whole_schema(layout, optimizer), Conversion(layout.record)
        found = _checkpoint.read(path, schema, splitter(layout), allocator(optimizer), conversion)
        warn_of_other_params(layout.record, path, found, conversion)
        warn_of_losses([conversion])
        return split_state_dict(layout, optimizer, found, lambda index, name, parts: parts)
    except TypeError as error:
        raise ValueError(f"cannot load {os.fspath(path)!r}: {error}") from error


def allocator(optimizer: Optimizer) -> Callable[[list[Array]], Iterator[Array]]:
    """Return a function that allocates one array after the other: of a large file, one at a time is in memory."""
    return lambda arrays: (all_zeros_like([array], optimizer._state_folder)[0] for array in arrays)


def read_set(layout: Layout, optimizer: Optimizer, folder: Path) -> StateDict:
    """Return the state dict of this rank's optimizer, read from the files of any number of ranks."""
    files = _read_manifest(layout, folder / MANIFEST)
    own = snapshot(optimizer)
    own_states = optimizer._record.states
    # All at once: on disk they are one file, because each file takes a descriptor.
    free = iter(all_zeros_like([array for state in own_states for array in state.values()], optimizer._state_folder))
    states: dict[int, dict[str, Any]] = {
        index: {name: next(free) for name in state} for index, state in enumerate(own_states)
    }
    first: StateDict = {}
    conversions: list[Conversion] = []
    for name, pieces in files:

        def take(index: int, name: str, array: Array, pieces: list[Piece] = pieces) -> None:
            _copy_common(layout, states, pieces[index], name, array)

        schema = _share_schema(layout, own, pieces)
        conversions.append(Conversion(_share_record(layout, pieces)))
        found = _checkpoint.read(folder / name, schema, take, allocator(optimizer), conversions[-1])
        scalars = {
            piece.parameter: {key: value for key, value in found["state"][index].items() if value is not None}
            for index, piece in enumerate(pieces)
        }
        shared = {**found, "state": scalars, "param_groups": [group_options(group) for group in found["param_groups"]]}
        first = first or shared
        if shared != first:
            message = f"{name} belongs to a different checkpoint than {files[0][0]}"
            raise ValueError(f"cannot load {str(folder)!r}: {message}")
    warn_of_losses(conversions)
    for index, piece in enumerate(layout.pieces):
        states[index] |= first["state"][piece.parameter]
    return {**first, "state": states, "param_groups": with_pieces(optimizer, first["param_groups"])}


def _copy_common(layout: Layout, states: dict[int, dict[str, Any]], saved: Piece, name: str, array: Array) -> None:
    """Copy the elements of a saved piece that are also in this rank's pieces."""
    for index in range(layout.first[saved.parameter], layout.first[saved.parameter + 1]):
        own = layout.pieces[index]
        start, stop = max(saved.start, own.start), min(saved.stop, own.stop)
        if start < stop:
            part = array[state_part(name, start - saved.start, stop - saved.start)]
            states[index][name][state_part(name, start - own.start, stop - own.start)] = part


def _share_record(layout: Layout, pieces: list[Piece]) -> ParameterRecord:
    """Return the record of pieces of parameters, which have the keys of the whole parameters."""
    record = layout.record
    return ParameterRecord(
        record.form,
        record.as_tuple,
        keys=tuple(record.keys[piece.parameter] for piece in pieces),
        params=tuple(weights_of(layout, piece) for piece in pieces),
        parts=tuple(part_of(layout, piece) for piece in pieces),
    )


def _share_schema(layout: Layout, own: StateDict, pieces: list[Piece]) -> StateDict:
    """Return a state dict with the shapes and types of the state dict of a rank with these pieces."""
    states, groups = {}, [{**group, "params": []} for group in own["param_groups"]]
    for index, (parameter, start, stop, _) in enumerate(pieces):
        like = own["state"][layout.first[parameter]]
        states[index] = {
            name: np.empty(state_part(name, 0, stop - start).stop, value.dtype)
            if isinstance(value, np.ndarray)
            else value
            for name, value in like.items()
        }
        groups[layout.group_of[parameter]]["params"].append(index)
    return {**own, "state": states, "param_groups": groups}


def _read_manifest(layout: Layout, path: Path) -> list[tuple[str, list[Piece]]]:
    """Return the name of each rank's file, and its pieces."""
    data = path.read_bytes()
    try:
        manifest = json.loads(data)
        if manifest["version"] != VERSION:
            raise ValueError(f"version: expected {VERSION}, got {manifest['version']!r}")
        _check_params(layout, manifest["parameters"])
        files = [(_checked_name(file["name"]), _checked_pieces(layout, file["pieces"])) for file in manifest["files"]]
        _check_complete(layout, [piece for _, pieces in files for piece in pieces])
        return files
    except Exception as error:  # any error in the manifest
        raise ValueError(f"cannot load {str(path)!r}: {str(error) or type(error).__name__}") from error


def _check_params(layout: Layout, saved: list[Any]) -> None:
    for index, (found, own) in enumerate(zip(saved, _described(layout))):
        if found != own:
            raise ValueError(f"parameter {index} was saved as {found}, here it is {own}")
    if len(saved) != len(layout.params):
        raise ValueError(f"it holds {len(saved)} parameters, the optimizer has {len(layout.params)}")


def _checked_name(name: str) -> str:
    if not _SHARE_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is not a file of this checkpoint")
    return name


def _checked_pieces(layout: Layout, saved: list[Any]) -> list[Piece]:
    pieces = [Piece(operator.index(p), operator.index(a), operator.index(b), 0) for p, a, b in saved]
    for piece in pieces:
        size = layout.params[piece.parameter].size
        whole_blocks = piece.start % norm_block == 0 and (piece.stop % norm_block == 0 or piece.stop == size)
        if piece.parameter < 0 or not 0 <= piece.start <= piece.stop <= size or not whole_blocks:
            raise ValueError(f"piece {list(piece[:3])}: expected a parameter and a range of blocks of its elements")
    return pieces


def _check_complete(layout: Layout, pieces: list[Piece]) -> None:
    """Refuse pieces that do not contain every element exactly once."""
    ends = [0] * len(layout.params)
    for parameter, start, stop, _ in sorted(pieces):
        if start < stop:
            ends[parameter] = stop if start == ends[parameter] else -1
    if not pieces or ends != [array.size for array in layout.params]:
        raise ValueError("its files do not hold every element once")
