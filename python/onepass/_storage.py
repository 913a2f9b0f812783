"""Storage of state and parameters in fewer bits: array layouts, refused options, encoding and decoding.

The core does the arithmetic; `_reference.storage` is its specification.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ._core import NarrowArrays, decode, encode, rules, scale_group
from ._types import Array, StateDtype

NARROW_FROM = 4096  # elements: smaller parameters keep float32 state
WIDTHS: tuple[StateDtype, ...] = (None, "bfloat16", "float8")  # the values of state_dtype, from wide to narrow
DTYPES = {"bfloat16": np.uint16, "float8": np.uint8}  # of the stored bits, by state_dtype
LOW_DTYPES = {32: np.int16, 24: np.int8}  # of the lower part of bfloat16 parameters, by master_bits
OPTIONS = ("state_dtype", "master_bits", "rounding")  # the options of a group that decide how its arrays are stored
KINDS = {name: kind for _, states, _ in rules.values() for name, kind in states.items()}  # of the rules' state arrays
NARROWEST: dict[str, StateDtype] = {"moment": "float8", "divisor": "float8", "slow_moment": "bfloat16", "weight": None}
WEIGHTS = {name for name, kind in KINDS.items() if kind == "weight"}
SCALES = 2.0**-117, float(np.finfo(np.float32).max / np.float32(448))  # the smallest and largest scale
FLOAT8_LIMITS = {"betas": 0.99, "momentum": 0.99, "rho": 0.95}  # above these values, float8 noise is too large


def is_bfloat16(array: Array) -> bool:
    """Return True for an array of dtype ml_dtypes.bfloat16, without importing ml_dtypes."""
    return array.dtype.kind == "V" and array.dtype.name == "bfloat16"


def value_dtype(array: Array) -> np.dtype[Any]:
    """Return the dtype of the arithmetic on a parameter."""
    return np.dtype(np.float32) if is_bfloat16(array) else array.dtype


def check_options(spec: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that do not work with state in fewer bits."""
    state_dtype = options["state_dtype"]
    if state_dtype is None:
        return
    for name, reason in (
        ("amsgrad", "rounding errors accumulate in the maximum"),
        ("centered", "rounding errors dominate the difference"),
    ):
        if options.get(name):
            raise ValueError(
                f"state_dtype={state_dtype!r} does not work with {name}=True: {reason} (use state_dtype=None)"
            )
    if spec.keeps_subnormals(options):
        raise ValueError(
            f"state_dtype={state_dtype!r} needs an eps of at least {spec.flush_from_eps}, got {options['eps']}: use "
            "state_dtype=None"
        )
    for name, limit in FLOAT8_LIMITS.items() if state_dtype == "float8" else ():
        value = options.get(name, 0.0)
        index = spec.moment_beta
        if isinstance(value, tuple) and index is None:
            continue
        first = value[index] if isinstance(value, tuple) else value
        if first > limit:
            label = f"{name}[{index}]" if isinstance(value, tuple) else name
            raise ValueError(
                f"{label}: expected at most {limit} with state_dtype='float8', got {first} (larger values are too "
                "noisy: use state_dtype='bfloat16')"
            )


def check_params(options: Mapping[str, Any], params: Iterable[tuple[str, Array]], flush_denormals: bool) -> None:
    """Refuse labelled parameters that do not match the options of their group."""
    state_dtype = options["state_dtype"]
    if state_dtype is None:
        return
    if not flush_denormals:
        raise ValueError(f"state_dtype={state_dtype!r} needs flush_denormals=True: use state_dtype=None")
    for label, array in params:
        if array.dtype == np.float64:
            raise ValueError(
                f"{label}: state_dtype={state_dtype!r} needs float32 or bfloat16 parameters, got float64: use "
                "state_dtype=None"
            )


def check_master_bits(groups: Iterable[Mapping[str, Any]], params: Iterable[Array]) -> None:
    """Refuse ``master_bits`` below 32 if no parameter of the optimizer is in bfloat16."""
    bits = [group["master_bits"] for group in groups if group["master_bits"] != 32]
    arrays = [*params]
    if bits and not any(map(is_bfloat16, arrays)):
        raise ValueError(f"master_bits={bits[0]} needs bfloat16 parameters, got {arrays[0].dtype}: use master_bits=32")


def limited(name: str, state_dtype: StateDtype, size: int = NARROW_FROM) -> StateDtype:
    """Return the storage of a state array: state_dtype, but no narrower than its kind and its whole size allow."""
    return None if size < NARROW_FROM else min(state_dtype, NARROWEST[KINDS[name]], key=WIDTHS.index)


def is_divisor(name: str) -> bool:
    """Return True for a state array that rules divide by or take the root of."""
    return KINDS[name] == "divisor"


def state_array_dtype(name: str, options: Mapping[str, Any], array: Array, size: int) -> np.dtype[Any]:
    """Return the dtype in which a state array of a parameter, or of a part of it, is stored; size: of the whole."""
    stored = limited(name, options["state_dtype"], size)
    return value_dtype(array) if stored is None else np.dtype(DTYPES[stored])


