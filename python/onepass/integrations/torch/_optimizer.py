"""Base class of the adapter's optimizers: PyTorch's optimizers with onepass's step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, ClassVar

from ... import _core
from ..._optimizer import Optimizer as CoreOptimizer
from ..._options import COMMON_DEFAULTS, OPTIMIZER_CHECKS, refuse_unknown
from ..._storage import OPTIONS as STORAGE_OPTIONS
from .. import needed
from . import _storage
from ._compat import global_post_hooks, global_pre_hooks, leave_uncompiled, profiler_enabled
from ._engine import DEFAULTS, Engine, group_options, refuse, refuse_step
from ._state_dict import converted, decoded, pickled, restore

with needed("torch"):
    import torch


class OnePass(torch.optim.Optimizer):
    """Base class of the adapter's optimizers. Only the step differs from PyTorch's."""

    _kind: ClassVar[type[CoreOptimizer]]
    # Options missing in PyTorch's groups, or in groups of an older PyTorch.
    _missing: ClassVar[Mapping[str, Any]] = {"maximize": False}
    _options: ClassVar[list[str] | None] = None  # the arguments, if those of PyTorch's class are known
    _has_double_scalars: ClassVar[bool] = False  # the rule's scalars are float64, not as PyTorch's step counts
    _steps_itself: ClassVar[bool] = True
    _engine: Engine | None = None
    _in_backward: Any = None  # the handle of step_in_backward
    _before: tuple[int, float | None] = 0, None  # skipped and grad_norm while there is no engine
    _is_slow: bool = False  # a thread takes a slow step
    slow_steps: int = 0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._steps_itself = cls.step is OnePass.step
        if "_kind" not in vars(cls):
            base = next((base for base in cls.__mro__[1:] if "_kind" in vars(base)), OnePass)
            if cls.__init__ is not base.__init__:  # type: ignore[misc]
                cls.__signature__ = None  # do not inherit the base class's signature
            return
        has_init = "__init__" in vars(cls)
        source = cls if has_init else next(base for base in cls.__mro__[1:] if not issubclass(base, OnePass))
        own = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in {**cls._own_defaults(), **_whole_defaults()}.items()
        ]
        signature = inspect.signature(source)
        given = [*signature.parameters.values()]
        rest = [parameter for parameter in given if parameter.kind is parameter.VAR_KEYWORD and not has_init]
        named = [parameter for parameter in given if parameter.kind is not parameter.VAR_KEYWORD]
        cls.__signature__ = signature.replace(parameters=[*named, *own, *rest])
        cls._options = None if rest else [parameter.name for parameter in (*named, *own)]

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        """Take PyTorch's arguments and onepass's options. See the class."""
        checks = self._own_checks()
        if self._options is not None:
            refuse_unknown(type(self).__name__, options, self._options)
        refuse({"lr": args[0] if args else options.get("lr")})
        self._own = {name: checks[name](name, options.pop(name)) for name in self._own_defaults() if name in options}
        self._whole = {
            name: OPTIMIZER_CHECKS[name](name, options.pop(name, default))
            for name, default in _whole_defaults().items()
        }
        self._lock = _core.StepLock()
        super().__init__(params, *args, **options)
        self.defaults.update(self._own)
        leave_uncompiled()
        _storage.check_master_bits(self._own, (param for group in self.param_groups for param in group["params"]))
        for group in self.param_groups:
            refuse(group)
            for param in group["params"]:  # PyTorch's Adagrad makes its state here, in the parameter's dtype
                if _storage.is_narrow(group_options(group), param):
                    self.state.pop(param, None)

    @classmethod
    def _own_defaults(cls) -> dict[str, Any]:
        """Return the defaults of the group options that only onepass has."""
        checks = cls._kind._spec.checks
        own = {name: default for name, default in DEFAULTS.items() if name in checks and name not in cls._missing}
        return {**own, "seed": COMMON_DEFAULTS["seed"]}

    @classmethod
    def _own_checks(cls) -> dict[str, Any]:
        """Return the checks of the group options."""
        return {**cls._kind._spec.checks, "seed": OPTIMIZER_CHECKS["seed"]}

    # ---- Steps ----

    # PyTorch wraps the step of every optimizer in a profiler record, which takes longer than a small step. PyTorch does
    # not wrap a step that is marked as hooked. This step therefore calls the wrapper itself if there are hooks or a
    # profiler, unless a subclass overrides the step: PyTorch has wrapped the step of that subclass.
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients of the parameters.

        Args:
            closure: a function that evaluates the model again before the step and returns the loss.
        """
        if self._steps_itself and (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or global_pre_hooks
            or global_post_hooks
            or profiler_enabled()
        ):
            return self._watched_step() if closure is None else self._watched_step(closure=closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self._in_backward is not None:
            return self._in_backward.finish(closure)
        loss = None
        if closure is not None:
            if not callable(closure):
                hint = "gradients are those of the parameters, in .grad"
                raise TypeError(f"step: expected a closure or None, got {type(closure).__name__} ({hint})")
            for group in self.param_groups:
                refuse_step(group)
            with torch.enable_grad():
                loss = closure()
        engine = self._engine
        if engine is None or self._is_slow or not engine.core.step(self.param_groups, self.state):
            self._slow_step()
        return loss

    _watched_step = torch.optim.Optimizer.profile_hook_step(_step)

    def _step_only(self, index: int | None) -> None:
        """Step the parameter at an index, or with None every parameter that has a gradient."""
        engine = self._engine
        if engine is None or self._is_slow or not engine.core.step(self.param_groups, self.state, None, index):
            self._slow_step(index)

    def _slow_step(self, only: int | None = None) -> None:
        """Step on the slow path: something is new or unusual."""
        # Other threads' steps must wait: they would start from the same counts.
        self._lock.call(self._slow_step_locked, only, self._is_slow)

    def _slow_step_locked(self, only: int | None, has_waited: bool) -> None:
        self._is_slow = False  # Ctrl-C may have left it set
        engine = self._engine
        if has_waited and engine and engine.core.step(self.param_groups, self.state, None, only):
            return
        self._is_slow = True
        try:
            self.slow_steps += 1
            if engine is None or not (engine.core.takes(self.param_groups, self.state) or engine.renew(self)):
                self._forget()
                engine = self._engine = Engine(self)
            engine.step(self, only)
        finally:
            self._is_slow = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, to None or to zeros."""
        engine = self._engine
        if not (set_to_none and engine and not profiler_enabled() and engine.core.clear_gradients(self.param_groups)):
            super().zero_grad(set_to_none)

    def _forget(self) -> None:
        if self._engine is not None:
            self._before = self.skipped, self.grad_norm
        self._engine = None

    # ---- Options and results that only onepass has ----

    @property
    def clip_norm(self) -> float | None:
        """The maximum global norm of the gradients, or None."""
        return self._whole["clip_norm"]  # type: ignore[no-any-return]

    @clip_norm.setter
    def clip_norm(self, value: float | None) -> None:
        self._set_whole("clip_norm", value)

    @property
    def nonfinite(self) -> str:
        """The treatment of gradients that are not finite: ``"propagate"``, ``"skip"`` or ``"raise"``."""
        return self._whole["nonfinite"]  # type: ignore[no-any-return]

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        self._set_whole("nonfinite", value)

    @property
    def flush_denormals(self) -> bool:
        """True if subnormal numbers count as zero while stepping."""
        return self._whole["flush_denormals"]  # type: ignore[no-any-return]

    @property
    def seed(self) -> int:
        """The seed of stochastic rounding. All groups share it, so that state dicts hold it."""
        seeds = {group["seed"] for group in self.param_groups if "seed" in group}
        if len(seeds) > 1:
            raise ValueError(f"seed: expected one for all groups, got {sorted(seeds)} (set optimizer.seed)")
        return OPTIMIZER_CHECKS["seed"]("seed", *seeds or {COMMON_DEFAULTS["seed"]})  # type: ignore[no-any-return]

    @seed.setter
    def seed(self, value: int) -> None:
        checked = OPTIMIZER_CHECKS["seed"]("seed", value)
        for group in self.param_groups:
            group["seed"] = checked

    def _set_whole(self, name: str, value: Any) -> None:
        checked = OPTIMIZER_CHECKS[name](name, value)
        if self._in_backward is not None and checked != _whole_defaults()[name]:
            raise ValueError(f"{name} is not possible while parameters are stepped in the backward pass")
        self._lock.call(self._replace_whole, name, checked)  # no other thread makes an engine meanwhile

    def _replace_whole(self, name: str, checked: Any) -> None:
        self._forget()  # first: Ctrl-C must not leave an engine with the earlier value
        self._whole = {**self._whole, name: checked}  # not in place: a shallow copy shares the dict

    @property
    def skipped(self) -> int:
        """The number of steps skipped because a gradient was not finite."""
        engine = self._engine  # another thread may forget it
        return engine.core.skipped if engine else self._before[0]

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step's gradients before clipping, if ``clip_norm`` is set."""
        engine = self._engine  # another thread may forget it
        return engine.core.grad_norm if engine else self._before[1]

    @property
    def ema(self) -> list[torch.Tensor] | None:
        """Live running averages, in the order of the parameters; None if no group has ``ema_decay``.

        A parameter without an average (before its first step, or in a group without ``ema_decay``) stands for itself.
        """
        if all(group.get("ema_decay") is None for group in self.param_groups):
            return None
        return [param if average is None else average for param, average in self._averages()]

    def _averages(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Return each parameter with its average, or None."""
        return [
            (param, None if group.get("ema_decay") is None else self.state.get(param, {}).get("ema"))
            for group in self.param_groups
            for param in group["params"]
        ]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the parameters by the running averages within the block, to evaluate or to save them.

        Raises:
            ValueError: no group has ``ema_decay``.
        """
        if self.ema is None:
            raise ValueError(
                "averaged: expected an average, got none (create the optimizer with ema_decay, such as ema_decay=0.999)"
            )
        pairs = [(param, average) for param, average in self._averages() if average is not None]
        with torch.no_grad():
            kept = [param.clone() for param, _ in pairs]
        try:
            try:
                _copy_all(pairs)
                yield
            finally:
                _copy_all((param, own) for (param, _), own in zip(pairs, kept))
        except BaseException:  # again, because Ctrl-C may have interrupted the copies
            _copy_all((param, own) for (param, _), own in zip(pairs, kept))
            raise

    # ---- Groups, state dicts and pickles ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options."""
        if self._in_backward is not None:
            raise RuntimeError(
                "parameters cannot be added while they are stepped in the backward pass: remove() it first"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        checks = self._own_checks()
        try:
            refuse(group)
            own = [*self._own_defaults(), *OPTIMIZER_CHECKS]
            for name in group.keys() - {*self.defaults, *own, "params", "param_names"}:  # PyTorch takes any name
                if close := get_close_matches(name, own, 1, 0.8):
                    raise TypeError(f"unexpected option {name!r} of a group: did you mean {close[0]!r}?")
            for name in self._own_defaults():
                if name in group:
                    checks[name](name, group[name])
                elif name in self._own:
                    group[name] = self._own[name]
            self._check_storage(group, self._whole["flush_denormals"])
            if "master_bits" in param_group:
                _storage.check_master_bits(param_group, group["params"])
            if group.keys() & {*STORAGE_OPTIONS}:
                group.setdefault("seed", self.seed)
            self.seed  # noqa: B018 refuses a group with another
        except BaseException:
            del self.param_groups[-1]
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of PyTorch's class. Missing options of onepass keep their values.

        The options of storage stay as they are: state in another storage is converted, rounded to nearest. Emits a
        warning that names the parameters whose weights lose bits. State of another class is refused, and nothing
        changes. Adam and AdamW accept each other's state, as in PyTorch.
        """
        handle = self.register_load_state_dict_pre_hook(converted)  # after the hooks of the user
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    @classmethod
    def _needed(cls) -> list[str]:
        """Return the options that each group of this class must have: those without a default when loading."""
        return [name for name in cls._kind._spec.checks if name not in {*DEFAULTS, *cls._missing}]

    @staticmethod
    def _needed_by_classes() -> list[set[str]]:
        """Return the options that each class of this module needs."""
        return [{*cls._needed()} for cls in OnePass.__subclasses__() if hasattr(cls, "_kind")]

    def decoded_state_dict(self) -> dict[str, Any]:
        """Return a state dict in the layout of torch.optim: a copy, with float32 tensors in place of narrow ones."""
        return decoded(self.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        own = {"_own": self._own, "_whole": self._whole, "_before": (self.skipped, self.grad_norm)}
        return {**super().__getstate__(), **own, "state": pickled(self.state)}

    def __copy__(self) -> Any:
        """Return an optimizer with the same groups and state, like a shallow copy of a PyTorch optimizer."""
        result = type(self).__new__(type(self))
        result.__setstate__({**self.__getstate__(), "state": self.state})
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        whole = state.get("_whole", self.__dict__.get("_whole", {}))
        for group in state["param_groups"]:
            refuse(group)
            self._check_storage(group, whole.get("flush_denormals", True))
        restore(state["state"])
        super().__setstate__(state)
        self.__dict__.setdefault("_lock", _core.StepLock())
        self.__dict__.setdefault("_own", {})  # missing in pickles of earlier versions
        self.__dict__.setdefault("_whole", _whole_defaults())
        self._forget()

    def _check_storage(self, group: dict[str, Any], flush_denormals: bool) -> None:
        """Refuse options of a group that narrow state cannot serve."""
        _storage.check_group(self._kind._spec, group_options(group), flush_denormals)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return False  # GradScaler then unscales gradients and skips steps itself

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        """Ignore the value, which PyTorch's constructors set for ``fused=True``."""


def _copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy the second tensor of each pair into the first."""
    with torch.no_grad():
        for to, value in pairs:
            to.copy_(value)


def _whole_defaults() -> dict[str, Any]:
    defaults: Mapping[str, Any] = COMMON_DEFAULTS
    return {name: defaults[name] for name in OPTIMIZER_CHECKS if name != "seed"}
