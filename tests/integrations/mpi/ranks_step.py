"""Checks of steps: the bits of one process, shares, threads and communicators."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
from mpi4py import MPI
from ranks_common import (
    SHAPES,
    SMALL,
    WORLD,
    compare,
    exact,
    on_one_rank,
    parameters,
    raises,
    reduced,
    same_state,
    time_limit,
)

import onepass
from onepass import _core
from onepass.integrations.mpi import ShardedOptimizer
from support import assert_same_bits

RULES: list[tuple[Any, dict[str, Any]]] = [
    (onepass.Adam, {"weight_decay": 0.1, "ema_decay": 0.9}),
    (onepass.AdamW, {"amsgrad": True, "lr": lambda t: 0.1 / t}),
    (onepass.Adamax, {"clip_norm": 1e-3}),
    (onepass.NAdam, {"clip_norm": 1e-3, "nonfinite": "skip"}),
    (onepass.RAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (onepass.RMSprop, {"momentum": 0.5, "centered": True, "clip_value": 1e-4}),
    (onepass.Adagrad, {"initial_accumulator_value": 0.5, "maximize": True}),
    (onepass.Adadelta, {"ema_decay": lambda t: 1 - 1 / t, "nonfinite": "raise"}),
    (onepass.SGD, {"momentum": 0.9, "nesterov": True, "clip_norm": float("inf")}),
    (onepass.SGD, {"lr": onepass.schedules.cosine(0.1, 10)}),
    (onepass.Lion, {"flush_denormals": False}),
    (onepass.AdEMAMix, {"alpha_warmup": 5, "beta3_warmup": 9, "weight_decay": 0.1}),
]


def check_every_rule_is_bit_identical_to_one_process() -> None:
    for number, (kind, options) in enumerate(RULES):
        compare(WORLD, kind, options, average=number % 2 == 0)


def check_hostile_numbers_are_bit_identical_to_one_process() -> None:
    compare(WORLD, onepass.AdamW, {"ema_decay": 0.5}, gradients=on_one_rank)
    sharded = compare(WORLD, onepass.Adam, {"nonfinite": "skip"}, gradients=on_one_rank)
    assert sharded.skipped == 3
    compare(WORLD, onepass.SGD, {"clip_norm": 1.0}, gradients=on_one_rank)


def check_rounded_norm_is_bit_identical_to_one_process() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 4096, 100_000):
        w = np.zeros(size, np.float32)
        g = rng.standard_normal(size).astype(np.float32) if WORLD.rank == 0 else np.zeros(size, np.float32)
        g = WORLD.bcast(g) if WORLD.rank else (WORLD.bcast(g), np.zeros_like(g))[0]
        sharded = ShardedOptimizer(WORLD, onepass.SGD, w, average=False, chunk=SMALL, clip_norm=1e-3, lr=1.0)
        sharded.step(g if WORLD.rank == 0 else np.zeros_like(g))
        other = np.zeros(size, np.float32)
        single = onepass.SGD(other, clip_norm=1e-3, lr=1.0)
        single.step(g)
        assert sharded.grad_norm == single.grad_norm
        assert_same_bits([w], [other])


def check_groups_with_own_options_are_bit_identical_to_one_process() -> None:
    groups: list[dict[str, Any]] = [{"momentum": 0.0, "lr": 0.5}, {"momentum": 0.9, "weight_decay": 0.1}]
    compare(WORLD, onepass.SGD, {"clip_norm": 1e-2}, groups=groups)
    compare(
        WORLD, onepass.AdamW, {"ema_decay": 0.9}, groups=[{"betas": (0.5, 0.9)}, {"lr": lambda t: 1 / t}], flat=True
    )


def check_flat_parameters_and_gradients_are_sent_without_a_copy() -> None:
    for options in ({}, {"clip_norm": 1e-3}):
        sharded = compare(WORLD, onepass.AdamW, options, flat=True)
        assert not sharded._buffers.packed
    sharded = compare(WORLD, onepass.AdamW, {})
    assert len(sharded._buffers.packed) == 2


def check_results_are_bit_identical_with_few_or_many_chunks() -> None:
    few = compare(WORLD, onepass.AdamW, {}, chunk=1 << 20)
    many = compare(WORLD, onepass.AdamW, {}, chunk=1)
    assert len(few._layout.chunks) == 2 < len(many._layout.chunks)


def check_parameters_may_be_a_mapping_or_a_single_array() -> None:
    n = WORLD.size
    w = {"a": np.ones((3, 4), np.float32), "b": np.ones(5000, np.float32)}
    sharded = ShardedOptimizer(WORLD, onepass.SGD, w, lr=0.5)
    sharded.step({"b": np.full(5000, WORLD.rank, np.float32), "a": np.ones((3, 4), np.float32)})
    assert (w["a"] == 0.5).all() and (w["b"] == np.float32(1 - 0.5 * np.float32((n - 1) / 2))).all()
    assert sharded.params == w or all(sharded.params[key] is w[key] for key in w)
    one = np.ones(10_000)
    averaged = ShardedOptimizer(WORLD, onepass.SGD, one, average=False, lr=1.0, ema_decay=0.5)
    averaged.step(np.ones(10_000))
    assert (one == 1 - n).all() and (averaged.gather_ema() == 1 - n / 2).all()
    assert ShardedOptimizer(WORLD, onepass.SGD, one).gather_ema() is None
    assert type(ShardedOptimizer(WORLD, onepass.SGD, (one, np.ones(3))).params) is tuple


def check_gradients_of_any_layout_and_dtype_are_accepted() -> None:
    shape = (120, 130)
    whole = np.random.default_rng(WORLD.rank).integers(-99, 99, (240, 260)).astype(np.float64)
    every = [np.random.default_rng(r).integers(-99, 99, (240, 260)).astype(np.float64) for r in range(WORLD.size)]
    for turn in (
        lambda x: x[:120, :130].astype(np.float16),
        lambda x: x[::2, ::2],
        lambda x: np.asfortranarray(x[:120, :130].astype(np.float32)),
        lambda x: x[::-2, 130:],
        lambda x: x[:130, :120].T,
    ):
        for order in "CF":
            w, other = (np.ones(shape, np.float32, order) for _ in range(2))  # type: ignore[call-overload]
            ShardedOptimizer(WORLD, onepass.Adam, [w], chunk=SMALL, average=False).step([turn(whole)])
            onepass.Adam([other]).step([reduced([[turn(x).astype(np.float32)] for x in every])[0]])
            assert_same_bits([w], [other])
    # A gradient that is a parameter, or a part of one, has the values from before the step.
    w, other = np.arange(300_000, dtype=np.float32), np.arange(300_000, dtype=np.float32)
    v, another = np.ones(150_000, np.float32), np.ones(150_000, np.float32)
    ShardedOptimizer(WORLD, onepass.SGD, [w, v], chunk=SMALL, lr=0.5).step([w, w[::2]])
    onepass.SGD([other, another], lr=0.5).step([other.copy(), other[::2].copy()])
    assert_same_bits([w, v], [other, another])


def check_empty_parameters_are_stepped_and_counted() -> None:
    empty = [np.zeros((0, 3), np.float32), np.zeros(0)]
    for params, grads in ((empty, empty), (empty, [None, None]), (parameters(), [None] * len(SHAPES))):
        for options in ({}, {"clip_norm": 1.0, "nonfinite": "skip"}):
            sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL, ema_decay=0.5, **options)
            single = onepass.Adam([p.copy("K") for p in params], ema_decay=0.5, **options)
            for optimizer in (sharded, single):
                optimizer.step([g if g is None else g.copy() for g in grads])
            assert (sharded.step_count, sharded.grad_norm) == (single.step_count, single.grad_norm)
            same_state(sharded, single, options)


def check_gradients_that_are_not_finite_are_refused_on_all_ranks() -> None:
    params = parameters()
    kept = [p.copy() for p in params]
    sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL, nonfinite="raise")
    bad = exact(0, WORLD.rank, params)
    if WORLD.rank == WORLD.size - 1:
        bad[8][2, 4000] = np.inf
        bad[6][80, 300] = np.nan
    with raises(FloatingPointError, "gradient 6 is not finite, or its squares are not"):
        sharded.step(bad)
    sharded.nonfinite = "skip"
    sharded.clip_norm = 1.0
    sharded.step(bad)
    assert (sharded.step_count, sharded.skipped) == (0, 1)
    assert np.isnan(sharded.grad_norm)  # type: ignore[arg-type]
    assert_same_bits(params, kept)
    sharded.step(exact(0, WORLD.rank, params))
    assert (sharded.step_count, sharded.skipped) == (1, 1)


def check_shares_and_state_differ_by_at_most_a_block() -> None:
    params = parameters()
    sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL)
    for dtype in (np.float32, np.float64):
        mine = sum(a.size for a in (p for g in sharded.optimizer.groups for p in g.params) if a.dtype == dtype)
        whole = sum(p.size for p in params if p.dtype == dtype)
        assert abs(mine - whole / WORLD.size) <= 4096
        assert WORLD.allreduce(mine) == whole
    mine = sum(state[name].nbytes for state in sharded.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    told = WORLD.gather(mine)
    if told is not None:
        print(f"state of {2 * sum(p.nbytes for p in params)} bytes on {WORLD.size} ranks: {told}")
        assert sum(told) == 2 * sum(p.nbytes for p in params)


def check_each_rank_uses_its_share_of_the_processors() -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    onepass.set_num_threads(None)
    at_import = onepass.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "5"  # set by the user, therefore not changed
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    assert _core.requested_threads() == 0
    del os.environ["OMP_NUM_THREADS"]
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    share = max(1, processors // WORLD.size)
    assert onepass.get_num_threads() == (at_import if WORLD.size == 1 else min(share, at_import))
    onepass.set_num_threads(7)  # set by the user, therefore not changed
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    assert onepass.get_num_threads() == 7


def check_optimizers_step_in_threads_after_the_communicator_is_freed() -> None:
    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
    comm = WORLD.Dup()
    mine = [np.ones(30_000, np.float32) for _ in range(2)]
    optimizers = [ShardedOptimizer(comm, onepass.SGD, w, lr=0.5, chunk=SMALL) for w in mine]
    comm.Free()
    failed = []

    def run(sharded: ShardedOptimizer, factor: int) -> None:
        try:
            for _ in range(50):
                sharded.step(np.full(30_000, factor, np.float32))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(each, k + 1)) for k, each in enumerate(optimizers)]
    with time_limit():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed, failed
    assert [set(w.tolist()) for w in mine] == [{1 - 25.0}, {1 - 50.0}]


def check_communicators_of_deleted_optimizers_are_freed() -> None:
    if WORLD.size > 2:  # would take minutes with fewer processors than ranks
        return
    w = np.ones(3, np.float32)
    with time_limit(100):
        for _ in range(2100):  # MPICH has 2,048
            ShardedOptimizer(WORLD, onepass.SGD, w)
        for _ in range(2100):
            comm = WORLD.Dup()
            ShardedOptimizer(comm, onepass.SGD, w)
            comm.Free()
