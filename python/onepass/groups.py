"""Groups of parameters and their options."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, TypeVar

from . import checks
from ._core import CommonOptions, rules
from ._core import Group as CoreGroup
from .arrays import Array
from .checks import Average, Betas, Check, EpsMode, LearningRate

if TYPE_CHECKING:
    from .base import Optimizer

    Read = TypeVar("Read")
    Set = TypeVar("Set", contravariant=True)

    class _Option(Generic[Read, Set]):
        """What a type checker sees of an option: what can be set may be more than what is then read."""

        def __get__(self, group: Group, kind: Any) -> Read: ...
        def __set__(self, group: Group, value: Set) -> None: ...


# What other libraries call an option, and what it may be here.
_ELSEWHERE = {
    **dict.fromkeys(["learning_rate", "step_size", "eta", "alpha"], "lr"),
    **dict.fromkeys([f"{beta}{i}" for beta in ("b", "b_", "beta", "beta_") for i in (1, 2)], "betas"),
    "epsilon": "eps",
    **dict.fromkeys(["clipnorm", "global_clipnorm", "max_grad_norm", "grad_clip"], "clip_norm"),
    **{"clipvalue": "clip_value", "use_ema": "ema", "ema_momentum": "ema", "L2": "weight_decay", "rho": "alpha"},
}
_OF_PYTORCH = {"fused", "foreach", "capturable", "differentiable"}


def meant(name: str, options: Iterable[str]) -> str:
    """What somebody who knows another library may have meant by an option that is none of these; or nothing."""
    if name in _OF_PYTORCH:
        return " (it chooses among PyTorch's own implementations: leave it out)"
    here = _ELSEWHERE.get(name, "")
    return f" (say {'betas=(beta1, beta2)' if here == 'betas' else here})" if here in options else ""


class Group(Mapping[str, Any]):
    """Some of an optimizer's parameters, and their options as attributes (or, as PyTorch has it, as items).

    Assigning to one checks the value and holds from the next step on. What decides which buffers exist (``amsgrad``,
    ``centered``, whether there is ``momentum`` or an ``ema``) is fixed when the group is made.

    Example:
        >>> import numpy as np, onepass
        >>> opt = onepass.AdamW(np.zeros(3, np.float32), lr=0.1)
        >>> opt.groups[0].weight_decay = 0.05
        >>> opt.groups[0]["lr"] *= 0.5
        >>> opt.groups[0]
        Group(lr=0.05, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05, amsgrad=False, bias_correction=True, \
eps_mode='paper', maximize=False, clip_value=None, ema=None)
    """

    __slots__ = ("_core", "_kind", "_params")

    _core: CoreGroup
    _kind: type[Optimizer]
    _params: tuple[Array, ...]

    # The options of all optimizers; each group has those of its own. A rate may be a number or a function.
    lr: _Option[Any, LearningRate]
    betas: _Option[tuple[float, float], Betas]
    eps: _Option[float, SupportsFloat]
    weight_decay: _Option[float, SupportsFloat]
    amsgrad: _Option[bool, bool]
    bias_correction: _Option[bool, bool]
    eps_mode: _Option[EpsMode, EpsMode]
    alpha: _Option[float, SupportsFloat]
    rho: _Option[float, SupportsFloat]
    momentum: _Option[float, SupportsFloat]
    dampening: _Option[float, SupportsFloat]
    nesterov: _Option[bool, bool]
    centered: _Option[bool, bool]
    momentum_decay: _Option[float, SupportsFloat]
    decoupled_weight_decay: _Option[bool, bool]
    lr_decay: _Option[float, SupportsFloat]
    initial_accumulator_value: _Option[float, SupportsFloat]
    maximize: _Option[bool, bool]
    clip_value: _Option[float | None, SupportsFloat | None]
    ema: _Option[Any, Average]

    def __init__(self, kind: type[Optimizer], params: list[Array], options: Mapping[str, Any]) -> None:
        if unknown := [name for name in options if name not in kind._checks]:
            whole = [name for name in unknown if name in checks.WHOLE]
            why = f"{whole[0]} is an option of the whole optimizer" if whole else f"its options are {[*kind._checks]}"
            hint = meant(unknown[0], kind._checks)
            raise TypeError(f"a group of {kind.__name__} has no option {unknown[0]!r}{hint}: {why}")
        values = {name: check(name, options[name]) for name, check in kind._checks.items()}
        rule, numbers = kind._rule(values)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_params", tuple(params))
        object.__setattr__(self, "_core", CoreGroup(rule, values, in_order(rule, numbers), self._common(values)))

    @property
    def params(self) -> list[Array]:
        """The parameters of this group."""
        return list(self._params)

    @property
    def _values(self) -> Mapping[str, Any]:
        """The options, checked."""
        return self._core.values

    def _common(self, values: Mapping[str, Any]) -> CommonOptions:
        """The options that every rule shares, as the core takes them."""
        clip_value = values["clip_value"]
        lr, ema, scheduled = _rates(values)
        return CommonOptions(
            lr=lr,
            weight_decay=values["weight_decay"],
            clip_value=math.inf if clip_value is None else clip_value,
            ema_decay=ema,
            decoupled=self._kind._decoupled(values),
            maximize=values["maximize"],
            averaged=values["ema"] is not None,
            scheduled=scheduled,
        )

    def _numbers(
        self, known: Mapping[str, Any], values: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any], list[float], CommonOptions]:
        """Checked options as the core takes them, in place of the known ones."""
        rule, numbers = self._kind._rule(values)
        return known, values, in_order(rule, numbers), self._common(values)

    def _changed(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The options with these changes, checked."""
        kind = self._kind
        values = dict(self._values)
        for name, value in changes.items():
            if name not in values:
                raise AttributeError(
                    f"{kind.__name__} has no option {name!r} that can be set{meant(name, values)}: those that can are "
                    f"{[name for name in values if self._can_be_set(name)]}"
                )
            values[name] = kind._checks[name](name, value)
        buffers = kind._rule(values)[0] != kind._rule(self._values)[0]
        if buffers or (values["ema"] is None) != (self._values["ema"] is None):

            def decides(name: str) -> bool:
                alone = {**self._values, name: values[name]}
                return kind._rule(alone)[0] != kind._rule(self._values)[0] or (alone["ema"] is None) != (
                    self._values["ema"] is None
                )

            names = [name for name in changes if decides(name)] or [*changes]
            raise AttributeError(f"{names[0]} decides which buffers exist: it is fixed when the optimizer is made")
        return values

    def _settable(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The options with these changes, checked, if they can be set now."""
        values = self._changed(changes)
        for name in self._kind._initial:
            if values[name] != self._values[name]:
                raise AttributeError(f"{name} is what state starts with: it is fixed when the optimizer is made")
        return values

    def _can_be_set(self, name: str) -> bool:
        """Whether an option can be set to another value."""
        value = self._values[name]
        if value and value is not True:  # some number or word
            return name not in self._kind._initial
        try:
            self._settable({name: not value if isinstance(value, bool) else 0.5})
        except AttributeError:
            return False
        except ValueError:  # not without another option
            pass
        return True

    # A type checker must not think that every name is an option.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in Group.__slots__ or name not in (values := self._core.values):  # an empty slot comes here
                raise AttributeError(f"there is no option {name!r}")
            return values[name]

        def __setattr__(self, name: str, value: Any) -> None:
            self._set({name: value})

    def _set(self, changes: Mapping[str, Any]) -> None:
        """Change options: all of them or, when it raises, none."""
        done = False
        while not done:  # another thread may be setting another option
            known = self._values
            if changes.keys() == {"lr"}:  # by itself, before every step, is how many have it
                values = {**known, "lr": self._kind._checks["lr"]("lr", changes["lr"])}
                lr, _, scheduled = _rates(values)
                done = self._core.swap_lr(known, values, lr, scheduled)
            else:
                done = self._core.swap(*self._numbers(known, self._settable(changes)))

    def __getitem__(self, name: str) -> Any:
        return self.params if name == "params" else self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __iter__(self) -> Iterator[str]:
        return iter(["params", *self._values])

    def __len__(self) -> int:
        return 1 + len(self._values)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a group is part of its optimizer: copy or pickle that")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Group({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


def _rates(values: Mapping[str, Any]) -> tuple[float, float, bool]:
    """The learning rate and the average's decay, 0 where a function says it before each step, and whether one does."""
    lr, ema = values["lr"], values["ema"]
    scheduled = callable(lr), callable(ema)
    return 0.0 if scheduled[0] else lr, 0.0 if ema is None or scheduled[1] else ema, any(scheduled)


def in_order(rule: str, numbers: Mapping[str, float]) -> list[float]:
    """A rule's numbers in the order in which the core takes them."""
    return [numbers[name] for name in rules[rule][0]]


def asked(whose: str, schedule: Any, name: str, check: Check, t: int) -> float:
    """What a schedule says at step t; a number says itself."""
    if not callable(schedule):
        return schedule  # type: ignore[no-any-return]
    try:
        value = schedule(t)
    except MemoryError:  # says nothing of the schedule
        raise
    except Exception as error:
        raise ValueError(f"{whose} failed at step {t}: {error!r}") from error
    try:
        return check(name, value)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{whose} returned {value!r} at step {t}: {error}") from error
