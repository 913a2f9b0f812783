"""State dicts: upgrades of earlier versions, and the check that one fits an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import schedules
from ._archive import Stored
from ._checks import plural, shown
from ._storage import check_scales, is_scale

StateDict = Mapping[str, Any]

CHECKSUMS = "params_crc32"  # the optional key of the parameters' checksums in a state dict


def check(state_dict: StateDict, like: StateDict) -> None:
    """Refuse a state dict that an optimizer whose own is `like` could not take.

    Option values are only checked to be plain (numbers, strings, None, sequences of numbers).

    Raises:
        TypeError: something is of the wrong type.
        ValueError: something is missing, unknown, or of another optimizer, version, number, name, shape or dtype.
    """
    _check_type("a state dict", state_dict, Mapping, "a mapping")
    version, optimizer = (state_dict.get(name, like[name]) for name in ("version", "optimizer"))
    _check_type("version", version, int, "an integer")
    if version != like["version"]:
        newer = " (it was written by a newer onepass)" * (version > like["version"])
        raise ValueError(f"version: expected {like['version']}, got {shown(version)}{newer}")
    _check_type("optimizer", optimizer, str, "a string")
    if optimizer != like["optimizer"]:
        raise ValueError(
            f"checkpoint is for {shown(optimizer)}, not {like['optimizer']!r}: load it into an optimizer of the same "
            "class"
        )
    if {"state", "param_groups"} <= state_dict.keys() and not {"version", "optimizer"} & state_dict.keys():
        hint = "to go on from it, copy its moments and step counts into opt.state_dict() and load that"
        raise ValueError(f"expected a state dict of onepass.{like['optimizer']}, got one of torch.optim ({hint})")
    _check_keys("the state dict", {name: state_dict[name] for name in state_dict if name != CHECKSUMS}, like)
    for name in ("step_count", "skipped"):
        _check_count(name, state_dict[name])
    _check_type("param_groups", state_dict["param_groups"], (list, tuple), "a list")
    _check_length("group", state_dict["param_groups"], like["param_groups"])
    for index, (group, own) in enumerate(zip(state_dict["param_groups"], like["param_groups"])):
        _check_names(group, own)
        _check_keys(f"group {index}", group, own)
        for name, value in group.items():
            _check_option(f"{name} of group {index}", name, value, own[name])
    _check_type("state", state_dict["state"], Mapping, "a mapping")
    _check_length("parameter", state_dict["state"], like["state"])
    _check_keys("state", state_dict["state"], like["state"])
    labels = _labels(like)
    checksums = state_dict.get(CHECKSUMS, [0] * len(labels))
    if not isinstance(checksums, list) or [type(one) for one in checksums] != [int] * len(labels):
        raise ValueError(f"{CHECKSUMS}: expected a list of {plural(len(labels), 'integer')}, got {shown(checksums)}")
    for index, own in like["state"].items():
        found = state_dict["state"][index]
        if isinstance(found, Mapping) and "param" in found and "param" not in own:  # loaded only on request
            found = {name: found[name] for name in found if name != "param"}
        elif isinstance(found, Mapping) and "param" in own and "param" not in found:
            raise ValueError("the state dict holds no parameters: use state_dict(params=True)")
        if isinstance(found, Mapping) and (
            reason := other_options(own.keys() - found.keys(), found.keys() - own.keys())
        ):
            raise ValueError(f"the state of {labels[index]}: {reason}")
        _check_keys(f"the state of {labels[index]}", found, own)
        for name, mine in own.items():
            _check_entry(f"{name} of {labels[index]}", name, found[name], mine)


def upgraded(state_dict: Any) -> Any:
    """Return a state dict with today's options.

    In earlier versions ``ema_decay`` was ``ema``, and there were no options of storage and no seed.
    """
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        return state_dict
    new = [_upgraded_group(group) for group in groups]
    if all(group is old for group, old in zip(new, groups)):
        return state_dict
    return {"seed": 0, **state_dict, "param_groups": new}


def _upgraded_group(group: Mapping[str, Any]) -> Mapping[str, Any]:
    if not _EARLIER_STORAGE.keys() & group.keys():
        group = {**group, **_EARLIER_STORAGE}
    if "ema" in group and "ema_decay" not in group:
        group = {"ema_decay" if key == "ema" else key: value for key, value in group.items()}
    return group


_EARLIER_STORAGE = {"state_dtype": None, "master_bits": 32, "rounding": "stochastic"}


def _check_type(label: str, value: Any, kinds: Any, what: str) -> None:
    if not isinstance(value, kinds) or (kinds is int and isinstance(value, bool)):
        raise TypeError(f"{label}: expected {what}, got {shown(value)}")


def _check_keys(label: str, found: Any, wanted: Iterable[Any]) -> None:
    _check_type(label, found, Mapping, "a mapping")
    missing, unknown = [key for key in wanted if key not in found], sorted(found.keys() - set(wanted), key=shown)
    if missing or unknown:
        wrong = [f"is missing {shown(missing)}"] * bool(missing) + [f"has unknown {shown(unknown)}"] * bool(unknown)
        raise ValueError(f"{label} {' and '.join(wrong)}")


def other_options(missing: Iterable[Any], unknown: Iterable[Any]) -> str:
    """Return the reason if an option explains why arrays are missing or unknown, else an empty string."""
    options = {"max_exp_avg_sq": "amsgrad", "ema": "ema_decay", "momentum_buffer": "momentum", "grad_avg": "centered"}
    if "param_low" in unknown:
        return (
            "it holds the lower bits of bfloat16 parameters: create the optimizer with bfloat16 or float32 parameters"
        )
    for name in sorted(missing, key=str):
        if name in options:
            return f"it was saved without {options[name]}: create the optimizer without {options[name]}"
    for name in sorted(unknown, key=str):
        if name in options:
            return f"it was saved with {options[name]}: create the optimizer with {options[name]}"
    return ""


def _check_length(what: str, found: Any, wanted: Any, where: str = "") -> None:
    if len(found) != len(wanted):
        raise ValueError(f"it holds {plural(len(found), what)}{where}, the optimizer has {len(wanted)}")


def _check_names(group: Any, own: Mapping[str, Any]) -> None:
    """Raise a ValueError if parameters have names on only one side."""
    if not isinstance(group, Mapping) or group.keys() ^ own.keys() != {"param_names"}:
        return
    if "param_names" in own:
        raise ValueError(
            "checkpoint is for parameters without names, but this optimizer's have names: make the optimizer with an "
            "array or a sequence, as it was when that was saved"
        )
    raise ValueError(
        f"checkpoint is for parameters with names, {shown(group['param_names'])}, but this optimizer's have none: "
        "make the optimizer with a mapping, as it was when that was saved"
    )


def _check_count(label: str, value: Any) -> None:
    _check_type(label, value, int, "an integer")
    if not 0 <= value <= 2**62:  # far from where the core's 64-bit counts end
        raise ValueError(f"{label}: expected at least 0 and at most 2**62, got {shown(value)}")


def _check_option(label: str, name: str, value: Any, own: Any) -> None:
    if name in ("params", "param_names"):
        _check_type(label, value, (list, tuple), "a list")
        _check_length("parameter", value, own, f" in {label}")
        for index, (item, mine) in enumerate(zip(value, own)):
            _check_type(f"item {index} of {label}", item, type(mine), f"{mine!r}")
            if item != mine:
                what = "the name of" if name == "param_names" else "the index of"
                raise ValueError(
                    f"{what} parameter {index} of its group: expected {mine!r}, got {shown(item)} in the checkpoint"
                )
    elif isinstance(value, Mapping) and name in ("lr", "ema_decay"):
        try:
            schedules.from_description(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{label}: expected a schedule, got one with a wrong argument ({error})") from None
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_type(f"an item of {label}", item, (int, float), "a number")
    else:
        _check_type(label, value, (int, float, str, type(None)), "a number, a string or None")


def _check_entry(label: str, name: str, value: Any, own: Any) -> None:
    if isinstance(own, np.ndarray):
        kinds = () if isinstance(value, np.ma.MaskedArray) else (np.ndarray, Stored)
        _check_type(label, value, kinds, "a NumPy array")
        dtype = value.dtype if isinstance(value, Stored) else value.dtype.str
        if dtype != own.dtype.str:
            of = "the parameter's dtype" if own.dtype.kind == "f" else "dtype"
            raise ValueError(f"{label}: expected {of} {_dtype_name(own.dtype.str)}, got {_dtype_name(dtype)}")
        if value.shape != own.shape:
            raise ValueError(f"{label}: expected shape {own.shape}, got {value.shape}")
        if is_scale(name) and isinstance(value, np.ndarray):
            check_scales(label, value, own.size)
    elif name == "step":
        _check_count(label, value)
    else:
        _check_type(label, value, float, "a float")
        if not math.isfinite(value):
            raise ValueError(f"{label}: expected a finite number, got {value!r}")


_DTYPE_NAMES = {"<f4": "float32", "<f8": "float64", "<u2": "bfloat16 (as uint16)", "|u1": "float8 (as uint8)"}


def _dtype_name(dtype: str) -> str:
    return _DTYPE_NAMES.get(dtype, dtype)


def _labels(like: StateDict) -> dict[int, str]:
    """Return a label for each parameter, for messages."""
    labels = {index: f"parameter {index}" for index in like["state"]}
    for group in like["param_groups"]:
        labels |= {i: f"parameter {i} ({name!r})" for i, name in zip(group["params"], group.get("param_names", ()))}
    return labels
