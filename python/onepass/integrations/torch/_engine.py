"""Engine of one optimizer: conversion of PyTorch's options and state for the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np

from ... import _checks, _core
from ..._group import core_options
from ..._options import OPTIMIZER_CHECKS
from ..._state_dict import core_clip_norm
from ..._storage import FLOAT8_LIMITS, WEIGHTS
from ..._storage import OPTIONS as STORAGE_OPTIONS
from .. import needed
from . import _storage, _tensors
from ._compat import count_changes, exchange, is_distributed, local, rows_and_values, step_dtype

with needed("torch"):
    import torch

# Options that may be missing in groups.
DEFAULTS = {"bias_correction": True, "eps_mode": "paper", "clip_value": None, "ema_decay": None, **_storage.DEFAULTS}

# Options that decide on the storage of state.
_STORAGE_NAMES = sorted({*STORAGE_OPTIONS, "ema_decay", "amsgrad", "centered", "eps", *FLOAT8_LIMITS})
_PARTS = {_checks.betas: 2, _checks.three_betas: 3}  # the length of an option's tuple, by the option's check
_CHANGED = "parameters, gradients or state were changed while the step was prepared: do not change them during a step"


class Engine:
    """The core's engine, valid while the optimizer (a `OnePass`) has the same groups, tensors and kinds of options."""

    def __init__(self, optimizer: Any) -> None:
        self.spec = optimizer._kind._spec
        self.state = optimizer.state
        self.defaults = {**DEFAULTS, **optimizer._missing}
        self.flush_denormals = optimizer.flush_denormals
        self.own = optimizer._own_defaults().keys() - {"seed"}
        self.param_groups = [*optimizer.param_groups]
        self.tensors = [tuple(group["params"]) for group in self.param_groups]
        self.each = [(g, tensor) for g, tensors in enumerate(self.tensors) for tensor in tensors]
        self.values = [self._read(g, group) for g, group in enumerate(self.param_groups)]
        self.rules = [self.spec.rule_name(values) for values in self.values]
        self.averaged = [values["ema_decay"] is not None for values in self.values]
        averages = [["ema"] if averaged else [] for averaged in self.averaged]
        self.moments = [[*_core.rules[rule][1]] for rule in self.rules]
        self.states = [[*moments, *average] for moments, average in zip(self.moments, averages)]
        # PyTorch's SGD counts no steps, but random bits depend on the count.
        counted = self.spec.name != "SGD" or any(
            values["state_dtype"] is not None or values["master_bits"] != 32 for values in self.values
        )
        initial = {name: number for rule in self.rules for name, number in _core.rules[rule][2].items()}
        self.scalars = {"step": 0.0, **initial} if counted else {}  # with their values before the first step
        self.scalar_dtype = torch.float64 if optimizer._has_double_scalars else step_dtype()
        self.groups = [
            _core.TorchGroup(
                group, tensors, rule, self._places(values, rule), {"momentum"}, *core_options(self.spec, values)
            )
            for group, tensors, rule, values in zip(self.param_groups, self.tensors, self.rules, self.values)
        ]
        self.labels = [f"parameter {i}" for i in range(len(self.each))]
        self.core = _core.TorchEngine(
            self.groups,
            optimizer.state,
            self.states,
            [_storage.core_storage(values, moments) for values, moments in zip(self.values, self.moments)],
            [*self.scalars],
            exchange,
            torch.Tensor,
            torch.get_num_threads,
            count_changes,
            explain,
            rows_and_values,
            optimizer.flush_denormals,
        )
        self.core.set_clip_norm(core_clip_norm(optimizer.clip_norm))
        self.core.set_nonfinite(optimizer.nonfinite)
        self.seed = optimizer.seed
        self.core.set_seed(self.seed)
        self.core.set_results(optimizer.skipped, optimizer.grad_norm)

    def _read(self, g: int, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a group, with tensors converted to numbers."""
        refuse_step(group)
        values = {}
        for name, check in self.spec.checks.items():
            label, given = f"param_groups[{g}][{name!r}]", group[name] if name in group else self.defaults[name]
            if name in self.own:
                check(label, given)
            values[name] = plain(given, check is _checks.flag)
            if callable(given) or (name not in self.own and not _is_of_kind(check, values[name])):
                expected = f"{_PARTS[check]} numbers" if check in _PARTS else "a number"
                raise TypeError(f"{label}: expected {expected}, got {_checks.shown(given)}")
        if self.spec.evaluation_weight is not None:
            self.spec.validate(values)
        values["master_bits"] = int(values["master_bits"])
        _storage.check_group(self.spec, values, self.flush_denormals)
        return values

    def _places(self, values: Mapping[str, Any], rule: str) -> dict[str, list[int]]:
        """Return the indices of each option among the core's numbers: see _core.TorchGroup."""
        names = [*_core.rules[rule][0], "lr", "weight_decay", "clip_value", "ema_decay"]
        checked = {"eps", *self.own} | ({*FLOAT8_LIMITS} if values["state_dtype"] == "float8" else set())
        if self.spec.evaluation_weight is not None:
            checked.add("betas")
        places = {}
        for name, value in values.items():
            parts = [f"beta{i}" for i in range(1, len(value) + 1)] if name == "betas" else [name]
            is_number = not isinstance(value, (bool, str)) and value is not None and name not in checked
            places[name] = [names.index(part) for part in parts] if is_number and parts[0] in names else []
        return {**places, "capturable": [], "differentiable": [], "seed": [], "train_mode": []}

    def renew(self, optimizer: Any) -> bool:
        """Read the groups again. Return False if the core needs a new engine for the groups."""
        if (
            optimizer.seed != self.seed
            or optimizer.state is not self.state
            or len(optimizer.param_groups) != len(self.groups)
        ):
            return False
        for g, group in enumerate(optimizer.param_groups):
            if group is not self.param_groups[g] or not _are_same(group["params"], self.tensors[g]):
                return False
            values = self._read(g, group)
            if changed := [name for name in STORAGE_OPTIONS if values[name] != self.values[g][name]]:
                if any(self.state.get(tensor) for tensor in self.tensors[g]):
                    kept, new = self.values[g][changed[0]], values[changed[0]]
                    raise ValueError(
                        f"{changed[0]} is fixed once there is state: expected {kept!r}, got {new!r} (create another "
                        "optimizer and load the state dict)"
                    )
                return False
            if self.spec.rule_name(values) != self.rules[g] or (values["ema_decay"] is not None) != self.averaged[g]:
                return False
            self.values[g] = values
            self.core.renew(g, self._places(values, self.rules[g]), *core_options(self.spec, values))
        return True

    @property
    def known(self) -> _core.TorchEngine:
        """The core's engine, under the name that programs outside of this repository use to time its steps."""
        return self.core

    # ---- Slow path: steps that the core cannot take without Python ----

    def step(self, optimizer: Any, only: int | None = None) -> None:
        """Step along gradients of any kind: every parameter that has one, or only one parameter."""
        before = self.core.step_count
        new: dict[torch.Tensor, list[str]] = {}
        try:
            with torch.no_grad():
                self._initialize(optimizer, new, only)
                if not any(self._try(optimizer, new, everything, only) for everything in (False, True)):
                    raise RuntimeError(_CHANGED)
        finally:
            if self.core.step_count == before:
                _remove(optimizer.state, new)

    def _try(self, optimizer: Any, new: Mapping[torch.Tensor, Any], everything: bool, only: int | None) -> bool:
        """Step, with substitutes for some parameters or for every one. Return False if substitutes are missing."""
        substitutes = self._substitutes(optimizer, new, everything, only)
        tensors = [tensor for _, tensor in self.each]
        has_copies = [one is not None and len(one.copies) > len(self.scalars) for one in substitutes]
        if only is None and _tensors.overlap(tensors, has_copies):
            if optimizer.clip_norm is not None or optimizer.nonfinite != "propagate":
                raise ValueError("clip_norm and nonfinite are not possible with parameters with gaps that share memory")
            return all(
                self._try(optimizer, new, True, i) for i, tensor in enumerate(tensors) if tensor.grad is not None
            )
        arrays = [None if one is None else one.arrays for one in substitutes]
        copies = [pair for one in substitutes if one is not None for pair in one.copies]
        return self.core.step(optimizer.param_groups, optimizer.state, arrays, only, copies)

    def _initialize(self, optimizer: Any, new: dict[torch.Tensor, list[str]], only: int | None) -> None:
        """Create missing state. Fill new with the tensors without state, and the names of their new state."""
        for i, (g, tensor) in enumerate(self.each):
            label, options, arrays = self.labels[i], self.values[g], self.moments[g]
            if only not in (None, i) or tensor.grad is None:
                continue
            _storage.check_tensor(label, options, tensor)
            dtypes = _storage.state_dtypes(options, tensor, arrays)
            if not (dtypes or self.scalars) or tensor in new:
                continue
            state = optimizer.state.get(tensor, {})
            begun = [name for name in arrays if state.get(name) is not None]
            if not begun:
                _tensors.check_steppable(label, local(tensor))
            elif len(begun) < len(arrays):
                name = next(name for name in arrays if name not in begun)
                raise KeyError(f"the state of {label} has no tensor {name!r} (was it created with other options?)")
            made = {}
            for name, initial in self.scalars.items():
                if not isinstance(state.get(name), torch.Tensor):
                    number = state.get(name, 1.0 if name == "step" and self.spec.name == "SGD" and begun else initial)
                    dtype = step_dtype() if name == "step" else self.scalar_dtype
                    made[name] = torch.tensor(float(number), dtype=dtype)
            for name, stored in dtypes.items():
                if state.get(name) is None and not (begun and name not in {"ema", "param_low"}):
                    made[name] = _tensors.zeros_like(tensor, stored)
            for name in arrays if self.spec.initial and not begun else []:
                _fill(name, self.spec.initial_value(options), made)
            for name in {"ema", *WEIGHTS} & made.keys():
                made[name].copy_(tensor)
            if not begun:
                new[tensor] = [*made]
            optimizer.state[tensor].update(made)

    def _substitutes(
        self, optimizer: Any, new: Mapping[torch.Tensor, Any], everything: bool, only: int | None
    ) -> list[_tensors.Substitute | None]:
        """Return a substitute for each parameter that the core cannot read, or for every one with a gradient."""
        result: list[_tensors.Substitute | None] = []
        made: dict[torch.Tensor, _tensors.Substitute] = {}  # a tensor may occur twice
        for i, (g, tensor) in enumerate(self.each):
            if tensor.grad is None or only not in (None, i):
                result.append(None)
                continue
            if is_distributed(tensor) and (optimizer.clip_norm is not None or optimizer.nonfinite != "propagate"):
                raise ValueError(
                    "clip_norm and nonfinite are not possible with DTensors: each process has only a shard"
                )
            # SGD counts no steps, and its first step copies the gradient into the momentum.
            counted = not self.scalars and tensor in new and bool(self.states[g])
            if not everything and exchange is not None and not counted and self._is_plain(g, tensor):
                result.append(None)
                continue
            if tensor not in made or counted:  # as in PyTorch, a tensor that occurs twice has two first steps
                state = optimizer.state.get(tensor, {})
                if not all(name in state for name in (*self.states[g], *self.scalars)):
                    raise RuntimeError(_CHANGED)  # by another thread
                states = [state[name] for name in self.moments[g]]
                average = state["ema"] if self.averaged[g] else None
                scalars = [state[name] for name in self.scalars]
                label, options = self.labels[i], self.values[g]
                narrow = _storage.narrow_tensors(label, options, tensor, state, self.moments[g])
                made[tensor] = _tensors.substitute(label, tensor, states, average, scalars, tensor in new, narrow)
            result.append(made[tensor])
        return result

    def _is_plain(self, g: int, tensor: torch.Tensor) -> bool:
        """Return True if the core may be able to read a parameter and its gradient in place."""
        return _tensors.is_plain(tensor, tensor.grad, _storage.is_narrow(self.values[g], tensor))


def _is_of_kind(check: Any, value: Any) -> bool:
    """Return True if a plain value is of the kind that an option's check expects, in range or not."""
    if check in _PARTS:
        return isinstance(value, tuple) and len(value) == _PARTS[check] and all(map(_is_number, value))
    return _is_number(value) or (value is None and check is _checks.steps_or_none)


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, str)  # NumPy's strings have __float__


