"""Parameters, gradients, storages and comparisons of the tests of state and weights in fewer bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

CASES: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"weight_decay": 0.1, "clip_norm": 30.0}),
    ("AdamW", {"betas": (0.8, 0.99)}),
    ("Adamax", {}),
    ("NAdam", {"nonfinite": "skip"}),
    ("RAdam", {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adagrad", {"initial_accumulator_value": 0.1}),
    ("Adadelta", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("SGD", {}),
    ("Lion", {"clip_value": 0.5}),
    ("AdEMAMix", {"weight_decay": 0.1, "beta3_warmup": 5}),
    ("ScheduleFreeAdamW", {"warmup_steps": 2, "weight_decay": 0.1}),
]
for_each_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{'-'.join(options) or 'defaults'}" for name, options in CASES]
)
SHAPES = [(65, 80), (7,), (4, 8, 16, 16), (0,), (4096,)]  # two groups of float8 scales are shorter


def make_params(dtype: Any = torch.float32, shapes: Iterable[tuple[int, ...]] = SHAPES) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    for param in params:
        if param.dim() == 4:
            param.data = param.data.contiguous(memory_format=torch.channels_last)
    return params


def set_gradients(params: Iterable[Any], seed: int, dtype: Any = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        if dtype is not None:
            param.grad_dtype = dtype
        grad = torch.randn(param.shape, generator=generator) * 10 ** (seed % 3 - 1)
        param.grad = torch.empty_like(param, dtype=dtype).copy_(grad)


def train(optimizer: Any, params: list[Any], steps: range, dtype: Any = None) -> None:
    for t in steps:
        set_gradients(params, t, dtype)
        optimizer.step()


def as_array(tensor: Any) -> Any:
    """Return a flat copy of the memory of a tensor, bfloat16 and float8 numbers as ml_dtypes has them."""
    flat = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,)).clone()
    if tensor.dtype not in (torch.bfloat16, torch.float8_e4m3fn):
        return flat.numpy()
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = flat.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.uint8).numpy()
    return codes.view(ml_dtypes.bfloat16 if tensor.dtype == torch.bfloat16 else ml_dtypes.float8_e4m3fn)


def assert_equal_bits(params: Iterable[Any], optimizer: Any, others: Iterable[Any], other: Any) -> None:
    for p, q in zip(params, others, strict=True):
        assert same_bits(p, q)
        mine, theirs = optimizer.state.get(p, {}), other.state.get(q, {})
        assert mine.keys() == theirs.keys()
        assert all(same_bits(mine[name], theirs[name]) for name in mine)


def same_bits(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.stride() == b.stride() and as_array(a).tobytes() == as_array(b).tobytes()


STORAGES: list[tuple[Any, Any, dict[str, Any]]] = [
    (torch.float32, None, {"state_dtype": "float8", "seed": 7}),
    (torch.float32, None, {"state_dtype": "bfloat16", "rounding": "nearest"}),
    (torch.bfloat16, None, {}),
    (torch.bfloat16, None, {"state_dtype": "float8", "seed": 2**64 - 1}),
    (torch.bfloat16, torch.float32, {"state_dtype": "bfloat16", "master_bits": 16}),
    (torch.bfloat16, torch.float32, {"master_bits": 24, "ema_decay": 0.9}),
]
for_each_storage = pytest.mark.parametrize(
    ("dtype", "grad_dtype", "storage"),
    STORAGES,
    ids=["-".join(map(str, [dtype, *storage.values()])) for dtype, _, storage in STORAGES],
)
