"""State of several ranks: in files, and gathered."""

from __future__ import annotations

import json
import operator
import os
import re
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import _checkpoint
from ..._allocate import all_zeros_like
from ..._checkpoint import MANIFEST
from ..._flatten import in_line
from ..._optimizer import Optimizer
from ..._types import Array
from .. import needed
from .agreement import agree, by_rank
from .partition import Chunk, Piece

with needed("mpi4py", "mpi"):
    from mpi4py import MPI

VERSION = 1  # of the manifest
_OURS = re.compile(r"[0-9a-f]{16}-\d+\.npz")


class Saved:
    """What of a ShardedOptimizer has to do with saving. It says itself what these are."""

    _comm: MPI.Intracomm
    _lock: threading.RLock
    _broken: bool
    _whole: Optimizer  # of the whole parameters, without state
    _optimizer: Optimizer  # of this rank's pieces
    _params: list[Array]  # whole
    _orders: list[Any]
    _group_of: list[int]  # of each of them
    _first: list[int]  # of each one's pieces, and the end
    _pieces: list[Piece]
    _chunks: list[Chunk]
    _parts: list[list[int]]  # the pieces of each chunk

    def _check_whole(self) -> None:
        raise NotImplementedError

    def gather_ema(self) -> Any:
        """The running averages, gathered, in the form of the parameters; None without ``ema_decay``. Collective.

        Raises:
            MemoryError: no room; RuntimeError: another rank raised.
        """
        with self._lock:
            has = self._optimizer.groups[0].ema_decay is not None
            states = self._gathered("gather_ema", ["ema"] if has else [], None)
            if not has:
                return None
            return self._whole._record.like_input([state["ema"] for state in states])

    def state_dict(self) -> dict[str, Any]:
        """What the ordinary optimizer's ``state_dict`` would be, gathered on every rank. Collective.

        Raises:
            MemoryError: no room; RuntimeError: another rank raised.
        """
        with self._lock:
            return self._said_of_whole(self._gathered("state_dict", self._state_names(), None))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where an optimizer was, this or an ordinary one, whose `state_dict` all ranks have. Collective.

        Raises:
            TypeError, ValueError: as the ordinary optimizer's; RuntimeError: another rank raised. Nothing has changed,
                unless a rank failed while it took over what had been checked: the optimizer then refuses to go on.
        """

        def checked() -> dict[str, Any]:
            upgraded = _checkpoint.upgraded(state_dict)
            _checkpoint.check(upgraded, self._like_whole())
            return self._piecewise(upgraded, self._cut)

        self._load("load_state_dict", checked)

    def save(self, path: str | os.PathLike[str], *, gathered: bool = False) -> None:
        """Write the state, as the ordinary optimizer's ``save`` does, to a folder that all ranks see. Collective.

        Each rank writes a file with its share, and when all have, rank 0 writes ``manifest.json``, which names the
        files. Whatever dies at whatever moment, the folder holds the whole old set or the whole new one. Files of older
        sets are then deleted.

        Args:
            path: of the folder, which is made if need be.
            gathered: write one file, that of an ordinary optimizer, at this path instead: rank 0 gathers the state of
                all and must have room for it.

        Raises:
            OSError: the files could not be written; RuntimeError: that of another rank. What was there before still is,
                or the folder could not be flushed, and the new set may not outlive a loss of power.
        """
        with self._lock:
            with self._together("save", gathered=bool(gathered)):
                self._check_whole()
                folder = Path(os.fsdecode(path))
            if gathered:
                states = self._gathered("save", self._state_names(), 0)
                with self._together("save"):
                    if self._comm.rank == 0:
                        _checkpoint.write(path, self._said_of_whole(states))
            else:
                self._save_set(folder)

    def _save_set(self, folder: Path) -> None:
        first = self._comm.rank == 0
        with self._together("save"):
            if first:
                folder.mkdir(parents=True, exist_ok=True)
        token = self._comm.bcast(secrets.token_hex(8) if first else None, root=0)
        names = [f"{token}-{rank}.npz" for rank in range(self._comm.size)]
        mine = folder / names[self._comm.rank]
        try:
            with self._together("save"):
                _checkpoint.write(mine, self._optimizer._snapshot())
        except BaseException:
            with suppress(OSError):
                mine.unlink()
            raise
        pieces = self._comm.gather([list(piece[:3]) for piece in self._pieces], root=0)
        with self._together("save"):
            if pieces is not None:
                manifest = {
                    "version": VERSION,
                    "parameters": self._described(),
                    "files": [{"name": name, "pieces": own} for name, own in zip(names, pieces)],
                }
                try:
                    with _checkpoint.replaced(folder / MANIFEST) as file:
                        file.write(json.dumps(manifest).encode())
                except BaseException:
                    with suppress(OSError):
                        if not _names(folder / MANIFEST, token):  # or it is in its place, and what failed came later
                            for name in names:
                                (folder / name).unlink(missing_ok=True)
                    raise
                for old in folder.iterdir():
                    if _OURS.fullmatch(old.name) and old.name not in names:
                        with suppress(OSError):
                            old.unlink()

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from what `save` wrote, on any number of ranks, or from an ordinary optimizer's file. Collective.

        Raises:
            OSError: it could not be read, `FileNotFoundError` if there is none or no manifest.
            ValueError: it is damaged or foreign, or does not fit.
            RuntimeError: another rank raised. Nothing has changed, unless a rank failed while it took over what had
                been read and checked: the optimizer then refuses to go on.
        """

        def read() -> dict[str, Any]:
            whole = Path(os.fsdecode(path))
            try:
                if whole.is_dir():
                    return self._read_set(whole)
                found = _checkpoint.read(path, self._like_whole(), self._cut, self._staged)
                return self._piecewise(found, lambda index, name, cut: cut)
            except TypeError as error:
                raise ValueError(f"cannot load {os.fspath(path)!r}: {error}") from error

        self._load("load", read)

    def _load(self, call: str, read: Callable[[], dict[str, Any]]) -> None:
        with self._lock:
            error: BaseException | None = None
            found: dict[str, Any] = {}
            said = {}
            try:
                self._check_whole()
                found = read()
                _checkpoint.check(found, self._optimizer._snapshot())
                said = {
                    "checkpoint": zlib.crc32(
                        _checkpoint._scalars({**found, "state": {}, "param_groups": _options_of(found)})
                    )
                }
            except BaseException as failed:
                error = failed
            agree(self._comm, call, error, said)
            self._broken = True  # until all have taken it
            with self._together(call):
                self._optimizer.load_state_dict(found)
            self._broken = False

    @contextmanager
    def _together(self, call: str, **said: Any) -> Iterator[None]:
        """A block of this call that all ranks leave in the same way: if one raises, or says other things, all do."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as failed:  # an interrupt too: the others wait for this rank
            error = failed
        agree(self._comm, call, error, said)

    def _state_names(self) -> list[str]:
        """Those of all state arrays of any parameter."""
        return list(dict.fromkeys(name for state in self._optimizer._record.states for name in state))

    def _gathered(self, call: str, names: list[str], root: int | None) -> list[dict[str, Array]]:
        """Whole state arrays of these names, by parameter: on all ranks, or on one while the others' stay empty."""
        rank = self._comm.rank
        # All room first, while what fails on one rank still fails on all.
        with self._together(call, state=names):
            self._check_whole()
            states = self._empty_states(names) if root in (None, rank) else []
            lines = [{n: in_line(array, order) for n, array in s.items()} for s, order in zip(states, self._orders)]
            own = {chunk.dtype: np.zeros(0, chunk.dtype) for chunk in self._chunks}
            all_ranks = dict(own)
            for chunk in self._chunks:
                if own[chunk.dtype].size < chunk.counts()[rank]:
                    own[chunk.dtype] = np.zeros(chunk.counts()[rank], chunk.dtype)
                if states and all_ranks[chunk.dtype].size < chunk.size:
                    all_ranks[chunk.dtype] = np.empty(chunk.size, chunk.dtype)
        for name in names:
            for chunk, part in zip(self._chunks, self._parts):
                has = {
                    piece.parameter
                    for piece in chunk.pieces
                    if name in self._optimizer._record.states[self._first[piece.parameter]]
                }
                if not has:
                    continue
                begin, end = chunk.cuts[rank : rank + 2]
                mine = own[chunk.dtype][: end - begin]
                for index in part:
                    parameter, start, stop, at = self._pieces[index]
                    if parameter in has:
                        mine[at - begin : at - begin + stop - start] = self._optimizer._record.states[index][name]
                room = all_ranks[chunk.dtype][: chunk.size]
                target = by_rank(room, chunk.counts())
                if root is None:
                    self._comm.Allgatherv(mine, target)
                else:
                    self._comm.Gatherv(mine, target if states else None, root)
                for parameter, start, stop, at in chunk.pieces if states else ():
                    if parameter in has:
                        lines[parameter][name][start:stop] = room[at : at + stop - start]
        return states

    def _empty_states(self, names: Iterable[str]) -> list[dict[str, Array]]:
        wanted = set(names)
        return [
            {
                name: np.empty(array.shape, array.dtype, order)
                for name in self._optimizer._record.states[self._first[index]]
                if name in wanted
            }
            for index, (array, order) in enumerate(zip(self._params, self._orders))
        ]

    def _said_of_whole(self, states: list[dict[str, Array]]) -> dict[str, Any]:
        """The state dict of an ordinary optimizer with these arrays."""
        saved, names = self._optimizer._snapshot(), self._whole._snapshot()["param_groups"]
        named = [{key: own[key] for key in ("params", "param_names") if key in own} for own in names]
        counts = [self._optimizer._scalars(first) for first in self._first[:-1]]
        return {
            **saved,
            "state": {index: {**count, **state} for index, (count, state) in enumerate(zip(counts, states))},
            "param_groups": [{**group, **own} for group, own in zip(saved["param_groups"], named)],
        }

    def _like_whole(self) -> dict[str, Any]:
        """What a state dict of all must be like. Nobody touches its arrays, and large ones take no memory."""
        return self._said_of_whole(self._empty_states(self._state_names()))

    def _cut(self, index: int, name: str, array: Array) -> list[Array]:
        """What this rank's pieces of a parameter need of an array of its state."""
        line = in_line(np.asarray(array), self._orders[index])
        own = self._pieces[self._first[index] : self._first[index + 1]]
        return [np.array(line[piece.start : piece.stop]) for piece in own]

    def _piecewise(self, whole: Mapping[str, Any], cut: Callable[[int, str, Any], list[Array]]) -> dict[str, Any]:
        """The state dict of this rank's optimizer, made of that of an ordinary one."""
        states: dict[int, dict[str, Any]] = {index: {} for index in range(len(self._pieces))}
        arrays = self._state_names()
        for parameter, state in whole["state"].items():
            for name, value in state.items():
                parts = cut(parameter, name, value) if name in arrays else None
                own = range(self._first[parameter], self._first[parameter + 1])
                for k, index in enumerate(own):
                    states[index][name] = value if parts is None else parts[k]
        return {**whole, "state": states, "param_groups": self._with_pieces(whole["param_groups"])}

    def _with_pieces(self, groups: Any) -> list[dict[str, Any]]:
        """Groups of a state dict, with this rank's pieces as their parameters."""
        own = self._optimizer._snapshot()["param_groups"]
        return [
            {**{name: value for name, value in group.items() if name != "param_names"}, "params": mine["params"]}
            for group, mine in zip(groups, own)
        ]

    def _described(self) -> list[Any]:
        """The parameters, as a manifest says it."""
        return [[list(array.shape), array.dtype.str, order] for array, order in zip(self._params, self._orders)]

    def _read_set(self, folder: Path) -> dict[str, Any]:
        """The state dict of this rank, from the files of any number of ranks."""
        files = self._read_manifest(folder / MANIFEST)
        own = self._optimizer._snapshot()
        states: dict[int, dict[str, Any]] = {
            index: {name: self._staged(array) for name, array in state.items()}
            for index, state in enumerate(self._optimizer._record.states)
        }
        first: dict[str, Any] = {}
        for name, pieces in files:
            like = self._like_share(own, pieces)

            def take(index: int, name: str, array: Array, pieces: list[Piece] = pieces) -> None:
                parameter, start, stop, _ = pieces[index]
                for k in range(self._first[parameter], self._first[parameter + 1]):
                    piece = self._pieces[k]
                    low, high = max(start, piece.start), min(stop, piece.stop)
                    if low < high:
                        states[k][name][low - piece.start : high - piece.start] = array[low - start : high - start]

            found = _checkpoint.read(folder / name, like, take, self._staged)
            counts = {
                piece.parameter: {key: value for key, value in found["state"][index].items() if value is not None}
                for index, piece in enumerate(pieces)
            }
            said = {**found, "state": counts, "param_groups": _options_of(found)}
            first = first or said
            if said != first:
                raise ValueError(
                    f"cannot load {str(folder)!r}: {name} belongs to a different checkpoint than {files[0][0]}"
                )
        for index, piece in enumerate(self._pieces):
            states[index] |= first["state"][piece.parameter]
        return {**first, "state": states, "param_groups": self._with_pieces(first["param_groups"])}

    def _staged(self, array: Array) -> Array:
        """Room for what an array of state will be, on the disk where the state is."""
        return all_zeros_like([array], self._optimizer._state_folder)[0]

    def _like_share(self, own: dict[str, Any], pieces: list[Piece]) -> dict[str, Any]:
        """What the state dict of a rank with these pieces must be like."""
        states, groups = {}, [{**group, "params": []} for group in own["param_groups"]]
        for index, (parameter, start, stop, _) in enumerate(pieces):
            mine = own["state"][self._first[parameter]]
            states[index] = {
                name: np.empty(stop - start, value.dtype) if isinstance(value, np.ndarray) else value
                for name, value in mine.items()
            }
            groups[self._group_of[parameter]]["params"].append(index)
        return {**own, "state": states, "param_groups": groups}

    def _read_manifest(self, path: Path) -> list[tuple[str, list[Piece]]]:
        """The name of each rank's file, and its pieces."""
        data = path.read_bytes()
        try:
            manifest = json.loads(data)
            version, parameters = manifest["version"], manifest["parameters"]
            if version != VERSION:
                raise ValueError(f"version must be {VERSION}, got {version!r}")
            for index, (found, own) in enumerate(zip(parameters, self._described())):
                if found != own:
                    raise ValueError(f"parameter {index} was saved as {found}, here it is {own}")
            if len(parameters) != len(self._params):
                raise ValueError(f"it holds {len(parameters)} parameters, the optimizer has {len(self._params)}")
            files = []
            for file in manifest["files"]:
                if not _OURS.fullmatch(file["name"]):
                    raise ValueError(f"{file['name']!r} is not a file of this checkpoint")
                pieces = [
                    Piece(operator.index(p), operator.index(a), operator.index(b), 0) for p, a, b in file["pieces"]
                ]
                for piece in pieces:
                    if piece.parameter < 0 or not 0 <= piece.start <= piece.stop <= self._params[piece.parameter].size:
                        raise ValueError(f"{list(piece[:3])} is no piece of a parameter")
                files.append((file["name"], pieces))
            ends = [0] * len(self._params)
            for parameter, start, stop, _ in sorted(piece for _, pieces in files for piece in pieces):
                if start < stop:
                    ends[parameter] = stop if start == ends[parameter] else -1
            if not files or ends != [array.size for array in self._params]:
                raise ValueError("its files do not hold every element once")
            return files
        except Exception as error:  # whatever is wrong with it
            raise ValueError(f"cannot load {str(path)!r}: {str(error) or type(error).__name__}") from error


def _names(manifest: Path, token: str) -> bool:
    """Whether this is the manifest of the set with this token."""
    try:
        return token.encode() in manifest.read_bytes()
    except FileNotFoundError:
        return False


def _options_of(state_dict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups without their parameters."""
    groups = state_dict["param_groups"]
    return [{name: value for name, value in group.items() if name not in ("params", "param_names")} for group in groups]
