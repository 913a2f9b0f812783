"""Substitute arrays for tensors that the engine cannot read in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _core
from ..._allocate import all_zeros_like, state_folder
from ..._types import Array
from .. import needed
from ._compat import is_distributed, local, local_gradient

with needed("torch"):
    import torch


def check_steppable(label: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor with a gradient that onepass cannot step."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{label} is on {tensor.device}: expected a CPU tensor (use torch.optim for other devices)")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{label}: expected dtype float32 or float64, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{label}: expected a dense tensor, got layout {tensor.layout}")
    if not has_memory(tensor):
        raise ValueError(f"{label} has no memory: expected an ordinary tensor")
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape)):
        raise RuntimeError(f"{label} overlaps itself in memory (an expanded tensor?): pass its clone()")


def has_memory(tensor: torch.Tensor) -> bool:
    """Return True if a tensor's elements are in memory, not generated on access or kept in other tensors."""
    try:
        return tensor.numel() == 0 or bool(tensor.data_ptr())
    except RuntimeError:
        return False


def is_dense(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has no gaps for some order of its dimensions, and is not lazily negated."""
    if tensor.is_contiguous():
        return not tensor.is_neg()
    order = sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), tensor.size(axis)), reverse=True)
    return tensor.permute(order).is_contiguous() and not tensor.is_neg()


def is_plain(tensor: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Return True if the engine may be able to read a tensor and its gradient in place."""
    return (
        not is_distributed(tensor)
        and gradient.layout == torch.strided
        and gradient.dtype == tensor.dtype
        and gradient.device == tensor.device
        and gradient.stride() == tensor.stride()
    )


def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of zeros like a parameter, in memory or in files: see `onepass.state_dir`."""
    if is_distributed(tensor) or not is_dense(tensor):
        return torch.zeros_like(tensor, memory_format=torch.preserve_format)
    dtype = np.float64 if tensor.dtype == torch.float64 else np.float32
    flat = _as_array(tensor, flat=True) if tensor.numel() else np.empty(0, dtype)
    zeros = torch.from_numpy(all_zeros_like([flat], state_folder())[0])
    return zeros.as_strided(tensor.size(), tensor.stride())


def _as_array(tensor: torch.Tensor, flat: bool) -> Array:
    """Return a dense tensor's memory as an array.

    ``numpy()`` would do the same, but would make the tensor permanently non-resizable.
    """
    dtype = np.dtype(np.float64 if tensor.dtype == torch.float64 else np.float32)
    shape, strides = ((tensor.numel(),), (1,)) if flat else (tensor.shape, tensor.stride())
    # A separate tensor keeps the memory alive: arrays hide the objects that they refer to from the garbage collector.
    owner = tensor.detach()
    return _core.array_at(owner.data_ptr(), dtype, [*shape], [n * dtype.itemsize for n in strides], owner)


@dataclass
class Substitute:
    """Arrays in place of the tensors of one parameter, and the copies to make after the step."""

    arrays: tuple[Any, ...]  # as _core.TorchEngine.step takes them
    scalars: Array  # changed by the step
    copies: list[tuple[torch.Tensor, torch.Tensor]]  # (to, from)
    initial: float  # value of the first scalar before the step

    def is_stepped(self) -> bool:
        """Return True if the core has stepped the arrays."""
        return bool(self.scalars[0] != self.initial)


def substitute(
    label: str, tensor: torch.Tensor, states: list[torch.Tensor], has_average: bool, scalars: list[float]
) -> Substitute:
    """Return arrays for a parameter, its gradient and its state, all with the same layout."""
    check_steppable(label, local(tensor))
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def dense(one: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
        if like is None and is_dense(one):
            return one
        if like is not None and one.dtype == like.dtype and one.stride() == like.stride() and not one.is_neg():
            return one
        copy = torch.empty_like(one if like is None else like).copy_(one)
        copies.append((one, copy))
        return copy

    own = dense(local(tensor), None)
    dense_states = []
    for state in map(local, states):
        if state.shape != own.shape or state.dtype != own.dtype or state.device != own.device:
            found = f"{[*state.shape]}, {state.dtype} on {state.device}"
            raise ValueError(f"the state of {label}: expected {[*own.shape]}, {own.dtype} on {own.device}, got {found}")
        if not has_memory(state):
            raise ValueError(f"the state of {label} has no memory: expected ordinary tensors")
        dense_states.append(dense(state, own))
    gradient = local_gradient(tensor, tensor.grad)
    plain = own.is_contiguous()
    arrays = [_as_array(state, not plain) for state in dense_states]
    param, counts = _as_array(own, not plain), np.array(scalars, np.float64)
    values = _gradient(label, own, gradient, param, plain)
    average = arrays.pop() if has_average else None
    return Substitute((param, values, arrays, average, counts), counts, copies, scalars[0])


def _gradient(label: str, own: torch.Tensor, gradient: torch.Tensor, param: Array, plain: bool) -> Any:
    """Return a gradient as an array with the parameter's layout, or as a pair of rows and values."""
    if gradient.layout == torch.sparse_coo and gradient.sparse_dim() == 1 and plain:
        gradient = gradient.coalesce()
        values = gradient._values().to(own.dtype).resolve_neg().contiguous()
        rows: Array = gradient._indices()[0].contiguous().numpy()
        if rows.size and (rows[0] < 0 or rows[-1] >= own.shape[0]):
            last = own.shape[0] - 1
            raise IndexError(f"the gradient of {label}: expected rows from 0 to {last}, got {rows[0]} to {rows[-1]}")
        return rows, _as_array(values, flat=True) if rows.size else np.empty(0, param.dtype)
    if gradient.layout != torch.strided:
        gradient = gradient.to_dense()
    return _as_array(torch.empty_like(own).copy_(gradient), not plain)
