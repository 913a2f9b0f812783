"""State dicts of optimizers."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ._allocate import address, all_zeros_like
from ._core import CommonOptions, no_clip_norm
from ._core import Group as CoreGroup
from ._core import Optimizer as CoreOptimizer
from ._options import OPTIMIZER_CHECKS
from ._params import Form, ParameterRecord
from ._types import Array

# _checkpoint takes longer to import than all the rest, hence the imports in functions.


def snapshot(optimizer: Any) -> dict[str, Any]:
    """Return the state dict of an optimizer, with the live arrays."""
    from . import _checkpoint

    record: ParameterRecord = optimizer._record
    groups = [
        named_params(record, indices)
        | {name: None if callable(value) else value for name, value in group._values.items()}
        for group, indices in record.ranges()
    ]
    return {
        "version": _checkpoint.VERSION,
        "optimizer": type(optimizer).__name__,
        **{name: getattr(optimizer, name) for name in ("step_count", "skipped", "clip_norm", "nonfinite")},
        "state": {index: scalars(optimizer, index) | state for index, state in enumerate(record.states)},
        "param_groups": groups,
    }


def scalars(optimizer: Any, index: int) -> dict[str, Any]:
    """Return a parameter's state other than arrays."""
    names = optimizer._spec.scalars
    return {"step": optimizer._parameter_step(index)} | dict.fromkeys(names, optimizer._mu_product(index))


class StateView(Mapping[Any, "dict[str, Any]"]):
    """State of each parameter of an optimizer: its step count and live views of its arrays."""

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> dict[str, Any]:
        record = self._optimizer._record
        index = record.index[key]
        arrays = {name: array.view() for name, array in record.states[index].items() if name != "ema"}
        return scalars(self._optimizer, index) | arrays

    def __iter__(self) -> Iterator[Any]:
        return iter(self._optimizer._record.keys)

    def __len__(self) -> int:
        return len(self._optimizer._record.keys)

    def __repr__(self) -> str:
        return repr(dict(self))


def named_params(record: ParameterRecord, indices: range) -> dict[str, Any]:
    """Return the entries of a group with these parameters: their indices, and their names if they have any."""
    params: dict[str, Any] = {"params": [*indices]}
    if record.form is Form.mapping:
        keys = [record.keys[index] for index in indices]
        params["param_names"] = [key if isinstance(key, str) else repr(key) for key in keys]
    return params


def copy_arrays(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Replace the arrays of a state dict by copies."""
    for state in state_dict["state"].values():
        state.update({name: value.copy() for name, value in state.items() if isinstance(value, np.ndarray)})
    return state_dict


CoreOptions = tuple[CoreGroup, Mapping[str, Any], Mapping[str, Any], list[float], CommonOptions]


def prepare_load(record: ParameterRecord, own: dict[str, Any], state_dict: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of the core's restore that load a state dict, checked against the optimizer's own."""
    from . import _checkpoint

    state_dict = _checkpoint.upgraded(state_dict)
    _checkpoint.check(state_dict, own)
    clip_norm, nonfinite = (OPTIMIZER_CHECKS[name](name, state_dict[name]) for name in ("clip_norm", "nonfinite"))
    options: list[CoreOptions] = []
    for index, (group, saved) in enumerate(zip(record.groups, state_dict["param_groups"])):
        known = group._values
        changes = {name: saved[name] for name in known}
        for name in ("lr", "ema_decay"):
            if changes[name] is None:
                changes[name] = known[name]
        try:
            values = group._changed(known, changes)
        except AttributeError as error:
            raise ValueError(f"the state dict does not fit group {index}: {error}") from None
        options.append((group._core, known, values, *group._numbers(values)))
    states = [state_dict["state"][index] for index in range(len(record.states))]
    return (
        _copies(record, states),
        options,
        core_clip_norm(clip_norm),
        CoreOptimizer._Nonfinite[nonfinite],
        state_dict["step_count"],
        state_dict["skipped"],
        [int(state["step"]) for state in states],
        [float(state.get("mu_product", 1.0)) for state in states],
    )


def _copies(record: ParameterRecord, states: Iterable[Mapping[str, Any]]) -> list[tuple[Array, Array]]:
    """Return pairs of arrays to copy to and from. Saved arrays that overlap live state are copied before."""
    live = sorted((address(array), array.nbytes) for state in record.states for array in state.values())
    pairs = []
    for state, saved in zip(record.states, states):
        for name, array in state.items():
            order: Any = "C" if array.flags.c_contiguous else "F"
            given = np.asarray(saved[name], order=order)
            last = bisect_left(live, (address(given) + given.nbytes,)) - 1  # the last one that begins before its end
            overlaps = last >= 0 and sum(live[last]) > address(given)
            pairs.append((array, given.copy(order) if overlaps else given))
    return pairs


def core_clip_norm(clip_norm: float | None) -> float:
    """Return ``clip_norm`` as the core has it."""
    return no_clip_norm if clip_norm is None else clip_norm


def load(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Load a state dict into an optimizer."""

    def restore() -> None:
        while not optimizer._restore(*prepare_load(optimizer._record, snapshot(optimizer), state_dict)):
            pass  # another thread has set an option meanwhile, and nothing has changed

    optimizer._locked(restore)


def write(optimizer: Any, path: str | os.PathLike[str]) -> None:
    """Write the state dict of an optimizer to a file."""
    from . import _checkpoint

    optimizer._locked(lambda: _checkpoint.write(path, snapshot(optimizer)))


def read(optimizer: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state dict that fits the optimizer's own from a file; its arrays lie where the optimizer keeps state."""
    from . import _checkpoint

    own = snapshot(optimizer)
    rooms: dict[int, Array] = {}

    def room(array: Array) -> Array:
        if not rooms:  # all at once: with a folder for state that is one file
            arrays = _checkpoint.arrays(own)
            rooms.update(zip(map(id, arrays), all_zeros_like(arrays, optimizer._state_folder)))
        return rooms[id(array)]

    return _checkpoint.read(path, own, room=room)
