"""Parameters: the forms in which they come, and the record that an optimizer keeps of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from . import _storage
from ._allocate import address, all_zeros, pin
from ._checks import check_disjoint, check_storage
from ._core import rules
from ._group import Group
from ._options import Spec
from ._types import Array, Form, Params

GroupParams = tuple[dict[Any, Any], dict[str, Any]]  # parameters by key, and options


class Part(NamedTuple):
    """The place of a parameter in a larger parameter of another optimizer, if it is a part of one."""

    size: int  # elements of the larger parameter
    first: int = 0  # index of the part's first element, a multiple of the group of elements that share a scale
    parameter: int | None = None  # index of the larger parameter in its optimizer


@dataclass(frozen=True)
class ParameterRecord:
    """Parameters of an optimizer with their keys, groups and state. A new group makes a new record."""

    form: Form
    as_tuple: bool  # they came as a tuple
    keys: tuple[Any, ...] = ()
    index: Mapping[Any, int] = field(default_factory=dict)  # by key
    params: tuple[Array, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()  # as they were: an array's own may be changed
    parts: tuple[Part, ...] = ()
    states: tuple[dict[str, Array], ...] = ()
    groups: tuple[Group, ...] = ()
    pins: tuple[Any, ...] = ()

    def with_group(
        self,
        form: Form,
        group: Group,
        keys: Sequence[Any],
        parts: Sequence[Part],
        states: Sequence[dict[str, Array]],
    ) -> ParameterRecord:
        """Return the record with one more group."""
        keys = (*self.keys, *keys)
        pins = [pin(array) for array in (*group.params, *(array for state in states for array in state.values()))]
        return ParameterRecord(
            form,
            self.as_tuple,
            keys,
            {key: index for index, key in enumerate(keys)},
            (*self.params, *group.params),
            (*self.shapes, *(np.asarray(array).shape for array in group.params)),
            (*self.parts, *parts),
            (*self.states, *states),
            (*self.groups, group),
            (*self.pins, *pins),
        )

    @property
    def is_evaluating(self) -> bool:
        """True if the state holds a copy of the parameters as they are trained."""
        return any("y" in state for state in self.states)

    def ranges(self) -> Iterator[tuple[Group, range]]:
        """Yield each group with the indices of its parameters."""
        first = 0
        for group in self.groups:
            yield group, range(first, first + len(group.params))
            first += len(group.params)

    def like_input(self, arrays: Sequence[Array]) -> Any:
        """Return an array for each parameter in the form in which the parameters came."""
        if self.form == "array":
            return arrays[0]
        if self.form == "mapping":
            return dict(zip(self.keys, arrays))
        return tuple(arrays) if self.as_tuple and len(self.groups) == 1 else list(arrays)

    def find(self, key: Any) -> int:
        """Return the index of a parameter, given its name or index."""
        try:
            return self.index[key]
        except KeyError:
            valid = ", ".join(map(repr, self.keys[:5])) + ", ..." * (len(self.keys) > 5)
            raise KeyError(f"no parameter {key!r}: expected {valid}") from None
        except TypeError:  # unhashable, such as the array itself
            what = "name" if self.form == "mapping" else "index"
            raise TypeError(f"expected the {what} of a parameter, got {type(key).__name__}") from None

    def label(self, index: int) -> str:
        """Return the name of a parameter in messages."""
        return label(self.form, self.keys[index])

    def gradient_label(self, index: int) -> str:
        """Return the name of a gradient in messages."""
        return "the gradient" if self.form == "array" else f"gradient {self.keys[index]!r}"


def label(form: Form, key: Any) -> str:
    """Return the name of a parameter in messages."""
    return "the parameter" if form == "array" else f"parameter {key!r}"


def check_params(record: ParameterRecord, form: Form, groups: list[GroupParams]) -> None:
    """Refuse new parameters that cannot be updated in place, or that share a name or memory with others."""
    arrays = dict(zip(record.keys, record.params))
    for named, _ in groups:
        if again := [key for key in named if key in arrays]:
            raise ValueError(f"duplicate parameter name {again[0]!r}")
        for key, array in named.items():
            check_storage(label(form, key), array)
        arrays |= named
    states = [(f"state {name!r}", array) for state in record.states for name, array in state.items()]
    check_disjoint([*states, *((label(form, key), array) for key, array in arrays.items())])


def create_groups(
    record: ParameterRecord, form: Form, groups: list[GroupParams], spec: Spec, flush_denormals: bool
) -> list[Group]:
    """Return new groups of parameters, checked against each other and against the parameters that there are."""
    check_params(record, form, groups)
    created = [Group(spec, list(named.values()), options) for named, options in groups]
    for group, (named, _) in zip(created, groups):
        labelled = [(label(form, key), array) for key, array in named.items()]
        _storage.check_params(group, labelled, flush_denormals)
    groups_now = (*record.groups, *created)
    _storage.check_master_bits(groups_now, (array for group in groups_now for array in group.params))
    averaged = [group.ema_decay is not None for group in groups_now]
    if any(averaged) and not all(averaged):
        raise ValueError("ema_decay: expected a value in all groups or in none, got one in some groups")
    return created


_declared_parts: ContextVar[Sequence[tuple[Array, Part]]] = ContextVar("parts", default=())


@contextmanager
def parts_of_params(parts: Sequence[tuple[Array, Part]]) -> Iterator[None]:
    """Declare that these arrays are parts of larger parameters, for optimizers made in this block, by its thread.

    Such an optimizer stores and rounds each element as the optimizer of the larger parameters does.
    """
    token = _declared_parts.set(parts)
    try:
        yield
    finally:
        _declared_parts.reset(token)


def declared_parts(params: Sequence[Array]) -> list[Part]:
    """Return the declared part of each parameter, or the whole parameter if none is declared."""
    # By identity, because empty parts may share an address, or else by memory: a subclass may pass on views.
    keyed = [((id(array), _memory(array)), part) for array, part in _declared_parts.get()]
    declared: dict[Any, Part] = {key: part for keys, part in keyed for key in keys}
    return [declared.get(id(array)) or declared.get(_memory(array)) or Part(array.size) for array in params]


def _memory(array: Array) -> tuple[int, int]:
    plain = np.asarray(array)  # subclasses may override attributes
    return address(plain), plain.size


def initial_states(group: Group, parts: list[Part], spec: Spec, folder: str | None) -> list[dict[str, Array]]:
    """Return the state of a group's parameters before the first step: arrays by name, "ema" among them."""
    moments = rules[spec.rule_name(group)][1]
    layouts = [_storage.state_layout(group, array, moments, part.size) for array, part in zip(group.params, parts)]
    arrays = iter(all_zeros([like for layout in layouts for like in layout.values()], folder))
    states = [{name: next(arrays) for name in layout} for layout in layouts]
    first = spec.initial_value(group)
    for array, state in zip(group.params, states):
        for name in state:
            if _storage.is_scale(name):
                state[name].fill(_storage.SCALES[0])
        for name in {"ema", *_storage.WEIGHTS} & state.keys():
            np.copyto(state[name], _storage.widened(array))
        for name in moments if first else ():
            with np.errstate(over="ignore"):
                values = np.full_like(array, first, _storage.value_dtype(array))
            if not np.isfinite(values).all():
                raise ValueError(f"{spec.initial}={first!r} overflows {values.dtype}")
            if state[name].dtype == values.dtype:
                np.copyto(state[name], values)
            else:
                _storage.encode_into(name, values, state)
    return states


