"""Schedule-Free AdamW for PyTorch, with its training and evaluation modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import repeat
from operator import setitem
from typing import Any

import onepass

from .. import needed
from . import _storage, _tensors
from ._engine import plain
from ._optimizer import OnePass

with needed("torch"):
    import torch

# Scalars that the authors' package keeps in a group instead of the state of the parameters, by the name here.
_COUNTS = {"k": "step", "lr_max": "lr_max", "weight_sum": "weight_sum"}


class ScheduleFreeAdamW(OnePass):
    """`onepass.ScheduleFreeAdamW` with the arguments of ``AdamWScheduleFree`` of the package schedulefree.

    A new optimizer is in training mode; the package's class starts in evaluation mode. `eval` replaces the training
    weights by the averaged weights and keeps a copy, and `train` restores the training weights bit for bit. You can
    save and load state in both modes, and load state dicts of the package's class.

    Example:
        >>> import torch, onepass.integrations.torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = onepass.integrations.torch.ScheduleFreeAdamW([w], lr=0.25, betas=(0.5, 0.999))
        >>> for _ in range(2):
        ...     w.grad = torch.tensor([3.0, -1.0])
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> w.detach()
        tensor([0.6250, 1.3750])
        >>> optimizer.train()
        >>> w.detach()
        tensor([0.5625, 1.4375])
    """

    _kind = onepass.ScheduleFreeAdamW
    _has_double_scalars = True

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        """Take the options of `onepass.ScheduleFreeAdamW`; ``foreach`` changes nothing."""
        given = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "maximize": maximize,
        }
        super().__init__(params, {**given, "train_mode": True}, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own options, in training mode."""
        if any(not group["train_mode"] for group in self.param_groups):
            raise RuntimeError("add_param_group: expected training mode, got evaluation mode (call train() first)")
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except BaseException:
            del self.param_groups[-1]
            raise

    def _check(self, group: Mapping[str, Any]) -> None:
        """Refuse options of a group that are out of range."""
        spec = self._kind._spec
        names = (self.defaults.keys() & spec.checks.keys()) - self._own_defaults().keys()
        values = {name: plain(group[name], False) for name in names}
        values["warmup_steps"] = int(values["warmup_steps"])
        values["maximize"] = bool(values["maximize"])
        spec.validate({name: spec.checks[name](name, value) for name, value in values.items()})

    @torch.no_grad()
    def eval(self) -> None:
        """Replace the parameters by the averages, in place, and keep a copy of the training weights as ``"y"``.

        Steps are refused until `train`. Does nothing in evaluation mode.
        """
        self._lock.call(self._eval)

    def _eval(self) -> None:
        evaluation_weight = self._kind._spec.evaluation_weight
        assert evaluation_weight is not None
        params, kept, averages = [], [], []
        for group in self.param_groups:
            if not group["train_mode"]:
                continue
            self._check(group)
            weight = evaluation_weight({"betas": plain(group["betas"], False)})
            for param in group["params"]:
                state = self.state.get(param, {})
                if "z" in state:
                    y = _storage.joined(param, state.get("param_low"))
                    params.append(param)
                    kept.append(param.clone())
                    averages.append((state["z"] - y).mul_(weight).add_(y))
        keep = map(setitem, self._copied_state(params), repeat("y"), kept)
        _tensors.copy_at_once(params, averages, kept, keep, self._set_mode(False))

    @torch.no_grad()
    def train(self) -> None:
        """Restore the training weights in the parameters, bit for bit. Does nothing in training mode."""
        self._lock.call(self._train)

    def _train(self) -> None:
        params, weights = [], []
        for group in self.param_groups:
            for param in group["params"] if not group["train_mode"] else ():
                state = self.state.get(param, {})
                if "z" in state and "y" not in state:  # loaded from the authors' package, which keeps no copy
                    y = param.lerp(state["z"].to(param.dtype), 1 - plain(group["betas"], False)[0])
                    state = self.state[param] = {**state, "y": y}
                if "y" in state:
                    if state["y"].shape != param.shape:
                        expected, shape = tuple(state["y"].shape), tuple(param.shape)
                        raise RuntimeError(f"train: expected a parameter of shape {expected}, got {shape}")
                    params.append(param)
                    weights.append(state["y"])
        remove = map(dict.pop, self._copied_state(params), repeat("y"), repeat(None))
        _tensors.copy_at_once(params, weights, None, remove, self._set_mode(True))

    def _copied_state(self, params: list[torch.Tensor]) -> list[dict[str, Any]]:
        """Replace the state of parameters by copies that no state dict of the user shares, and return the copies."""
        for param in params:
            self.state[param] = {**self.state[param]}
        return [self.state[param] for param in params]

    def _set_mode(self, train_mode: bool) -> Iterator[None]:
        """Return an iterator that sets the mode of all groups."""
        return map(setitem, self.param_groups, repeat("train_mode"), repeat(train_mode))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this class or of the package schedulefree, and the mode in which it was saved."""
        super().load_state_dict(_converted(state_dict))


def _converted(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict of the authors' package in this class's layout, or any other unchanged."""
    groups = state_dict["param_groups"]
    if not all("k" in group for group in groups):
        return state_dict
    state = dict(state_dict["state"])
    own = []
    for group in groups:
        counts = {name: float(group[theirs]) for theirs, name in _COUNTS.items()}
        for index in group["params"]:
            if index in state:
                state[index] = {**state[index], **counts}
        dropped = {*_COUNTS, "scheduled_lr", "foreach"}
        own.append({"maximize": False, **{name: value for name, value in group.items() if name not in dropped}})
    return {**state_dict, "state": state, "param_groups": own}
