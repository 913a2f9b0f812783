# The compiled core: private, and free to change.
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from ._types import Form, Nonfinite
from .sparse import SparseRows

_Array = npt.NDArray[Any]
_Gradient = _Array | np.floating[Any] | SparseRows
# As the parameters came. Any: or mypy would not take {...} with gradients of several kinds for a mapping.
_Gradients = _Gradient | Mapping[Any, _Gradient | Any] | Iterable[_Gradient | None]

__version__: str
compiler: str
can_flush_denormals: bool
instruction_set: str
built_instruction_sets: list[str]
usable_instruction_sets: list[str]
# The names of each rule's options, the kinds of its state arrays ("moment", "slow_moment", "divisor" or "weight"), and
# the initial values of its scalars.
rules: dict[str, tuple[list[str], dict[str, str], dict[str, float]]]
no_clip_norm: float
norm_block: int  # elements
scale_group: int  # elements of float8 arrays that share a scale

class CommonOptions:
    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        clip_value: float = ...,
        ema_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
        averaged: bool = False,
        keep_subnormals: bool,
        scheduled: bool = False,
    ) -> None: ...

class Group:
    def __init__(self, rule: str, values: Mapping[str, Any], options: list[float], common: CommonOptions) -> None: ...
    @property
    def values(self) -> Mapping[str, Any]: ...
    def swap(
        self, expected: Mapping[str, Any], values: Mapping[str, Any], options: list[float], common: CommonOptions
    ) -> bool: ...
    def swap_lr(self, expected: Mapping[str, Any], values: Mapping[str, Any], lr: float, scheduled: bool) -> bool: ...

class NarrowArrays:
    def __init__(
        self,
        scales: list[_Array | None],
        divisors: list[bool],
        low: _Array | None,
        master_bits: int,
        stochastic: bool,
        first: int = 0,
        part_of: int | None = None,
    ) -> None: ...

class Optimizer:
    _clip_norm: float
    _nonfinite: Nonfinite
    _seed: int
    def __init__(self, flush_denormals: bool, in_files: bool, record: Any) -> None: ...
    @property
    def _record(self) -> Any: ...
    def step(self, grads: _Gradients, grad_scale: SupportsFloat = 1.0) -> None:
        """Update the parameters in place along these gradients.

        Args:
            grads: gradients in the form of the parameters: an array, a sequence or a
                mapping; with groups, one sequence in the order of the groups, or one
                mapping if the parameters have names. Each gradient has its parameter's
                shape, and any real floating dtype and memory layout. A gradient is copied
                only if its dtype or layout differs from its parameter's, or if it shares
                memory with a parameter or with state. Arrays of other libraries in CPU
                memory work too. ``None`` in a sequence or mapping leaves the parameter, its
                state and its step count unchanged. `SparseRows` updates only some rows of
                the parameter and of its state.
            grad_scale: a factor for every gradient, applied in the same pass.

        Raises:
            TypeError: a gradient is not an array of real floating-point numbers.
            FloatingPointError: a gradient holds NaN or infinity, and ``nonfinite`` is
                ``"raise"``.
            IndexError: `SparseRows` names a row that the parameter does not have.
            ValueError: too few or too many gradients, an unknown or missing name, a
                gradient whose shape is not its parameter's, a schedule that returns
                no usable number, a coefficient that overflows the parameters' dtype,
                or a ``grad_scale`` that is not finite.
            RuntimeError: the optimizer is in evaluation mode, or already in use by this
                thread: a schedule called ``step``. After any error, nothing has changed.

        Example:
            >>> import numpy as np, onepass
            >>> w = np.ones(3, np.float32)
            >>> opt = onepass.Adam(w, lr=0.5)
            >>> opt.step(np.array([1, 0, -1], np.float32))
            >>> w
            array([0.5, 1. , 1.5], dtype=float32)
        """
    @property
    def step_count(self) -> int:
        """The number of steps applied so far."""
    @property
    def skipped(self) -> int:
        """The number of steps skipped because a gradient was not finite: see ``nonfinite``."""
    @property
    def grad_norm(self) -> float | None:
        """The global L2 norm of the last step's gradients before clipping, or None if ``clip_norm`` was not set."""
    def _add_group(
        self,
        form: Form,
        group: Group,
        keys: list[Any],
        params: list[_Array],
        states: list[list[_Array]],
        averages: list[_Array | None],
        narrow: list[NarrowArrays | None],
        record: Any,
    ) -> None: ...
    def _restore(
        self,
        copies: list[tuple[_Array, _Array]],
        options: list[tuple[Group, Mapping[str, Any], Mapping[str, Any], list[float], CommonOptions]],
        clip_norm: float,
        nonfinite: Nonfinite,
        seed: int,
        step_count: int,
        skipped: int,
        steps: list[int],
        scalars: list[list[float]],
        record: Any,
        evaluates: bool,
    ) -> bool: ...
    def _swap_arrays(self, pairs: list[tuple[_Array, _Array]], record: Any, evaluates: bool) -> None: ...
    def _locked(self, function: Callable[[], Any]) -> Any: ...
    def _prepare_step(self, grads: _Gradients, grad_scale: float) -> list[float]: ...
    def _measure_step(self) -> _Array: ...
    def _commit_step(self, norm: float, first_nonfinite: int | None) -> bool: ...
    def _fits(self, index: int, gradient: Any) -> bool: ...
    def _parameter_step(self, index: int) -> int: ...
    def _parameter_scalars(self, index: int) -> dict[str, float]: ...

