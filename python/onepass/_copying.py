"""Pickles and deep copies of optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from types import MemberDescriptorType
from typing import Any

from . import _state_dict
from ._options import OPTIMIZER_CHECKS
from ._params import Part, label, parts_of_params


def arguments_of(optimizer: Any) -> tuple[Any, ...]:
    """Return the arguments of `initialize` for an equal optimizer, with the live arrays."""
    record = optimizer._record
    groups = [
        ({record.keys[index]: record.params[index] for index in indices}, dict(group._values))
        for group, indices in record.ranges()
    ]
    options = {name: getattr(optimizer, name) for name in OPTIMIZER_CHECKS}
    return record.form, record.as_tuple, groups, options, _state_dict.snapshot(optimizer), record.parts


def initialize(
    optimizer: Any, form: Any, as_tuple: bool, groups: Any, options: Any, state: Any, parts: Sequence[Part] = ()
) -> None:
    """Initialize an optimizer from the result of `arguments_of`."""
    for named, _ in groups:
        for key, array in named.items():
            if not array.flags.writeable:
                raise ValueError(
                    f"{label(form, key)} is read-only in this pickle, so the optimizer could not update it: pass "
                    "writeable buffers to pickle.loads; with joblib, use Parallel(max_nbytes=None) or mmap_mode='c'"
                )
    params = [array for named, _ in groups for array in named.values()]
    with parts_of_params([*zip(params, parts)]):
        optimizer._init(form, as_tuple, groups, options)
    # The groups have their options: another thread may have set some before the state was read, and repr() of keys may
    # differ. A subclass's own load_state_dict may need attributes, which are set later.
    _state_dict.load(optimizer, state | {"param_groups": _state_dict.snapshot(optimizer)["param_groups"]})


def rebuild(cls: Any, *description: Any) -> Any:
    """Return the optimizer that a pickle describes."""
    optimizer = cls.__new__(cls)
    initialize(optimizer, *description)
    return optimizer


def deep_copy(optimizer: Any, memo: dict[int, Any]) -> Any:
    """Return a copy with its own parameters and state."""
    cls: Any = type(optimizer)
    copied = memo[id(optimizer)] = cls.__new__(cls)  # before the schedules are copied, which may refer to the optimizer
    live = optimizer.__getstate__()

    def copy_arrays() -> tuple[Any, ...]:
        record = optimizer._record
        deepcopy((record.params, record.states), memo)  # the memo keeps the copies
        return arguments_of(optimizer)

    description = optimizer._locked(copy_arrays)
    # Arrays are copied under the lock, also by a subclass's __deepcopy__. Schedules, names and attributes are copied
    # after it, because they may use the optimizer.
    description, added = deepcopy((description, live), memo)
    initialize(copied, *description)
    if added is not None:
        copied.__setstate__(added)
    return copied


def added_attributes(optimizer: object, own_slots: Iterable[str]) -> Any:
    """Return the attributes of a user's subclass in the form of `object.__getstate__`: a dict, and a dict of slots."""
    attributes = getattr(optimizer, "__dict__", None) or None
    members = [item for cls in type(optimizer).__mro__ for item in vars(cls).items()]
    slots = {name for name, member in members if isinstance(member, MemberDescriptorType)} - {*own_slots}
    filled = {name: getattr(optimizer, name) for name in slots if hasattr(optimizer, name)}
    return (attributes, filled) if filled else attributes


def set_added_attributes(optimizer: Any, added: Any) -> None:
    """Set the attributes that `added_attributes` returned."""
    attributes, filled = added if isinstance(added, tuple) else (added, {})
    if attributes:
        optimizer.__dict__.update(attributes)
    for name, value in filled.items():
        setattr(optimizer, name, value)
