"""Schedule-Free AdamW against the paper's sequences, and its training and evaluation modes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass._reference import Reference
from support import BFLOAT16, DTYPES, Array, assert_is_reference, bits, comparable, ones, ordinary, refused

OPTIONS: list[dict[str, Any]] = [
    {},
    {"warmup_steps": 10},
    {"weight_decay": 0.1},
    {"r": 1.0},
    {"warmup_steps": 10, "weight_lr_power": 0.0},
    {"betas": (0.5, 0.9), "eps": 0.1},
    {"warmup_steps": 7, "weight_decay": 0.1, "r": 0.5, "weight_lr_power": 1.5, "maximize": True},
]
STORAGES: list[dict[str, Any]] = [
    {"dtype": np.float32},
    {"dtype": np.float64},
    {"dtype": np.float32, "state_dtype": "bfloat16"},
    {"dtype": np.float32, "state_dtype": "float8", "rounding": "nearest"},
    *(
        {"dtype": BFLOAT16, "master_bits": master, "state_dtype": state}
        for master, state in itertools.product([32, 24, 16], [None, "float8"])
    ),
]


def textbook(p: Array, grads: list[Array], lr: float, **o: Any) -> tuple[Array, Array, Array]:
    """Return y, z and x after the paper's algorithm 1 in double, with x kept instead of y."""
    b1, b2 = o.get("betas", (0.9, 0.999))
    z = x = p.astype(np.float64)
    v, largest, total = np.zeros_like(z), 0.0, 0.0
    for t, grad in enumerate(grads, 1):
        y = (1 - b1) * z + b1 * x
        g = -grad.astype(np.float64) if o.get("maximize") else grad.astype(np.float64)
        v = b2 * v + (1 - b2) * g**2
        rate = lr * min(1, t / o["warmup_steps"]) if o.get("warmup_steps") else lr
        u = g / (np.sqrt(v / (1 - b2**t)) + o.get("eps", 1e-8)) + o.get("weight_decay", 0) * y
        largest = max(largest, rate)
        weight = t ** o.get("r", 0) * largest ** o.get("weight_lr_power", 2)
        total += weight
        z = z - rate * u
        x = (1 - weight / total) * x + weight / total * z
    return (1 - b1) * z + b1 * x, z, x


