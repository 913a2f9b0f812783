# The compiled core: private, and free to change.
import enum
from typing import Any

import numpy.typing as npt

__version__: str
compiler: str
can_flush_denormals: bool
instruction_set: str
built_instruction_sets: list[str]
usable_instruction_sets: list[str]
rules: dict[str, tuple[list[str], list[str]]]  # the names of each rule's options and of its state

class Group:
    scheduled: bool
    def __init__(
        self,
        rule: str,
        options: list[float],
        lr: float,
        weight_decay: float,
        decoupled: bool,
        grad_scale: float,
    ) -> None: ...
    def set(self, options: list[float], lr: float, weight_decay: float, decoupled: bool, grad_scale: float) -> None: ...

class Optimizer:
    class Form(enum.Enum):
        array = ...
        sequence = ...
        mapping = ...

    def __init__(self, rule: str, form: Form, flush_denormals: bool) -> None: ...
    def step(self, grads: Any, grad_scale: float = 1.0) -> None: ...
    @property
    def step_count(self) -> int: ...
    def _add_group(
        self, group: Group, keys: list[Any], params: list[npt.NDArray[Any]], states: list[list[npt.NDArray[Any]]]
    ) -> None: ...
    def _fits(self, index: int, gradient: Any) -> bool: ...
    def _parameter_step(self, index: int) -> int: ...

def step_once(
    rule: str,
    options: list[float],
    lr: float,
    weight_decay: float,
    decoupled: bool,
    grad_scale: float,
    flush_denormals: bool,
    step: int,
    param: npt.NDArray[Any],
    grad: npt.NDArray[Any],
    states: list[npt.NDArray[Any]],
) -> bool: ...
def stream_limit(
    param: npt.NDArray[Any], grad: npt.NDArray[Any], exp_avg: npt.NDArray[Any], exp_avg_sq: npt.NDArray[Any]
) -> None: ...
def power(base: float, exponent: int) -> float: ...
