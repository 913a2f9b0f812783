"""PyTorch's optimizers on the CPU in one pass: write ``onepass.integrations.torch.Adam`` for ``torch.optim.Adam``.

The classes are subclasses of PyTorch's, with their arguments, parameter groups, hooks, closures, state and state dicts:
learning-rate schedulers, ``GradScaler``, checkpoints and everything else that works on those works on these, and a
state dict of either goes into the other. Parameters and state are PyTorch's tensors; onepass's kernels update them in
place, on PyTorch's threads, as many as ``torch.get_num_threads()`` returns (or fewer, if you set a smaller number with
`onepass.set_num_threads`), and take subnormal numbers for zero.

Parameters must be dense, contiguous in some order of their dimensions, on the CPU, of dtype float32 or float64.
``capturable`` and ``differentiable`` are refused; ``foreach`` and ``fused`` choose among PyTorch's own implementations,
none of which runs here. Options must be what onepass takes: no negative learning rate, for one. A sparse gradient
touches its rows alone, in the parameter and in its state: momentum does not move the others (PyTorch's SGD moves all,
its Adam, Adamax, NAdam, RMSprop and Adadelta refuse such gradients).

State tensors lie in memory of onepass's own; state that is loaded is copied there, once. Their values may be changed in
place, and other tensors put in their place, but their ``.data`` must not be exchanged; for the same reason state cannot
be moved into shared memory. It is made by the first step, and anew by the first after state was loaded or a group
added: `onepass.state_dir` holds for the state of the steps that are taken in its block.

Example:
    >>> import torch, onepass.integrations.torch
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = onepass.integrations.torch.Adam([w], lr=0.5)
    >>> w.sum().backward()
    >>> optimizer.step()
    >>> w.detach()
    tensor([0.5000, 0.5000, 0.5000])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from operator import is_
from typing import Any, ClassVar, NamedTuple

import numpy as np

import onepass

from .. import _checks, _core
from .._optimizer import Optimizer as CoreOptimizer
from .._types import Array
from ..sparse import SparseRows
from . import needed

with needed("torch"):
    import torch
    from torch._C import _increment_version
    from torch.autograd import _profiler_enabled
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

try:  # autograd refuses to go back through what was changed in place
    _increment_version(())
    _count_changes = _increment_version
except RuntimeError:  # in older PyTorch it takes one tensor

    def _count_changes(tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            _increment_version(tensor)


__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RMSprop"]


class _CoreAdam(onepass.Adam):
    """Adam whose kind of weight decay is an option of the group, as PyTorch has it."""

    __slots__ = ()
    _spec = replace(
        onepass.Adam._spec,
        checks={**onepass.Adam._spec.checks, "decoupled_weight_decay": _checks.flag},
        decoupled="decoupled_weight_decay",
    )


# The options that PyTorch's groups do not have.
_OF_GROUPS = {"bias_correction": True, "eps_mode": "paper", "clip_value": None, "ema_decay": None}
_OF_ALL = {"clip_norm": None, "nonfinite": "propagate", "flush_denormals": True}


class _Group(NamedTuple):
    """A parameter group as it was seen. What it held is told apart by which objects they are: tensors may be equal."""

    group: dict[str, Any]
    keys: tuple[str, ...]
    values: tuple[Any, ...]
    params: list[torch.Tensor]
    tensors: tuple[torch.Tensor, ...]
    options: list[Any]  # those that are onepass's too

    @property
    def snapshots(self) -> tuple[tuple[Any, tuple[Any, ...]], tuple[Any, tuple[Any, ...]]]:
        """The group and its list of tensors, as the core takes them."""
        return (self.group, (*self.keys, *self.values)), (self.params, self.tensors)

    @classmethod
    def of(cls, group: dict[str, Any], names: list[str]) -> _Group:
        keys, values = tuple(group), tuple(group.values())
        held = dict(zip(keys, values))
        params = held["params"]
        return cls(group, keys, values, params, tuple(params), [held[name] for name in names])


class _Engine:
    """One of onepass's optimizers in the memory of tensors: good as long as they, groups and state stay as they are."""

    def __init__(self, optimizer: _OnePass) -> None:
        kind, checks = optimizer._kind, optimizer._kind._spec.checks
        self.state = optimizer.state
        for group in optimizer.param_groups:
            optimizer._check_options(group, optimizer.defaults)
        # Whatever else a group holds is the user's own.
        self.names = [name for name in checks if name in optimizer.defaults and name in optimizer.param_groups[0]]
        self.groups = [_Group.of(group, self.names) for group in optimizer.param_groups]
        self.tensors = tuple(chain.from_iterable(seen.tensors for seen in self.groups))
        # Those of another layout (channels last) are updated as the flat memory that they are.
        for i, tensor in enumerate(self.tensors):
            _check_tensor(f"parameter {i}", tensor)
        self.plain = [tensor.is_contiguous() for tensor in self.tensors]
        self.layouts = list(map(_layout, self.tensors))
        arrays = iter([_array(tensor, plain) for tensor, plain in zip(self.tensors, self.plain)])

        defaults = {
            name: value for name, value in {**_OF_GROUPS, **optimizer._older}.items() if name in kind._spec.checks
        }
        keys = iter(range(len(self.tensors)))
        options = [
            ({next(keys): next(arrays) for _ in seen.tensors}, defaults | _numbers(kind, self.names, seen.options))
            for seen in self.groups
        ]
        self.core = kind.__new__(kind)
        self.core._init(_core.Optimizer._Form.sequence, False, [each for each in options if each[0]], _OF_ALL)
        self.core._use_torch_threads(torch.get_num_threads)
        own = iter(self.core.groups)
        self.own = [next(own) if seen.tensors else None for seen in self.groups]

        # What PyTorch sees of the counts: a tensor of each.
        single = torch.get_default_dtype() != torch.float64
        self.counts = np.zeros(len(self.tensors), np.float32 if single else np.float64)
        self.products = np.ones_like(self.counts)
        self.untold = False
        self._take_over()

    def _take_over(self) -> None:
        """Move what state there is into the core's."""
        found = [self.state.get(tensor) or {} for tensor in self.tensors]
        steps, products = [], []
        for i, (tensor, state) in enumerate(zip(self.tensors, found)):
            begun = any(state.get(name) is not None for name in self.core._record.states[i])
            for name in self.core._record.states[i] if begun else ():
                if not isinstance(state.get(name), torch.Tensor):
                    raise KeyError(f"the state of parameter {i} has no tensor {name!r}: its options had no use for one")
                if state[name].shape != tensor.shape:
                    raise ValueError(
                        f"{name} of parameter {i} is of shape {[*state[name].shape]}, not {[*tensor.shape]}"
                    )
            steps.append(int(state["step"]) if "step" in state else int(begun))
            products.append(float(state.get("mu_product", 1.0)))
        with torch.no_grad():
            for i, state in enumerate(found):
                for name in self.core._record.states[i]:
                    if state.get(name) is not None:
                        self._view(i, name).copy_(state[name])
        self.core._restore([], [], self.core._clip_norm, self.core._nonfinite, max(steps), 0, steps, products)
        self.counts[:], self.products[:] = steps, products
        for i, state in enumerate(found):
            if state:
                self._show(i)
        self._look()

    def _view(self, i: int, name: str) -> torch.Tensor:
        """An array of state as a tensor like its parameter."""
        tensor = self.tensors[i]
        flat = torch.from_numpy(self.core._record.states[i][name].reshape(-1))
        return flat.as_strided(tensor.size(), tensor.stride())

    def _show(self, i: int) -> None:
        """Put the core's state of a parameter where PyTorch has it."""
        state = self.state[self.tensors[i]]
        if not isinstance(self.core, onepass.SGD):
            state["step"] = torch.from_numpy(self.counts)[i]
        if self.core._spec.scalars:
            state["mu_product"] = torch.from_numpy(self.products)[i]
        state.update({name: self._view(i, name) for name in self.core._record.states[i]})

    def _look(self) -> None:
        """Take in what groups and state hold, so that changes are noticed."""
        self.entries = self._entries()
        states = self.core._record.states
        self.shown = [bool(self.state.get(tensor)) or not state for tensor, state in zip(self.tensors, states)]
        # The way without Python. Before PyTorch 2.10 there was none to the tensors' memory.
        exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
        self.known: _core.TorchFastPath | None = None
        if exchange is not None and all(isinstance(seen.params, list) for seen in self.groups):
            groups = [seen.snapshots for seen in self.groups]
            counts = self.counts, self.products
            self.known = _core.TorchFastPath(
                self.core, self.tensors, self.shown, groups, self.entries, *counts, _count_changes, exchange
            )

    def _entries(self) -> list[tuple[dict[Any, Any], tuple[Any, ...]]]:
        """Each dict of state, with its keys and its values; first the one that holds the others."""
        dicts = [self.state, *(held for held in self.state.values() if isinstance(held, dict))]
        return [(held, (*held, *held.values())) for held in dicts]

    @property
    def direct(self) -> _core.TorchFastPath | None:
        """What takes a step without a look at the options, where these do not change in place."""
        changeable = any(map(_is_changeable, chain.from_iterable(seen.options for seen in self.groups)))
        return None if changeable else self.known

    def _told(self) -> tuple[Array, Array]:
        """The core's counts as PyTorch is told them."""
        every = range(len(self.tensors))
        steps, products = map(self.core._parameter_step, every), map(self.core._mu_product, every)
        return np.array([*steps], self.counts.dtype), np.array([*products], self.products.dtype)

    def _tell(self) -> None:
        """Show PyTorch the core's counts."""
        self.counts[:], self.products[:] = self._told()
        self.untold = False

    def fits(self, optimizer: _OnePass) -> bool:
        """Whether it is still good, once changed options are handed on."""
        if self.untold:  # Ctrl-C came between a step and its counts
            self._tell()
        return (
            optimizer.state is self.state
            and [_layout(tensor) for tensor in self.tensors] == self.layouts
            and all(map(np.array_equal, self._told(), (self.counts, self.products)))
            and all(map(_is_same, self._entries(), self.entries))  # the first has them all
            and self.renew(optimizer.param_groups)
        )

    def renew(self, groups: list[dict[str, Any]]) -> bool:
        """Hand changed options on; False where they cannot be, or where the groups' tensors have changed."""
        if len(groups) != len(self.groups):
            return False
        for g, (group, known, own) in enumerate(zip(groups, self.groups, self.own)):
            seen = _Group.of(group, self.names)
            if not _are_same(seen.tensors, known.tensors):
                return False
            _refuse(group)
            if own is not None:
                numbers = _numbers(type(self.core), self.names, seen.options)
                values = own._values
                changes = {name: number for name, number in numbers.items() if number != values[name]}
                try:
                    if changes:
                        own._set(changes)
                except AttributeError:  # of what decides which buffers there are
                    return False
            self.groups[g] = seen
            if not isinstance(seen.params, list):
                self.known = None
            if self.known is not None:
                self.known.update_group(g, seen.snapshots)
        return True

    def step_slowly(self) -> None:
        """Take a step along gradients of any kind."""
        gradients = [_gradient(tensor, plain) for tensor, plain in zip(self.tensors, self.plain)]
        every = range(len(self.tensors))
        before = [self.core._parameter_step(i) for i in every]
        self.untold = True
        try:
            self.core.step(gradients)
        finally:  # Ctrl-C is heard of when the core is done
            self._tell()
            stepped = [i for i in every if self.core._parameter_step(i) != before[i]]
            for i in stepped:
                if not self.shown[i]:
                    self._show(i)
            _count_changes(tuple(self.tensors[i] for i in stepped))
        self._look()


