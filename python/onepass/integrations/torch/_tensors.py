"""Substitute arrays for tensors that the engine cannot read in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from ... import _core
from ..._allocate import all_zeros, all_zeros_like, state_folder
from ..._storage import scale_count
from ..._types import Array
from .. import needed
from ._compat import is_distributed, local, local_gradient, rows_and_values

with needed("torch"):
    import torch

# The dtypes of arrays with the memory of a tensor.
ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.bfloat16: np.dtype(np.uint16),
    torch.float8_e4m3fn: np.dtype(np.uint8),
    torch.int16: np.dtype(np.int16),
    torch.int8: np.dtype(np.int8),
}


def check_steppable(label: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with a gradient that onepass cannot step."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{label} is on {tensor.device}: expected a CPU tensor (use torch.optim for other devices)")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        remedy = "use its real form, torch.view_as_real" if tensor.dtype.is_complex else "use model.float()"
        raise TypeError(f"{label}: expected dtype float32, float64 or bfloat16, got {tensor.dtype} ({remedy})")
    if tensor.layout != torch.strided:
        raise ValueError(f"{label}: expected a dense tensor, got layout {tensor.layout}")
    if not has_memory(tensor):
        raise ValueError(f"{label} has no memory: expected an ordinary tensor")
    check_expanded(label, tensor)


def has_memory(tensor: torch.Tensor) -> bool:
    """Return True if a tensor's elements are in memory, not generated on access or kept in other tensors."""
    try:
        return tensor.numel() == 0 or bool(tensor.data_ptr())
    except RuntimeError:
        return False


def check_expanded(label: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of which one element of memory is several elements."""
    if tensor.numel() and any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
        raise RuntimeError(f"{label} overlaps itself in memory (an expanded tensor?): use its clone()")


def is_dense(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has no gaps for some order of its dimensions, and is not lazily negated."""
    if tensor.is_contiguous():
        return not tensor.is_neg()
    order = sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), tensor.size(axis)), reverse=True)
    return tensor.permute(order).is_contiguous() and not tensor.is_neg()


def is_plain(tensor: torch.Tensor, gradient: torch.Tensor, narrow: bool) -> bool:
    """Return True if the engine may be able to read a tensor and its gradient in place."""
    widened = (torch.float32, torch.float16, torch.bfloat16) if narrow else ()
    return (
        not is_distributed(tensor)
        and gradient.layout == torch.strided
        and (gradient.dtype == tensor.dtype or gradient.dtype in widened)
        and gradient.device == tensor.device
        and gradient.stride() == tensor.stride()
    )


