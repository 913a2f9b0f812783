"""Options: their declaration in optimizer classes, and their signatures, attributes and errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, SupportsFloat, TypedDict, TypeVar, overload

from . import _core
from ._checks import flag, nonfinite, plural, positive_or_none, seed
from ._storage import OPTIONS as STORAGE_OPTIONS
from ._storage import check_options
from ._types import Average, Check, Nonfinite, Rounding, StateDtype

if TYPE_CHECKING:
    from typing_extensions import Self

Read = TypeVar("Read")
Write = TypeVar("Write", contravariant=True)
Class = TypeVar("Class", bound=type)


class CommonOptions(TypedDict, total=False):
    """Options of every optimizer, keyword only."""

    maximize: bool
    clip_norm: SupportsFloat | None
    clip_value: SupportsFloat | None
    nonfinite: Nonfinite
    ema_decay: Average
    state_dtype: StateDtype
    master_bits: int
    rounding: Rounding
    seed: int
    flush_denormals: bool


COMMON_DEFAULTS: CommonOptions = {
    "maximize": False,
    "clip_norm": None,
    "clip_value": None,
    "nonfinite": "propagate",
    "ema_decay": None,
    "state_dtype": None,
    "master_bits": 32,
    "rounding": "stochastic",
    "seed": 0,
    "flush_denormals": True,
}
# Options of the whole optimizer. All others belong to groups.
OPTIMIZER_CHECKS: Mapping[str, Check] = {
    "clip_norm": positive_or_none,
    "nonfinite": nonfinite,
    "seed": seed,
    "flush_denormals": flag,
}
# Options of the whole optimizer that state dicts hold.
SAVED_OPTIONS = tuple(name for name in OPTIMIZER_CHECKS if name != "flush_denormals")


class Option(Generic[Read, Write]):
    """Option of a group. With a single group, the option can also be read and set on the optimizer."""

    def __init__(self, check: Callable[[str, Write], Read]) -> None:
        self.check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = f"The only group's ``{name}``. With several groups use ``groups[i].{name}``."

    @overload
    def __get__(self, optimizer: None, cls: Any) -> Self: ...
    @overload
    def __get__(self, optimizer: object, cls: Any) -> Read: ...
    def __get__(self, optimizer: Any, cls: Any) -> Any:
        return self if optimizer is None else self._only_group(optimizer)[self.name]

    def __set__(self, optimizer: object, value: Write) -> None:
        self._only_group(optimizer)[self.name] = value

    def _only_group(self, optimizer: Any) -> Any:
        try:
            groups = optimizer.groups
        except AttributeError:
            raise AttributeError(
                f"{self.name}: expected super().__init__() to run first (pass {self.name} to it)"
            ) from None
        if len(groups) != 1:
            raise AttributeError(f"{self.name} is ambiguous with {len(groups)} groups: use opt.groups[i].{self.name}")
        return groups[0]


@dataclass(frozen=True)
class Spec:
    """Declaration of an optimizer class: its rule in the core, its options, its state."""

    name: str
    rule: str | Callable[[Mapping[str, Any]], str]  # or a function of the options that returns the rule's name
    checks: Mapping[str, Check]  # checks of the options that may differ between groups
    decoupled: bool | str = False  # True if weight decay shrinks the parameter, or the name of the option that decides
    initial: str = ""  # option with the initial value of state arrays; without an option, 0
    flush_from_eps: float = 1e-16  # threshold of eps: with a smaller eps, subnormal numbers are kept
    moment_beta: int | None = 0  # index in betas of the decay of the first moment, if there is one
    # Weight w of an evaluation mode, in which the parameters are y + w·(z - y) with the trained ones y and the state z.
    evaluation_weight: Callable[[Mapping[str, Any]], float] | None = None
    validate: Callable[[Mapping[str, Any]], None] = lambda options: None  # raises if options contradict each other

    def rule_name(self, options: Mapping[str, Any]) -> str:
        """Return the name of the core's rule for these options."""
        return self.rule if isinstance(self.rule, str) else self.rule(options)

    def numbers(self, options: Mapping[str, Any]) -> list[float]:
        """Return the options of the core's rule, in the order of the rule."""
        named = {f"beta{i}": beta for i, beta in enumerate(options.get("betas", ()), 1)}
        named["hat"] = options.get("eps_mode") == "hat"
        named |= options
        return [float(named[name] or 0) for name in _core.rules[self.rule_name(options)][0]]

    def buffers(self, options: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values that determine which state arrays exist."""
        storage = (options[name] for name in STORAGE_OPTIONS)
        return self.rule_name(options), options["ema_decay"] is not None, *storage

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise if options contradict each other."""
        self.validate(options)
        check_options(self, options)

    def is_decoupled(self, options: Mapping[str, Any]) -> bool:
        """Return True if weight decay shrinks the parameter instead of adding to the gradient."""
        return bool(options[self.decoupled]) if isinstance(self.decoupled, str) else self.decoupled

    def keeps_subnormals(self, options: Mapping[str, Any]) -> bool:
        """Return True if eps is so small that flushing would leave eps as the divisor of tiny gradients."""
        return bool(options.get("eps", 1.0) < self.flush_from_eps)

    def initial_value(self, options: Mapping[str, Any]) -> float:
        """Return the initial value of state arrays."""
        return float(options[self.initial]) if self.initial else 0.0


def declare(rule: str | Callable[[Mapping[str, Any]], str], **state: Any) -> Callable[[Class], Class]:
    """Return a decorator that adds a `Spec` to a class, and the common options to its constructor's signature."""

    def declared(cls: Class) -> Class:
        init: Any = cls.__init__  # type: ignore[misc]
        signature = inspect.signature(init)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        types = {name: getattr(t, "__forward_arg__", t) for name, t in CommonOptions.__annotations__.items()}
        common = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
            for name, default in COMMON_DEFAULTS.items()
        ]
        init.__doc__ = "See the class."  # set here: in the source, editors would show it instead of the class docstring
        init.__signature__ = signature.replace(parameters=[*own, *common])
        options = {name: getattr(cls, name, None) for name in init.__signature__.parameters}
        checks = {name: option.check for name, option in options.items() if isinstance(option, Option)}
        cls._spec = Spec(cls.__name__, rule, checks, **state)  # type: ignore[attr-defined]
        return cls

    return declared


