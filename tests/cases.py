"""Optimizers and the values of their options that the tests try: one table for all tests."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import onepass
import onepass._reference
from onepass import _checks, _core, _storage
from support import hostile, ones, ordinary, small

NUMBERS = {"ordinary": ordinary, "hostile": hostile, "small": small}  # functions that draw arrays

# Parameters in every accepted form.
FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: ones(2),
    "list": lambda: [ones(2), ones(3)],
    "tuple": lambda: (ones(2), ones(3)),
    "mapping": lambda: {"w": ones(2), ("b", 1): ones(3)},
    "one group": lambda: [{"params": [ones(2), ones(3)], "lr": 0.25}],
    "groups": lambda: [{"params": ones(2)}, {"params": (ones(3),), "lr": 0.25}],
}

CLASSES = {
    name: cls
    for name, cls in vars(onepass).items()
    if inspect.isclass(cls) and issubclass(cls, onepass.Optimizer) and cls is not onepass.Optimizer
}


def shrinking(t: int) -> float:
    """Return a learning rate that falls with the step."""
    return 0.1 / t


def growing(t: int) -> float:
    """Return a decay of averages that grows with the step."""
    return t / (t + 9)


STORAGE = {*_storage.OPTIONS}  # options with tests of their own: test_storage.py

# Values of each option: first one without effect or in common use, then one with an effect, then others.
VALUES: dict[str, list[Any]] = {
    "lr": [0.01, shrinking],
    "betas": [(0.9, 0.999), (0.5, 0.25), (0.0, 0.0)],
    "eps": [1e-8, 0.1, 0.0],
    "weight_decay": [0.0, 0.02, 0.3],
    "amsgrad": [False, True],
    "bias_correction": [True, False],
    "eps_mode": ["paper", "hat"],
    "momentum_decay": [4e-3, 0.7, 0.0],
    "decoupled_weight_decay": [False, True],
    "alpha": [0.99, 0.3],
    "alpha_warmup": [None, 3],
    "beta3_warmup": [None, 3, 1000],
    "rho": [0.9, 0.3],
    "centered": [False, True],
    "momentum": [0.0, 0.9],
    "lr_decay": [0.0, 0.3],
    "warmup_steps": [0, 5],
    "r": [0.0, 1.0, 0.5],
    "weight_lr_power": [2.0, 0.0, 0.5],
    "initial_accumulator_value": [0.0, 0.2],
    "maximize": [False, True],
    "clip_value": [None, 1.5],
    "ema_decay": [None, 0.9, growing],
}
THREE_BETAS = [(0.9, 0.999, 0.9999), (0.5, 0.25, 0.75), (0.0, 0.0, 0.5), (0.5, 0.5, 0.0)]
# Options that depend on each other: the name of one option, and combinations of values of all these options.
TOGETHER: dict[frozenset[str], tuple[str, list[dict[str, Any]]]] = {
    frozenset({"momentum", "dampening", "nesterov"}): (
        "momentum",
        [
            {"momentum": 0.0},
            {"momentum": 0.9, "nesterov": True},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.9},
        ],
    ),
    frozenset({"weight_decay", "decoupled_weight_decay"}): (
        "weight_decay",
        [
            {"weight_decay": 0.0},
            {"weight_decay": 0.02},
            {"weight_decay": 0.3},
            {"weight_decay": 0.3, "decoupled_weight_decay": True},
        ],
    ),
}


def accepts(kind: str, options: dict[str, Any]) -> bool:
    """Return False if an optimizer refuses these options together with its defaults."""
    try:
        CLASSES[kind]._spec.check({**onepass._reference.defaults(kind), **options})
    except ValueError:
        return False
    return True


def values_of(kind: str) -> dict[str, list[Any]]:
    """Return the values to try for each option of an optimizer. A value that is a mapping sets several options."""
    checks = CLASSES[kind]._spec.checks
    names = checks.keys() - STORAGE
    tied = {name for together in TOGETHER if together <= names for name in together}
    choices = {**VALUES, "betas": THREE_BETAS if checks.get("betas") is _checks.three_betas else VALUES["betas"]}
    # KeyError: an option without values to try
    values = {
        name: [value for value in choices[name] if accepts(kind, {name: value})] for name in names if name not in tied
    }
    return values | dict(values for together, values in TOGETHER.items() if together <= names)


def all_set(kind: str, *without: str) -> dict[str, Any]:
    """Return options that create every buffer and reach every line, with the default ``lr``."""
    options: dict[str, Any] = {}
    for name, values in values_of(kind).items():
        if name not in {"lr", "maximize", "bias_correction", "eps_mode", *without}:
            options |= values[1] if isinstance(values[1], dict) else {name: values[1]}
    return options


def rules(*without: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return, for each rule of the core, a class and options that select the rule, otherwise as in `all_set`."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, cls in CLASSES.items():
        switches = [name for name in ("amsgrad", "centered", "momentum") if name in cls._spec.checks]
        for on in itertools.product([True, False], repeat=len(switches)):
            options = all_set(kind, *without)
            off = [name for name, is_on in zip(switches, on) if not is_on]
            options = {name: value for name, value in options.items() if name not in {*off, "nesterov" if off else ""}}
            rule = cls._spec.rule_name({**onepass._reference.defaults(kind), **options})
            found.setdefault(rule, (kind, options))
    assert found.keys() == _core.rules.keys()
    return found


def one_by_one(kind: str, *without: str) -> list[dict[str, Any]]:
    """Return sets of options, each of which changes one option from its default."""
    changed: list[dict[str, Any]] = [{}]
    for name, values in values_of(kind).items():
        if name not in without:
            changed += [value if isinstance(value, dict) else {name: value} for value in values[1:]]
    return changed
