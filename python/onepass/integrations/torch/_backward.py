"""Steps in the backward pass: each parameter as soon as its gradient is complete."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import needed
from ._optimizer import OnePass

with needed("torch"):
    import torch


class StepInBackward:
    """Handle of `step_in_backward`: `remove` ends it."""

    def __init__(self, optimizer: OnePass) -> None:
        self._optimizer = optimizer
        self._params = [param for group in optimizer.param_groups for param in group["params"]]
        self._stepped: set[int] = set()
        self._handles: dict[int, Any] = {}
        self._without_hook = dict(enumerate(self._params))
        self._add_hooks()

    def _add_hooks(self) -> None:
        """Add a hook to each trainable parameter that has none. PyTorch refuses hooks on other parameters."""
        for index, param in [*self._without_hook.items()]:
            if param.requires_grad and index not in self._handles:
                self._handles[index] = param.register_post_accumulate_grad_hook(partial(self._step, index))
            if index in self._handles:
                del self._without_hook[index]

    def _step(self, index: int, param: torch.Tensor) -> None:
        if index in self._stepped:
            param.grad = None  # the next step must not use it
            raise RuntimeError(
                f"parameter {index} got a second gradient before optimizer.step(): call optimizer.step() after each "
                "backward pass, even after a failed one. Accumulated gradients and re-entrant checkpoints need "
                "step_in_backward to be removed"
            )
        self._stepped.add(index)  # first: after Ctrl-C, optimizer.step() must not step the parameter again
        try:
            self._optimizer._step_only(index)
        except Exception:  # nothing has changed
            self._stepped.discard(index)
            raise
        param.grad = None

    def finish(self, closure: Callable[[], Any] | None) -> None:
        """Replace the optimizer's step: step the parameters that have not been stepped in the backward pass."""
        if closure is not None:
            raise RuntimeError("a closure is not possible where parameters are stepped in the backward pass")
        if len(self._stepped) < len(self._params):
            for index in self._stepped:
                self._params[index].grad = None  # left by Ctrl-C, or set since
            self._optimizer._step_only(None)
        self._stepped.clear()
        OnePass.zero_grad(self._optimizer)  # not the user's, which may do something else
        self._add_hooks()

    def remove(self) -> None:
        """Step in ``optimizer.step()`` again."""
        for handle in self._handles.values():
            handle.remove()
        self._optimizer._in_backward = None


def step_in_backward(optimizer: OnePass) -> StepInBackward:
    """Step each parameter in the backward pass, as soon as its gradient is complete, and free the gradient.

    The gradient is then still in the cache, and a model never holds all its gradients. Call ``optimizer.step()`` after
    each backward pass as before, even after a failed one: it allows the next backward pass to step. It also steps
    parameters that were not stepped in the backward pass but have a gradient, such as parameters that have become
    trainable since the last step, and frees all gradients. ``zero_grad`` cannot take back a step.

    This does not work with anything that changes gradients or needs all gradients before the step: ``clip_norm``,
    ``nonfinite``, closures, ``clip_grad_norm_``, accumulated gradients, ``GradScaler`` (the step would use the scaled
    gradients) and ``DistributedDataParallel`` (the processes have not yet exchanged their gradients). Step hooks of the
    optimizer run in ``optimizer.step()``.

    Args:
        optimizer: an optimizer of this module.

    Returns:
        A handle with ``remove()``.

    Raises:
        TypeError: the optimizer is not of this module.
        ValueError: the optimizer has ``clip_norm`` or ``nonfinite``.
        RuntimeError: the optimizer steps in the backward pass already. The backward pass raises it, too, if a parameter
            gets a second gradient before ``optimizer.step()``; this gradient does not change the parameter.

    Example:
        >>> import torch, onepass.integrations.torch
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = onepass.integrations.torch.Adam([w], lr=0.5)
        >>> handle = onepass.integrations.torch.step_in_backward(optimizer)
        >>> w.sum().backward()
        >>> w.detach(), w.grad
        (tensor([0.5000, 0.5000, 0.5000]), None)
        >>> optimizer.step()
    """
    if not isinstance(optimizer, OnePass):
        raise TypeError(f"optimizer: expected one of onepass.integrations.torch, got {type(optimizer).__name__}")
    if optimizer._in_backward is not None:
        raise RuntimeError("this optimizer steps in the backward pass already")
    if optimizer.clip_norm is not None or optimizer.nonfinite != "propagate":
        raise ValueError(
            "step_in_backward: clip_norm and nonfinite need all gradients first: create the optimizer without them"
        )
    handle = optimizer._in_backward = StepInBackward(optimizer)
    return handle
