"""State and weights in fewer bits: the same bits as the NumPy optimizers, on the fast path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass
import onepass.integrations.torch as ours
from integrations.pytorch.helpers import assert_fast, needs_exchange
from integrations.pytorch.storage_helpers import (
    as_array,
    assert_equal_bits,
    for_each_case,
    for_each_storage,
    make_params,
    same_bits,
    set_gradients,
    train,
)


@for_each_storage
@for_each_case
def test_steps_match_the_numpy_optimizer_bit_for_bit(
    name: str, options: dict[str, Any], dtype: Any, grad_dtype: Any, storage: dict[str, Any]
) -> None:
    if grad_dtype is not None and not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this PyTorch has no gradients of another dtype than the parameter's")
    params = make_params(dtype)
    arrays = [as_array(param) for param in params]
    options = {"lr": 0.01, **options, **storage}
    mine = getattr(ours, name)(params, **options)
    theirs = getattr(onepass, name)(arrays, **options)
    for t in range(4):
        set_gradients(params, t, grad_dtype)
        theirs.step([as_array(param.grad) for param in params])
        mine.step()
    for i, (param, array) in enumerate(zip(params, arrays, strict=True)):
        assert as_array(param).tobytes() == array.tobytes()
        for key, value in theirs.state[i].items():
            if isinstance(value, np.ndarray):
                assert as_array(mine.state[param][key]).tobytes() == value.tobytes(), key
        assert mine.state[param].get("step", 4) == theirs.state[i]["step"] == 4
    if "ema_decay" in storage:
        assert all(np.array_equal(as_array(a), b) for a, b in zip(mine.ema, theirs.ema))
    assert_fast(mine)


def test_state_tensors_have_the_dtypes_of_pytorch() -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, state_dtype="float8", master_bits=24)
    train(optimizer, params, range(1))
    state = optimizer.state[params[2]]
    assert {key: (value.dtype, value.shape) for key, value in state.items()} == {
        "step": (torch.float32, ()),
        "exp_avg": (torch.float8_e4m3fn, params[2].shape),
        "exp_avg_scale": (torch.float32, (64,)),
        "exp_avg_sq": (torch.float8_e4m3fn, params[2].shape),
        "exp_avg_sq_scale": (torch.float32, (64,)),
        "param_low": (torch.int8, params[2].shape),
    }
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.float32  # a small parameter


@needs_exchange
def test_changing_options_and_memory_keep_the_step_on_the_fast_path() -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(params, lr=0.1, state_dtype="float8")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for t in range(4):
        train(optimizer, params, range(t, t + 1))
        scheduler.step()
        for param in params:
            param.data = param.data.clone(memory_format=torch.preserve_format)
            state = optimizer.state[param]
            state.update({key: value.clone(memory_format=torch.preserve_format) for key, value in state.items()})
    assert optimizer.slow_steps == 1


@for_each_storage
def test_steps_on_the_slow_path_are_bit_identical(dtype: Any, grad_dtype: Any, storage: dict[str, Any]) -> None:
    pair = make_params(dtype), make_params(dtype)
    optimizers = [ours.NAdam(params, lr=0.1, **storage) for params in pair]
    for t in range(4):
        for params, optimizer in zip(pair, optimizers):
            set_gradients(params, t)
            if optimizer is optimizers[1]:  # gradients in another layout
                params[0].grad = params[0].grad.t().contiguous().t()
                params[2].grad = params[2].grad.contiguous()
            optimizer.step()
    assert optimizers[1].slow_steps == 4
    assert_equal_bits(pair[0], optimizers[0], pair[1], optimizers[1])


def test_results_are_bit_identical_without_the_exchange_interface(import_again: Any) -> None:
    pair = make_params(torch.bfloat16), make_params(torch.bfloat16)
    optimizers = [module.AdamW(p, state_dtype="float8") for module, p in zip((ours, import_again(exchange=None)), pair)]
    for params, optimizer in zip(pair, optimizers):
        train(optimizer, params, range(3))
    assert optimizers[1].slow_steps == 3
    assert_equal_bits(pair[0], optimizers[0], pair[1], optimizers[1])


@needs_exchange
def test_weights_may_be_cast_and_replaced_between_steps() -> None:
    (param,) = make_params(shapes=[(65, 80)])
    optimizer = ours.AdamW([param], lr=0.01)
    train(optimizer, [param], range(2))
    param.grad, param.data = None, param.data.to(torch.bfloat16)
    train(optimizer, [param], range(2, 4))
    assert optimizer.state[param]["param_low"].any()
    slow = optimizer.slow_steps
    train(optimizer, [param], range(4, 6))
    param.grad, param.data = None, param.data.float()
    train(optimizer, [param], range(6, 8))
    assert optimizer.state[param]["step"] == 8 and slow == 2 and optimizer.slow_steps == 3


def test_parameter_with_gaps_is_stepped() -> None:
    buffer = torch.zeros(80, 130, dtype=torch.bfloat16)
    (plain,) = make_params(torch.bfloat16, [(80, 65)])
    buffer[:, ::2] = plain.detach()
    gaps = torch.nn.Parameter(buffer[:, ::2])
    optimizers = [ours.AdamW([p], lr=0.1, state_dtype="float8") for p in (plain, gaps)]
    for t in range(3):
        for p, optimizer in zip((plain, gaps), optimizers):
            train(optimizer, [p], range(t, t + 1))
    assert torch.equal(plain, gaps) and not buffer[:, 1::2].any()
    assert torch.equal(optimizers[0].state[plain]["exp_avg"].float(), optimizers[1].state[gaps]["exp_avg"].float())


def test_steps_in_the_backward_pass_are_bit_identical() -> None:
    def run(in_backward: bool) -> list[Any]:
        torch.manual_seed(0)
        model = ours.cast_model(torch.nn.Sequential(torch.nn.Linear(80, 80), torch.nn.LayerNorm(80)))
        optimizer = ours.AdamW(model.parameters(), lr=0.01, state_dtype="float8")
        if in_backward:
            ours.step_in_backward(optimizer)
        for t in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                model(torch.full((4, 80), t + 1.0)).float().pow(2).mean().backward()
            assert in_backward == all(p.grad is None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        return [*model.parameters(), *(v for p in model.parameters() for v in optimizer.state[p].values())]

    assert all(same_bits(a, b) for a, b in zip(run(True), run(False), strict=True))