def step_once(
    rule: str,
    options: list[float],
    common: CommonOptions,
    grad_scale: float,
    flush_denormals: bool,
    step: int,
    param: _Array,
    grad: _Array,
    states: list[_Array],
    average: _Array | None = None,
) -> bool: ...
def array_at(address: int, dtype: Any, shape: list[int], strides: list[int], owner: Any) -> _Array: ...
def sum_rows(rows: npt.NDArray[np.int64], values: _Array) -> tuple[npt.NDArray[np.int64], _Array]: ...
def decode(array: _Array, scales: _Array | None = None) -> npt.NDArray[np.float32]: ...
def encode(values: _Array, divisor: bool, array: _Array, scales: _Array | None = None) -> None: ...
def norm(array: _Array) -> float: ...
def total(blocks: _Array, counts: list[int], grad_scale: float, finite: bool) -> tuple[float, int | None]: ...
def stream_baseline(param: _Array, grad: _Array, exp_avg: _Array, exp_avg_sq: _Array) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def reset_num_threads() -> None: ...
def requested_threads() -> int: ...
def processor_count() -> int: ...
def spinning_blas() -> str | None: ...
def torch_openmp() -> str | None: ...
def power(base: float, exponent: int) -> float: ...

class StepLock:
    def __init__(self) -> None: ...
    def call(self, function: Callable[..., Any], /, *arguments: Any) -> Any: ...

class TorchGroup:
    def __init__(
        self,
        group: dict[str, Any],
        tensors: tuple[Any, ...],
        rule: str,
        places: dict[str, list[int]],
        fixed_zeros: set[str],
        options: list[float],
        common: CommonOptions,
    ) -> None: ...

class TorchStorage:
    def __init__(
        self,
        states: list[str],
        narrow_from: int,
        scales: list[str],
        divisors: list[bool],
        low: str,
        master_bits: int,
        stochastic: bool,
    ) -> None: ...

class TorchEngine:
    def __init__(
        self,
        groups: list[TorchGroup],
        state: dict[Any, Any],
        states: list[list[str]],
        storages: list[TorchStorage],
        scalars: list[str],
        exchange: Any,
        tensor_type: type,
        get_num_threads: Callable[[], int],
        count_changes: Callable[[tuple[Any, ...]], Any],
        explain: Callable[..., None],
        rows_and_values: Callable[[Any], tuple[Any, Any] | None],
        flush_denormals: bool,
    ) -> None: ...
    @property
    def step_count(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def grad_norm(self) -> float | None: ...
    def set_clip_norm(self, clip_norm: float) -> None: ...
    def set_nonfinite(self, nonfinite: Nonfinite) -> None: ...
    def set_seed(self, seed: int) -> None: ...
    def set_results(self, skipped: int, grad_norm: float | None) -> None: ...
    def clear_gradients(self, groups: list[dict[str, Any]]) -> bool: ...
    def takes(self, groups: list[dict[str, Any]], state: Any) -> bool: ...
    def renew(self, group: int, places: dict[str, list[int]], options: list[float], common: CommonOptions) -> None: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Any,
        substitutes: list[Any] | None = None,
        only: int | None = None,
        copies: list[tuple[Any, Any]] | None = None,
    ) -> bool: ...