def register_groups(optimizer: Any, form: Form, groups: list[GroupParams]) -> None:
    """Add groups with their state to an optimizer: all of them or, when it raises, none."""
    spec: Spec = optimizer._spec
    created = create_groups(optimizer._record, form, groups, spec, optimizer.flush_denormals)
    all_parts = [declared_parts(group.params) for group in created]
    all_states = [
        initial_states(group, parts, spec, optimizer._state_folder) for group, parts in zip(created, all_parts)
    ]
    for group, (named, _), parts, states in zip(created, groups, all_parts, all_states):
        record = optimizer._record.with_group(form, group, [*named], parts, states)
        averages = [state.get("ema") for state in states]
        moments = rules[spec.rule_name(group)][1]
        arrays = [[state[name] for name in moments] for state in states]
        narrow = [
            _storage.narrow_arrays(group, array, state, moments, part.first, part.parameter)
            for array, state, part in zip(group.params, states, parts)
        ]
        optimizer._add_group(form, group._core, [*named], group.params, arrays, averages, narrow, record)


_NO_PARAMS = "params: expected at least one array, got none (a list not filled yet, or an iterator already used up?)"


def normalize_params(params: Params) -> tuple[Form, list[GroupParams]]:
    """Return the form in which parameters came, and the groups: parameters by key, and the options that they bring."""
    if isinstance(params, np.ndarray):
        return "array", [({0: params}, {})]
    form: Form
    groups: list[GroupParams]
    if isinstance(params, Mapping):
        if "params" in params and not isinstance(params["params"], np.ndarray):
            raise TypeError("params: expected groups in a list, [{'params': ..., ...}], got one group")
        form, groups = "mapping", [(dict(params), {})]
    else:
        items = as_list("params", params)
        if any(isinstance(item, Mapping) for item in items):
            form, groups = parse_groups(items)
        else:
            form, groups = "sequence", [(dict(enumerate(items)), {})]
    if not all(named for named, _ in groups) or not groups:
        raise ValueError(_NO_PARAMS if len(groups) < 2 else "each group: expected parameters, got none")
    return form, groups


