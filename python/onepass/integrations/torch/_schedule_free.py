"""Schedule-Free AdamW for PyTorch, with its training and evaluation modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onepass

from .. import needed
from . import _storage
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
        evaluation_weight = self._kind._spec.evaluation_weight
        assert evaluation_weight is not None
        with self._slow_lock:
            averages = []
            for group in self.param_groups:
                if not group["train_mode"]:
                    continue
                self._check(group)
                weight = evaluation_weight({"betas": plain(group["betas"], False)})
                for param in group["params"]:
                    state = self.state.get(param, {})
                    if "z" in state:
                        y = _storage.joined(param, state.get("param_low"))
                        averages.append((param, param.clone(), (state["z"] - y).mul_(weight).add_(y)))
            written = []
            try:
                for param, y, x in averages:
                    param.copy_(x)
                    written.append((param, y))
            except BaseException:
                for param, y in written:
                    param.copy_(y)
                raise
            for param, y, _ in averages:  # new dicts: a state dict that a user has shares the old ones
                self.state[param] = {**self.state[param], "y": y}
            for group in self.param_groups:
                group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Restore the training weights in the parameters, bit for bit. Does nothing in training mode."""
        with self._slow_lock:
            weights = []
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
                        weights.append((param, state["y"]))
            for param, y in weights:
                param.copy_(y)
            for param, _ in weights:
                self.state[param] = {name: value for name, value in self.state[param].items() if name != "y"}
            for group in self.param_groups:
                group["train_mode"] = True

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
