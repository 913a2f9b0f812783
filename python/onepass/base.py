"""What all optimizers share: parameters, state, groups, and the slow path of a step."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from . import _core, checks
from .arrays import Array, Params, check_disjoint, check_storage, checked_gradient, copy_into, named, pin, zeros_like
from .checks import Check, LearningRate


class Group:
    """Some of an optimizer's parameters' options, as attributes.

    Assigning to one checks the value and holds from the next step on. Options that decide which buffers exist
    (``amsgrad``, ``flush_denormals``) are fixed when the optimizer is made.

    Example:
        >>> import numpy as np, onepass
        >>> opt = onepass.AdamW(np.zeros(3, np.float32), lr=0.1)
        >>> opt.groups[0].weight_decay = 0.05
        >>> opt.groups[0]
        Group(lr=0.1, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.05, bias_correction=True, eps_mode='paper', \
maximize=False)
    """

    __slots__ = ("_core", "_kind", "_rule", "_values")

    def __init__(self, kind: type[Optimizer], rule: str, options: Mapping[str, Any]) -> None:
        values = {name: check(name, options[name]) for name, check in kind._checks.items()}
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_rule", rule)
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_core", _core.Group(rule, *self._numbers(values)))
        self._core.scheduled = callable(values["lr"])

    def _numbers(self, values: Mapping[str, Any]) -> tuple[list[float], float, float, bool, float]:
        """The options as the core takes them."""
        named = self._kind._numbers(values)
        lr = values["lr"]
        return (
            [named[name] for name in _core.rules[self._rule][0]],
            0.0 if callable(lr) else lr,  # a schedule is asked before each step
            values["weight_decay"],
            self._kind._decoupled,
            -1.0 if values["maximize"] else 1.0,
        )

    def __getattr__(self, name: str) -> Any:
        if name in Group.__slots__ or name not in self._values:  # a slot is only asked for here while it is empty
            raise AttributeError(f"there is no option {name!r}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._values:
            raise AttributeError(f"{self._kind.__name__} has no option {name!r} that can be set: {list(self._values)}")
        values = {**self._values, name: self._kind._checks[name](name, value)}
        self._core.set(*self._numbers(values))
        self._core.scheduled = callable(values["lr"])
        object.__setattr__(self, "_values", values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return f"Group({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


class _State(Mapping[Any, "dict[str, Any]"]):
    """Each parameter's state: its step count and live views of its arrays."""

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def __getitem__(self, key: Hashable) -> dict[str, Any]:
        optimizer = self._optimizer
        index = optimizer._index[key]
        views = {name: array.view() for name, array in optimizer._states[index].items()}
        return {"step": optimizer._parameter_step(index), **views}

    def __iter__(self) -> Iterator[Any]:
        return iter(self._optimizer._index)

    def __len__(self) -> int:
        return len(self._optimizer._index)

    def __repr__(self) -> str:
        return repr(dict(self))


