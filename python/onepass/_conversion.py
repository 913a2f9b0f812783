"""Conversion of saved state to an optimizer's own storage: moments, and weights with their lower bits."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import _storage
from ._params import ParameterRecord
from ._types import Array

# Dtypes of saved arrays that can be converted.
_WEIGHTS: tuple[np.dtype[Any], ...] = np.dtype(np.float32), np.dtype(np.uint16)
_MOMENTS: tuple[np.dtype[Any], ...] = *_WEIGHTS, np.dtype(np.uint8)
_LOW: tuple[np.dtype[Any], ...] = tuple(np.dtype(dtype) for dtype in _storage.LOW_DTYPES.values())
_KNOWN: dict[str, np.dtype[Any]] = {dtype.str: dtype for dtype in (*_MOMENTS, *_LOW)}
_MAGNITUDE, _INFINITY, _NAN = (np.uint32(bits) for bits in (0x7FFFFFFF, 0x7F800000, 0x7FC00000))
ROWS_SIZE = 1 << 16  # elements: temporary arrays of this size stay in the cache


# ---- Weights ----


def rounded_low(low: Array, dtype: Any) -> Array:
    """Return the lower bits of weights in another dtype, rounded to the nearest that leaves the bfloat16 half as it is.

    A weight is ``(high << 16) + low``, so rounding does not depend on the weight's sign or high half.
    """
    if low.dtype == dtype:
        return low
    if dtype == np.int16:
        return low.astype(np.int16) << 8
    rounded: Array = (low.astype(np.int32) + 0x80) >> 8
    return np.minimum(rounded, 127).astype(np.int8)


def loses_bits(low: Array, dtype: Any = None, param: Array | None = None) -> bool:
    """Return True if the conversion of saved lower bits is not exact.

    dtype: of the optimizer's own lower bits, if it stores any; param: float32 weights that may hold the same bits.
    """
    if dtype is not None:
        return not np.array_equal(rounded_low(rounded_low(low, dtype), np.int16), rounded_low(low, np.int16))
    kept = 0 if param is None else _low_half(param.view(np.uint32))
    return bool((rounded_low(low, np.int16) != kept).any())


def _low_half(bits: Array) -> Array:
    return bits.astype(np.uint16).view(np.int16)


def joined(high: Array, low: Array | None) -> Array:
    """Return float32 weights. Negative lower bits of a zero count as zero, as in the core."""
    return np.asarray(_joined_bits(high, low)).view(np.float32)


def _joined_bits(high: Array, low: Array | None) -> Array:
    bits = high.astype(np.uint32) << 16
    if low is None:
        return bits
    lower = rounded_low(low, np.int16).astype(np.int32)
    return bits + np.where(((high & 0x7FFF) == 0) & (lower < 0), 0, lower).view(np.uint32)


def split(weights: Array) -> tuple[Array, Array]:
    """Return float32 weights as bfloat16, in uint16, and all of their lower bits."""
    bits = np.ascontiguousarray(weights).view(np.uint32)
    high, low = np.empty(bits.shape, np.uint16), np.empty(bits.shape, np.int16)
    _split_into(bits, high, low)
    return high, low


def _split_into(bits: Array, high: Array, low: Array | None) -> bool:
    """Split float32 weights, rounded to nearest, into bfloat16 and lower bits; return True if bits are lost."""
    is_nan = (bits & _MAGNITUDE) > _INFINITY
    kept = np.where(is_nan, _NAN, bits)
    if low is None:
        high[...] = (kept + (0x7FFF + ((kept >> 16) & 1))) >> 16
    else:
        if low.dtype == np.int8:
            kept = (kept + np.uint32(0x80)) & np.uint32(0xFFFFFF00)
        high[...] = (kept + np.uint32(0x8000)) >> 16
        low[...] = rounded_low(_low_half(kept), low.dtype)
    return bool(((_joined_bits(high, low) != bits) & ~is_nan).any())


def _low_into(bits: Array, high: Array, low: Array | None) -> tuple[bool, bool]:
    """Write the lower bits of float32 weights, given bfloat16 weights that a user may have rounded from them.

    Return True if bits are lost, and True if the bfloat16 weights are the float32 weights rounded to nearest.
    """
    is_nan = ((bits & _MAGNITUDE) > _INFINITY) & ((high & 0x7FFF) > 0x7F80)
    below = np.where(is_nan, 0, (bits - (high.astype(np.uint32) << 16)).view(np.int32))
    is_rounded = not ((below < -0x8000) | (below > 0x8000)).any()  # ties to even or away from zero
    if low is None or not is_rounded:
        return False, is_rounded
    low[...] = rounded_low(np.minimum(below, 0x7FFF).astype(np.int16), low.dtype)
    return bool(((_joined_bits(high, low) != bits) & ~is_nan).any()), True


def convert_weights(
    own: Array, param: Array | None, low: Array | None, out: Array | None, low_out: Array | None
) -> tuple[bool, bool]:
    """Write saved weights and their lower bits into ``out`` and ``low_out``, rounded to nearest.

    own: the optimizer's own weights.

    Return True if bits are lost, and True if the own weights have the saved values, as far as both can store them.
    """
    if param is not None and out is None:  # not loaded, but the user may have rounded them into the own weights
        return _low_into(param.view(np.uint32), own.view(np.uint16), low_out)
    if param is not None and out is not None:
        if param.dtype == out.dtype and low is not None and low_out is not None and low.dtype != low_out.dtype:
            return _split_into(_joined_bits(param, low), out, low_out), True
        if param.dtype == out.dtype:
            np.copyto(out, param)
        elif out.dtype == np.float32:
            out[...] = joined(param, low)
            return False, True
        else:
            return _split_into(param.view(np.uint32), out, low_out), True
    if low_out is not None:
        low_out[...] = 0 if low is None else rounded_low(low, low_out.dtype)
        return low is not None and loses_bits(low, low_out.dtype), True
    is_lossy = low is not None and loses_bits(low, None, own if own.dtype == np.float32 else None)
    return is_lossy, not is_lossy


def warn_of_lost_bits(lost: Sequence[str], missing: Sequence[str], hint: str = "") -> None:
    """Warn of the labelled parameters whose weights lose lower bits, or have none although others have."""
    reasons = []
    if lost:
        reasons.append(
            f"the weights of {_named(lost)} have more bits than this optimizer stores: loading rounds them or drops "
            f"their lower bits (bfloat16 parameters with master_bits=32 keep all bits{hint})"
        )
    if missing:
        reasons.append(f"the lower bits of {_named(missing)} are missing: they start at zero")
    if reasons:
        warnings.warn("; ".join(reasons), stacklevel=caller_level())


def caller_level() -> int:
    """Return the stack level, for the function that calls this one, of the user's call."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("onepass", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _named(labels: Sequence[str]) -> str:
    return ", ".join(labels[:5]) + ", ..." * (len(labels) > 5)


