"""Prepared steps and parameters in one array, which ranks use, without MPI; tests/integrations/mpi has them with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _core
from onepass._flatten import one_array
from support import DTYPES, Array, assert_same_bits, ordinary, refused

BLOCK = 4096
SHAPES = [3, 5000, 4096, 0, 9000]


def arrays(seed: int, dtype: Any) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [ordinary(rng, size, dtype) for size in SHAPES]


def step_in_three_calls(optimizer: onepass.Optimizer, gradients: list[Any], scale: float) -> bool:
    """Step as a ShardedOptimizer does: the gradients get their values after the step was prepared."""
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
def test_a_prepared_step_has_the_bits_of_a_step(dtype: Any, options: dict[str, Any]) -> None:
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
def test_a_prepared_step_is_dropped_by_any_other_change(change: Callable[[Any], Any]) -> None:
    optimizer = onepass.Adam(arrays(0, np.float32))
    optimizer._prepare_step(arrays(1, np.float32), 1.0)
    change(optimizer)
    with refused(RuntimeError, "no step is prepared", optimizer):
        optimizer._commit_step(0.0, None)


def test_a_prepared_step_reports_options_schedules_and_counts() -> None:
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
def test_blocks_of_another_number_are_refused(blocks: Array) -> None:
    with pytest.raises(ValueError, match="two columns"):
        _core.total(blocks, [1, 1], 1.0, False)


# ---- flatten ----


def test_flat_parameters_are_copies_in_one_array_of_each_dtype() -> None:
    given = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.array(7, np.float32),
        "d": np.zeros((0, 2), np.float32),
    }
    flat = onepass.flatten(given)
    assert list(flat) == ["a", "b", "c", "d"]
    assert flat["a"].base.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert flat["b"].base.tolist() == [0, 3, 1, 4, 2, 5]
    assert all((flat[key] == given[key]).all() and flat[key].shape == given[key].shape for key in given)
    assert flat["b"].flags.f_contiguous and flat["c"].base is flat["a"].base
    flat["c"][...] = 8
    assert given["c"] == 7 and flat["a"].base[-1] == 8


def test_flat_parameters_come_in_the_form_of_the_given_ones() -> None:
    w, b = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
    assert onepass.flatten(w).shape == (2, 2)
    for kind in (list, tuple):
        flat = onepass.flatten(kind([w, b]))
        assert type(flat) is kind and [x.shape for x in flat] == [(2, 2), (2,)]
    assert [x.shape for x in onepass.flatten(x for x in (w, b))] == [(2, 2), (2,)]
    groups = onepass.flatten([{"params": w, "lr": 0.5}, {"params": [b]}])
    assert groups[0]["lr"] == 0.5 and groups[0]["params"][0].base is groups[1]["params"][0].base
    opt = onepass.SGD(groups, lr=1.0)
    opt.step([np.ones((2, 2), np.float32), np.ones(2, np.float32)])
    assert groups[0]["params"][0].base.tolist() == [0.5] * 4 + [-1] * 2


def test_what_cannot_be_flattened_is_refused() -> None:
    w = np.ones(4, np.float32)
    for wrong, error, message in [
        ([1], TypeError, "parameter 0 must be a NumPy array"),
        ([w.astype(int)], TypeError, "parameter 0 must be of dtype float32 or float64"),
        ({"w": w[::2]}, ValueError, "parameter 'w' is not contiguous"),
        ([w, w], ValueError, "parameter 1 is the same memory as parameter 0"),
        ([w, w[1:]], ValueError, "parameter 1 overlaps parameter 0"),
        ([], ValueError, "no parameters"),
        (3, TypeError, "params must be an array"),
    ]:
        with pytest.raises(error, match=message):
            onepass.flatten(wrong)


def test_arrays_are_one_only_where_they_lie_one_behind_the_other() -> None:
    base = np.arange(24, dtype=np.float32)
    a, b, c = base[2:8].reshape(2, 3), base[8:8], base[8:20].reshape(3, 4, order="F")
    one = one_array([a, b, c], np.float32)
    assert one is not None and one.tolist() == list(range(2, 20)) and np.shares_memory(one, base)
    other = np.zeros(3)
    assert one_array([a, other, c], np.float32) is not None  # an array of another dtype is not asked about
    assert one_array([other], np.float32).tolist() == []  # type: ignore[union-attr]
    for apart in ([c, a], [a, base[9:12]], [a, base[7:12]], [a, np.zeros(3, np.float32)], [a, a]):
        assert one_array(apart, np.float32) is None
    table = np.zeros((4, 6), np.float32)
    assert one_array([table[0], table[1]], np.float32) is None  # of what is no line itself
    writeable = [base[:3], base[3:6]]
    base.flags.writeable = False
    assert one_array(writeable, np.float32) is None  # MPI would be handed what NumPy protects