def scale_count(size: int) -> int:
    """Return the number of scales for this number of elements in float8."""
    return -(-size // scale_group)


def state_part(name: str, start: int, stop: int) -> slice:
    """Return the part of a state array that belongs to these elements of its parameter, in memory order.

    The start must be a multiple of the group of elements that share a scale.
    """
    return slice(start // scale_group, scale_count(stop)) if is_scale(name) else slice(start, stop)


def is_scale(name: str) -> bool:
    """Return True for the name of the scales of float8 state."""
    return name.endswith("_scale")


def state_layout(
    options: Mapping[str, Any], array: Array, names: Iterable[str], size: int
) -> dict[str, tuple[Array, np.dtype[Any]]]:
    """Return, for each array of a parameter's state, an array with its shape and order, and its dtype.

    size: elements of the whole parameter, of which the array may be a part.
    """
    layout = {}
    for name in names:
        stored = state_array_dtype(name, options, array, size)
        layout[name] = array, stored
        if stored == np.uint8:
            layout[f"{name}_scale"] = np.empty(scale_count(array.size), np.float32), np.dtype(np.float32)
    if is_bfloat16(array) and options["master_bits"] in LOW_DTYPES:
        layout["param_low"] = array, np.dtype(LOW_DTYPES[options["master_bits"]])
    if options["ema_decay"] is not None:
        layout["ema"] = array, value_dtype(array)
    return layout


def narrow_arrays(
    options: Mapping[str, Any],
    array: Array,
    state: Mapping[str, Array],
    names: Collection[str],
    first: int,
    part_of: int | None,
) -> Any:
    """Return a parameter's narrow arrays in the form that the core takes, or None if all arrays have one dtype.

    part_of: index of the larger parameter that this one is a part of, from its element ``first``.
    """
    if not is_bfloat16(array) and all(state[name].dtype == array.dtype for name in names):
        return None
    return NarrowArrays(
        [state.get(f"{name}_scale") for name in names],
        [is_divisor(name) for name in names],
        state.get("param_low"),
        options["master_bits"],
        options["rounding"] == "stochastic",
        first,
        part_of,
    )


def flat(array: Array) -> Array:
    """Return a one-dimensional view of a contiguous array, in the order of memory."""
    return array.reshape(-1, order="C" if array.flags.c_contiguous else "F")


def decoded(stored: Array, scales: Array | None = None) -> Array:
    """Return a float32 copy of stored numbers: bfloat16 as uint16, or float8 as uint8 with scales."""
    if stored.dtype == np.uint16 or stored.dtype == np.uint8:
        values = decode(flat(stored), scales)
        return values.reshape(stored.shape, order="C" if stored.flags.c_contiguous else "F")
    return stored.copy(order="K")


def encode_into(name: str, values: Array, state: Mapping[str, Array]) -> None:
    """Encode float32 numbers, rounded to nearest, into the arrays of a moment."""
    encode(flat(values), is_divisor(name), flat(state[name]), state.get(f"{name}_scale"))


def widened(array: Array) -> Array:
    """Return a parameter's values in the dtype of the arithmetic."""
    return decoded(array.view(np.uint16)) if is_bfloat16(array) else array


def shown(name: str, array: Array) -> Array:
    """Return a view of stored state with a dtype of ml_dtypes, if that library is imported."""
    library = sys.modules.get("ml_dtypes")
    names = {np.dtype(np.uint8): "float8_e4m3fn", np.dtype(np.uint16): "bfloat16"}
    dtype = getattr(library, names.get(array.dtype, ""), None)  # an old ml_dtypes has no float8_e4m3fn
    return array.view() if dtype is None else array.view(dtype)


def raw(array: Any) -> Any:
    """Return a view of the stored bits of an ml_dtypes array, or any other object unchanged."""
    if isinstance(array, np.ndarray) and array.dtype.name in ("float8_e4m3fn", "bfloat16"):
        return array.view(np.uint8 if array.dtype.itemsize == 1 else np.uint16)
    return array


def moments_of(state: Mapping[str, Any]) -> list[str]:
    """Return the names of the moments in a parameter's state."""
    return [name for name in state if name in KINDS and name not in WEIGHTS]


def check_scales(label: str, scales: Any, count: int) -> None:
    """Refuse anything except an array of ``count`` valid float8 scales."""
    if not isinstance(scales, np.ndarray) or scales.dtype != np.float32 or scales.shape != (count,):
        found = f"{scales.dtype} of shape {scales.shape}" if isinstance(scales, np.ndarray) else type(scales).__name__
        raise ValueError(f"{label}: expected float32 of shape {(count,)}, got {found}")
    outside = scales[~((scales >= SCALES[0]) & (scales <= SCALES[1]))]
    if outside.size:
        raise ValueError(f"{label}: expected numbers from 2**-117 to {SCALES[1]:.3g}, got {outside[0]}")
