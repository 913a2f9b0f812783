"""The optimizers: their options, what is checked, and what is kept for each.

The arithmetic is the core's; `_reference.py` says in NumPy what it computes.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import _core

_CACHE_LINE = 64  # bytes

Array = npt.NDArray[Any]
LearningRate = float | Callable[[int], float]
Params = Array | Iterable[Array] | Mapping[Any, Array]


# ---- Options: each check takes a name and a value, and returns the value to keep or raises ----


def _finite(name: str, value: Any) -> float:
    if isinstance(value, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a finite number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return number


def _non_negative(name: str, value: Any) -> float:
    number = _finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, not {value!r}")
    return number


def _decay(name: str, value: Any) -> float:
    number = _finite(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {value!r}")
    return number


def _learning_rate(name: str, value: Any) -> LearningRate:
    return value if callable(value) else _non_negative(name, value)


def _betas(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, (str, bytes, Mapping)):
        raise TypeError(f"{name} must be a pair of numbers, not {value!r}")
    try:
        values = tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a pair of numbers, not {value!r}") from None
    if len(values) != 2:
        raise ValueError(f"{name} must be a pair of numbers, not {value!r}")
    return _decay(f"{name}[0]", values[0]), _decay(f"{name}[1]", values[1])


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def _eps_mode(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'paper' or 'hat', not {value!r}")
    if value not in ("paper", "hat"):
        raise ValueError(f"{name} must be 'paper' or 'hat', not {value!r}")
    return value


Check = Callable[[str, Any], Any]


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


# ---- Parameters ----


def _named(params: Params) -> tuple[_core.Optimizer.Form, dict[Any, Any]]:
    """The form in which parameters came, and each under its key."""
    form = _core.Optimizer.Form
    if isinstance(params, np.ndarray):
        return form.array, {0: params}
    if isinstance(params, Mapping):
        named = dict(params)
        kind = form.mapping
    elif hasattr(params, "__iter__") and not isinstance(params, (str, bytes, bytearray)):
        named = dict(enumerate(params))
        kind = form.sequence
    else:
        raise TypeError(f"params must be an array, or a sequence or mapping of arrays, not {type(params).__name__}")
    if not named:
        raise ValueError("params holds no parameters")
    return kind, named


def _check_storage(label: str, array: Any) -> None:
    """Refuse what cannot be updated in place."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array, not {type(array).__name__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass its .data")
    if array.dtype not in (np.float32, np.float64) or not array.dtype.isnative:
        raise TypeError(f"{label} must be of dtype float32 or float64 in native byte order, not {array.dtype.str!r}")
    if not array.flags.writeable:
        raise ValueError(f"{label} is read-only and could not be updated: pass a writeable array or a copy")
    if not array.flags.forc:
        raise ValueError(
            f"{label} is not contiguous: keep it in an array of its own, say numpy.ascontiguousarray(it), and pass that"
        )
    if not array.flags.aligned:
        raise ValueError(f"{label} is not aligned to its dtype: pass a copy")


def _check_disjoint(arrays: Mapping[str, Array]) -> None:
    """Refuse contiguous arrays that share memory."""
    extents = sorted((_address(array), array.nbytes, label) for label, array in arrays.items() if array.size)
    for (start, size, label), (next_start, next_size, next_label) in pairwise(extents):
        if (start, size) == (next_start, next_size):
            raise ValueError(f"{next_label} is the same memory as {label}: pass it once")
        if next_start < start + size:
            raise ValueError(f"{next_label} overlaps {label} in memory: pass arrays that share nothing, or a copy")


