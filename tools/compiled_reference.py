"""The executable specification with its work on elements compiled: the soak test's oracle.

Options, counts, schedules, coefficients and the global norm are the specification's own. The update of the elements,
the random bits and the storage formats are those of `compiled_reference.cpp`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onepass import _core
from onepass._reference import Reference, storage
from onepass._reference.elements import Array, rounded
from onepass._reference.optimizer import at

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tools" / "compiled_reference.cpp"
LIBRARY = ROOT / "build" / "compiled_reference.so"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *WARNINGS]
if "avx2" in _core.usable_instruction_sets:
    FLAGS.append("-mavx2")  # lets the compiler vectorise further
MAX_STATES = 3
ABSENT, PLAIN, BFLOAT16, FLOAT8, SPLIT24, SPLIT32 = range(6)


class Stored(ctypes.Structure):
    """An array in memory."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("companion", ctypes.c_void_p),
        ("format", ctypes.c_int32),
        ("slot", ctypes.c_int32),
        ("is_divisor", ctypes.c_int32),
    )


class Step(ctypes.Structure):
    """A step of one parameter."""

    _fields_ = (
        ("arrays", Stored * (1 + MAX_STATES)),
        ("grad", ctypes.c_void_p),
        ("average", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("t", ctypes.c_uint64),
        ("flush", ctypes.c_int32),
    )


def build() -> None:
    """Compile the library. A process that has loaded an earlier one keeps it."""
    LIBRARY.parent.mkdir(exist_ok=True)
    built = LIBRARY.with_suffix(".new")
    subprocess.run([os.environ.get("CXX", "c++"), *FLAGS, "-shared", "-fPIC", "-o", built, SOURCE], check=True)
    built.replace(LIBRARY)


@lru_cache
def library() -> Any:
    """Return the library."""
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.number_names.restype = ctypes.c_char_p
    return loaded


@lru_cache
def numbers_type(dtype: Any) -> Any:
    """Return the structure of coefficients in a dtype."""
    names = library().number_names().decode().split(", ")
    item = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    return type("Numbers", (ctypes.Structure,), {"_fields_": [(name, item) for name in names]})


def stored(array: Array | None, companion: Array | None, slot: int, divisor: bool) -> Stored:
    """Describe an array and its companion; slot: of its random bits, below 0 for rounding to nearest."""
    if array is None:
        return Stored(format=ABSENT)
    if not storage.is_narrow(array):
        return Stored(array.ctypes.data, None, PLAIN)
    if companion is None:
        return Stored(array.ctypes.data, None, BFLOAT16, slot)
    kind = FLOAT8 if array.dtype == np.uint8 else SPLIT32 if companion.dtype == np.int16 else SPLIT24
    return Stored(array.ctypes.data, companion.ctypes.data, kind, slot, divisor)


class CompiledReference(Reference):
    """`Reference` for one dense parameter, compiled."""

    def _update(self, index: int, rows: Any, grad: Array, scale: float) -> None:
        assert index == 0 and rows is ... and len(self.params) == 1
        param, state, ema = self.params[0], self.state[0], self.ema[0]
        o, k = self._advanced(0, grad.dtype)
        decays = o.weight_decay != 0 and not self.rule.decays
        vars(k).update(
            vars(
                rounded(
                    grad.dtype,
                    scale=-scale if o.maximize else scale,
                    clip_value=o.clip_value,
                    penalty=o.weight_decay if decays and not o.decoupled_weight_decay else None,
                    shrink=1 - o.lr * o.weight_decay if decays and o.decoupled_weight_decay else None,
                    w=None if ema is None else 1 - at(o.ema_decay, self.step_count),
                )
            )
        )
        numbers = numbers_type(grad.dtype)(**{name: np.nan if x is None else x for name, x in vars(k).items()})
        stochastic = o.rounding == "stochastic"
        arrays = [stored(param, state.get("param_low"), storage.WEIGHT_SLOT if stochastic else -1, False)]
        slots = iter(range(MAX_STATES))
        for name in self.rule.states:
            slot = next(slots) if name in state else -1
            companion = state.get(f"{name}_scale")
            arrays.append(stored(state.get(name), companion, slot if stochastic else -1, name in storage.DIVISORS))
        step = Step(
            (Stored * (1 + MAX_STATES))(*arrays),
            grad.ctypes.data,
            None if ema is None else ema.ctypes.data,
            grad.size,
            self.seed,
            state["step"],
            self._flushes(0),
        )
        function = getattr(library(), f"{self.rule.update.__name__}_{grad.dtype.name}")
        function(ctypes.byref(step), ctypes.byref(numbers))
