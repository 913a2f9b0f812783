"""State dicts of optimizers."""

from __future__ import annotations

import os
import warnings
import zlib
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from . import _evaluation, _storage
from ._allocate import address, all_zeros_like
from ._checks import check_storage
from ._conversion import (
    Conversion,
    caller_level,
    is_c_contiguous,
    is_stored_alike,
    row_slices,
    split,
    warn_of_losses,
)
from ._core import CommonOptions, no_clip_norm
from ._core import Group as CoreGroup
from ._options import OPTIMIZER_CHECKS, SAVED_OPTIONS, refuse_unknown
from ._params import ParameterRecord
from ._types import Array

# _checkpoint, _state_check and schedules take longer to import than all the rest, hence the imports in functions.


def snapshot(optimizer: Any, params: bool = False, record: ParameterRecord | None = None) -> dict[str, Any]:
    """Return the state dict of an optimizer, with the live arrays; params: the parameters too, as state.

    record: the parameters and their state, if not the optimizer's own.
    """
    from . import _checkpoint, schedules

    record = record or optimizer._record
    groups = [
        named_params(record, indices)
        | {
            name: schedules.describe_schedule(value) if callable(value) else value
            for name, value in group._values.items()
        }
        for group, indices in record.ranges()
    ]
    added = [{"param": _storage.raw(array)} for array in record.params] if params else [{}] * len(record.params)
    return {
        "version": _checkpoint.VERSION,
        "optimizer": type(optimizer).__name__,
        **{name: getattr(optimizer, name) for name in ("step_count", "skipped", *SAVED_OPTIONS)},
        "state": {
            index: {**scalars(optimizer, index), **state, **param}
            for index, (state, param) in enumerate(zip(record.states, added))
        },
        "param_groups": groups,
    }


def scalars(optimizer: Any, index: int) -> dict[str, Any]:
    """Return a parameter's state other than arrays."""
    return {"step": optimizer._parameter_step(index), **optimizer._parameter_scalars(index)}


def decoded(optimizer: Any, key: Hashable) -> dict[str, Any]:
    """Return a parameter's state with copies of its moments and weights, in float32 where they are narrow."""
    record: ParameterRecord = optimizer._record
    index = record.find(key)
    state = record.states[index]
    names = [*_storage.moments_of(state), *(name for name in state if name in _storage.WEIGHTS)]
    return scalars(optimizer, index) | {
        name: _storage.decoded(state[name], state.get(f"{name}_scale")) for name in names
    }


class StateView(Mapping[Any, "dict[str, Any]"]):
    """State of each parameter of an optimizer: its step count and live views of its arrays."""

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> dict[str, Any]:
        record = self._optimizer._record
        index = record.find(key)
        arrays = {name: _storage.shown(name, array) for name, array in record.states[index].items() if name != "ema"}
        return scalars(self._optimizer, index) | arrays

    def __iter__(self) -> Iterator[Any]:
        return iter(self._optimizer._record.keys)

    def __len__(self) -> int:
        return len(self._optimizer._record.keys)

    def __eq__(self, other: object) -> bool:  # comparing the items would compare arrays
        return self._optimizer is other._optimizer if isinstance(other, StateView) else NotImplemented

    def __hash__(self) -> int:
        return object.__hash__(self._optimizer)

    def __repr__(self) -> str:
        return repr(dict(self))


def named_params(record: ParameterRecord, indices: range) -> dict[str, Any]:
    """Return the entries of a group with these parameters: their indices, and their names if they have any."""
    params: dict[str, Any] = {"params": [*indices]}
    if record.form == "mapping":
        keys = [record.keys[index] for index in indices]
        params["param_names"] = [key if isinstance(key, str) else repr(key) for key in keys]
    return params