def _checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """The gradient as a plain array, or the error that says what is wrong with it."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    if not isinstance(grad, np.ndarray):
        raise TypeError(f"{label} must be a NumPy array of real floating-point numbers, not {type(grad).__name__}")
    if isinstance(grad, np.ma.MaskedArray):
        raise TypeError(f"{label} is a masked array, whose mask would be ignored: pass grad.filled(0)")
    if grad.dtype.kind != "f":
        raise TypeError(f"{label} must be of a real floating-point dtype, not {grad.dtype}")
    if grad.shape != shape:
        raise ValueError(f"{label} has shape {grad.shape}, its parameter {shape}: they must be equal")
    return np.asarray(grad)


def _copy_into(scratch: Array, grad: Array) -> Array:
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="same_kind")
    return scratch


def _zeros_like(array: Array) -> Array:
    """Zeros of the same shape, dtype and order in memory, as far from a cache line's start (see sweep.hpp)."""
    room = np.zeros(array.size + _CACHE_LINE // array.itemsize, array.dtype)
    start = (_address(array) - _address(room)) % _CACHE_LINE // array.itemsize
    flat = room[start : start + array.size]
    return flat.reshape(array.shape, order="C" if array.flags.c_contiguous else "F")


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _pin(array: Array) -> list[weakref.ref[Any]]:
    """Weak references that keep ndarray.resize from moving the memory of an array or of its owner."""
    owners: list[Any] = [array]
    while isinstance(owners[-1].base, np.ndarray):
        owners.append(owners[-1].base)
    return [weakref.ref(owner) for owner in owners]


# ---- Optimizers ----


class Optimizer(_core.Optimizer):
    """What all optimizers share. Use one of its subclasses: `Adam`, `AdamW`."""

    _checks: ClassVar[Mapping[str, Check]]  # the options that may differ between groups and change between steps
    _decoupled: ClassVar[bool] = False  # weight decay shrinks the parameter instead of adding to the gradient

    def __init__(self, params: Params, rule: str, options: Mapping[str, Any], flush_denormals: bool) -> None:
        form, named = _named(params)
        group = Group(type(self), rule, options)
        _core.Optimizer.__init__(self, rule, form, _flag("flush_denormals", flush_denormals))
        self._form = form
        self._as_tuple = isinstance(params, tuple)
        labels = {key: "the parameter" if form is form.array else f"parameter {key!r}" for key in named}
        for key, array in named.items():
            _check_storage(labels[key], array)
        _check_disjoint({labels[key]: array for key, array in named.items()})

        state_names = _core.rules[rule][1]
        states = []
        for array in named.values():
            states.append({name: _zeros_like(array) for name in state_names})
        self._keys = list(named)
        self._index = {key: index for index, key in enumerate(named)}
        self._params = list(named.values())
        self._shapes = [array.shape for array in self._params]
        self._states = states
        self._scratch: dict[int, Array] = {}
        self._groups = (group,)
        self._pins = [_pin(array) for array in self._params]
        self._pins += [_pin(array) for state in states for array in state.values()]
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
        array = _checked_gradient(self._label(index), grad, self._shapes[index])
        if self._fits(index, array):
            return array
        if index not in self._scratch:
            self._scratch[index] = _zeros_like(self._states[index]["exp_avg"])
        return _copy_into(self._scratch[index], array)

    def _learning_rate(self, group: int, t: int) -> float:
        """What the group's schedule says at step t."""
        try:
            value = self._groups[group].lr(t)
        except Exception as error:
            raise ValueError(f"the schedule of group {group} failed at step {t}: {error!r}") from error
        try:
            return _non_negative("lr", value)
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


_ADAM_CHECKS: Mapping[str, Check] = {
    "lr": _learning_rate,
    "betas": _betas,
    "eps": _non_negative,
    "weight_decay": _non_negative,
    "bias_correction": _flag,
    "eps_mode": _eps_mode,
    "maximize": _flag,
}


class Adam(Optimizer):
    r"""Adam: adaptive moment estimation, in place and in one pass over memory.

    At step :math:`t = 1, 2, \dots`, for each element of each parameter :math:`p` with gradient :math:`g`::

        m ← beta1·m + (1 − beta1)·g              first moment, "exp_avg"
        v ← beta2·v + (1 − beta2)·g²             second moment, "exp_avg_sq"
        p ← p − lr/(1 − beta1^t) · m / (sqrt(v/(1 − beta2^t)) + eps)

    With ``eps_mode="hat"`` epsilon stands where TensorFlow, Keras and others have it, before the bias correction::

        p ← p − lr·sqrt(1 − beta2^t)/(1 − beta1^t) · m / (sqrt(v) + eps)

    The same number acts as one up to ``1/sqrt(1 − beta2)`` times larger there.

    Names and defaults are those of ``torch.optim.Adam``. What differs: parameters are NumPy arrays, gradients are
    handed to `step`, ``lr`` may be a function of the step, and ``bias_correction`` and ``eps_mode`` exist.

    Args:
        params: an array, a sequence of arrays or a mapping of names to arrays, of dtype float32 or float64, contiguous
            (C or Fortran order) and writeable. They are updated in place. State takes two arrays of each one's size.
        lr: the learning rate, or a function of ``t`` that returns one.
        betas: the decays of the two moments, in [0, 1).
        eps: keeps the division from blowing up.
        weight_decay: adds ``weight_decay·p`` to the gradient (L2); see `AdamW` for the other kind.
        amsgrad: divide by the root of the largest second moment so far, "max_exp_avg_sq".
        bias_correction: whether the moments are divided by ``1 − beta^t``.
        eps_mode: ``"paper"`` or ``"hat"``.
        maximize: step along the gradient instead of against it.
        flush_denormals: treat subnormal numbers as zero while stepping. They carry no information worth having and make
            processors slow.

    Raises:
        TypeError: a parameter that is no array, or of another dtype; an option of the wrong type.
        ValueError: a parameter that is read-only, not contiguous, misaligned, or that shares memory with another; no
            parameters; an option out of its range.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1 and the end of section 2;
    amsgrad: Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond" (2018).

    Example:
        >>> import numpy as np, onepass
        >>> w, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
        >>> opt = onepass.Adam([w, b], lr=0.1)
        >>> opt.step([np.full((2, 2), 3, np.float32), np.array([1, -1], np.float32)])
        >>> w
        array([[0.9, 0.9],
               [0.9, 0.9]], dtype=float32)
        >>> b
        array([-0.1,  0.1], dtype=float32)
    """

    _checks = _ADAM_CHECKS

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: str = "paper",
        maximize: bool = False,
        flush_denormals: bool = True,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "eps_mode": eps_mode,
            "maximize": maximize,
        }
        super().__init__(params, "amsgrad" if _flag("amsgrad", amsgrad) else "adam", options, flush_denormals)

    @staticmethod
    def _numbers(options: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = options["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "eps": options["eps"],
            "bias_correction": float(options["bias_correction"]),
            "hat": float(options["eps_mode"] == "hat"),
        }


class AdamW(Adam):
    """Adam with decoupled weight decay.

    As `Adam`, but weight decay shrinks the parameter, ``p ← p·(1 − lr·weight_decay)`` before the step, instead of
    entering the gradient and its moments.

    Args:
        weight_decay: 0.01 by default. All others as in `Adam`.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); defaults as ``torch.optim.AdamW``.

    Example:
        >>> import numpy as np, onepass
        >>> w = np.ones(2, np.float32)
        >>> opt = onepass.AdamW(w, lr=0.5, weight_decay=0.5)
        >>> opt.step(np.array([3, 0], np.float32))
        >>> w
        array([0.25, 0.75], dtype=float32)
    """

    _decoupled = True

    def __init__(
        self,
        params: Params,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        bias_correction: bool = True,
        eps_mode: str = "paper",
        maximize: bool = False,
        flush_denormals: bool = True,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            bias_correction=bias_correction,
            eps_mode=eps_mode,
            maximize=maximize,
            flush_denormals=flush_denormals,
        )


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    step: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    max_exp_avg_sq: Array | None = None,
    bias_correction: bool = True,
    eps_mode: str = "paper",
    maximize: bool = False,
    grad_scale: float = 1.0,
    flush_denormals: bool = True,
) -> None:
    """One step of Adam on arrays that the caller keeps: the kernel alone.

    Computes what `Adam` (or `AdamW`, with ``decoupled_weight_decay=True``) computes at step ``step``, and updates
    ``param``, ``exp_avg`` and ``exp_avg_sq`` in place. Any of them may be a memory map.

    Args:
        param: the parameter, float32 or float64, contiguous and writeable.
        grad: its gradient, of the same shape; copied first if its dtype or layout differ or it overlaps the others.
        exp_avg: the first moment, of the parameter's shape, dtype and layout; zeros before the first step.
        exp_avg_sq: the second moment, likewise.
        step: the number of this step, 1 or more.
        max_exp_avg_sq: the largest second moment so far, likewise; given, the step is AMSGrad's.
        grad_scale: a factor for the gradient.

    The other options are those of `Adam`. ``lr`` is a number here.

    Raises:
        TypeError, ValueError: as `Adam` and `Adam.step`; nothing has changed.

    Example:
        >>> import numpy as np, onepass
        >>> p, m, v = np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
        >>> onepass.adam_step(p, np.array([1, -1], np.float32), m, v, step=1, lr=0.5)
        >>> p
        array([0.5, 1.5], dtype=float32)
    """
    options = {
        "betas": _betas("betas", betas),
        "eps": _non_negative("eps", eps),
        "bias_correction": _flag("bias_correction", bias_correction),
        "eps_mode": _eps_mode("eps_mode", eps_mode),
    }
    lr = _non_negative("lr", lr)
    weight_decay = _non_negative("weight_decay", weight_decay)
    scale = -_finite("grad_scale", grad_scale) if _flag("maximize", maximize) else _finite("grad_scale", grad_scale)
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be an integer, not {step!r}") from None
    if not 1 <= step < 2**63:
        raise ValueError(f"step must be at least 1 and fit 64 bits, not {step}")

    states = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if max_exp_avg_sq is not None:
        states["max_exp_avg_sq"] = max_exp_avg_sq
    _check_storage("param", param)
    for name, array in states.items():
        _check_storage(name, array)
        if array.dtype != param.dtype:
            raise TypeError(f"{name} is of dtype {array.dtype}, param of {param.dtype}: they must be equal")
        if array.shape != param.shape:
            raise ValueError(f"{name} has shape {array.shape}, param {param.shape}: they must be equal")
        if not (array.flags.c_contiguous and param.flags.c_contiguous) and not (
            array.flags.f_contiguous and param.flags.f_contiguous
        ):
            raise ValueError(f"{name} and param must both be in C order or both in Fortran order")
    arrays = {"param": param, **states}
    _check_disjoint(arrays)
    gradient = _checked_gradient("grad", grad, param.shape)
    same_order = (gradient.flags.c_contiguous and param.flags.c_contiguous) or (
        gradient.flags.f_contiguous and param.flags.f_contiguous
    )
    alone = not any(np.may_share_memory(gradient, array) for array in arrays.values())
    if not (same_order and alone and gradient.flags.aligned and gradient.dtype == param.dtype):
        gradient = _copy_into(_zeros_like(param), gradient)

    rule = "adam" if max_exp_avg_sq is None else "amsgrad"
    named = Adam._numbers(options)
    numbers = [named[name] for name in _core.rules[rule][0]]
    if not _core.step_once(
        rule,
        numbers,
        lr,
        weight_decay,
        _flag("decoupled_weight_decay", decoupled_weight_decay),
        scale,
        _flag("flush_denormals", flush_denormals),
        step,
        param,
        gradient,
        list(states.values()),
    ):
        raise ValueError(
            f"a coefficient made from the options overflows {param.dtype} at step {step}: use smaller numbers, or "
            f"float64 arrays (lr={lr!r}, weight_decay={weight_decay!r}, grad_scale={grad_scale!r}, {options!r})"
        )
