"""Whole optimizers: parameters, state, groups and steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import optimizers
from . import storage
from .elements import Array, Elements, Numbers
from .rules import RULES, SWITCHES, Rule, adadelta, adam, adam_coefficients, evaluated
from .stages import global_norm, is_usable, preprocessed, running_average, summed_rows


def defaults(kind: str) -> dict[str, Any]:
    """Return the options of a group and their defaults, which the constructor of the public class declares."""
    cls = getattr(optimizers, kind)
    parameters = inspect.signature(cls).parameters
    decoupled = {"decoupled_weight_decay": cls._spec.decoupled is True}
    return decoupled | {name: parameters[name].default for name in cls._spec.checks}


class Reference:
    """A whole optimizer, on copies of the parameters.

    ``kind`` is the name of the public class; parameters (an array, a sequence, or a list of groups) and options are as
    that class takes them. A gradient is an array, None, or a pair of row indices and values.

    Narrow storage: ``state[i]`` holds the bits of a state as uint8 (with ``name_scale``) or uint16, and the lower bits
    of a bfloat16 parameter as ``param_low``.
    """

    def __init__(
        self,
        kind: str,
        params: Any,
        *,
        clip_norm: float | None = None,
        nonfinite: str = "propagate",
        flush_denormals: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.rule = RULES[kind]
        self.clip_norm, self.nonfinite, self.flush, self.seed = clip_norm, nonfinite, flush_denormals, seed
        self.groups: list[dict[str, Any]] = []  # the options, which may change between steps
        self.group_of: list[dict[str, Any]] = []  # what follows has one item for each parameter
        self.params: list[Array] = []
        self.state: list[dict[str, Any]] = []
        self.ema: list[Any] = []
        self.step_count = self.skipped = 0
        self.grad_norm: float | None = None
        params = [params] if isinstance(params, np.ndarray) else params
        for group in params if isinstance(params[0], Mapping) else [{"params": params}]:
            own = {name: value for name, value in group.items() if name != "params"}
            self.groups.append(chosen(defaults(kind), {**options, **own}))
            arrays = [group["params"]] if isinstance(group["params"], np.ndarray) else group["params"]
            for array in arrays:
                self._add(array, self.groups[-1])

    def _add(self, array: Array, options: dict[str, Any]) -> None:
        names = [name for name in self.rule.states if name not in SWITCHES or options[SWITCHES[name]]]
        start = options.get("initial_accumulator_value", 0.0)
        self.group_of.append(options)
        self.params.append(array.copy("K"))
        weights = storage.decode(self.params[-1], None)
        self.state.append({"step": 0})
        for name in names:
            if name in storage.WEIGHTS:
                self.state[-1][name] = weights.copy("K")
            else:
                numbers = np.full_like(weights, start)
                self.state[-1] |= storage.stored_state(name, numbers, options["state_dtype"])
        if storage.is_bfloat16(array) and options["master_bits"] > 16:
            low = np.int16 if options["master_bits"] == 32 else np.int8
            self.state[-1]["param_low"] = np.zeros_like(weights, low)
        self.state[-1] |= self.rule.scalars
        self.ema.append(None if options["ema_decay"] is None else weights.copy("K"))

    def step(self, grads: Sequence[Any], grad_scale: float = 1.0) -> None:
        with np.errstate(all="ignore"):
            pairs = zip(self.params, grads, strict=True)
            given = [None if grad is None else located(param, grad) for param, grad in pairs]
            scale = self._scale([pair[1] for pair in given if pair is not None], float(grad_scale))
            if scale is None:
                self.skipped += 1
                return
            self.step_count += 1
            for index, pair in enumerate(given):
                if pair is not None:
                    self._start_weights(index)
                    self._update(index, *pair, scale)

    def eval(self) -> None:
        """Put Schedule-Free's averages into the parameters, in training mode."""
        for index, param in enumerate(self.params):
            state, beta1 = self.state[index], self.group_of[index]["betas"][0]
            state["y"] = (param.view(np.uint16) if storage.is_narrow(param) else param).copy("K")
            with np.errstate(all="ignore"):
                x = evaluated(beta1, self._decoded(index)[0], state["z"])
            if storage.is_narrow(param):
                storage.encode(x, param, None, None)
            else:
                param[...] = x

    def train(self) -> None:
        """Put Schedule-Free's trained weights back, in evaluation mode."""
        for param, state in zip(self.params, self.state):
            y = state.pop("y")
            param[...] = y.view(param.dtype)

    def _scale(self, grads: Sequence[Array], grad_scale: float) -> float | None:
        """grad_scale times the clip factor; None when the step must be skipped."""
        root = 0.0 if self.clip_norm is None else global_norm(grads)
        usable = self.nonfinite == "propagate" or (
            math.isfinite(root) and all(is_usable(grad, grad_scale, self.rule.squares) for grad in grads)
        )
        if self.nonfinite == "raise" and not usable:
            raise FloatingPointError("a gradient is not finite")
        self.grad_norm = None
        if self.clip_norm is not None:
            self.grad_norm = norm = abs(grad_scale) * root
            small = norm <= self.clip_norm or math.isinf(self.clip_norm)  # infinity only measures
            grad_scale = grad_scale * (1.0 if small else self.clip_norm / norm)
        return None if self.nonfinite == "skip" and not usable else grad_scale

    def _start_weights(self, index: int) -> None:
        """Copy the whole parameter into its weight states, such as z, before its first step."""
        state = self.state[index]
        for name in storage.WEIGHTS & state.keys():
            if state["step"] == 0:
                state[name][...] = self._decoded(index)[0]

    def _advanced(self, index: int, dtype: Any) -> tuple[Numbers, Numbers]:
        """Count a step of a parameter; return its options and coefficients at this step."""
        state = self.state[index]
        state["step"] += 1
        o = Numbers(**self.group_of[index])
        o.lr = at(o.lr, self.step_count)
        vars(o).update({name: state[name] for name in self.rule.scalars})
        state |= self.rule.advance(state["step"], o)
        vars(o).update({name: state[name] for name in self.rule.scalars})
        return o, self.rule.coefficients(dtype, state["step"], o)

    def _flushes(self, index: int) -> bool:
        """Return True if subnormal numbers of a parameter count as zero."""
        return self.flush and not keeps_subnormals(self.rule, self.group_of[index])

    def _update(self, index: int, rows: Any, grad: Array, scale: float) -> None:
        o, k = self._advanced(index, grad.dtype)
        flush, ema = self._flushes(index), self.ema[index]
        arrays = self._decoded(index)
        before: list[Any] = [None if array is None else Elements(array[rows], flush) for array in arrays]
        surrounding = Numbers(**{**vars(o), "weight_decay": 0.0}) if self.rule.decays else o
        p, g = preprocessed(before[0], Elements(grad, flush), scale, surrounding)
        after = self.rule.update(k, p, g, *before[1:])
        if ema is not None:
            ema[rows] = running_average(at(o.ema_decay, self.step_count), Elements(ema[rows], flush), after[0]).values
        for array, elements in zip(arrays, after):
            if array is not None:
                array[rows] = elements.values
        self._encode(index, arrays)

    def _decoded(self, index: int) -> list[Any]:
        """Return the parameter and its states as the rule takes them. A state that is off is None."""
        state, param = self.state[index], self.params[index]
        arrays = [(state.get(name), state.get(f"{name}_scale")) for name in self.rule.states]
        arrays.insert(0, (param, state.get("param_low")))
        return [None if stored is None else storage.decode(stored, companion) for stored, companion in arrays]

    def _encode(self, index: int, arrays: list[Any]) -> None:
        """Store the parameter and its states where storage is narrow. Each has a slot for its random bits."""
        state, param = self.state[index], self.params[index]
        stochastic = self.group_of[index]["rounding"] == "stochastic"

        def random(slot: int) -> Array | None:
            return storage.r16(self.seed, state["step"], index, slot, 0, param.size) if stochastic else None

        if storage.is_narrow(param):
            storage.encode(arrays[0], param, state.get("param_low"), random(storage.WEIGHT_SLOT))
        present = [(name, array) for name, array in zip(self.rule.states, arrays[1:]) if array is not None]
        for slot, (name, array) in enumerate(present):
            if storage.is_narrow(state[name]):
                scales = state.get(f"{name}_scale")
                storage.encode(array, state[name], scales, random(slot), name in storage.DIVISORS)


