"""Steps in three calls, as `ShardedOptimizer` takes them, without MPI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _core
from support import DTYPES, Array, assert_same_bits, ordinary, refused

BLOCK = 4096
SHAPES = [3, 5000, 4096, 0, 9000]


def arrays(seed: int, dtype: Any) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [ordinary(rng, size, dtype) for size in SHAPES]


def step_in_three_calls(optimizer: onepass.Optimizer, gradients: list[Any], scale: float) -> bool:
    """Step like a ShardedOptimizer, where the gradients get their values after the step is prepared."""
    values = [None if gradient is None else gradient.copy() for gradient in gradients]
    optimizer._prepare_step(gradients, scale)
    for gradient, value in zip(gradients, values):
        if gradient is not None:
            gradient[:] = 7
            gradient[:] = value
    if optimizer.clip_norm is None and optimizer.nonfinite == "propagate":
        return optimizer._commit_step(0.0, None)
    counts = [-(-size // BLOCK) for size in SHAPES]
    blocks = optimizer._measure_step()
    assert len(blocks) == sum(counts)
    return optimizer._commit_step(*_core.total(blocks, counts, scale, optimizer.nonfinite != "propagate"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"nonfinite": "skip", "ema_decay": 0.5}])
def test_a_prepared_step_is_bit_identical_to_a_step(dtype: Any, options: dict[str, Any]) -> None:
    whole, prepared = arrays(0, dtype), arrays(0, dtype)
    a, b = onepass.NAdam(whole, **options), onepass.NAdam(prepared, **options)
    for step in range(1, 5):
        gradients: list[Any] = arrays(step, dtype)
        if step == 2:
            gradients[1] = gradients[4] = None
        if step == 3:
            gradients[1][4500] = np.inf
        if step == 3 and "nonfinite" not in options:
            continue
        a.step(gradients, 0.5)
        assert step_in_three_calls(b, gradients, 0.5) == (step != 3)
        assert_same_bits(prepared, whole)
        assert (b.step_count, b.skipped, b.grad_norm) == (a.step_count, a.skipped, a.grad_norm)
        for one, other in zip(a.state_dict()["state"].values(), b.state_dict()["state"].values()):
            assert [one[name] for name in ("step", "mu_product")] == [other[name] for name in ("step", "mu_product")]
            assert_same_bits([one["exp_avg"], one["exp_avg_sq"]], [other["exp_avg"], other["exp_avg_sq"]])


def test_a_prepared_step_changes_nothing_until_it_is_committed() -> None:
    params = arrays(0, np.float32)
    optimizer = onepass.Adam(params, clip_norm=1.0)
    with refused(ValueError, "gradient 0: expected shape", optimizer):
        optimizer._prepare_step([np.ones(2, np.float32)] * 5, 1.0)
    with refused(RuntimeError, "no step is prepared", optimizer):
        optimizer._measure_step()
    with refused(RuntimeError, "no step is prepared", optimizer):
        optimizer._prepare_step(arrays(1, np.float32), 1.0)
        optimizer._measure_step()
        raise RuntimeError("no step is prepared")


@pytest.mark.parametrize(
    "change",
    [
        lambda optimizer: optimizer.step(arrays(1, np.float32)),
        lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        lambda optimizer: optimizer.add_group(np.ones(3, np.float32)),
        lambda optimizer: optimizer._commit_step(0.0, None),
    ],
)
def test_a_prepared_step_is_discarded_by_any_other_change(change: Callable[[Any], Any]) -> None:
    optimizer = onepass.Adam(arrays(0, np.float32))
    optimizer._prepare_step(arrays(1, np.float32), 1.0)
    change(optimizer)
    with refused(RuntimeError, "no step is prepared", optimizer):
        optimizer._commit_step(0.0, None)


def test_the_inputs_of_a_prepared_step_reflect_options_schedules_and_counts() -> None:
    def inputs(optimizer: onepass.Optimizer) -> tuple[float, ...]:
        return tuple(optimizer._prepare_step([np.ones(3, np.float32)], 1.0))

    def made(**options: Any) -> onepass.Optimizer:
        return onepass.Adam([np.ones(3, np.float32)], **options)

    stepped = made()
    stepped.step([np.ones(3, np.float32)])
    others = [
        made(lr=0.5), made(betas=(0.5, 0.999)), made(weight_decay=0.1), made(clip_value=1.0), made(maximize=True),
        made(ema_decay=0.5), made(ema_decay=0.6), made(lr=lambda t: 0.25),
        onepass.AdamW([np.ones(3, np.float32)], weight_decay=0.1), stepped, made(),
    ]  # fmt: skip
    all_inputs = [inputs(optimizer) for optimizer in others]
    assert len(set(all_inputs)) == len(all_inputs)
    assert inputs(made()) == all_inputs[-1] == inputs(made(lr=lambda t: 0.001))


@pytest.mark.parametrize("blocks", [np.zeros((3, 2)), np.zeros((2, 3)), np.zeros(4)])
def test_a_total_of_misshapen_blocks_is_refused(blocks: Array) -> None:
    with pytest.raises(ValueError, match="two columns"):
        _core.total(blocks, [1, 1], 1.0, False)