def zeros_like(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a tensor of zeros like a parameter, in memory or in files: see `onepass.state_dir`.

    None instead of a dtype: a float32 tensor with one element for each scale of float8 numbers.
    """
    if dtype is not None and (is_distributed(tensor) or not is_dense(tensor)):
        return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.preserve_format)
    own = ARRAY_DTYPES[tensor.dtype]
    flat = as_array(tensor, flat=True) if tensor.numel() else np.empty(0, own)
    if dtype is None:
        return torch.from_numpy(all_zeros_like([np.empty(scale_count(flat.size), np.float32)], state_folder())[0])
    (zeros,) = all_zeros([(flat, ARRAY_DTYPES[dtype])], state_folder())
    return torch.from_numpy(zeros).view(dtype).as_strided(tensor.size(), tensor.stride())


def as_array(tensor: torch.Tensor, flat: bool) -> Array:
    """Return a dense tensor's memory as an array, with the bits of bfloat16 and float8 numbers as integers.

    ``numpy()`` would do the same, but would make the tensor permanently non-resizable.
    """
    dtype = ARRAY_DTYPES[tensor.dtype]
    shape, strides = ((tensor.numel(),), (1,)) if flat else (tensor.shape, tensor.stride())
    # A separate tensor keeps the memory alive: arrays hide the objects that they refer to from the garbage collector.
    owner = tensor.detach()
    return _core.array_at(owner.data_ptr(), dtype, [*shape], [n * dtype.itemsize for n in strides], owner)


@dataclass
class Narrow:
    """Storage of a parameter in fewer bits. The lists have an item for each moment."""

    dtypes: list[torch.dtype]
    scales: list[torch.Tensor | None]
    divisors: list[bool]
    low: torch.Tensor | None
    low_dtype: torch.dtype | None
    master_bits: int
    stochastic: bool


@dataclass
class Substitute:
    """Arrays in place of the tensors of one parameter, and the copies to make after the step."""

    arrays: tuple[Any, ...]  # as _core.TorchEngine.step takes them
    copies: list[tuple[torch.Tensor, torch.Tensor]]  # (to, from)


def substitute(
    label: str,
    tensor: torch.Tensor,
    states: list[torch.Tensor],
    average: torch.Tensor | None,
    scalars: list[torch.Tensor],
    first: bool,
    narrow: Narrow | None,
) -> Substitute:
    """Return arrays for a parameter, its gradient and its state, all with the same layout.

    Without scalars, one number takes their place: 0 at the first step, 1 at later steps.
    """
    check_steppable(label, local(tensor))
    gradient = local_gradient(tensor, tensor.grad)
    sparse = rows_and_values(gradient)
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def copied(one: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        copy = like.copy_(one)
        copies.append((one, copy))
        return copy

    own = local(tensor)
    if sparse is not None and not own.is_contiguous():  # rows are of memory in C order
        own = copied(own, torch.empty_like(own, memory_format=torch.contiguous_format))
    elif not is_dense(own):
        own = copied(own, torch.empty_like(own))
    plain = own.is_contiguous()

    def array_of(state: torch.Tensor, dtype: torch.dtype) -> Array:
        if state.shape != own.shape or state.dtype != dtype or state.device != own.device:
            found = f"{[*state.shape]}, {state.dtype} on {state.device}"
            hint = "" if narrow is None else " (options of storage are fixed: load a state dict to convert the state)"
            raise ValueError(
                f"the state of {label}: expected {[*own.shape]}, {dtype} on {own.device}, got {found}{hint}"
            )
        if not has_memory(state):
            raise ValueError(f"the state of {label} has no memory: expected ordinary tensors")
        check_expanded(f"the state of {label}", state)
        same = state.stride() == own.stride() and not state.is_neg()
        if not same and dtype == torch.float8_e4m3fn:  # groups of elements that share a scale lie side by side
            raise ValueError(
                f"the state of {label}: expected the strides {own.stride()}, got {state.stride()} (load a state dict "
                "to convert the state)"
            )
        return as_array(state if same else copied(state, torch.empty_like(own, dtype=dtype)), not plain)

    wide = torch.float32 if narrow else own.dtype
    dtypes = narrow.dtypes if narrow else [own.dtype] * len(states)
    arrays = [array_of(local(state), dtype) for state, dtype in zip(states, dtypes)]
    average_array = None if average is None else array_of(local(average), wide)
    param = as_array(own, not plain)
    counts = np.array([float(scalar) for scalar in scalars] or [float(not first)], np.float64)
    if scalars:
        copies += zip(scalars, torch.from_numpy(counts).unbind())
    values = _dense_gradient(label, own, gradient, wide) if sparse is None else _rows(label, own, *sparse)
    stored = None
    if narrow is not None:
        low = None if narrow.low is None or narrow.low_dtype is None else array_of(narrow.low, narrow.low_dtype)
        scales = [None if one is None else _scales(label, own, one) for one in narrow.scales]
        stored = _core.NarrowArrays(scales, narrow.divisors, low, narrow.master_bits, narrow.stochastic)
    return Substitute((param, values, arrays, average_array, counts, stored, average), copies)


def _scales(label: str, own: torch.Tensor, scales: torch.Tensor) -> Array:
    """Return the scales of float8 state as an array."""
    count = scale_count(own.numel())
    if scales.shape != (count,) or scales.dtype != torch.float32 or not scales.is_contiguous():
        found = f"{[*scales.shape]}, {scales.dtype}"
        raise ValueError(f"the scales of the state of {label}: expected [{count}], torch.float32, got {found}")
    return as_array(scales, flat=True)


def _dense_gradient(label: str, own: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> Array:
    """Return a gradient as an array with the parameter's layout, in the dtype of the arithmetic."""
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    if not has_memory(gradient) and not gradient._is_zerotensor():
        raise ValueError(f"the gradient of {label} has no memory: expected an ordinary tensor")
    return as_array(torch.empty_like(own, dtype=dtype).copy_(gradient), not own.is_contiguous())


def _rows(label: str, own: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> tuple[Array, Array]:
    """Return a sparse gradient as rows, in ascending order, and their values."""
    if values.shape[1:] != own.shape[1:]:
        found = f"expected rows of shape {[*own.shape[1:]]}, got {[*values.shape[1:]]}"
        raise ValueError(f"the gradient of {label}: {found}")
    values = values.to(own.dtype).contiguous()
    if not indices.numel():
        return np.empty(0, np.int64), np.empty(0, np.float32)
    array = as_array(values, flat=False)
    rows, sums = _core.sum_rows(indices[0].contiguous().numpy(), array)
    if rows[0] < 0 or rows[-1] >= own.shape[0]:
        last = own.shape[0] - 1
        raise IndexError(f"the gradient of {label}: expected rows from 0 to {last}, got {rows[0]} to {rows[-1]}")
    return rows, sums.copy() if sums is array else sums  # values may lie in the parameter or its state


def copy_at_once(
    tensors: Sequence[torch.Tensor],
    values: Iterable[torch.Tensor],
    kept: Sequence[torch.Tensor] | None,
    *changes: Iterator[Any],
) -> None:
    """Copy values into tensors, then make changes, in one call of a C function, which Ctrl-C does not interrupt.

    Args:
        tensors: the tensors to change.
        values: the new value of each tensor.
        kept: the value of each tensor to restore if one cannot be written, or None to restore nothing.
        changes: iterators of C functions that do not fail, run after the copies.
    """
    done: list[Any] = []
    try:
        done.extend(chain(map(torch.Tensor.copy_, tensors, values), *changes))
    except BaseException:
        if kept is not None and len(done) < len(tensors):  # otherwise, Ctrl-C came after the call
            for tensor, value, _ in zip(tensors, kept, done):
                tensor.copy_(value)
        raise


def overlap(tensors: list[torch.Tensor], copied: list[bool]) -> bool:
    """Return True if a copied tensor shares memory with another tensor: copies would lose updates."""
    if not any(copied):
        return False
    ranges = []
    for tensor, is_copied in zip(map(local, tensors), copied):
        if tensor.numel() and has_memory(tensor):
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
            ranges.append((tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size(), is_copied))
    ranges.sort()
    end, owner = 0, False
    for start, stop, is_copied in ranges:
        if start < end and (is_copied or owner):
            return True
        if stop > end:
            end, owner = stop, is_copied
    return False