def as_list(name: str, params: Any) -> list[Any]:
    """Return the items of a sequence or of any other iterable of arrays."""
    if not hasattr(params, "__iter__") or isinstance(params, (str, bytes, bytearray)):
        raise TypeError(f"{name}: expected an array, or a sequence or mapping of arrays, got {type(params).__name__}")
    return list(params)


def parse_groups(items: list[Any]) -> tuple[Form, list[GroupParams]]:
    """Return the form and the groups of a list of mappings. Parameters without names are numbered."""
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            kind = type(item).__name__
            raise TypeError(
                f"params[{index}]: expected a group, {{'params': [...]}}, got {kind} (pass only groups or only arrays)"
            )
        if "params" not in item:
            raise ValueError(f"group {index} has no 'params', only {list(item)}")
    given = [item["params"] for item in items]
    options = [{name: value for name, value in item.items() if name != "params"} for item in items]
    with_names = [isinstance(params, Mapping) for params in given]
    if not all(with_names):
        if any(with_names):
            raise TypeError(f"parameter names are missing in group {with_names.index(False)}: name all or none")
        keys = count()
        groups = [({next(keys): array for array in group_params(params)}, own) for params, own in zip(given, options)]
        return "sequence", groups
    times = Counter(name for params in given for name in params)
    if again := [name for name, n in times.items() if n > 1]:
        raise ValueError(f"duplicate parameter name {again[0]!r}")
    return "mapping", [(dict(params), own) for params, own in zip(given, options)]


def group_params(params: Any) -> list[Any]:
    """Return the parameters of a group without names."""
    if isinstance(params, Mapping):
        raise TypeError("parameter names are missing in other groups: name all or none")
    return [params] if isinstance(params, np.ndarray) else as_list("a group's params", params)


def added_params(record: ParameterRecord, params: Any) -> tuple[Form, dict[Any, Any]]:
    """Return the parameters of a group to add by key, and the form of all parameters with them."""
    if isinstance(params, Mapping) and "params" in params:  # PyTorch's way
        raise TypeError("add_group takes the parameters, and their options as arguments: add_group(params, lr=...)")
    form: Form
    if record.form != "mapping":
        form, items = "sequence", dict(enumerate(group_params(params)))
    elif isinstance(params, Mapping):
        form, items = "mapping", dict(params)
    else:
        raise TypeError("the parameters have names: add a mapping of names to arrays")
    if not items:
        raise ValueError(_NO_PARAMS)
    return form, items