def keeps_subnormals(rule: Rule, options: Mapping[str, Any]) -> bool:
    """True if eps is so small that flushing would leave eps as the divisor of tiny gradients."""
    return bool(options.get("eps", 1.0) < (1e-32 if rule.update is adadelta else 1e-16))


def chosen(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options, with the defaults of missing options."""
    if unknown := options.keys() - defaults.keys():
        raise TypeError(f"unknown options: {sorted(unknown)}")
    return {**defaults, **options}


def at(number: Any, t: int) -> float:
    """Evaluate a schedule at step t; numbers are returned unchanged."""
    return float(number(t) if callable(number) else number)


def located(param: Array, grad: Any) -> tuple[Any, Array]:
    """Return the gradient's place in the parameter, and its elements in the parameter's layout, in full width."""
    dtype = np.float32 if storage.is_narrow(param) else param.dtype
    if isinstance(grad, tuple):
        indices, values = grad
        return summed_rows(indices, np.asarray(storage.widened(values), dtype))
    elements = np.empty_like(param, dtype)
    elements[...] = storage.widened(grad)
    return ..., elements


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: int,
    *,
    max_exp_avg_sq: Array | None = None,
    grad_scale: float = 1.0,
    flush_denormals: bool = True,
    **options: Any,
) -> tuple[Array, ...]:
    """Compute param, exp_avg, exp_avg_sq (and max_exp_avg_sq) after `onepass.adam_step`, as new arrays."""
    o = Numbers(**chosen(defaults("Adam"), options))
    arrays = [param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq]
    with np.errstate(all="ignore"):
        k = adam_coefficients(param.dtype, step, o)
        flush = flush_denormals and not keeps_subnormals(RULES["Adam"], vars(o))
        before: list[Any] = [None if array is None else Elements(array, flush) for array in arrays]
        after = adam(k, *preprocessed(before[0], before[1], grad_scale, o), *before[2:])
    return tuple(elements.values for elements in after if elements is not None)