def _is_same(held: tuple[dict[Any, Any], tuple[Any, ...]], known: Any) -> bool:
    """Return True for the same dict with the same keys and values, compared by identity."""
    return held[0] is known[0] and _are_same(held[1], known[1])


def _are_same(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether they are the very same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def _numbers(kind: type[CoreOptimizer], names: list[str], values: list[Any]) -> dict[str, Any]:
    """Options as onepass takes them."""
    return {name: _number(value, kind._spec.checks[name]) for name, value in zip(names, values)}


def _number(value: Any, check: Any) -> Any:
    """An option's value without tensors; PyTorch takes anything for a flag."""
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return tuple(_number(item, None) for item in value)
    return bool(value) if check is _checks.flag else value


_UNCHANGEABLE = frozenset({bool, float, int, str, type(None)})


def _is_changeable(value: Any) -> bool:
    """Whether an option's value may change in place."""
    if type(value) is tuple:
        return any(map(_is_changeable, value))
    return type(value) not in _UNCHANGEABLE and not isinstance(value, np.generic)


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in memory: some are made up, or kept in other tensors."""
    try:
        return tensor.numel() == 0 or bool(tensor.data_ptr())
    except RuntimeError:
        return False


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Where a tensor's elements lie, and what they are."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _array(tensor: torch.Tensor, plain: bool) -> Array:
    """A dense tensor's memory as an array, flat where the tensor is not contiguous.

    ``numpy()`` would give the same, but forbid PyTorch to resize the tensor ever after.
    """
    dtype = np.dtype(np.float64 if tensor.dtype == torch.float64 else np.float32)
    shape, strides = (tensor.shape, tensor.stride()) if plain else ((tensor.numel(),), (1,))
    # Kept alive by a tensor of its own: arrays hide from the garbage collector what they hold.
    owner = tensor.detach()
    return _core.array_at(owner.data_ptr(), dtype, [*shape], [n * dtype.itemsize for n in strides], owner)


def _gradient(tensor: torch.Tensor, plain: bool) -> Array | SparseRows | None:
    """A tensor's gradient as onepass takes it."""
    gradient = tensor.grad
    if gradient is None:
        return None
    with torch.no_grad():
        if gradient.layout == torch.sparse_coo and gradient.sparse_dim() == 1 and plain:
            values = gradient._values().to(tensor.dtype)
            return SparseRows(gradient._indices()[0].numpy(), values.resolve_neg().numpy())
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        same = gradient.dtype == tensor.dtype and (plain or gradient.stride() == tensor.stride())
        if not same or not _has_memory(gradient):
            gradient = torch.empty_like(tensor).copy_(gradient)
        return _array(gradient.resolve_neg(), plain)


class _OnePass(torch.optim.Optimizer):
    """What the optimizers share: everything of PyTorch's but the step."""

    _kind: ClassVar[type[CoreOptimizer]]
    _older: ClassVar[Mapping[str, Any]] = {}  # options that groups of an older PyTorch lack
    _engine: _Engine | None = None
    _known: _core.TorchFastPath | None = None  # the engine's

    # PyTorch wraps every step of every optimizer in a profiler's record, which takes longer than a small step. One that
    # is marked so is left alone, and does what the wrapper does where it makes a difference.
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients of the parameters.

        Args:
            closure: evaluates the model again, before the step, and returns the loss.
        """
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        )
        if closure is None and not watched:
            known = self._known
            if known is None or not known.step(self.param_groups, self.state):
                self._step_slowly()
            return None
        if not watched:
            return self._step(closure)
        return self._watched_step() if closure is None else self._watched_step(closure=closure)

    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._known is None or not self._known.step(self.param_groups, self.state):
            self._step_slowly()
        return loss

    def _step_slowly(self) -> None:
        """Take a step where something is new or unusual."""
        engine = self._engine
        self._known = None  # until all has gone well
        if not any(group["params"] for group in self.param_groups):
            return
        # Often it is no more than a learning rate that has changed.
        if engine is None or not self._step_renewed(engine):
            if engine is None or not engine.fits(self):
                self._forget()
                engine = self._engine = _Engine(self)
            engine.step_slowly()
        self._known = engine.direct

    def _step_renewed(self, engine: _Engine) -> bool:
        known = engine.known
        return known is not None and engine.renew(self.param_groups) and known.step(self.param_groups, self.state)

    @classmethod
    def _check_options(cls, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        for name, check in cls._kind._spec.checks.items():
            if name in group and name in defaults:
                check(name, _number(group[name], check))
        _refuse(group)

    def _forget(self) -> None:
        self._engine = self._known = None

    _watched_step = torch.optim.Optimizer.profile_hook_step(_step)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own."""
        super().add_param_group(param_group)
        try:
            self._check_options(self.param_groups[-1], self.defaults)
            for index, tensor in enumerate(self.param_groups[-1]["params"]):
                _check_tensor(f"parameter {index} of group {len(self.param_groups) - 1}", tensor)
        except BaseException:
            del self.param_groups[-1]
            raise
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles, copies and state dicts that are loaded all come here.
        for group in state["param_groups"]:
            self._check_options(group, state.get("defaults") or self.defaults)
        super().__setstate__(state)
        self._forget()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return False  # GradScaler then unscales gradients and leaves steps out by itself

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        """PyTorch's constructors set it where ``fused=True``."""


def _refuse(group: Mapping[str, Any]) -> None:
    for name in ("capturable", "differentiable"):
        if group.get(name):
            raise ValueError(
                f"{name}=True is not possible with onepass, whose steps PyTorch does not see: leave it out"
            )


def _check_tensor(label: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{label} is on {tensor.device}: onepass runs on the CPU; use torch.optim for others")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{label} is of dtype {tensor.dtype}: onepass updates float32 and float64 alone")
    if tensor.layout != torch.strided:
        raise ValueError(f"{label} is of layout {tensor.layout}: onepass updates dense tensors alone")
    if tensor.is_neg():
        raise ValueError(f"{label} is negated lazily: pass what its resolve_neg() makes")
    if not _has_memory(tensor):
        raise ValueError(f"{label} has no memory of its own: pass an ordinary tensor")
    outermost_first = sorted(
        range(tensor.dim()), key=lambda axis: (tensor.stride(axis), tensor.size(axis)), reverse=True
    )
    if not tensor.permute(outermost_first).is_contiguous():
        raise ValueError(f"{label} has gaps or overlaps in memory: pass a contiguous tensor")


class Adam(_OnePass, torch.optim.Adam):
    """``torch.optim.Adam`` with its arguments, stepped by `onepass.Adam`.

    Example:
        >>> import torch, onepass.integrations.torch
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = onepass.integrations.torch.Adam(model.parameters(), lr=0.1, betas=(0.9, 0.99))
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
    """

    _kind = _CoreAdam
    _older: ClassVar = {"decoupled_weight_decay": False}


class AdamW(_OnePass, torch.optim.AdamW):
    """``torch.optim.AdamW`` with its arguments, stepped by `onepass.AdamW`."""

    _kind = _CoreAdam
    _older: ClassVar = {"decoupled_weight_decay": True}


class Adamax(_OnePass, torch.optim.Adamax):
    """``torch.optim.Adamax`` with its arguments, stepped by `onepass.Adamax`."""

    _kind = onepass.Adamax


class NAdam(_OnePass, torch.optim.NAdam):
    """``torch.optim.NAdam`` with its arguments, stepped by `onepass.NAdam`."""

    _kind = onepass.NAdam


class RMSprop(_OnePass, torch.optim.RMSprop):
    """``torch.optim.RMSprop`` with its arguments, stepped by `onepass.RMSprop`."""

    _kind = onepass.RMSprop


class Adagrad(_OnePass, torch.optim.Adagrad):
    """``torch.optim.Adagrad`` with its arguments, stepped by `onepass.Adagrad`."""

    _kind = onepass.Adagrad

    def share_memory(self) -> None:
        """Refuse: state lies in memory of onepass's own."""
        raise RuntimeError("onepass keeps state in memory of its own, which cannot be shared with other processes")


class Adadelta(_OnePass, torch.optim.Adadelta):
    """``torch.optim.Adadelta`` with its arguments, stepped by `onepass.Adadelta`."""

    _kind = onepass.Adadelta


class SGD(_OnePass, torch.optim.SGD):
    """``torch.optim.SGD`` with its arguments, stepped by `onepass.SGD`."""

    _kind = onepass.SGD
