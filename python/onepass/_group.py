"""Groups of parameters with their own options."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat

from ._core import CommonOptions, rules
from ._core import Group as CoreGroup
from ._options import COMMON_DEFAULTS, OPTIMIZER_CHECKS, Option, Spec, suggestion
from ._storage import OPTIONS as STORAGE_OPTIONS
from ._types import Array, Average, Betas, EpsMode, LearningRate, Rate, Rounding, StateDtype, ThreeBetas


class Group(Mapping[str, Any]):
    """Some of an optimizer's parameters, with their options as attributes (or, as in PyTorch, as items).

    An assignment checks the value and takes effect at the next step. Options that determine which state arrays exist
    (``amsgrad``, ``centered``, ``momentum`` on or off, ``ema_decay`` on or off) or how numbers are stored
    (``state_dtype``, ``master_bits``, ``rounding``) are fixed at construction.

    Example:
        >>> import numpy as np, onepass
        >>> opt = onepass.AdamW(np.zeros(3, np.float32), lr=0.1)
        >>> opt.groups[0].weight_decay = 0.05
        >>> opt.groups[0]["lr"] *= 0.5
        >>> opt.groups[0]
        Group(lr=0.05, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05, amsgrad=False, bias_correction=True, \
eps_mode='paper', maximize=False, clip_value=None, ema_decay=None)
    """

    __slots__ = ("_core", "_params", "_spec")

    _core: CoreGroup
    _params: tuple[Array, ...]
    _spec: Spec

    # The options of all optimizers, for type checkers; a group has those of its own.
    lr: Option[Rate, LearningRate]
    betas: Option[tuple[float, ...], Betas | ThreeBetas]
    eps: Option[float, SupportsFloat]
    weight_decay: Option[float, SupportsFloat]
    amsgrad: Option[bool, bool]
    bias_correction: Option[bool, bool]
    eps_mode: Option[EpsMode, EpsMode]
    alpha: Option[float, SupportsFloat]
    alpha_warmup: Option[int | None, int | None]
    beta3_warmup: Option[int | None, int | None]
    rho: Option[float, SupportsFloat]
    momentum: Option[float, SupportsFloat]
    dampening: Option[float, SupportsFloat]
    nesterov: Option[bool, bool]
    centered: Option[bool, bool]
    momentum_decay: Option[float, SupportsFloat]
    warmup_steps: Option[int, int]
    r: Option[float, SupportsFloat]
    weight_lr_power: Option[float, SupportsFloat]
    decoupled_weight_decay: Option[bool, bool]
    lr_decay: Option[float, SupportsFloat]
    initial_accumulator_value: Option[float, SupportsFloat]
    maximize: Option[bool, bool]
    clip_value: Option[float | None, SupportsFloat | None]
    ema_decay: Option[Rate | None, Average]
    state_dtype: Option[StateDtype, StateDtype]
    master_bits: Option[int, int]
    rounding: Option[Rounding, Rounding]

    def __init__(self, spec: Spec, params: list[Array], options: Mapping[str, Any]) -> None:
        if unknown := [name for name in options if name not in spec.checks]:
            rest = suggestion(unknown[0], spec.checks)
            if unknown[0] in OPTIMIZER_CHECKS:
                rest = ": it applies to the whole optimizer"
            raise TypeError(f"unexpected option {unknown[0]!r} of a group of {spec.name}{rest}")
        values = {name: check(name, options[name]) for name, check in spec.checks.items()}
        spec.check(values)
        object.__setattr__(self, "_spec", spec)
        object.__setattr__(self, "_params", tuple(params))
        object.__setattr__(self, "_core", CoreGroup(spec.rule_name(values), values, *self._numbers(values)))

    @property
    def params(self) -> list[Array]:
        """The parameters of this group."""
        return list(self._params)

    @property
    def _values(self) -> Mapping[str, Any]:
        """The options, checked."""
        return self._core.values

    def _numbers(self, values: Mapping[str, Any]) -> tuple[list[float], CommonOptions]:
        return core_options(self._spec, values)

    def _changed(self, old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with these changes, checked."""
        spec = self._spec
        if unknown := [name for name in changes if name not in old]:
            raise AttributeError(f"a group of {spec.name} has no option {unknown[0]!r}{suggestion(unknown[0], old)}")
        values = {**old, **{name: spec.checks[name](name, value) for name, value in changes.items()}}
        spec.check(values)
        if spec.buffers(values) != spec.buffers(old):
            fixed = next(name for name in changes if spec.buffers({**old, name: values[name]}) != spec.buffers(old))
            reason = "how numbers are stored" if fixed in STORAGE_OPTIONS else "which state buffers exist"
            raise AttributeError(f"{fixed} cannot be changed after construction: it determines {reason}")
        return values

    def _set(self, changes: Mapping[str, Any]) -> None:
        """Change options: all of them or, when it raises, none."""
        initial = self._spec.initial
        done = False
        while not done:  # another thread may be setting another option
            known = self._values
            if changes.keys() == {"lr"}:  # fast path: schedulers set only lr, before every step
                values = {**known, "lr": self._spec.checks["lr"]("lr", changes["lr"])}
                lr, _, scheduled = _rates(values)
                done = self._core.swap_lr(known, values, lr, scheduled)
                continue
            values = self._changed(known, changes)
            if initial and values[initial] != known[initial]:
                raise AttributeError(
                    f"{initial} cannot be changed after construction: it only affects the initial state"
                )
            done = self._core.swap(known, values, *self._numbers(values))

    if not TYPE_CHECKING:  # checkers would take these for a sign that every name is an option

        def __getattr__(self, name: str) -> Any:
            if name in Group.__slots__ or name not in (values := self._core.values):  # an empty slot comes here
                raise AttributeError(f"there is no option {name!r}")
            return values[name]

        def __setattr__(self, name: str, value: Any) -> None:
            self._set({name: value})

    def __getitem__(self, name: str) -> Any:
        return self.params if name == "params" else self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._set({name: value})

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self._values])

    def __len__(self) -> int:
        return 1 + len(self._values)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a group is part of its optimizer: copy or pickle the optimizer")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        shown = {k: v for k, v in self._values.items() if k not in STORAGE_OPTIONS or v != COMMON_DEFAULTS[k]}  # type: ignore[literal-required]
        return f"Group({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def core_options(spec: Spec, values: Mapping[str, Any]) -> tuple[list[float], CommonOptions]:
    """Return options as the core takes them: those of the rule, and those that every rule shares."""
    clip_value = values["clip_value"]
    lr, ema_decay, scheduled = _rates(values)
    return spec.numbers(values), CommonOptions(
        lr=lr,
        weight_decay=0.0 if "weight_decay" in rules[spec.rule_name(values)][0] else values["weight_decay"],
        clip_value=math.inf if clip_value is None else clip_value,
        ema_decay=ema_decay,
        decoupled=spec.is_decoupled(values),
        maximize=values["maximize"],
        averaged=values["ema_decay"] is not None,
        keep_subnormals=spec.keeps_subnormals(values),
        scheduled=scheduled,
    )


def _rates(values: Mapping[str, Any]) -> tuple[float, float, bool]:
    """Return the learning rate and the average's decay, 0 for a function of the step, and whether there is one."""
    lr, ema_decay = values["lr"], values["ema_decay"]
    scheduled = callable(lr), callable(ema_decay)
    return 0.0 if scheduled[0] else lr, 0.0 if ema_decay is None or scheduled[1] else ema_decay, any(scheduled)
