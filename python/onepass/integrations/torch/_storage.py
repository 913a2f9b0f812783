"""Storage of state and of bfloat16 parameters in fewer bits, in tensors of PyTorch's own dtypes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _conversion as conversion
from ... import _core
from ..._options import COMMON_DEFAULTS
from ..._storage import KINDS, NARROW_FROM, OPTIONS, check_options, is_divisor, limited, scale_count
from .. import needed
from . import _tensors
from ._compat import is_distributed

with needed("torch"):
    import torch

DEFAULTS: dict[str, Any] = {name: COMMON_DEFAULTS[name] for name in OPTIONS}  # type: ignore[literal-required]
DTYPES = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}  # of the moments, by state_dtype
LOW_DTYPES = {32: torch.int16, 24: torch.int8}  # of the lower part of bfloat16 parameters, by master_bits


def is_narrow(options: Mapping[str, Any], tensor: torch.Tensor) -> bool:
    """Return True if a parameter or its state may be narrower than float32."""
    return tensor.dtype == torch.bfloat16 or options["state_dtype"] is not None


def value_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic on a parameter."""
    return torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype


def state_tensor_dtype(name: str, options: Mapping[str, Any], tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of a state tensor of a parameter."""
    stored = limited(name, options["state_dtype"], tensor.numel())
    return value_dtype(tensor) if stored is None else DTYPES[stored]


def state_dtypes(
    options: Mapping[str, Any], tensor: torch.Tensor, names: Iterable[str]
) -> dict[str, torch.dtype | None]:
    """Return the dtype of each tensor of a parameter's state, or None for a tensor of scales."""
    dtypes: dict[str, torch.dtype | None] = {}
    for name in names:
        dtypes[name] = stored = state_tensor_dtype(name, options, tensor)
        if stored == torch.float8_e4m3fn:
            dtypes[f"{name}_scale"] = None
    if tensor.dtype == torch.bfloat16 and options["master_bits"] in LOW_DTYPES:
        dtypes["param_low"] = LOW_DTYPES[options["master_bits"]]
    if options["ema_decay"] is not None:
        dtypes["ema"] = value_dtype(tensor)
    return dtypes


# ---- Descriptions for the core ----


def core_storage(options: Mapping[str, Any], names: Collection[str]) -> _core.TorchStorage:
    """Return the storage of a group in the form that the core's engine takes."""
    return _core.TorchStorage(
        [limited(name, options["state_dtype"]) or "" for name in names],
        NARROW_FROM,
        [f"{name}_scale" for name in names],
        [is_divisor(name) for name in names],
        "param_low",
        options["master_bits"],
        options["rounding"] == "stochastic",
    )


def narrow_tensors(
    label: str, options: Mapping[str, Any], tensor: torch.Tensor, state: Mapping[str, Any], names: Collection[str]
) -> _tensors.Narrow | None:
    """Return the tensors that only narrow storage has, or None if all tensors have the parameter's dtype."""
    dtypes = state_dtypes(options, tensor, names)
    if tensor.dtype != torch.bfloat16 and all(dtypes[name] == tensor.dtype for name in names):
        return None
    if missing := [name for name in dtypes if state.get(name) is None]:
        raise KeyError(f"the state of {label} has no tensor {missing[0]!r} (was it created with other options?)")
    return _tensors.Narrow(
        [dtypes[name] for name in names],
        [state.get(f"{name}_scale") if f"{name}_scale" in dtypes else None for name in names],
        [is_divisor(name) for name in names],
        state["param_low"] if "param_low" in dtypes else None,
        dtypes.get("param_low"),
        options["master_bits"],
        options["rounding"] == "stochastic",
    )


# ---- Refusals ----


def check_group(spec: Any, options: Mapping[str, Any], flush_denormals: bool) -> None:
    """Refuse options of a group that do not work with narrow state."""
    if options["state_dtype"] is None:
        return
    check_options(spec, options)
    if not flush_denormals:
        raise ValueError(f"state_dtype={options['state_dtype']!r} needs flush_denormals=True: use state_dtype=None")


def check_master_bits(options: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> None:
    """Refuse master_bits below 32 without a bfloat16 parameter."""
    bits = options.get("master_bits", 32)
    if bits != 32 and torch.bfloat16 not in (dtypes := [tensor.dtype for tensor in tensors]):
        found = str(dtypes[0]).removeprefix("torch.") if dtypes else "none"
        raise ValueError(f"master_bits={bits} needs bfloat16 parameters, got {found}: leave it out")


def check_tensor(label: str, options: Mapping[str, Any], tensor: torch.Tensor) -> None:
    """Refuse a parameter that does not match the options of its group; only parameters with gradients are checked."""
    state_dtype = options["state_dtype"]
    if state_dtype is not None and tensor.dtype == torch.float64:
        raise ValueError(f"{label}: state_dtype={state_dtype!r} needs float32 or bfloat16 parameters, got float64")
    if not is_narrow(options, tensor):
        return
    if is_distributed(tensor):
        raise ValueError(f"{label} is a DTensor: expected float32 or float64 with state_dtype=None, got {tensor.dtype}")
    if tensor.grad is not None and tensor.grad.layout != torch.strided:
        raise ValueError(
            f"the gradient of {label}: expected a dense gradient for bfloat16 parameters and for state in fewer bits, "
            f"got layout {tensor.grad.layout} (use float32 parameters and state_dtype=None)"
        )


# ---- Conversions ----


def decoded(stored: torch.Tensor, scales: torch.Tensor | None = None) -> torch.Tensor:
    """Return a copy of a moment in float32, or in its own dtype if it is not narrow."""
    if scales is None or not stored.numel():
        narrow = stored.dtype in DTYPES.values()
        return stored.to(torch.float32 if narrow else stored.dtype, copy=True)
    if not _tensors.is_dense(stored) or scales.shape != (scale_count(stored.numel()),):
        raise ValueError(f"float8 state: expected {scale_count(stored.numel())} scales, got shape {[*scales.shape]}")
    values = _core.decode(_tensors.as_array(stored, True), scales.detach().contiguous().numpy())
    return torch.from_numpy(values).as_strided(stored.size(), stored.stride())


def encode_into(name: str, values: torch.Tensor, state: Mapping[str, Any]) -> None:
    """Encode float32 numbers, rounded to nearest, into the tensors of a moment with the same layout."""
    if values.numel():
        scales = state.get(f"{name}_scale")
        codes = _tensors.as_array(state[name], True)
        _core.encode(
            _tensors.as_array(values, True), is_divisor(name), codes, None if scales is None else scales.numpy()
        )


def decoded_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state in the layout of torch.optim, with copies of all tensors."""
    left_out = {"param_low", *(f"{name}_scale" for name in KINDS.keys() & state.keys())}
    result = {}
    for name, value in state.items():
        if name in left_out:
            continue
        if isinstance(value, torch.Tensor):
            is_own = name in KINDS or (name == "y" and "z" in state)
            value = decoded(value, state.get(f"{name}_scale")) if is_own else value.clone()
        result[name] = value
    return result


def with_codes_as(dtype: torch.dtype, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """View float8 codes as uint8, since pickle cannot read float8 tensors, or view them as float8 again.

    Entries of the user stay as they are. Without codes, the result is the same object.
    """
    if not isinstance(state, Mapping):
        return state
    others = {torch.uint8, torch.float8_e4m3fn} - {dtype}
    own = [name for name in KINDS.keys() & state.keys() if f"{name}_scale" in state]
    names = [name for name in own if getattr(state[name], "dtype", None) in others]
    return {**state, **{name: state[name].view(dtype) for name in names}} if names else state


@dataclass
class Loaded:
    """A parameter's state in its final storage, wrapped in an object so that PyTorch does not cast its tensors."""

    state: dict[str, Any]
    is_lossy: bool  # the weights had more bits than the optimizer stores
    is_low_missing: bool  # the lower bits of the weights start at zero


def loaded(
    label: str, options: Mapping[str, Any], tensor: torch.Tensor, names: Collection[str], saved: Any
) -> Loaded | None:
    """Return saved state in the storage of a parameter, or None if PyTorch's own loading gives the same result."""
    if not isinstance(saved, Mapping) or tensor.device.type != "cpu" or is_distributed(tensor):
        return None
    is_saved_narrow = "param_low" in saved or any(f"{name}_scale" in saved for name in names)
    if not is_narrow(options, tensor) and not is_saved_narrow:
        return None
    if "state1" in saved and (missing := [name for name in names if name not in saved]):
        raise ValueError(
            f"the state of {label}: expected {missing[0]!r}, got {', '.join(map(repr, saved))} (state of bitsandbytes? "
            "decode it into float32 tensors with the names of torch.optim)"
        )
    result = dict(saved)
    for name in names:
        value, scales = result.get(name), result.pop(f"{name}_scale", None)
        if isinstance(value, torch.Tensor):
            result |= _stored(label, name, value, scales, tensor, state_tensor_dtype(name, options, tensor))
    dtype, is_lossy, is_low_missing = state_dtypes(options, tensor, ()).get("param_low"), False, False
    low, copy = result.pop("param_low", None), result.get("y")
    if low is not None:
        _check_like(label, "param_low", low, tensor, "int16 or int8", LOW_DTYPES.values())
    has_other_low = low is not None and dtype is not None and low.dtype != dtype
    if isinstance(copy, torch.Tensor) and (copy.dtype != tensor.dtype or has_other_low):
        result["y"], low, is_lossy = _copy_of_weights(label, copy, low, tensor, dtype)
    elif low is not None:
        low, is_lossy = _low_part(low, tensor, dtype)
    elif dtype is not None:
        low, is_low_missing = _tensors.zeros_like(tensor, dtype), True
    if low is not None:
        result["param_low"] = low
    if isinstance(result.get("ema"), torch.Tensor):
        result["ema"] = result["ema"].to(value_dtype(tensor))
    return Loaded(result, is_lossy, is_low_missing)


def _stored(
    label: str, name: str, value: torch.Tensor, scales: torch.Tensor | None, tensor: torch.Tensor, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the tensors of a moment in another storage, or the given tensors if they need no conversion."""
    if value.shape != tensor.shape:
        raise ValueError(f"the state of {label}: expected {name!r} of shape {[*tensor.shape]}, got {[*value.shape]}")
    made = torch.empty_like(tensor, dtype=dtype)
    if dtype == torch.float8_e4m3fn:
        if value.dtype == dtype and scales is not None and value.stride() == made.stride():
            return {name: value, f"{name}_scale": scales}
    elif value.dtype == dtype:
        return {name: value}
    values = torch.empty_like(tensor, dtype=torch.float32).copy_(decoded(value, scales))
    if dtype not in DTYPES.values():
        return {name: values.to(dtype)}
    result = {name: made}
    if dtype == torch.float8_e4m3fn:
        result[f"{name}_scale"] = torch.zeros(scale_count(made.numel()))
    encode_into(name, values, result)
    return result


def joined(tensor: torch.Tensor, low: torch.Tensor | None) -> torch.Tensor:
    """Return a copy of a parameter in the dtype of the arithmetic, with the lower part of a bfloat16 parameter."""
    if low is None or tensor.dtype != torch.bfloat16:
        return tensor.to(value_dtype(tensor), copy=True)
    return torch.from_numpy(conversion.joined(_tensors.as_array(tensor, False), _tensors.as_array(low, False)))


def _check_like(
    label: str, name: str, found: Any, tensor: torch.Tensor, expected: str, dtypes: Collection[torch.dtype]
) -> None:
    """Refuse anything except a tensor of a parameter's shape and of one of these dtypes."""
    if not isinstance(found, torch.Tensor) or found.dtype not in dtypes or found.shape != tensor.shape:
        got = f"{found.dtype} of shape {[*found.shape]}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"the state of {label}: expected {name!r} as {expected} of shape {[*tensor.shape]}, got {got}")


def _copy_of_weights(
    label: str, saved: torch.Tensor, low: torch.Tensor | None, tensor: torch.Tensor, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
    """Return a saved copy of weights and their lower bits in the storage of a parameter, and True if bits are lost."""
    _check_like(label, "y", saved, tensor, "float32 or bfloat16", (torch.float32, torch.bfloat16))
    made, made_low = torch.empty_like(tensor), None if dtype is None else torch.empty_like(tensor, dtype=dtype)
    arrays = [
        None if each is None else np.atleast_1d(_tensors.as_array(each.detach(), False))
        for each in (saved, low, made, made_low)
    ]
    is_lossy, _ = conversion.convert_weights(np.atleast_1d(_tensors.as_array(tensor, False)), *arrays)
    return made, made_low, is_lossy


def _low_part(low: torch.Tensor, tensor: torch.Tensor, dtype: torch.dtype | None) -> tuple[torch.Tensor | None, bool]:
    """Return saved lower bits of bfloat16 weights in the storage of a parameter, and True if bits are lost."""
    saved = np.atleast_1d(low.detach().cpu().numpy())
    if dtype is None:
        weights = np.atleast_1d(tensor.detach().numpy()) if tensor.dtype == torch.float32 else None
        return None, conversion.loses_bits(saved, None, weights)
    if low.dtype == dtype:
        return low, False
    own = _tensors.ARRAY_DTYPES[dtype]
    rounded = torch.from_numpy(conversion.rounded_low(saved, own)).reshape(tensor.shape)
    return torch.empty_like(tensor, dtype=dtype).copy_(rounded), conversion.loses_bits(saved, own)