def steps(optimizer: Any, count: int) -> None:
    """Take steps along gradients that depend only on the number of the step."""
    params = optimizer.params if isinstance(optimizer.params, list) else [optimizer.params]
    for _ in range(count):
        rng = np.random.default_rng(optimizer.step_count)
        grads = [ordinary(rng, p.shape, np.float32) for p in params]
        optimizer.step(grads if isinstance(optimizer.params, list) else grads[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fifty_steps_match_the_sequences_of_the_paper(options: dict[str, Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    p = ordinary(rng, 501, dtype)
    grads = [ordinary(rng, 501, dtype) for _ in range(50)]
    y, z, x = textbook(p, grads, 0.05, **options)
    optimizer = onepass.ScheduleFreeAdamW(p, lr=0.05, **options)
    for grad in grads:
        optimizer.step(grad)
    tolerance = 400 * np.finfo(dtype).eps
    np.testing.assert_allclose(p, y, 0, tolerance)
    np.testing.assert_allclose(optimizer.state[0]["z"], z, 0, tolerance)
    optimizer.eval()
    np.testing.assert_allclose(p, x, 0, tolerance)
    assert np.abs(x - y).max() > 1e-3 and np.abs(x - z).max() > 1e-2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_switching_modes_matches_the_reference_and_is_reversible(storage: Any, order: Any) -> None:
    storage = dict(storage)
    dtype = storage.pop("dtype")
    if dtype is None:
        pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(1)
    params = [
        np.asarray(ordinary(rng, shape, np.float64).astype(dtype), order=order)
        for shape in [(65, 70), (3, 5), (), (0,)]
    ]
    options = {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1, "r": 1.0, **storage}
    reference = Reference("ScheduleFreeAdamW", params, **options)
    optimizer = onepass.ScheduleFreeAdamW(params, **options)
    for t in range(9):
        grads = [ordinary(rng, p.shape, dtype if dtype == np.float64 else np.float32) for p in params]
        optimizer.step(grads)
        reference.step(grads)
        if t % 3 == 2:
            trained = [bits(p).tolist() for p in params]
            optimizer.eval()
            reference.eval()
            assert_is_reference(optimizer, reference, f"evaluation after step {t}")
            assert bits(params[0]).tolist() != trained[0]
            optimizer.eval()
            assert_is_reference(optimizer, reference, "evaluation again")
            optimizer.train()
            reference.train()
            assert [bits(p).tolist() for p in params] == trained
            optimizer.train()
        assert_is_reference(optimizer, reference, f"step {t}")
        assert all(state["z"].dtype == comparable(p).dtype for p, state in zip(params, optimizer.state.values()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [[0, 2, 3], [1, 1], []], ids=str)
def test_a_first_step_by_rows_starts_every_row_from_the_current_weights(
    rows: list[int], dtype: Any, tmp_path: Path
) -> None:
    params = [ones(5, 3, dtype=dtype), ones(5, 3, dtype=dtype)]
    reference = Reference("ScheduleFreeAdamW", params, lr=0.1, nonfinite="skip")
    with onepass.state_dir(tmp_path):
        optimizer = onepass.ScheduleFreeAdamW(params, lr=0.1, nonfinite="skip")
    rng = np.random.default_rng(4)
    for t, indices in enumerate([[0], rows, [4], [0, 1, 2]]):
        grads = [ordinary(rng, (len(indices), 3), dtype) for _ in params]
        if t == 0:
            grads[1][:] = np.nan  # this step is skipped
        if t < 2:
            for array in (*params, *reference.params):
                array[...] = 5 + t  # written in place
        optimizer.step([onepass.SparseRows(indices, grad) for grad in grads])
        reference.step([(indices, grad) for grad in grads])
        assert_is_reference(optimizer, reference, f"step {t}")
        if t == 0:
            assert all((state["z"] == 1).all() for state in optimizer.state.values())
    assert (optimizer.state[0]["z"] > 5.5).all()
    optimizer.eval()
    assert (params[0] > 5.5).all()


@pytest.mark.parametrize("master_bits", [32, 24])
def test_zeros_written_into_the_weights_are_averaged_as_zeros(master_bits: int) -> None:
    """The lower bits of a bfloat16 weight stay when its upper bits become zero, and may be negative."""
    pytest.importorskip("ml_dtypes")
    options: dict[str, Any] = {"lr": 0.05, "master_bits": master_bits}
    start = ordinary(np.random.default_rng(2), 500, np.float64).astype(BFLOAT16)
    optimizer, reference = onepass.ScheduleFreeAdamW(start, **options), Reference("ScheduleFreeAdamW", start, **options)
    for one in (optimizer, reference):
        grad = ordinary(np.random.default_rng(3), 500, np.float32)
        one.step(grad if one is optimizer else [grad])
        (one.params if one is optimizer else one.params[0])[...] = 0
        one.eval()
    assert (optimizer.state[0]["param_low"] < 0).any()
    assert_is_reference(optimizer, reference)


def test_switching_the_mode_of_a_new_optimizer_changes_no_weight() -> None:
    p = np.array([1.5, -0.0, np.inf, 3e-320])
    optimizer = onepass.ScheduleFreeAdamW(p)
    optimizer.eval()
    assert bits(p).tolist() == bits(np.array([1.5, -0.0, np.inf, 3e-320])).tolist()
    optimizer.train()
    assert bits(p).tolist() == bits(np.array([1.5, -0.0, np.inf, 3e-320])).tolist()


def test_a_step_and_a_new_group_are_refused_in_evaluation_mode() -> None:
    optimizer = onepass.ScheduleFreeAdamW([ones(3)], lr=0.1)
    steps(optimizer, 2)
    optimizer.eval()
    with refused(RuntimeError, "step: expected training mode, got evaluation mode (call train() first)", optimizer):
        optimizer.step([ones(3)])
    with refused(RuntimeError, "got evaluation mode", optimizer):
        optimizer._prepare_step([ones(3)], 1.0)
    with refused(RuntimeError, "add_group: expected training mode, got evaluation mode", optimizer):
        optimizer.add_group([ones(2)])
    optimizer.train()
    optimizer.add_group([ones(2)])
    steps(optimizer, 1)
    assert optimizer.step_count == 3


def test_switching_the_mode_is_atomic() -> None:
    params = [ones(4), ones(3)]
    optimizer = onepass.ScheduleFreeAdamW(params, lr=0.1)
    steps(optimizer, 3)
    for switch in (optimizer.eval, optimizer.train):
        params[1].flags.writeable = False
        with refused(ValueError, "parameter 1: expected a writeable array", optimizer):
            switch()
        params[1].flags.writeable = True
        switch()
    steps(optimizer, 1)


def test_switching_the_mode_without_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [ones(4), ones(3)]
    optimizer = onepass.ScheduleFreeAdamW(params, lr=0.1)
    steps(optimizer, 3)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    for name in ("all_zeros_like", "evaluate"):
        with monkeypatch.context() as context, refused(MemoryError, "", optimizer):
            context.setattr(onepass._evaluation, name, fail)
            optimizer.eval()
    optimizer.eval()
    optimizer.train()


def test_each_group_averages_with_its_own_beta() -> None:
    groups = [{"params": [ones(3)], "betas": (0.5, 0.9)}, {"params": [ones(3)]}]
    optimizer = onepass.ScheduleFreeAdamW(groups, lr=0.1)
    each = [onepass.ScheduleFreeAdamW([ones(3)], lr=0.1, betas=group.betas) for group in optimizer.groups]
    for _ in range(4):
        optimizer.step([ones(3), ones(3)])
        for one in each:
            one.step([ones(3)])
    for one in (optimizer, *each):
        one.eval()
    for got, one in zip(optimizer.params, each):
        assert bits(got).tolist() == bits(one.params[0]).tolist()


def test_every_parameter_has_its_own_sum_of_averaging_weights() -> None:
    params = [ones(3), ones(3)]
    optimizer = onepass.ScheduleFreeAdamW(params, lr=lambda t: 1.0 / t, warmup_steps=2)
    optimizer.step([ones(3), None])
    optimizer.step([ones(3), ones(3)])
    first, second = optimizer.state.values()
    assert (first["step"], first["lr_max"], first["weight_sum"]) == (2, 0.5, 0.5)
    assert (second["step"], second["lr_max"], second["weight_sum"]) == (1, 0.25, 0.0625)


def test_steps_at_a_learning_rate_of_zero_do_not_change_the_average() -> None:
    """The learning rate is 0 at first, so that the averaging weights of the first steps and their sum are 0."""
    p = ones(3)
    optimizer = onepass.ScheduleFreeAdamW(p, lr=lambda t: 0.0 if t < 3 else 0.1)
    for _ in range(2):
        optimizer.step(ones(3))
    assert (p == 1).all() and optimizer.state[0]["weight_sum"] == 0
    optimizer.step(ones(3))
    assert (p < 1).all()


def test_ema_averages_the_training_weights() -> None:
    p = ones(3)
    optimizer = onepass.ScheduleFreeAdamW(p, lr=0.1, ema_decay=0.0)
    steps(optimizer, 3)
    trained = p.copy()
    optimizer.eval()
    assert (optimizer.ema == trained).all() and (p != trained).all()


def test_betas_0_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"betas\[0\]: expected more than 0, got 0.0"):
        onepass.ScheduleFreeAdamW(ones(3), betas=(0, 0.9))
    optimizer = onepass.ScheduleFreeAdamW(ones(3))
    with refused(ValueError, "betas[0]: expected more than 0", optimizer):
        optimizer.betas = (0.0, 0.999)


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (2.5, TypeError), (True, TypeError), (2**53 + 1, ValueError)]
)
def test_an_invalid_number_of_warmup_steps_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^warmup_steps: expected "):
        onepass.ScheduleFreeAdamW(ones(3), warmup_steps=value)


def test_float8_state_allows_any_betas_0() -> None:
    optimizer = onepass.ScheduleFreeAdamW(ones(4096), betas=(0.999, 0.999), state_dtype="float8")
    steps(optimizer, 2)
    assert optimizer.decoded_state(0).keys() == {"step", "lr_max", "weight_sum", "exp_avg_sq", "z"}


def test_weights_that_overflow_are_refused() -> None:
    optimizer = onepass.ScheduleFreeAdamW(ones(3), lr=1.0, r=2000.0)
    optimizer.step(ones(3))
    with refused(ValueError, "overflows float32 at step 2", optimizer):
        optimizer.step(ones(3))
