"""State dicts and pickles of the adapter's optimizers, with state converted between storages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from ... import _core
from ..._checks import flag
from ..._conversion import warn_of_lost_bits
from ..._storage import OPTIONS as STORAGE_OPTIONS
from .. import needed
from . import _storage
from ._engine import DEFAULTS, group_options

with needed("torch"):
    import torch


def converted(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict converted to the optimizer's storage, with the optimizer's values for missing options.

    Raises:
        ValueError: the state dict belongs to another class.
    """
    _check_class(optimizer, state_dict)
    spec, groups, state = optimizer._kind._spec, [], dict(state_dict["state"])
    has_low = any("param_low" in entry for entry in state.values() if isinstance(entry, Mapping))
    seeds = [saved["seed"] for saved in state_dict["param_groups"] if "seed" in saved]
    lost, missing = [], []
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"]):
        options = group_options(group)
        rule = spec.rule_name({**DEFAULTS, **optimizer._missing, **group, **saved})
        for param, index in zip(group["params"], saved["params"]):
            label, moments, found = f"parameter {index}", [*_core.rules[rule][1]], state.get(index)
            if not isinstance(found, Mapping) or not found:
                continue  # no state before the parameter's first step
            absent = [name for name in moments if found.get(name) is None]
            if 0 < len(absent) < len(moments):
                cls = type(optimizer).__name__
                raise ValueError(f"load_state_dict: expected the state of {cls}, got {label} without {absent[0]!r}")
            if optimizer._has_double_scalars:
                numbers = _core.rules[rule][2].keys() & found.keys()
                # PyTorch would cast tensors to the parameter's dtype; the next step makes tensors of these.
                state[index] = found = {**found, **{name: float(found[name]) for name in numbers}}
            if (loaded := _storage.loaded(label, options, param, moments, found)) is None:
                continue
            state[index] = loaded
            lost += [label] * loaded.is_lossy
            missing += [label] * (loaded.is_low_missing and has_low and saved.get("master_bits") != 16)
        own = {name: group[name] for name in optimizer._own_defaults() if name in group}
        kept = {name: value for name, value in saved.items() if name not in STORAGE_OPTIONS}
        groups.append({**own, **({"seed": seeds[0]} if "seed" in own and seeds else {}), **kept})
    warn_of_lost_bits(lost, missing)
    return {**state_dict, "state": state, "param_groups": [*groups, *state_dict["param_groups"][len(groups) :]]}


def _check_class(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Refuse a state dict whose groups have options of another class, or have no option that this class needs."""
    expected = f"load_state_dict: expected the state of {type(optimizer).__name__}"
    if isinstance(kind := state_dict.get("optimizer"), str) and "step_count" in state_dict:
        raise ValueError(f"{expected} in PyTorch, got the state of onepass.{kind} for NumPy")
    own, needed = optimizer._kind._spec.checks, optimizer._needed()
    others = optimizer._needed_by_classes()
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, state_dict["param_groups"])):
        # Flags that old versions and other libraries did not save count as False, as in PyTorch. Without amsgrad,
        # Adam has the options of RAdam, except RAdam's own flag.
        optional = {name for name in needed if own[name] is flag and "decoupled_weight_decay" not in saved}
        of_others = set().union(*(names for names in others if names <= saved.keys()))
        foreign = [name for name in saved if name in of_others - {*own, *group}]
        absent = [name for name in needed if name not in {*saved, *optional}]
        if foreign or absent:
            found = [f"with {', '.join(foreign)}"] * bool(foreign) + [f"without {', '.join(absent)}"] * bool(absent)
            raise ValueError(
                f"{expected} (options {', '.join(needed)}), got group {index} {' and '.join(found)} (was it "
                "saved by another class?)"
            )


def decoded(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict in the layout of torch.optim: a copy, with float32 tensors in place of narrow ones."""
    own = {*STORAGE_OPTIONS, "seed"}
    groups = [{name: value for name, value in group.items() if name not in own} for group in state_dict["param_groups"]]
    indices = {index for group in groups for index in group["params"]}  # other entries belong to the user
    state = {
        index: _storage.decoded_state(entry) if index in indices else entry
        for index, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state, "param_groups": groups}


def pickled(state: Mapping[Any, Any]) -> defaultdict[Any, Any]:
    """Return an optimizer's state with float8 codes as uint8, since pickle cannot read float8 tensors."""
    result = {
        key: _storage.with_codes_as(torch.uint8, entry) if isinstance(key, torch.Tensor) else entry
        for key, entry in state.items()
    }
    return defaultdict(dict, result)


def restore(state: dict[Any, Any]) -> None:
    """Undo `pickled` in place, and unwrap the entries that `converted` has wrapped."""
    for key, entry in state.items():
        if isinstance(entry, _storage.Loaded):
            state[key] = entry.state
        elif isinstance(key, torch.Tensor):
            state[key] = _storage.with_codes_as(torch.float8_e4m3fn, entry)
