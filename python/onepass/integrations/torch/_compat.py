"""Private names of PyTorch that the adapter uses, tried on PyTorch 2.4 to 2.14."""

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

# The address of functions that view tensors without Python, since PyTorch 2.10.
exchange: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)

try:  # autograd refuses to go back through what was changed in place
    _increment_version(())
    count_changes = _increment_version
except RuntimeError:  # in older PyTorch it takes one tensor

    def count_changes(tensors: Iterable[torch.Tensor]) -> None:
        """Have autograd know that tensors were changed in place."""
        for tensor in tensors:
            _increment_version(tensor)


@cache
def leave_uncompiled() -> None:
    """Have torch.compile run the adapter's own Python code as it is, without a warning that it cannot trace it."""
    rules: Any = sys.modules.get("torch._dynamo.trace_rules")  # optimizers of PyTorch import it when they are made
    if rules is not None:
        rules.add("onepass")


def step_dtype() -> torch.dtype:
    """Return the dtype of the tensors that count steps, as torch.optim has it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def is_distributed(tensor: torch.Tensor) -> bool:
    """Return True for a DTensor, of which this process has a shard."""
    return type(tensor) is not torch.Tensor and hasattr(tensor, "_local_tensor") and hasattr(tensor, "_spec")


def local(tensor: Any) -> torch.Tensor:
    """Return the memory of a tensor: of a DTensor this process's shard (`to_local` is slow)."""
    return tensor._local_tensor if is_distributed(tensor) else tensor


def local_gradient(tensor: Any, gradient: Any) -> torch.Tensor:
    """Return this process's shard of a gradient, divided as the parameter is."""
    if not is_distributed(tensor):
        return gradient
    if gradient._spec.mesh != tensor._spec.mesh or gradient._spec.placements != tensor._spec.placements:
        gradient = gradient.redistribute(tensor.device_mesh, tensor.placements)
    return gradient._local_tensor