# ---- Whole states ----


class Conversion:
    """The conversion of the saved state of an optimizer's parameters, and what it loses."""

    def __init__(self, record: ParameterRecord) -> None:
        self._record = record
        self.lost: list[str] = []  # labels of parameters whose weights lose bits
        self.without_low: list[str] = []  # labels of parameters without saved lower bits
        self.has_low = False  # at least one parameter has saved lower bits
        self.same_low: set[int] = set()  # float32 parameters with the lower bits of the saved bfloat16 weights
        self.same_weights: dict[int, bool] = {}  # bfloat16 parameters: True for the saved float32 weights, rounded

    def layouts(self, own: Mapping[str, Any], saved: Mapping[str, Any], is_file: bool = False) -> dict[int, Any]:
        """Return an optimizer's own state, by parameter, in the layout of saved arrays, which may be stored otherwise.

        The arrays have no memory: only their shapes and dtypes count. Arrays that no storage has keep the optimizer's
        layout, so that the check of state dicts refuses them. is_file: the options say how moments are stored.
        """
        states = dict(own["state"])
        groups, found = saved.get("param_groups"), saved.get("state")
        if isinstance(groups, (list, tuple)) and isinstance(found, Mapping):
            for mine, options in zip(own["param_groups"], groups):
                for index in mine["params"]:
                    if isinstance(options, Mapping) and isinstance(found.get(index), Mapping):
                        size = self._record.parts[index].size
                        moments = _moments_by_option(states[index], options, size) if is_file else found[index]
                        states[index] = self._layout(index, states[index], found[index], moments, options)
        return states

    def _layout(
        self, index: int, own: Any, found: Mapping[str, Any], moments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        param = self._record.params[index]
        entries = {name: value for name, value in own.items() if not _storage.is_scale(name) and name != "param_low"}
        for name in _storage.moments_of(own):
            entries[name] = _blank(own[name].shape, _convertible(moments.get(name), own[name]))
            if entries[name].dtype == np.uint8:
                entries[f"{name}_scale"] = _blank((_storage.scale_count(param.size),), np.dtype(np.float32))
        if param.dtype == np.float64:
            return entries
        for name, low_name in _weights_of(own):
            weights, low = (_dtype(found.get(each), param.shape) for each in (name, low_name))
            if weights in _WEIGHTS and (name in own or (weights == np.float32 and _storage.is_bfloat16(param))):
                entries[name] = _blank(param.shape, weights)
            if not low_name or weights == np.float32:
                continue  # lower bits would contradict float32 weights
            if low in _LOW:
                entries[low_name] = _blank(param.shape, low)
                self.has_low = True
            elif low_name in own and options.get("master_bits") != 16:
                if weights == np.uint16:  # the file or dict lost them: the check of state dicts refuses it
                    entries[low_name] = own[low_name]
                else:
                    self.without_low.append(self._record.label(index))
        return entries

    def fill(self, index: int, saved: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Write the arrays of a parameter's saved state into arrays like the optimizer's own."""
        for name in _storage.moments_of(outputs):
            _fill_moment(name, saved, outputs, f"{name}_scale of {self._record.label(index)}")
        for name in {"ema", *_storage.WEIGHTS} & outputs.keys():
            np.copyto(outputs[name], saved[name])
        for names in _weights_of(outputs):
            self._fill_weights(index, names, saved, outputs)

    def _fill_weights(
        self, index: int, names: tuple[str, str], saved: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> None:
        """Write weights and their lower bits, both by name, into arrays like the optimizer's own."""
        given = [
            np.atleast_1d(arrays[name]) if name in arrays else None for arrays in (saved, outputs) for name in names
        ]
        own = np.atleast_1d(self._record.params[index])
        param, low, out, low_out = given
        outcomes = [
            convert_weights(own[rows], *(None if array is None else array[rows] for array in given))
            for rows in row_slices(own)
        ]
        is_lossy, is_same = any(lossy for lossy, _ in outcomes), all(same for _, same in outcomes)
        if param is not None and out is None:
            self.same_weights[index] = is_same
            if not is_same and low_out is not None:
                low_out.fill(0)
            is_lossy = is_lossy and is_same
        elif low is not None and is_same:
            self.same_low.add(index)
        if is_lossy and names[1]:  # an average needs no lower bits
            self.lost.append(self._record.label(index))


def warn_of_losses(conversions: Sequence[Conversion], can_load_weights: bool = False) -> None:
    """Warn once of the weights that conversions of parts of one state lose, and of missing lower bits.

    can_load_weights: another call would load the weights too.
    """
    hint = ", and params=True loads the weights too" if can_load_weights else ""
    lost = dict.fromkeys(label for each in conversions for label in each.lost)
    missing = dict.fromkeys(label for each in conversions for label in each.without_low)
    warn_of_lost_bits([*lost], [*missing] if any(each.has_low for each in conversions) else [], hint)


def is_stored_alike(own: Mapping[str, Any], layout: Mapping[str, Any], in_c_order: Callable[[str], bool]) -> bool:
    """Return True if a parameter's saved arrays can be copied into the optimizer's own.

    in_c_order: the order of the saved array with a name.
    """
    return own.keys() == layout.keys() and all(
        _can_copy(array, layout[name].dtype, in_c_order(name))
        for name, array in own.items()
        if isinstance(array, np.ndarray)
    )


def _can_copy(own: Array, dtype: Any, in_c_order: bool) -> bool:
    """Return True if saved numbers, with any scales, are stored like an array; scales belong to an order of numbers."""
    return bool(dtype == own.dtype and (dtype != np.uint8 or own.ndim < 2 or in_c_order == own.flags.c_contiguous))


def is_c_contiguous(array: Array) -> bool:
    """Return True if the scales of a saved array's float8 numbers are in C order."""
    return array.flags.c_contiguous or not array.flags.forc


def _weights_of(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of a parameter's weights in its state, each with the name of their lower bits.

    In evaluation mode the parameter holds an average without lower bits, and "y" holds the weights in training.
    """
    return [("y", "param_low"), ("param", "")] if "y" in state else [("param", "param_low")]


def row_slices(array: Array) -> Iterator[slice]:
    """Yield slices of the first axis, so that temporary arrays are small."""
    step = max(1, ROWS_SIZE // max(1, array[:1].size))
    return (slice(start, start + step) for start in range(0, len(array), step))


def _blank(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array without memory for its elements."""
    return np.broadcast_to(np.empty((), dtype), shape)


def _dtype(found: Any, shape: tuple[int, ...]) -> Any:
    """Return the dtype of a saved array, or of one still in a file, if it has this shape."""
    fits = hasattr(found, "dtype") and getattr(found, "shape", None) == shape
    return _KNOWN.get(getattr(found.dtype, "str", found.dtype)) if fits else None


def _convertible(found: Any, own: Array) -> Any:
    """Return the dtype of a saved moment if it can be converted, or else the own dtype."""
    dtype = found if isinstance(found, np.dtype) else _dtype(found, own.shape)
    return dtype if dtype in _MOMENTS and own.dtype != np.float64 else own.dtype


def _moments_by_option(own: Mapping[str, Any], options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the dtypes in which the moments of a parameter of this size are stored with a group's options."""
    found = options.get("state_dtype")
    state_dtype = found if found in _storage.WIDTHS else None
    return {
        name: _storage.state_array_dtype(name, {"state_dtype": state_dtype}, _blank((), np.float32), size)
        for name in _storage.moments_of(own)
    }


def _fill_moment(name: str, saved: Mapping[str, Array], outputs: Mapping[str, Array], label: str) -> None:
    """Write a saved moment into an array like the optimizer's own, rounded to nearest."""
    found, scales = saved[name], saved.get(f"{name}_scale")
    out, own_scales = outputs[name], outputs.get(f"{name}_scale")
    if found.dtype == np.uint8:
        _storage.check_scales(label, scales, _storage.scale_count(found.size))
    if _can_copy(out, found.dtype, is_c_contiguous(found)):
        np.copyto(out, found)
        if scales is not None and own_scales is not None:
            np.copyto(own_scales, scales)
        return
    if found.dtype != np.float32:
        found = _storage.decoded(found if found.flags.forc else np.ascontiguousarray(found), scales)
    if out.dtype == np.float32:
        np.copyto(out, found)
    else:
        order: Any = "C" if out.flags.c_contiguous else "F"
        _storage.encode_into(name, np.asarray(found, order=order), outputs)
