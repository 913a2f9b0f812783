"""Forms in which parameters come: an array, a sequence, a mapping, or groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _core
from ._types import Params


def grouped(params: Params) -> tuple[_core.Optimizer._Form, list[tuple[dict[Any, Any], dict[str, Any]]]]:
    """The form in which parameters came, and the groups: each parameter under its key, and what options they bring."""
    form = _core.Optimizer._Form
    groups: list[tuple[dict[Any, Any], dict[str, Any]]]
    if isinstance(params, np.ndarray):
        return form.array, [({0: params}, {})]
    if isinstance(params, Mapping):
        kind, groups = form.mapping, [(dict(params), {})]
    else:
        kind, items = form.sequence, listed("params", params)
        if any(isinstance(item, Mapping) for item in items):
            groups = listed_groups(items)
        else:
            groups = [(dict(enumerate(items)), {})]
    if not all(named for named, _ in groups) or not groups:
        raise ValueError("params holds no parameters" if len(groups) < 2 else "a group holds no parameters")
    return kind, groups


def listed(name: str, params: Any) -> list[Any]:
    """The items of a sequence or of any other iterable of arrays."""
    if not hasattr(params, "__iter__") or isinstance(params, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be an array, or a sequence or mapping of arrays, not {type(params).__name__}")
    return list(params)


def listed_groups(items: list[Any]) -> list[tuple[dict[Any, Any], dict[str, Any]]]:
    """The groups of a list of mappings; their parameters are numbered from the first group's first."""
    groups: list[tuple[dict[Any, Any], dict[str, Any]]] = []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise TypeError(f"params mixes groups and other things: item {index} is of type {type(item).__name__}")
        options = dict(item)
        if "params" not in options:
            raise ValueError(f"group {index} has no 'params': it has {list(options)}")
        params = options.pop("params")
        first = sum(len(named) for named, _ in groups)
        groups.append((dict(enumerate(group_params(params), first)), options))
    return groups


def group_params(params: Any) -> list[Any]:
    """The parameters of one of several groups, whose gradients come in a sequence."""
    if isinstance(params, np.ndarray):
        return [params]
    if isinstance(params, Mapping):
        raise TypeError(
            "a group's params must be an array or a sequence, not a mapping: names are for parameters that all come in "
            "one mapping"
        )
    return listed("a group's params", params)
