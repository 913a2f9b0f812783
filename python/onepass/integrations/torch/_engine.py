"""Engine of one optimizer: conversion of PyTorch's options and state for the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import _checks, _core
from ..._group import core_options
from .. import needed
from . import _tensors
from ._compat import count_changes, exchange, is_distributed, local, step_dtype

with needed("torch"):
    import torch

# Options that may be missing in groups.
DEFAULTS = {"bias_correction": True, "eps_mode": "paper", "clip_value": None, "ema_decay": None}


class Engine:
    """The core's engine, valid while the optimizer (a `OnePass`) has the same groups, tensors and kinds of options."""

    def __init__(self, optimizer: Any) -> None:
        self.spec = optimizer._kind._spec
        self.state = optimizer.state
        self.defaults = {**DEFAULTS, **optimizer._missing}
        self.param_groups = [*optimizer.param_groups]
        self.tensors = [tuple(group["params"]) for group in self.param_groups]
        self.each = [(g, tensor) for g, tensors in enumerate(self.tensors) for tensor in tensors]
        self.values = [self._read(group) for group in self.param_groups]
        self.rules = [self.spec.rule_name(values) for values in self.values]
        self.averaged = [values["ema_decay"] is not None for values in self.values]
        averages = [["ema"] if averaged else [] for averaged in self.averaged]
        self.states = [[*_core.rules[rule][1], *average] for rule, average in zip(self.rules, averages)]
        self.scalars = [] if self.spec.name == "SGD" else ["step", *self.spec.scalars]
        self.groups = [
            _core.TorchGroup(group, tensors, rule, self._places(values, rule), {"momentum"}, *self._numbers(values))
            for group, tensors, rule, values in zip(self.param_groups, self.tensors, self.rules, self.values)
        ]
        self.labels = [f"parameter {i}" for i in range(len(self.each))]
        self.core = _core.TorchEngine(
            self.groups,
            optimizer.state,
            self.states,
            self.scalars,
            exchange,
            torch.Tensor,
            torch.get_num_threads,
            count_changes,
            explain,
            optimizer.flush_denormals,
        )
        self.core.set_clip_norm(-1.0 if optimizer.clip_norm is None else optimizer.clip_norm)
        self.core.set_nonfinite(_core.Optimizer._Nonfinite[optimizer.nonfinite])

    def _read(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a group, with tensors converted to numbers."""
        for name in ("capturable", "differentiable"):
            if group.get(name):
                raise ValueError(
                    f"{name}=True is not possible with onepass: PyTorch does not see the steps (leave the option out)"
                )
        options = {name: group[name] if name in group else self.defaults[name] for name in self.spec.checks}
        return {name: _plain(value, self.spec.checks[name] is _checks.flag) for name, value in options.items()}

    def _numbers(self, values: Mapping[str, Any]) -> tuple[list[float], _core.CommonOptions]:
        numbers, common = core_options(self.spec, values)
        return numbers, common

    def _places(self, values: Mapping[str, Any], rule: str) -> dict[str, list[int]]:
        """Return the indices of each option among the core's numbers: see _core.TorchGroup."""
        names = [*_core.rules[rule][0], "lr", "weight_decay", "clip_value", "ema_decay"]
        places = {}
        for name, value in values.items():
            parts = ["beta1", "beta2"] if name == "betas" else [name]
            is_number = not isinstance(value, (bool, str)) and value is not None and name != "eps"
            places[name] = [names.index(part) for part in parts] if is_number and parts[0] in names else []
        return {**places, "capturable": [], "differentiable": []}

    def renew(self, optimizer: Any) -> bool:
        """Read the groups again. Return False if the core needs a new engine for the groups."""
        if optimizer.state is not self.state or len(optimizer.param_groups) != len(self.groups):
            return False
        for g, group in enumerate(optimizer.param_groups):
            if group is not self.param_groups[g] or not _are_same(group["params"], self.tensors[g]):
                return False
            values = self._read(group)
            if self.spec.rule_name(values) != self.rules[g] or (values["ema_decay"] is not None) != self.averaged[g]:
                return False
            self.values[g] = values
            self.groups[g].renew(self._places(values, self.rules[g]), *self._numbers(values))
        return True

    # ---- Slow path: steps that the core cannot take without Python ----

    @property
    def known(self) -> _core.TorchEngine:
        """The core's engine."""
        return self.core

    def step(self, optimizer: Any, only: int | None = None) -> None:
        """Step along gradients of any kind: every parameter that has one, or only one parameter."""
        before = self.core.step_count
        new: dict[torch.Tensor, list[str]] = {}
        try:
            with torch.no_grad():
                self._initialize(optimizer, new, only)
                for everything in (False, True):
                    substitutes = self._substitutes(optimizer, new, everything, only)
                    arrays = [None if one is None else one.arrays for one in substitutes]
                    try:
                        if self.core.step(optimizer.param_groups, optimizer.state, arrays, only):
                            return
                    finally:  # Ctrl-C is raised only after the core has stepped
                        self._write_back(optimizer, substitutes)
            raise RuntimeError("parameters, gradients or state were changed while the step was prepared")
        finally:
            if self.core.step_count == before:
                _remove(optimizer.state, new)

    def _initialize(self, optimizer: Any, new: dict[torch.Tensor, list[str]], only: int | None) -> None:
        """Create missing state. Fill new with the tensors without state, and the names of their new state."""
        for i, (g, tensor) in enumerate(self.each):
            names, label = self.states[g], self.labels[i]
            if only not in (None, i):
                continue
            if tensor.grad is None or not (names or self.scalars) or tensor in new:
                continue
            state = optimizer.state[tensor]
            arrays = [name for name in names if name != "ema"]
            begun = [name for name in arrays if state.get(name) is not None]
            if not begun:
                new[tensor] = []
                _tensors.check_steppable(label, local(tensor))
            elif len(begun) < len(arrays):
                name = next(name for name in arrays if name not in begun)
                raise KeyError(f"the state of {label} has no tensor {name!r} (was it created with other options?)")
            for name in self.scalars:
                if not isinstance(state.get(name), torch.Tensor):
                    initial = 0.0 if name == "step" else 1.0
                    state[name] = torch.tensor(float(state.get(name, initial)), dtype=step_dtype())
                    new.get(tensor, []).append(name)
            if not begun:
                for name in arrays:
                    state[name] = _tensors.zeros_like(tensor)
                    new[tensor].append(name)
                    if self.spec.initial:
                        state[name].fill_(self.spec.initial_value(self.values[g]))
            if "ema" in names and state.get("ema") is None:
                state["ema"] = _tensors.zeros_like(tensor).copy_(tensor)
                new.get(tensor, []).append("ema")

    def _substitutes(
        self, optimizer: Any, new: Mapping[torch.Tensor, Any], everything: bool, only: int | None
    ) -> list[_tensors.Substitute | None]:
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
            counted = (
                not self.scalars and tensor in new and bool(self.states[g])
            )  # SGD's first step copies the gradient into its momentum
            if not everything and exchange is not None and not counted and _tensors.is_plain(tensor, tensor.grad):
                result.append(None)
                continue
            if tensor not in made or counted:  # as in PyTorch, a tensor that occurs twice has two first steps
                state = optimizer.state[tensor] if self.states[g] or self.scalars else {}
                scalars = [float(state[name]) for name in self.scalars] or [float(tensor not in new)]
                states = [state[name] for name in self.states[g]]
                made[tensor] = _tensors.substitute(self.labels[i], tensor, states, self.averaged[g], scalars)
            result.append(made[tensor])
        return result

    def _write_back(self, optimizer: Any, substitutes: list[_tensors.Substitute | None]) -> None:
        """Copy the results of the step from the substitutes into the tensors."""
        for (_, tensor), one in zip(self.each, substitutes):
            if one is not None and one.is_stepped():
                for original, changed in one.copies:
                    original.copy_(changed)
                for name, value in zip(self.scalars, one.scalars):
                    optimizer.state[tensor][name].fill_(float(value))


def _remove(state: Any, new: Mapping[torch.Tensor, list[str]]) -> None:
    """Remove the state that was created for a step that was not taken."""
    for tensor, names in new.items():
        for name in names:
            state[tensor].pop(name, None)
        if not state.get(tensor):
            state.pop(tensor, None)


def _are_same(some: Any, others: tuple[Any, ...]) -> bool:
    """Return True if both sequences hold the same objects: == would compare the elements of tensors."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others))


def _plain(value: Any, flag: bool) -> Any:
    """Return an option's value with tensors converted to numbers. PyTorch takes any object as a flag."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item, False) for item in value)
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
