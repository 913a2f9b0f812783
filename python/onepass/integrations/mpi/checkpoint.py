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
from ..._checkpoint import MANIFEST
from ..._optimizer import Optimizer
from ..._state_dict import snapshot, warn_of_other_params
from ..._types import Array
from .. import needed
from .agreement import together
from .layout import Layout
from .partition import Piece
from .state import (
    StateDict,
    allocate_like,
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
    """Return the parameters as the manifest describes them."""
    return [[list(array.shape), array.dtype.str, order] for array, order in zip(layout.params, layout.orders)]


# ---- Loading ----


def read_path(layout: Layout, optimizer: Optimizer, path: str | os.PathLike[str]) -> StateDict:
    """Return the state dict of this rank's optimizer, read from a folder of shares or an ordinary optimizer's file."""
    whole = Path(os.fsdecode(path))
    try:
        if whole.is_dir():
            return read_set(layout, optimizer, whole)
        schema = whole_schema(layout, optimizer)
        found = _checkpoint.read(path, schema, splitter(layout), rooms(optimizer))
        warn_of_other_params(layout.record, path, found)
        return split_state_dict(layout, optimizer, found, lambda index, name, parts: parts)
    except TypeError as error:
        raise ValueError(f"cannot load {os.fspath(path)!r}: {error}") from error


def rooms(optimizer: Optimizer) -> Callable[[list[Array]], Iterator[Array]]:
    """Return a function that allocates one array after the other: of a large file, one at a time is in memory."""
    return lambda arrays: (allocate_like(optimizer, array) for array in arrays)


def read_set(layout: Layout, optimizer: Optimizer, folder: Path) -> StateDict:
    """Return the state dict of this rank's optimizer, read from the files of any number of ranks."""
    files = _read_manifest(layout, folder / MANIFEST)
    own = snapshot(optimizer)
    states: dict[int, dict[str, Any]] = {
        index: {name: allocate_like(optimizer, array) for name, array in state.items()}
        for index, state in enumerate(optimizer._record.states)
    }
    first: StateDict = {}
    for name, pieces in files:

        def take(index: int, name: str, array: Array, pieces: list[Piece] = pieces) -> None:
            _copy_common(layout, states, pieces[index], name, array)

        schema = _share_schema(layout, own, pieces)
        found = _checkpoint.read(folder / name, schema, take, rooms(optimizer))
        scalars = {
            piece.parameter: {key: value for key, value in found["state"][index].items() if value is not None}
            for index, piece in enumerate(pieces)
        }
        shared = {**found, "state": scalars, "param_groups": [group_options(group) for group in found["param_groups"]]}
        first = first or shared
        if shared != first:
            message = f"{name} belongs to a different checkpoint than {files[0][0]}"
            raise ValueError(f"cannot load {str(folder)!r}: {message}")
    for index, piece in enumerate(layout.pieces):
        states[index] |= first["state"][piece.parameter]
    return {**first, "state": states, "param_groups": with_pieces(optimizer, first["param_groups"])}


def _copy_common(layout: Layout, states: dict[int, dict[str, Any]], saved: Piece, name: str, array: Array) -> None:
    """Copy the elements of a saved piece that are also in this rank's pieces."""
    for index in range(layout.first[saved.parameter], layout.first[saved.parameter + 1]):
        own = layout.pieces[index]
        start, stop = max(saved.start, own.start), min(saved.stop, own.stop)
        if start < stop:
            states[index][name][start - own.start : stop - own.start] = array[start - saved.start : stop - saved.start]


def _share_schema(layout: Layout, own: StateDict, pieces: list[Piece]) -> StateDict:
    """Return a state dict with the shapes and types of the state dict of a rank with these pieces."""
    states, groups = {}, [{**group, "params": []} for group in own["param_groups"]]
    for index, (parameter, start, stop, _) in enumerate(pieces):
        like = own["state"][layout.first[parameter]]
        states[index] = {
            name: np.empty(stop - start, value.dtype) if isinstance(value, np.ndarray) else value
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
            raise ValueError(f"version must be {VERSION}, got {manifest['version']!r}")
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
        if piece.parameter < 0 or not 0 <= piece.start <= piece.stop <= layout.params[piece.parameter].size:
            raise ValueError(f"piece {list(piece[:3])}: expected a parameter and a range of its elements")
    return pieces


def _check_complete(layout: Layout, pieces: list[Piece]) -> None:
    """Refuse pieces that do not contain every element exactly once."""
    ends = [0] * len(layout.params)
    for parameter, start, stop, _ in sorted(pieces):
        if start < stop:
            ends[parameter] = stop if start == ends[parameter] else -1
    if not pieces or ends != [array.size for array in layout.params]:
        raise ValueError("its files do not hold every element once")
