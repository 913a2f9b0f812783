"""Private names of PyTorch that the adapter uses, tested with PyTorch 2.4 to 2.14."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

from .. import needed

with needed("torch"):
    import torch
    from torch._C import _increment_version
    from torch.autograd import _profiler_enabled as profiler_enabled
    from torch.optim.optimizer import _global_optimizer_post_hooks as global_post_hooks
    from torch.optim.optimizer import _global_optimizer_pre_hooks as global_pre_hooks

__all__ = ["count_changes", "exchange", "global_post_hooks", "global_pre_hooks", "is_distributed", "local"]
__all__ += ["leave_uncompiled"]
__all__ += ["profiler_enabled", "step_dtype"]

# Capsule of PyTorch's DLPack exchange functions, which view tensors without Python. Available since PyTorch 2.10.
exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

try:  # autograd refuses to backpropagate through tensors that were changed in place
    _increment_version(())
    count_changes = _increment_version
except RuntimeError:  # older PyTorch: the function takes one tensor

    def count_changes(tensors: Iterable[torch.Tensor]) -> None:
        """Report to autograd that tensors were changed in place."""
        for tensor in tensors:
            _increment_version(tensor)


@cache
def leave_uncompiled() -> None:
    """Have torch.compile run the adapter's Python code uncompiled, without a warning about untraceable code."""
    rules: Any = sys.modules.get("torch._dynamo.trace_rules")  # PyTorch's optimizers import it in their constructors
    if rules is not None:
        rules.add("onepass")


def step_dtype() -> torch.dtype:
    """Return the dtype of the step-count tensors, as in torch.optim."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def is_distributed(tensor: torch.Tensor) -> bool:
    """Return True for a DTensor."""
    plain = type(tensor) in (torch.nn.Parameter, torch.Tensor)
    return not plain and hasattr(tensor, "_local_tensor") and hasattr(tensor, "_spec")


def local(tensor: Any) -> torch.Tensor:
    """Return the tensor itself, or this process's shard of a DTensor (`to_local` is slow)."""
    return tensor._local_tensor if is_distributed(tensor) else tensor


def rows_and_values(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the row numbers, of shape (1, n), and the values of a sparse gradient, or None for other gradients."""
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        return None
    return gradient._indices(), gradient._values().resolve_neg()


def local_gradient(tensor: Any, gradient: Any) -> torch.Tensor:
    """Return this process's shard of a gradient, with the placements of the parameter."""
    if not is_distributed(tensor):
        return gradient
    if gradient._spec.mesh != tensor._spec.mesh or gradient._spec.placements != tensor._spec.placements:
        gradient = gradient.redistribute(tensor.device_mesh, tensor.placements)
    return gradient._local_tensor
