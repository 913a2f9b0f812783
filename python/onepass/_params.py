"""Forms in which parameters come: an array, a sequence, a mapping, or groups."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np

from . import _core
from ._types import Params

Group = tuple[dict[Any, Any], dict[str, Any]]  # parameters by key, and options


def normalize_params(params: Params) -> tuple[_core.Optimizer._Form, list[Group]]:
    """Return the form in which parameters came, and the groups: parameters by key, and the options that they bring."""
    form = _core.Optimizer._Form
    if isinstance(params, np.ndarray):
        return form.array, [({0: params}, {})]
    if isinstance(params, Mapping):
        kind, groups = form.mapping, [(dict(params), dict[str, Any]())]
    else:
        items = as_list("params", params)
        if any(isinstance(item, Mapping) for item in items):
            kind, groups = parse_groups(items)
        else:
            kind, groups = form.sequence, [(dict(enumerate(items)), {})]
    if not all(named for named, _ in groups) or not groups:
        raise ValueError("params holds no parameters" if len(groups) < 2 else "a group holds no parameters")
    return kind, groups


def as_list(name: str, params: Any) -> list[Any]:
    """Return the items of a sequence or of any other iterable of arrays."""
    if not hasattr(params, "__iter__") or isinstance(params, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be an array, or a sequence or mapping of arrays, got {type(params).__name__}")
    return list(params)


def parse_groups(items: list[Any]) -> tuple[_core.Optimizer._Form, list[Group]]:
    """Return the form and the groups of a list of mappings. Parameters without names are numbered."""
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise TypeError(f"params mixes parameter groups and arrays: item {index} is of type {type(item).__name__}")
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
        return _core.Optimizer._Form.sequence, groups
    names = [name for params in given for name in params]
    if again := [name for index, name in enumerate(names) if name in names[:index]]:
        raise ValueError(f"duplicate parameter name {again[0]!r}")
    return _core.Optimizer._Form.mapping, [(dict(params), own) for params, own in zip(given, options)]


def group_params(params: Any) -> list[Any]:
    """Return the parameters of a group without names."""
    if isinstance(params, Mapping):
        raise TypeError("parameter names are missing in other groups: name all or none")
    return [params] if isinstance(params, np.ndarray) else as_list("a group's params", params)
