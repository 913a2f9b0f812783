"""`adam_step`, the function without an optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import assert_same_bits, layouts, ones, refused


@pytest.mark.parametrize("order", ["C", "F"])
def test_adam_step_is_bit_identical_to_a_step_of_the_optimizer(order: Any) -> None:
    rng = np.random.default_rng(0)
    p = np.asarray(rng.standard_normal((6, 4)), np.float32, order=order)
    q, m, v = p.copy(order="K"), np.zeros_like(p), np.zeros_like(p)
    optimizer = onepass.AdamW(p, lr=0.01)
    for t in range(1, 6):
        g = rng.standard_normal((6, 4))  # of another dtype, and for "F" of another layout
        optimizer.step(g)
        onepass.adam_step(q, g, m, v, t, lr=0.01, weight_decay=0.01, decoupled_weight_decay=True)
    assert_same_bits([p, optimizer.state[0]["exp_avg"], optimizer.state[0]["exp_avg_sq"]], [q, m, v])


@pytest.mark.parametrize("order", ["C", "F"])
def test_adam_step_accepts_a_gradient_in_any_layout(order: Any) -> None:
    rng = np.random.default_rng(0)
    grad = rng.standard_normal((5, 7)).astype(np.float32)
    start = np.asarray(rng.standard_normal((5, 7)), np.float32, order=order)
    expected = start.copy(order="K")
    onepass.Adam(expected).step(grad)
    for name, other in layouts(grad).items():
        p, m, v = start.copy(order="K"), np.zeros_like(start), np.zeros_like(start)
        onepass.adam_step(p, other, m, v, 1)
        assert_same_bits([p], [expected], name)


def test_adam_step_accepts_the_parameter_as_its_gradient() -> None:
    p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    onepass.adam_step(p, p, m, v, 1, lr=0.5)
    np.testing.assert_allclose(p, 0.5)
    np.testing.assert_allclose(m, 0.1)


def test_adam_step_works_on_large_memory_maps(tmp_path: Path) -> None:
    n = 100_000
    maps = [np.memmap(tmp_path / name, np.float32, "w+", shape=(n,)) for name in "pmv"]
    onepass.adam_step(maps[0], np.ones(n, np.float32), maps[1], maps[2], 1, lr=0.5)
    assert (maps[0] == -0.5).all()


F = np.float32


read_only = ones(3)
read_only.flags.writeable = False


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": 0}, ValueError, "step: expected at least 1"),
        ({"step": 2**63}, ValueError, "step: expected at least 1 and less than 2**63"),
        ({"step": 1.0}, TypeError, "step: expected an integer, got 1.0"),
        ({"step": True}, TypeError, "step: expected an integer, got True"),
        ({"lr": -1.0}, ValueError, "lr: expected at least 0"),
        ({"lr": lambda t: 0.1}, TypeError, "lr: expected a number"),
        ({"lr": 1e39}, ValueError, "overflows float32 at step 1"),
        ({"betas": (0.9, 1)}, ValueError, "betas[1]: expected"),
        ({"eps": NAN}, ValueError, "eps: expected a finite number"),
        ({"weight_decay": "0"}, TypeError, "weight_decay: expected a number"),
        ({"decoupled_weight_decay": 1}, TypeError, "decoupled_weight_decay: expected True or False"),
        ({"bias_correction": 0}, TypeError, "bias_correction: expected True or False"),
        ({"eps_mode": "tf"}, ValueError, "eps_mode: expected"),
        ({"maximize": 0}, TypeError, "maximize: expected True or False"),
        ({"grad_scale": INF}, ValueError, "grad_scale: expected a finite number"),
        ({"flush_denormals": 1}, TypeError, "flush_denormals: expected True or False"),
        ({"param": [1.0]}, TypeError, "param: expected a NumPy array"),
        ({"param": read_only}, ValueError, "param: expected a writeable array"),
        ({"param": ones(6)[::2]}, ValueError, "param: expected a contiguous array"),
        (
            {"exp_avg": ones(3, dtype=np.float64)},
            TypeError,
            "exp_avg: expected the dtype of param, float32, got float64",
        ),
        ({"exp_avg_sq": ones(4)}, ValueError, "exp_avg_sq: expected the shape of param, (3,), got (4,)"),
        ({"exp_avg": read_only}, ValueError, "exp_avg: expected a writeable array"),
        ({"exp_avg_sq": None}, TypeError, "exp_avg_sq: expected a NumPy array, got NoneType"),
        ({"max_exp_avg_sq": ones(2)}, ValueError, "max_exp_avg_sq: expected the shape of param, (3,), got (2,)"),
        ({"grad": ones(2)}, ValueError, "grad: expected shape (3,), got (2,)"),
        ({"grad": None}, TypeError, "grad: expected a NumPy array"),
        ({"grad": ones(3, dtype=int)}, TypeError, "grad: expected a real floating-point dtype"),
    ],
)
def test_adam_step_refuses_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"param": ones(3), "grad": ones(3), "exp_avg": ones(3), "exp_avg_sq": ones(3), "step": 1}
    arrays = list(arguments.values())[:4]
    with refused(error, message, arrays=arrays):
        onepass.adam_step(**{**arguments, **change})


def test_adam_step_refuses_arrays_that_overlap_or_differ_in_order() -> None:
    p, g, m = ones(3, 2), ones(3, 2), ones(3, 2)
    with refused(ValueError, "exp_avg_sq is the same memory as exp_avg", arrays=[p, g, m]):
        onepass.adam_step(p, g, m, m, 1)
    with refused(ValueError, ": expected the memory order of param, C or Fortran, got the other one", arrays=[p, g, m]):
        onepass.adam_step(p, g, m, np.ones((3, 2), F, order="F"), 1)