class Optimizer(_core.Optimizer):
    """What all optimizers share. Use one of its subclasses: `Adam`, `AdamW`."""

    _checks: ClassVar[Mapping[str, Check]]  # the options that may differ between groups and change between steps
    _decoupled: ClassVar[bool] = False  # weight decay shrinks the parameter instead of adding to the gradient

    def __init__(self, params: Params, rule: str, options: Mapping[str, Any], flush_denormals: bool) -> None:
        form, arrays = named(params)
        group = Group(type(self), rule, options)
        _core.Optimizer.__init__(self, rule, form, checks.flag("flush_denormals", flush_denormals))
        self._form = form
        self._as_tuple = isinstance(params, tuple)
        labels = {key: "the parameter" if form is form.array else f"parameter {key!r}" for key in arrays}
        for key, array in arrays.items():
            check_storage(labels[key], array)
        check_disjoint({labels[key]: array for key, array in arrays.items()})

        state_names = _core.rules[rule][1]
        states = []
        for array in arrays.values():
            states.append({name: zeros_like(array) for name in state_names})
        self._keys = list(arrays)
        self._index = {key: index for index, key in enumerate(arrays)}
        self._params = list(arrays.values())
        self._shapes = [array.shape for array in self._params]
        self._states = states
        self._scratch: dict[int, Array] = {}
        self._groups = (group,)
        self._pins = [pin(array) for array in self._params]
        self._pins += [pin(array) for state in states for array in state.values()]
        self._add_group(group._core, self._keys, self._params, [list(state.values()) for state in states])

    @staticmethod
    def _numbers(options: Mapping[str, Any]) -> dict[str, float]:
        """The numbers that the rule's fold takes, by name."""
        raise NotImplementedError

    @property
    def params(self) -> Any:
        """The parameters, in the form in which they came."""
        if self._form is self._form.array:
            return self._params[0]
        if self._form is self._form.mapping:
            return dict(zip(self._keys, self._params))
        return tuple(self._params) if self._as_tuple else list(self._params)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of parameters: their options can be read and set."""
        return self._groups

    @property
    def lr(self) -> LearningRate:
        """The learning rate: a number, or a function of the step ``t = 1, 2, …`` that returns one."""
        return self.groups[0].lr  # type: ignore[no-any-return]

    @lr.setter
    def lr(self, value: LearningRate) -> None:
        self.groups[0].lr = value

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """Each parameter's state under its name or index: ``"step"`` and live views of the arrays.

        Example:
            >>> import numpy as np, onepass
            >>> opt = onepass.Adam({"w": np.zeros(2, np.float32)})
            >>> opt.step({"w": np.array([1, 2], np.float32)})
            >>> opt.state["w"]["step"], opt.state["w"]["exp_avg"]
            (1, array([0.1, 0.2], dtype=float32))
        """
        return _State(self)

    def __repr__(self) -> str:
        elements = sum(array.size for array in self._params)
        options = repr(self.groups[0]).partition("(")[2][:-1]
        return f"{type(self).__name__}({len(self._params)} parameters, {elements} elements, {options})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied yet")

    # What the core asks for when its fast path does not serve.

    def _label(self, index: int) -> str:
        return "the gradient" if self._form is self._form.array else f"gradient {self._keys[index]!r}"

    def _arrange(self, grads: Any) -> list[Any]:
        """The gradients as one list, in the order of the parameters."""
        if self._form is self._form.mapping:
            if not isinstance(grads, Mapping):
                raise TypeError(f"the gradients must be a mapping, as the parameters were, not {type(grads).__name__}")
            missing = [key for key in self._keys if key not in grads]
            unknown = [key for key in grads if key not in self._index]
            if missing or unknown:
                wrong = [f"none is named {missing}"] * bool(missing) + [f"{unknown} are unknown"] * bool(unknown)
                raise ValueError(f"the gradients must have the parameters' names, but {' and '.join(wrong)}")
            return [grads[key] for key in self._keys]
        if isinstance(grads, (np.ndarray, Mapping, str, bytes)) or not isinstance(grads, Iterable):
            raise TypeError(f"the gradients must be a sequence, as the parameters were, not {type(grads).__name__}")
        arranged = list(grads)
        if len(arranged) != len(self._keys):
            raise ValueError(
                f"there are {len(self._keys)} parameters but {len(arranged)} gradients: pass one for each, or None"
            )
        return arranged

    def _convert(self, index: int, grad: Any) -> Array:
        """A gradient that the core can read: the given one if it only looked different, or a copy."""
        array = checked_gradient(self._label(index), grad, self._shapes[index])
        if self._fits(index, array):
            return array
        if index not in self._scratch:
            self._scratch[index] = zeros_like(self._states[index]["exp_avg"])
        return copy_into(self._scratch[index], array)

    def _learning_rate(self, group: int, t: int) -> float:
        """What the group's schedule says at step t."""
        try:
            value = self._groups[group].lr(t)
        except Exception as error:
            raise ValueError(f"the schedule of group {group} failed at step {t}: {error!r}") from error
        try:
            return checks.non_negative("lr", value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the schedule of group {group} returned {value!r} at step {t}: {error}") from error

    def _overflow(self, index: int, t: int, grad_scale: float) -> None:
        array = self._params[index]
        raise ValueError(
            f"a coefficient made from the options overflows {array.dtype} at step {t} of parameter "
            f"{self._keys[index]!r}: use smaller numbers, or float64 parameters "
            f"(grad_scale={grad_scale!r}, {self._groups[0]!r})"
        )

    def _parameter_changed(self, index: int, same_memory: bool) -> None:
        change = "was made read-only" if same_memory else "was given other memory"
        raise ValueError(f"parameter {self._keys[index]!r} {change} after the optimizer was made: make a new optimizer")