def copy_arrays(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Replace the arrays of a state dict by copies."""
    for state in state_dict["state"].values():
        # In the order of memory: float8 numbers and their scales belong together.
        state.update({name: value.copy(order="K") for name, value in state.items() if isinstance(value, np.ndarray)})
    return state_dict


CoreOptions = tuple[CoreGroup, Mapping[str, Any], Mapping[str, Any], list[float], CommonOptions]


def check_names(call: str, optimizer: Any, options: Iterable[str], *arguments: str) -> None:
    """Refuse options that no state dict has; call, arguments: the method's name and own arguments, for the message."""
    valid = [*arguments, *optimizer._spec.checks, *SAVED_OPTIONS]
    fixed = {optimizer._spec.initial, *_storage.OPTIONS}
    refuse_unknown(call, options, [name for name in valid if name not in fixed])


def prepare_load(
    optimizer: Any, state_dict: Mapping[str, Any], given: Mapping[str, Any], params: bool = False
) -> tuple[Any, ...]:
    """Return the arguments of the core's restore that load a state dict, checked against the optimizer's own.

    given: options that replace those of the state dict, with names from `check_names`; params: the state dict holds the
    parameters too.
    """
    from . import _state_check

    state_dict = _state_check.upgraded(state_dict)
    record = _evaluation.in_mode(optimizer, _evaluation.is_saved_in(optimizer, state_dict))
    own = snapshot(optimizer, params, record)
    state_dict, conversion = in_own_storage(record, state_dict, own, optimizer._state_folder)
    whole = {name: OPTIMIZER_CHECKS[name](name, given.get(name, state_dict[name])) for name in SAVED_OPTIONS}
    given = {name: value for name, value in given.items() if name not in whole}
    options: list[CoreOptions] = []
    for index, (group, saved) in enumerate(zip(record.groups, state_dict["param_groups"])):
        known = group._values
        for name in _storage.OPTIONS:  # they describe what was saved: the optimizer keeps its own
            group._spec.checks[name](f"{name} of group {index}", saved[name])
        changes = {name: saved[name] for name in known if name not in _storage.OPTIONS} | given
        for name in {"lr", "ema_decay"} - given.keys():
            changes[name] = _loaded_rate(f"{name} of group {index}", name, saved[name], known[name])
        try:
            values = group._changed(known, changes)
        except AttributeError as error:
            raise ValueError(f"the state dict does not fit group {index}: {error}") from None
        options.append((group._core, known, values, *group._numbers(values)))
    states = [state_dict["state"][index] for index in range(len(record.states))]
    warn_of_losses([conversion], not params)
    return (
        _copies(record, states, params),
        options,
        core_clip_norm(whole["clip_norm"]),
        whole["nonfinite"],
        whole["seed"],
        state_dict["step_count"],
        state_dict["skipped"],
        [int(state["step"]) for state in states],
        [[state[name] for name in optimizer._parameter_scalars(index)] for index, state in enumerate(states)],
        record,
        record.is_evaluating,
    )


def in_own_storage(
    record: ParameterRecord, state_dict: Any, own: dict[str, Any], folder: str | None
) -> tuple[Mapping[str, Any], Conversion]:
    """Return a state dict, checked and converted to an optimizer's own storage, and the conversion.

    own: the optimizer's own state dict; folder: the folder for its state, if that is on disk.
    """
    from . import _state_check

    conversion = Conversion(record)
    states = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if isinstance(states, Mapping):
        raw = {
            index: {name: _storage.raw(value) for name, value in saved.items()} if isinstance(saved, Mapping) else saved
            for index, saved in states.items()
        }
        state_dict = {**state_dict, "state": raw}
        _state_check.check(state_dict, {**own, "state": (layouts := conversion.layouts(own, state_dict))})
    else:
        _state_check.check(state_dict, own)
    converted: dict[int, dict[str, Any]] = {
        index: dict(mine)
        for index, mine in own["state"].items()
        if not is_stored_alike(mine, layouts[index], lambda name: is_c_contiguous(raw[index][name]))  # noqa: B023
    }
    keys = [(index, name) for index, mine in converted.items() for name in mine if isinstance(mine[name], np.ndarray)]
    outputs = all_zeros_like([converted[index][name] for index, name in keys], folder)
    for (index, name), out in zip(keys, outputs):
        converted[index][name] = out
    for index, entries in converted.items():
        conversion.fill(index, {name: raw[index][name] for name in layouts[index]}, entries)
        entries |= {name: value for name, value in raw[index].items() if not isinstance(value, np.ndarray)}
    return {**state_dict, "state": raw | converted}, conversion


def _loaded_rate(label: str, name: str, saved: Any, own: Any) -> Any:
    """Return the rate of a state dict, or the optimizer's own function where the state dict cannot hold it."""
    from . import schedules

    loaded = saved
    if isinstance(saved, Mapping):
        loaded = schedules.from_description(saved)
    if loaded is None:  # a function, or None in earlier versions
        if callable(own) or (saved is None and name != "lr"):
            return own
        function = f" ({saved['function']})" if saved else ""
        raise ValueError(
            f"{label} was a function{function}, which a state dict cannot hold: create this optimizer with the "
            f"function, or load with {name}=..."
        )
    if callable(own) and own != loaded:
        raise ValueError(
            f"{label}: the checkpoint has {loaded!r}, this optimizer has {own!r}: load with {name}=... to choose"
        )
    return loaded


def _copies(record: ParameterRecord, states: Iterable[Mapping[str, Any]], params: bool) -> list[tuple[Array, Array]]:
    """Return pairs of arrays to copy to and from. Saved arrays that overlap live state are copied before."""
    added: list[dict[str, Array]] = [{"param": _storage.raw(array)} if params else {} for array in record.params]
    arrays = [state | param for state, param in zip(record.states, added)]
    live = sorted((address(array), array.nbytes) for own in arrays for array in own.values())
    pairs = []
    for own, saved in zip(arrays, states):
        for name, array in own.items():
            order: Any = "C" if array.flags.c_contiguous else "F"
            given = np.asarray(saved[name], order=order)
            last = bisect_left(live, (address(given) + given.nbytes,)) - 1  # the last one that begins before its end
            overlaps = last >= 0 and sum(live[last]) > address(given)
            pairs.append((array, given.copy(order) if overlaps else given))
    return pairs


def core_clip_norm(clip_norm: float | None) -> float:
    """Return ``clip_norm`` as the core has it."""
    return no_clip_norm if clip_norm is None else clip_norm


def load(optimizer: Any, state_dict: Mapping[str, Any], params: bool = False, **options: Any) -> None:
    """Load a state dict into an optimizer, with its parameters on request; options replace those of the state dict."""
    check_names("load_state_dict", optimizer, options, "params")

    def restore() -> None:
        record: ParameterRecord = optimizer._record
        for index, array in enumerate(record.params if params else ()):
            check_storage(record.label(index), array)
        while not optimizer._restore(*prepare_load(optimizer, state_dict, options, params)):
            pass  # another thread has set an option meanwhile, and nothing has changed

    optimizer._locked(restore)


def write(optimizer: Any, path: str | os.PathLike[str], params: bool) -> None:
    """Write the state dict of an optimizer to a file, with checksums of the parameters."""
    from . import _checkpoint

    def save() -> None:
        _checkpoint.write(path, with_checksums(optimizer._record, snapshot(optimizer, params)))

    optimizer._locked(save)


def with_checksums(record: ParameterRecord, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict with checksums of the parameters."""
    from . import _state_check

    return state_dict | {_state_check.CHECKSUMS: [_checksum(array) for array in record.params]}


def _checksum(array: Array, stored: Callable[[Array], Array] = lambda part: part) -> int:
    """Return the checksum of a parameter; stored: a function that converts a part of it before."""
    checksum = 0
    for part in checksum_parts(array):
        checksum = zlib.crc32(np.ascontiguousarray(stored(part)).data.cast("B"), checksum)
    return checksum


def checksum_parts(array: Array) -> Iterator[Array]:
    """Yield the elements of a parameter in C order, some at a time."""
    flat = np.ascontiguousarray(_storage.raw(array)).reshape(-1)
    return (flat[rows] for rows in row_slices(flat))


def warn_of_other_params(
    record: ParameterRecord,
    path: str | os.PathLike[str],
    found: Mapping[str, Any],
    conversion: Conversion | None = None,
) -> None:
    """Warn if the parameters are not those that were saved with a state dict."""
    from . import _state_check

    saved = found.get(_state_check.CHECKSUMS, [])
    if others := [
        record.label(index)
        for index, (checksum, array) in enumerate(zip(saved, record.params))
        if not _is_saved(index, checksum, array, conversion)
    ]:
        named = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
        warnings.warn(
            f"{os.fspath(path)!r} was saved with other values or another dtype of {named}: load the parameters first, "
            "or use save(path, params=True) and load(path, params=True)",
            stacklevel=caller_level(),
        )


def _is_saved(index: int, checksum: int, array: Array, conversion: Conversion | None) -> bool:
    """Return True if a parameter has the saved values, in its own dtype or in the other dtype of weights."""
    is_same = checksum == _checksum(array)
    if is_same or conversion is None or array.dtype == np.float64:
        return is_same
    if index in conversion.same_weights:
        return conversion.same_weights[index]
    if _storage.is_bfloat16(array):  # float32 weights without lower bits have the same values
        return checksum == _checksum(array, _storage.decoded)
    if checksum != _checksum(array, lambda part: split(part)[0]):
        return False
    return index in conversion.same_low or not any(split(part)[1].any() for part in checksum_parts(array))


def read(optimizer: Any, path: str | os.PathLike[str], params: bool) -> tuple[dict[str, Any], Conversion]:
    """Read a state dict from a file, converted to the optimizer's own storage; its arrays lie where state is kept."""
    from . import _checkpoint

    def allocate(arrays: list[Array]) -> list[Array]:  # all at once: with a folder for state that is one file
        return all_zeros_like(arrays, optimizer._state_folder)

    record: ParameterRecord = optimizer._record
    if optimizer._spec.evaluation_weight is not None:  # the file decides on the mode
        record = _evaluation.with_copies(record, map(_storage.raw, record.params))
    conversion = Conversion(record)
    own = snapshot(optimizer, params, record)
    return _checkpoint.read(path, own, allocate=allocate, conversion=conversion), conversion
