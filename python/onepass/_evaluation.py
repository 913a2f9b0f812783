"""Evaluation mode of Schedule-Free optimizers, whose evaluation weights differ from their training weights.

In evaluation mode the state of each parameter holds ``"y"``, a copy of the parameter as it is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from . import _storage
from ._allocate import all_zeros_like
from ._checks import check_storage
from ._conversion import joined
from ._core import encode
from ._params import ParameterRecord
from ._types import Array


def switch(optimizer: Any, to_evaluation: bool) -> None:
    """Switch the parameters between training and evaluation, in place: all of them or, when it raises, none."""

    def swap() -> None:
        record: ParameterRecord = optimizer._record
        if record.is_evaluating == to_evaluation:
            return
        for index, array in enumerate(record.params):
            check_storage(record.label(index), array)
        new = in_mode(optimizer, to_evaluation)
        kept = [state["y"] for state in (new if to_evaluation else record).states]
        if to_evaluation:
            for group, indices in record.ranges():
                weight = optimizer._spec.evaluation_weight(group)
                for index in indices:
                    if optimizer._parameter_step(index) == 0:  # the average of no steps
                        np.copyto(kept[index], _storage.raw(record.params[index]))
                        continue
                    evaluate(record.params[index], record.states[index], weight, kept[index])
        arrays = [_storage.raw(array) for array in record.params]
        optimizer._swap_arrays(list(zip(arrays, kept)), new, to_evaluation)

    optimizer._locked(swap)


def in_mode(optimizer: Any, evaluating: bool) -> ParameterRecord:
    """Return the record of an optimizer in training or evaluation mode, with uninitialised copies if they are new."""
    record: ParameterRecord = optimizer._record
    if record.is_evaluating == evaluating:
        return record
    if evaluating:
        arrays = [_storage.raw(array) for array in record.params]
        return with_copies(record, all_zeros_like(arrays, optimizer._state_folder))
    states = [{name: array for name, array in state.items() if name != "y"} for state in record.states]
    return replace(record, states=tuple(states))


def with_copies(record: ParameterRecord, copies: Iterable[Array]) -> ParameterRecord:
    """Return a record with these copies of the parameters."""
    return replace(record, states=tuple({**state, "y": copy} for state, copy in zip(record.states, copies)))


def is_saved_in(optimizer: Any, state_dict: Any) -> bool:
    """Return True if a state dict, which may be anything, was saved in evaluation mode by an optimizer that has one."""
    states = state_dict.get("state") if isinstance(state_dict, Mapping) else None
    if optimizer._spec.evaluation_weight is None or not isinstance(states, Mapping):
        return False
    return any(isinstance(state, Mapping) and "y" in state for state in states.values())


def evaluate(array: Array, state: Mapping[str, Array], weight: float, out: Array) -> None:
    """Write y + weight·(z - y) to an array of the parameter's dtype, as raw bits if the dtype is bfloat16."""
    y, z = np.asarray(array), state["z"]
    if _storage.is_bfloat16(y):
        y = joined(y.view(np.uint16), state.get("param_low"))
    narrow = out.dtype != z.dtype
    x = np.empty_like(z) if narrow else out
    with np.errstate(all="ignore"):
        np.subtract(z, y, out=x)
        np.multiply(x, z.dtype.type(weight), out=x)
        np.add(y, x, out=x)
    if narrow:
        encode(_storage.flat(x), False, _storage.flat(out))