def _fill(name: str, value: float, state: Mapping[str, torch.Tensor]) -> None:
    """Fill a moment with a value."""
    if state[name].dtype in _storage.DTYPES.values():
        _storage.encode_into(name, torch.full_like(state[name], value, dtype=torch.float32), state)
    else:
        state[name].fill_(value)


def group_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group that decide on its storage, with numbers in place of tensors."""
    values = {name: plain(group[name], False) for name in _STORAGE_NAMES if name in group}
    return {**DEFAULTS, **values, "master_bits": int(values.get("master_bits", 32))}


def refuse(group: Mapping[str, Any]) -> None:
    """Refuse options that onepass cannot follow."""
    reasons = {"capturable": "onepass runs on CPUs only", "differentiable": "autograd does not record onepass's steps"}
    for name, reason in reasons.items():
        if group.get(name):
            raise ValueError(f"{name}=True is not possible: {reason}; leave it out")
    if whole := [name for name in OPTIMIZER_CHECKS if name in group and name != "seed"]:
        raise ValueError(f"{whole[0]} applies to the whole optimizer, not to a group: pass it to the constructor")
    if functions := [name for name in ("lr", *_STORAGE_NAMES) if callable(group.get(name))]:
        raise TypeError(f"{functions[0]}: expected a number, got a function (use a scheduler of torch.optim)")


def refuse_step(group: Mapping[str, Any]) -> None:
    """Refuse a step with options that onepass cannot follow, or in evaluation mode."""
    refuse(group)
    if not group.get("train_mode", True):
        raise RuntimeError("step: expected training mode, got evaluation mode (call optimizer.train() first)")


def _remove(state: Any, new: Mapping[torch.Tensor, list[str]]) -> None:
    """Remove the state that was created for a step that was not taken."""
    for tensor, names in new.items():
        if kept := {name: value for name, value in state.get(tensor, {}).items() if name not in names}:
            state[tensor] = kept  # at once: Ctrl-C must not leave a part of the state
        else:
            state.pop(tensor, None)


def _are_same(some: Any, others: tuple[Any, ...]) -> bool:
    """Return True if both sequences hold the same objects: == would compare the elements of tensors."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others))


def plain(value: Any, flag: bool) -> Any:
    """Return an option's value with tensors converted to numbers. PyTorch takes any object as a flag."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        value = value.tolist() if len(value.shape) > 0 and value.shape[0] > 1 else value.item()
    if isinstance(value, (tuple, list)):
        return tuple(plain(item, False) for item in value)
    if flag:
        return bool(value)
    return float(value) if isinstance(value, (int, np.number)) and not isinstance(value, bool) else value


def explain(kind: str, index: int, *details: Any) -> None:
    """Raise the error of a step that the core has detected."""
    if kind == "overflow":
        t, _ = details
        raise ValueError(f"a coefficient made from the options overflows the dtype of parameter {index} at step {t}")
    if kind == "nonfinite_gradient":
        raise FloatingPointError(
            f"the gradient of parameter {index} is not finite, or its squares are not; nothing has changed"
        )
    if kind == "impossible_step":
        raise ValueError(f"the step number of parameter {index}: expected 0 or more, got {details[0]}")
    raise ValueError(f"state of parameter {index} overlaps the parameter or its other state in memory")