def with_defaults(cls: type, options: Mapping[str, Any]) -> tuple[Spec, dict[str, Any]]:
    """Return the `Spec` of an optimizer class, and these options with the defaults of the common options added."""
    spec: Spec | None = getattr(cls, "_spec", None)
    if spec is None:
        raise TypeError("Optimizer is abstract: use a subclass such as onepass.Adam")
    refuse_unknown(cls.__name__, options, [*spec.checks, *OPTIMIZER_CHECKS])
    return spec, {**COMMON_DEFAULTS, **options}


def refuse_unknown(call: str, options: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse options that a call does not have."""
    if unknown := [name for name in options if name not in valid]:
        raise TypeError(f"{call}() got an unexpected keyword argument {unknown[0]!r}{suggestion(unknown[0], valid)}")


def changed_defaults(options: Mapping[str, Any]) -> list[str]:
    """Return "name=value" for each common option that differs from its default."""
    defaults: Mapping[str, Any] = COMMON_DEFAULTS
    return [f"{name}={value!r}" for name, value in options.items() if value != defaults[name]]


def represent(optimizer: Any) -> str:
    """Return the size of an optimizer and its options in one line."""
    groups, params = optimizer.groups, optimizer._record.params
    size = f"{plural(len(params), 'parameter')}, {plural(sum(array.size for array in params), 'element')}"
    whole = changed_defaults({name: getattr(optimizer, name) for name in OPTIMIZER_CHECKS})
    own = repr(groups[0]).removeprefix("Group(").removesuffix(")") if len(groups) == 1 else ""
    parts = [size, own, *whole] if own else [size, *whole, repr([*groups])]
    return f"{type(optimizer).__name__}({', '.join(parts)})"


# Names of options in other libraries, and the names in onepass.
_FOREIGN = {
    **dict.fromkeys(["learning_rate", "learn_rate", "step_size", "eta", "alpha"], "lr"),
    **{"epsilon": "eps", "b1": "betas", "b2": "betas", "L2": "weight_decay", "rho": "alpha", "momentum": "betas"},
    **dict.fromkeys(["global_clipnorm", "max_grad_norm", "grad_clip"], "clip_norm"),
    **dict.fromkeys(["ema", "use_ema", "ema_momentum"], "ema_decay"),
    **dict.fromkeys(["T_max", "total_iters", "decay_steps", "transition_steps"], "steps"),
    **dict.fromkeys(["init_value", "initial_learning_rate"], "lr"),
    **{"eta_min": "end", "end_value": "end", "gamma": "rate", "decay_rate": "rate", "milestones": "boundaries"},
}
_HINTS = {
    **dict.fromkeys(
        ["fused", "foreach", "capturable", "differentiable"], "It selects among PyTorch's own implementations."
    ),
    "args": "For scipy.optimize.minimize, use a method of onepass.integrations.scipy, such as method=adam.",
    "decay": "For Keras' decay pass lr=onepass.schedules.inverse_time(lr, decay), for weight decay weight_decay.",
}


def suggestion(name: str, options: Iterable[str], nouns: str = "options") -> str:
    """Return the end of an error about an unexpected name: the likely name and all valid names."""
    from difflib import get_close_matches  # slow to import

    valid = [*options]
    close = [_FOREIGN[name]] if _FOREIGN.get(name) in valid else get_close_matches(name, valid, 1, 0.7)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    if name != "decay" or "weight_decay" in valid:
        hint = _HINTS.get(name, hint)
    return f". {hint}{' ' if hint else ''}Valid {nouns}: {', '.join(valid)}"
