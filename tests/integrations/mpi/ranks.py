"""What every rank does in the tests of onepass.integrations.mpi: mpiexec -n N python ranks.py [CHECK ...]

Each check is run by all ranks; rank 0 prints its name when all have passed. One that fails on any rank ends them all.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import onepass
from onepass import _core
from onepass.integrations.mpi import ShardedOptimizer
from support import assert_same_bits, hostile, snapshot

WORLD = MPI.COMM_WORLD
Array = Any
SMALL = 1  # a chunk then is two blocks for each rank

# Around block borders, in both orders, of both dtypes, with nothing in them and with no dimensions.
SHAPES: list[tuple[tuple[int, ...], Any, str]] = [
    ((130, 301), np.float32, "C"),
    ((), np.float32, "C"),
    ((0, 3), np.float32, "C"),
    ((4096,), np.float64, "C"),
    ((70, 200), np.float32, "F"),
    ((4097,), np.float32, "C"),
    ((90, 301), np.float64, "F"),
    ((7,), np.float64, "C"),
    ((3, 4095), np.float32, "C"),
    ((3, 30_001), np.float32, "C"),  # so that four ranks too have several chunks
]


def parameters(flat: bool = False) -> list[Array]:
    rng = np.random.default_rng(1)
    made = [np.array(rng.standard_normal(shape), dtype, order=order) for shape, dtype, order in SHAPES]
    return onepass.flatten(made) if flat else made


def exact(step: int, rank: int, params: list[Array]) -> list[Array]:
    """Gradients whose sums over ranks are exact, in any order: small integers times a power of two for each element."""
    rng, common = np.random.default_rng([step, rank]), np.random.default_rng(step)
    return [
        np.array(
            np.ldexp(rng.integers(-(2**18), 2**18, p.shape), common.integers(-40, -10, p.shape)),
            p.dtype,
            order="C" if p.flags.c_contiguous else "F",
        )
        for p in params
    ]


def alone(step: int, rank: int, params: list[Array], ranks: int) -> list[Array]:
    """Numbers of all kinds, each of them zero on all ranks but one."""
    common = np.random.default_rng(step)
    every = [(hostile(common, p.shape, p.dtype), common.integers(0, ranks, p.shape)) for p in params]
    return [np.asarray(np.where(who == rank, values, 0), values.dtype) for values, who in every]


def reduced(gradients: list[list[Array]]) -> list[Array]:
    with np.errstate(all="ignore"):
        return [np.asarray(sum(each[1:], each[0])) for each in zip(*gradients)]


def same_state(sharded: ShardedOptimizer, single: onepass.Optimizer, context: object) -> None:
    mine, theirs = sharded.state_dict(), single.state_dict()
    for index, state in theirs["state"].items():
        arrays = [name for name, value in state.items() if isinstance(value, np.ndarray)]
        assert mine["state"][index].keys() == state.keys()
        assert_same_bits(
            [mine["state"][index][n] for n in arrays], [state[n] for n in arrays], (context, index, arrays)
        )
        assert all(mine["state"][index][n] == v for n, v in state.items() if n not in arrays), (context, index)
        mine["state"][index] = theirs["state"][index] = {}
    assert mine == theirs, context


def compare(
    comm: MPI.Intracomm,
    kind: Any,
    options: dict[str, Any],
    *,
    flat: bool = False,
    average: bool = True,
    groups: list[dict[str, Any]] | None = None,
    gradients: Callable[..., list[Array]] = exact,
    steps: int = 3,
    chunk: int = SMALL,
    without: int | None = 4,
) -> ShardedOptimizer:
    """Step both, and demand the same bits everywhere."""
    mine, theirs = parameters(flat), parameters()

    def grouped(params: list[Array]) -> Any:
        if groups is None:
            return params
        return [{"params": params[:5], **groups[0]}, {"params": params[5:], **groups[1]}]

    sharded = ShardedOptimizer(comm, kind, grouped(mine), average=average, chunk=chunk, **options)
    single = kind(grouped(theirs), **options)
    for step in range(steps):
        every = [gradients(step, rank, mine, *([comm.size] if gradients is alone else [])) for rank in range(comm.size)]
        total = reduced(every)
        own = onepass.flatten(every[comm.rank]) if flat else every[comm.rank]
        if step == 1 and without is not None and not flat:  # counts part
            own[without] = total[without] = None
        before = [None if g is None else g.copy() for g in own]
        context = (kind.__name__, options, comm.size, step)
        sharded.step(own, grad_scale=0.5)
        single.step(total, grad_scale=0.5 / (comm.size if average else 1))
        assert_same_bits(mine, theirs, context)
        assert_same_bits([g for g in own if g is not None], [g for g in before if g is not None], "gradients")
        assert (sharded.step_count, sharded.skipped) == (single.step_count, single.skipped), context
        assert repr(sharded.grad_norm) == repr(single.grad_norm), context
    same_state(sharded, single, (kind.__name__, options))
    return sharded


RULES: list[tuple[Any, dict[str, Any]]] = [
    (onepass.Adam, {"weight_decay": 0.1, "ema_decay": 0.9}),
    (onepass.AdamW, {"amsgrad": True, "lr": lambda t: 0.1 / t}),
    (onepass.Adamax, {"clip_norm": 1e-3}),
    (onepass.NAdam, {"clip_norm": 1e-3, "nonfinite": "skip"}),
    (onepass.RMSprop, {"momentum": 0.5, "centered": True, "clip_value": 1e-4}),
    (onepass.Adagrad, {"initial_accumulator_value": 0.5, "maximize": True}),
    (onepass.Adadelta, {"ema_decay": lambda t: 1 - 1 / t, "nonfinite": "raise"}),
    (onepass.SGD, {"momentum": 0.9, "nesterov": True, "clip_norm": float("inf")}),
    (onepass.SGD, {"lr": onepass.schedules.cosine(0.1, 10)}),
    (onepass.Lion, {"flush_denormals": False}),
]


def check_every_rule_has_the_bits_of_one_process() -> None:
    for number, (kind, options) in enumerate(RULES):
        compare(WORLD, kind, options, average=number % 2 == 0)


def check_numbers_of_all_kinds_have_the_bits_of_one_process() -> None:
    compare(WORLD, onepass.AdamW, {"ema_decay": 0.5}, gradients=alone)
    sharded = compare(WORLD, onepass.Adam, {"nonfinite": "skip"}, gradients=alone)
    assert sharded.skipped == 3
    compare(WORLD, onepass.SGD, {"clip_norm": 1.0}, gradients=alone)


def check_the_norm_has_the_bits_of_one_process_where_sums_round() -> None:
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


def check_groups_and_their_options_have_the_bits_of_one_process() -> None:
    groups: list[dict[str, Any]] = [{"momentum": 0.0, "lr": 0.5}, {"momentum": 0.9, "weight_decay": 0.1}]
    compare(WORLD, onepass.SGD, {"clip_norm": 1e-2}, groups=groups)
    compare(
        WORLD, onepass.AdamW, {"ema_decay": 0.9}, groups=[{"betas": (0.5, 0.9)}, {"lr": lambda t: 1 / t}], flat=True
    )


def check_flat_parameters_and_gradients_travel_without_a_copy() -> None:
    for options in ({}, {"clip_norm": 1e-3}):
        sharded = compare(WORLD, onepass.AdamW, options, flat=True)
        assert not sharded._sending and not sharded._taking
    sharded = compare(WORLD, onepass.AdamW, {})
    assert sharded._sending and sharded._taking


def check_one_chunk_or_many_give_the_same_bits() -> None:
    few = compare(WORLD, onepass.AdamW, {}, chunk=1 << 20)
    many = compare(WORLD, onepass.AdamW, {}, chunk=1)
    assert len(few._chunks) == 2 < len(many._chunks)


def check_names_and_one_array_serve_as_parameters() -> None:
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


def check_gradients_of_any_layout_and_dtype_are_taken() -> None:
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
    # A gradient that is the parameter itself, or a part of one, is what it was when the step began.
    w, other = np.arange(300_000, dtype=np.float32), np.arange(300_000, dtype=np.float32)
    v, another = np.ones(150_000, np.float32), np.ones(150_000, np.float32)
    ShardedOptimizer(WORLD, onepass.SGD, [w, v], chunk=SMALL, lr=0.5).step([w, w[::2]])
    onepass.SGD([other, another], lr=0.5).step([other.copy(), other[::2].copy()])
    assert_same_bits([w, v], [other, another])


def check_shares_and_state_are_equal_to_within_a_block() -> None:
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


# ---- Errors ----


@contextmanager
def time_limit(seconds: float = 30) -> Iterator[None]:
    """Whoever is still in the block then says where, and all ranks end."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def raises(error: type[BaseException], message: str, *others: Any) -> Iterator[None]:
    """The block raises this on this rank; the others meanwhile may raise other things, but never hang."""
    try:
        yield
    except BaseException as caught:
        if not (type(caught) is error and message in str(caught)):
            raise
        print(f"rank {WORLD.rank} of {WORLD.size}: {type(caught).__name__}: {caught}", flush=True)
    else:
        raise AssertionError(f"did not raise {error.__name__}: {message}")


def check_ranks_that_disagree_at_construction_are_told_so() -> None:
    if WORLD.size == 1:
        return
    last = WORLD.rank == WORLD.size - 1

    def w(*shape: int, dtype: Any = np.float32, order: Any = "C", fill: float = 1.0) -> Array:
        return np.full(shape, fill, dtype, order)

    def make(params: Any, kind: Any = onepass.Adam, **options: Any) -> ShardedOptimizer:
        return ShardedOptimizer(WORLD, kind, params, **options)

    who = f"the ranks disagree: rank {WORLD.size - 1} has "
    with raises(
        ValueError, who + "parameter 0 of shape (4, 3), float32, C order, rank 0 parameter 0 of shape (3, 4), f"
    ):
        make([w(4, 3) if last else w(3, 4)])
    with raises(
        ValueError, who + "the parameter of shape (3,), float64, C order, rank 0 the parameter of shape (3,), f"
    ):
        make(w(3, dtype=np.float64 if last else np.float32))
    with raises(ValueError, "F order, rank 0 parameter 0 of shape (3, 4), float32, C order"):
        make([w(3, 4, order="F" if last else "C")])
    with raises(ValueError, who + "parameter 'b' of shape (2,), float32, C order, rank 0 parameter 'a' of shape (1,)"):
        make({"b": w(2), "a": w(1)} if last else {"a": w(1), "b": w(2)})
    with raises(ValueError, who + "1 parameters, rank 0 2"):
        make([w(1)] if last else [w(1), w(1)])
    with raises(ValueError, who + "lr=0.2 in group 0, rank 0 lr=0.1 in group 0"):
        make(w(3), lr=0.2 if last else 0.1)
    with raises(ValueError, who + "lr=a function in group 0, rank 0 lr=0.1"):
        make(w(3), lr=(lambda t: 0.1) if last else 0.1)
    with raises(ValueError, who + "clip_norm=1.0, rank 0 clip_norm=None"):
        make(w(3), clip_norm=1.0 if last else None)
    with raises(ValueError, who + "optimizer AdamW, rank 0 Adam"):
        make(w(3), kind=onepass.AdamW if last else onepass.Adam, weight_decay=0.0)
    with raises(ValueError, who + "sizes of groups [2, 1], rank 0 [1, 2]"):
        cut = 2 if last else 1
        params = [w(1), w(1), w(1)]
        make([{"params": params[:cut]}, {"params": params[cut:]}])
    with raises(
        ValueError, who + "values in the parameter that differ from rank 0 (broadcast them first, as with comm.Bc"
    ):
        make(w(3, fill=2.0 if last else 1.0))
    with raises(ValueError, who + "chunk=2, rank 0 chunk=1"):
        make(w(3), chunk=2 if last else 1)
    error, message = (
        (TypeError, "parameter 0 must be") if last else (RuntimeError, f"rank {WORLD.size - 1} raised TypeError")
    )
    with raises(error, message):
        make([3] if last else [w(3)])
    error, message = (
        (ValueError, "lr must be at") if last else (RuntimeError, f"rank {WORLD.size - 1} raised ValueError: lr")
    )
    with raises(error, message):
        make(w(3), lr=-1 if last else 1)
    make(w(3)).step(w(3))  # and the communicator still serves


def check_wrong_arguments_are_refused_on_every_rank() -> None:
    w = np.ones(3, np.float32)
    with raises(TypeError, "kind must be an optimizer class"):
        ShardedOptimizer(WORLD, onepass.adam_step, w)  # type: ignore[arg-type]
    with raises(TypeError, "comm must be an mpi4py intracommunicator, got str"):
        ShardedOptimizer("world", onepass.Adam, w)
    with raises(TypeError, "chunk must be an integer, got 1.5"):
        ShardedOptimizer(WORLD, onepass.Adam, w, chunk=1.5)  # type: ignore[arg-type]
    with raises(ValueError, "chunk must be at least 1, got 0"):
        ShardedOptimizer(WORLD, onepass.Adam, w, chunk=0)
    with raises(TypeError, "average must be True or False"):
        ShardedOptimizer(WORLD, onepass.Adam, w, average=1)  # type: ignore[arg-type]
    with raises(TypeError, "unexpected keyword argument 'momentum'"):
        ShardedOptimizer(WORLD, onepass.Adam, w, momentum=0.9)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, [w])
    with raises(TypeError, "gradient 0 is given by rows"):
        sharded.step([onepass.SparseRows([0], np.ones(1, np.float32))])
    with raises(TypeError, "cannot be copied or pickled"):
        __import__("copy").deepcopy(sharded)


def check_an_error_on_one_rank_raises_on_all_and_changes_nothing() -> None:
    size, first = WORLD.size, WORLD.rank == 0
    params = parameters()
    kept = [p.copy() for p in params]
    good = exact(0, WORLD.rank, params)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL, lr=lambda t: failing[0] or 0.1, clip_norm=1.0)
    failing: list[Any] = [0]

    def elsewhere(error: type[BaseException], message: str) -> Any:
        return raises(error, message) if first else raises(RuntimeError, f"rank 0 raised {error.__name__}: {message}")

    with elsewhere(ValueError, "expected 10 gradients, got 9"):
        sharded.step(good[1:] if first else good)
    with elsewhere(ValueError, "gradient 3: expected shape (4096,), got (1, 4096)"):
        sharded.step([*good[:3], good[3][None], *good[4:]] if first else good)
    with elsewhere(TypeError, "gradient 1 must be of a real floating-point dtype, got int64"):
        sharded.step([good[0], np.array(3), *good[2:]] if first else good)
    with elsewhere(ValueError, "grad_scale must be finite, got nan"):
        sharded.step(good, grad_scale=float("nan") if first else 1.0)
    failing[0] = float("inf") if first else 0
    with elsewhere(ValueError, "the schedule of group 0 returned inf at step 1"):
        sharded.step(good)
    failing[0] = 0
    if size > 1:
        last = WORLD.rank == size - 1
        with raises(ValueError, f"rank {size - 1} has None as ['gradient 2'], rank 0 []"):
            sharded.step([None if last and i == 2 else g for i, g in enumerate(good)])
        with raises(ValueError, f"rank {size - 1} has grad_scale 0.5, rank 0 1.0"):
            sharded.step(good, grad_scale=0.5 if last else 1.0)
        failing[0] = 0.2 if last else 0
        with raises(ValueError, f"rank {size - 1} has other options of the groups, or schedules that say something"):
            sharded.step(good)
        failing[0] = 0
        sharded.groups[0].weight_decay = 0.5 if last else 0.0
        with raises(ValueError, f"rank {size - 1} has other options of the groups"):
            sharded.step(good)
        sharded.groups[0].weight_decay = 0.0
        sharded.clip_norm = 2.0 if last else 1.0
        with raises(ValueError, f"rank {size - 1} has clip_norm 2.0, rank 0 1.0"):
            sharded.step(good)
        sharded.clip_norm = 1.0
    params[4].flags.writeable = False
    with raises(ValueError, "parameter 4 was made read-only"):
        sharded.step(good)
    params[4].flags.writeable = True
    assert_same_bits(params, kept)
    assert (sharded.step_count, sharded.skipped, sharded.grad_norm) == (0, 0, None)
    sharded.step(good)
    assert sharded.step_count == 1


def check_gradients_that_are_not_finite_are_refused_on_all_ranks_alike() -> None:
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


def check_nothing_to_step_is_a_step_all_the_same() -> None:
    empty = [np.zeros((0, 3), np.float32), np.zeros(0)]
    for params, grads in ((empty, empty), (empty, [None, None]), (parameters(), [None] * len(SHAPES))):
        for options in ({}, {"clip_norm": 1.0, "nonfinite": "skip"}):
            sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL, ema_decay=0.5, **options)
            single = onepass.Adam([p.copy("K") for p in params], ema_decay=0.5, **options)
            for optimizer in (sharded, single):
                optimizer.step([g if g is None else g.copy() for g in grads])
            assert (sharded.step_count, sharded.grad_norm) == (single.step_count, single.grad_norm)
            same_state(sharded, single, options)


def check_a_step_that_breaks_off_in_the_middle_is_not_gone_on_from() -> None:
    params = parameters()
    sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL)

    folder = shared_folder()
    sharded.save(folder / "set")

    def broken(k: int) -> None:
        raise KeyboardInterrupt

    sharded._hand_out = broken  # type: ignore[method-assign]
    with raises(KeyboardInterrupt, ""):
        sharded.step(exact(0, WORLD.rank, params))
    for request in sharded._requests.values():
        request.Wait()
    for call in (
        lambda: sharded.step(exact(0, WORLD.rank, params)),
        lambda: sharded.save(folder / "set"),
        lambda: sharded.load(folder / "set"),
    ):
        sharded._broken = True
        with raises(RuntimeError, "failed part-way"):
            call()
        sharded._broken = WORLD.rank == 0  # and on one rank alone the others are told
        with raises(RuntimeError, "failed part-way"):
            call()


def check_a_new_optimizer_is_not_disturbed_by_one_that_broke_off_elsewhere_on_each_rank() -> None:
    size, ready = 100_000, ShardedOptimizer._ready

    def broken(self: ShardedOptimizer, k: int) -> None:
        if k == 1 and WORLD.rank == 0:
            raise KeyboardInterrupt
        ready(self, k)
        if k == 1:
            raise KeyboardInterrupt

    for flat in (True, False):
        params = [np.ones(size, np.float32), np.ones(3, np.float32)]
        sharded = ShardedOptimizer(WORLD, onepass.SGD, onepass.flatten(params) if flat else params, chunk=SMALL)
        ShardedOptimizer._ready = broken  # type: ignore[method-assign]
        with time_limit(), raises(KeyboardInterrupt, ""):
            sharded.step([np.ones(size, np.float32), np.ones(3, np.float32)])
        ShardedOptimizer._ready = ready  # type: ignore[method-assign]
        del sharded, params
        with time_limit():
            compare(WORLD, onepass.Adam, {}, flat=flat)


def check_communicators_of_optimizers_that_are_gone_are_freed() -> None:
    if WORLD.size > 2:  # would take minutes where there are fewer processors
        return
    w = np.ones(3, np.float32)
    with time_limit(100):
        for _ in range(2100):  # MPICH has 2,048
            ShardedOptimizer(WORLD, onepass.SGD, w)
        for _ in range(2100):
            comm = WORLD.Dup()
            ShardedOptimizer(comm, onepass.SGD, w)
            comm.Free()


def check_optimizers_are_stepped_in_threads_of_their_own_after_the_communicator_is_freed() -> None:
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


def on_first(error: type[BaseException], message: str) -> Any:
    """This on rank 0, and the others are told."""
    if WORLD.rank == 0:
        return raises(error, message)
    return raises(RuntimeError, f"rank 0 raised {error.__name__}: {message}".rstrip())


@contextmanager
def replaced(where: Any, name: str, function: Any, rank: int = 0) -> Iterator[None]:
    """The function stands in for another while the block runs, on one rank."""
    with patch.object(where, name, function) if WORLD.rank == rank else nullcontext():
        yield


def raising(error: type[BaseException], message: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error(message)

    return call


def check_an_interrupt_on_one_rank_raises_on_all() -> None:
    folder, interrupt = shared_folder(), raising(KeyboardInterrupt, "now")
    w = np.ones(20_000, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w)
    with time_limit():
        with on_first(KeyboardInterrupt, "now"), replaced(ShardedOptimizer, "_make", interrupt):
            ShardedOptimizer(WORLD, onepass.Adam, w)
        with on_first(KeyboardInterrupt, "now"), replaced(ShardedOptimizer, "_take", interrupt):
            sharded.step(w)
        with on_first(KeyboardInterrupt, "now"), replaced(onepass._checkpoint, "write", interrupt):  # type: ignore[attr-defined]
            sharded.save(folder / "set")
        sharded.save(folder / "set")
        with on_first(KeyboardInterrupt, "now"), replaced(ShardedOptimizer, "_read_set", interrupt):
            sharded.load(folder / "set")
        sharded.step(w)
    assert sharded.step_count == 1


def check_an_interrupt_on_one_rank_after_the_agreement_breaks_the_optimizer() -> None:
    w = np.ones(20_000, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w, clip_norm=1.0)
    with time_limit():
        with raises(KeyboardInterrupt, "now"), patch.object(_core, "total", raising(KeyboardInterrupt, "now")):
            sharded.step(w)
        with raises(RuntimeError, "failed part-way"):
            sharded.step(w)


def check_ranks_in_different_calls_are_told_so() -> None:
    if WORLD.size == 1:
        return
    folder, last = shared_folder(), WORLD.size - 1
    w = np.ones(20_000, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w, ema_decay=0.5)
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: sharded.step(w),
        "save": lambda: sharded.save(folder / "set"),
        "load": lambda: sharded.load(folder / "other"),
        "state_dict": sharded.state_dict,
        "gather_ema": sharded.gather_ema,
        "load_state_dict": lambda: sharded.load_state_dict(kept),
    }
    with time_limit():
        calls["save"]()
        ShardedOptimizer(WORLD, onepass.Adam, w, ema_decay=0.5).save(folder / "other")
        kept = sharded.state_dict()
        for mine, one in calls.items():
            for theirs, other in calls.items():
                if mine != theirs:
                    with raises(ValueError, f"the ranks disagree: rank {last} has called {mine}, rank 0 {theirs}"):
                        (one if WORLD.rank == last else other)()
        with raises(ValueError, f"rank {last} has gathered True, rank 0 False"):
            sharded.save(folder / "set", gathered=WORLD.rank == last)
        with raises(ValueError, f"rank {last} has grad_scale -0.0, rank 0 0.0"):
            sharded.step(w, grad_scale=-0.0 if WORLD.rank == last else 0.0)
        with raises(ValueError, f"rank {last} has lr=-0.0 in group 0, rank 0 lr=0.0 in group 0"):
            ShardedOptimizer(WORLD, onepass.Adam, w, lr=-0.0 if WORLD.rank == last else 0.0)
        sharded.step(w)
    assert sharded.step_count == 1


class Untold(ValueError):
    def __str__(self) -> str:
        raise AttributeError("words")


def check_an_error_without_words_raises_on_all() -> None:
    w = np.ones(3, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w)
    with time_limit(), replaced(sharded, "_take", raising(Untold, "")):
        if WORLD.rank:
            with raises(RuntimeError, "rank 0 raised Untold"):
                sharded.step(w)
        else:
            with suppress(Untold):
                sharded.step(w)
    assert sharded.step_count == 0


def check_want_of_room_on_one_rank_raises_on_all() -> None:
    folder, full = shared_folder(), raising(MemoryError, "no room")
    sharded = trained(WORLD, parameters(), range(1), ema_decay=0.5)
    calls: list[Callable[[], Any]] = [
        lambda: sharded.save(folder / "whole.npz", gathered=True),
        sharded.state_dict,
        sharded.gather_ema,
    ]
    with time_limit():
        for call in calls:
            with on_first(MemoryError, "no room"), replaced(ShardedOptimizer, "_empty_states", full):
                call()
            sharded._broken = WORLD.rank == 0
            with on_first(RuntimeError, "a previous step or load failed part-way"):
                call()
            sharded._broken = False
            call()
        other = ShardedOptimizer(WORLD, onepass.Adam, parameters(), chunk=SMALL)
        with on_first(MemoryError, "no room"), replaced(ShardedOptimizer, "_room", full):
            other.step(parameters())
        assert other.step_count == 0
        other.step(parameters())


def check_a_load_that_fails_late_on_one_rank_breaks_all() -> None:
    folder = shared_folder() / "set"
    sharded = trained(WORLD, parameters(), range(1))
    sharded.save(folder)
    with time_limit():
        full = raising(MemoryError, "no room")
        with on_first(MemoryError, "no room"), replaced(onepass.AdamW, "load_state_dict", full):
            sharded.load(folder)
        with raises(RuntimeError, "failed part-way"):
            sharded.step(parameters())


# ---- Checkpoints ----


def shared_folder(comm: MPI.Intracomm = WORLD) -> pathlib.Path:
    """A folder that all ranks see, deleted with the one in which the tests run."""
    return pathlib.Path(comm.bcast(tempfile.mkdtemp(dir=os.environ.get("RANKS_FOLDER")) if comm.rank == 0 else None))


def trained(
    comm: MPI.Intracomm, params: list[Array], steps: range, path: Any = None, **options: Any
) -> ShardedOptimizer:
    """Adam over gradients that do not depend on the number of ranks."""
    sharded = ShardedOptimizer(comm, onepass.AdamW, params, average=False, chunk=SMALL, **options)
    if path is not None:
        sharded.load(path)
    for step in steps:
        every = exact(step, 0, params)
        sharded.step(every if comm.rank == 0 else [np.zeros_like(g) for g in every])
    return sharded


OPTIONS: dict[str, Any] = {
    "ema_decay": 0.9,
    "amsgrad": True,
    "clip_norm": 1e-3,
    "lr": onepass.schedules.inverse_sqrt(0.1),
}


def check_training_goes_on_with_the_same_bits_on_any_number_of_ranks() -> None:
    straight = parameters()
    whole = onepass.AdamW(straight, **OPTIONS)
    for step in range(2):
        whole.step(exact(step, 0, straight))
    halfway = [p.copy("K") for p in straight]
    for step in range(2, 4):
        whole.step(exact(step, 0, straight))
    folder = shared_folder() / "set"
    trained(WORLD, parameters(), range(2), **OPTIONS).save(folder)
    for ranks in range(1, WORLD.size + 1):
        some = WORLD.Split(int(WORLD.rank < ranks))
        if WORLD.rank < ranks:
            params = [p.copy("K") for p in halfway]
            again = trained(some, params, range(2, 4), folder, **OPTIONS)
            assert_same_bits(params, straight, f"saved on {WORLD.size} ranks, loaded on {ranks}")
            same_state(again, whole, ranks)
        some.Free()


def check_state_on_disk_has_the_same_bits() -> None:
    folder = shared_folder()
    with onepass.state_dir(folder):
        sharded = compare(WORLD, onepass.AdamW, OPTIONS)
    assert sharded.optimizer._state_folder == str(folder)
    before = sharded.state_dict()["state"]
    sharded.save(folder / "set")
    sharded.step(exact(9, WORLD.rank, parameters()))
    sharded.load(folder / "set")
    after = sharded.state_dict()["state"]
    for one, other in zip(before.values(), after.values()):
        assert_same_bits([one["exp_avg"], one["ema"]], [other["exp_avg"], other["ema"]])


def check_a_gathered_file_is_that_of_one_process() -> None:
    folder = shared_folder()
    params = parameters()
    single = onepass.AdamW(params, **OPTIONS)
    for step in range(2):
        single.step(exact(step, 0, params))
    if WORLD.rank == 0:
        single.save(folder / "single.npz")
    mine = parameters()
    sharded = trained(WORLD, mine, range(2), **OPTIONS)
    sharded.save(folder / "gathered.npz", gathered=True)
    assert (folder / "gathered.npz").read_bytes() == (folder / "single.npz").read_bytes()
    same_state(trained(WORLD, mine, range(0), folder / "single.npz", **OPTIONS), single, "from a file")
    other = trained(WORLD, mine, range(0), **OPTIONS)
    other.load_state_dict(single.state_dict())
    same_state(other, single, "from a dict")


def check_a_set_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    folder = shared_folder() / "set"
    params = parameters()
    sharded = trained(WORLD, params, range(1), **OPTIONS)
    with raises(FileNotFoundError, "No such file"):
        sharded.load(folder)
    sharded.save(folder)
    before = [{n: np.copy(x) for n, x in state.items()} for state in snapshot(sharded.optimizer)]
    sharded.save(folder)
    assert len(list(folder.iterdir())) == WORLD.size + 1  # the older set is gone
    WORLD.Barrier()

    plain = ShardedOptimizer(WORLD, onepass.AdamW, parameters(), chunk=SMALL, lr=0.1)
    with raises(ValueError, "it has unknown members"):
        plain.load(folder)
    with raises(ValueError, "checkpoint is for 'AdamW', not 'SGD'"):
        ShardedOptimizer(WORLD, onepass.SGD, parameters(), chunk=SMALL).load(folder)
    with raises(ValueError, "it holds 10 parameters, the optimizer has 8"):
        trained(WORLD, parameters()[:8], range(0), **OPTIONS).load(folder)
    with raises(ValueError, "parameter 0 was saved as [[130, 301], '<f4', 'C'], here it is [[301, 130], '<f4', 'C']"):
        trained(WORLD, [parameters()[0].T.copy(), *parameters()[1:]], range(0), **OPTIONS).load(folder)

    def spoil(file: pathlib.Path, change: Callable[[bytes], bytes], message: str, error: Any = ValueError) -> None:
        WORLD.Barrier()
        data = file.read_bytes()
        WORLD.Barrier()
        if WORLD.rank == 0:
            file.write_bytes(change(data)) if change is not os.remove else file.unlink()
        WORLD.Barrier()
        with raises(error, message):
            sharded.load(folder)
        WORLD.Barrier()
        if WORLD.rank == 0:
            file.write_bytes(data)
        WORLD.Barrier()

    manifest = folder / "manifest.json"
    one = sorted(folder.glob("*.npz"))[-1]
    spoil(manifest, lambda data: data[:-20], "cannot load")
    spoil(manifest, lambda data: b"[]", "cannot load")
    spoil(manifest, lambda data: data.replace(b'"version": 1', b'"version": 2'), "version must be 1, got 2")
    spoil(
        manifest,
        lambda data: data.replace(one.name.encode(), b"../" + one.name.encode()),
        "is not a file of this checkpoint",
    )
    spoil(one, lambda data: data[:-9], "cannot load")
    spoil(
        one, lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :], "CRC"
    )
    spoil(one, os.remove, "No such file", FileNotFoundError)  # type: ignore[arg-type]
    spoil(manifest, lambda data: data.replace(b"[0, 0, ", b"[0, 1, ", 1), "cannot load")

    def refiled(change: Callable[[list[Any]], list[Any]]) -> Callable[[bytes], bytes]:
        def changed(data: bytes) -> bytes:
            manifest = json.loads(data)
            return json.dumps({**manifest, "files": change(manifest["files"])}).encode()

        return changed

    spoil(manifest, refiled(lambda files: files[1:]), "do not hold every element once")
    spoil(manifest, refiled(lambda files: [*files, files[0]]), "do not hold every element once")
    spoil(manifest, refiled(lambda files: [*files, files[-1]]), "do not hold every element once")
    spoil(manifest, refiled(lambda files: []), "do not hold every element once")
    if WORLD.size > 1:
        later = trained(WORLD, parameters(), range(2), **OPTIONS)
        later.save(folder.with_name("later"))
        other = sorted(folder.with_name("later").glob("*.npz"))[-1].read_bytes()
        spoil(one, lambda data: other, "belongs to a different checkpoint than")
    after = [{n: np.copy(x) for n, x in state.items()} for state in snapshot(sharded.optimizer)]
    for a, b in zip(after, before):
        assert_same_bits(a.values(), b.values())
    sharded.load(folder)


def check_a_file_that_cannot_be_written_raises_on_all_and_leaves_the_old_set() -> None:
    folder = shared_folder() / "set"
    params = parameters()
    sharded = trained(WORLD, params, range(1), **OPTIONS)
    sharded.save(folder)
    old = sorted(folder.iterdir())
    fsync, last = os.fsync, WORLD.rank == WORLD.size - 1

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    os.fsync = full if last else fsync
    with raises(OSError, "No space left") if last else raises(RuntimeError, f"rank {WORLD.size - 1} raised OSError"):
        sharded.save(folder)
    os.fsync = fsync
    WORLD.Barrier()
    assert sorted(folder.iterdir()) == old
    WORLD.Barrier()
    sharded.load(folder)


def check_a_manifest_that_cannot_be_written_leaves_no_files_of_its_set() -> None:
    folder, full = shared_folder() / "set", raising(OSError, "No space left on device")
    sharded = trained(WORLD, parameters(), range(1), **OPTIONS)
    kept: list[pathlib.Path] = []
    for _ in range(2):
        with time_limit(), on_first(OSError, "No space left"), replaced(json, "dumps", full):
            sharded.save(folder)
        with time_limit(), on_first(OSError, "No space left"), replaced(pathlib.Path, "replace", refused_manifest):
            sharded.save(folder)
        WORLD.Barrier()
        assert sorted(folder.iterdir()) == kept
        WORLD.Barrier()
        sharded.save(folder)
        kept = sorted(folder.iterdir())
    # What fails once the manifest is in its place leaves the new set, and the old files beside it.
    flush = onepass._checkpoint._flush_folder  # type: ignore[attr-defined]

    def unflushed(where: pathlib.Path) -> None:
        flush(where)
        if kept[-1].read_bytes() != manifest:
            raise OSError("late")

    manifest = kept[-1].read_bytes()
    assert kept[-1].name == "manifest.json"
    WORLD.Barrier()
    with time_limit(), on_first(OSError, "late"), replaced(onepass._checkpoint, "_flush_folder", unflushed):  # type: ignore[attr-defined]
        sharded.save(folder)
    assert kept[-1].read_bytes() != manifest
    sharded.load(folder)


def refused_manifest(source: pathlib.Path, target: pathlib.Path, replace: Any = pathlib.Path.replace) -> None:
    if target.name == "manifest.json":
        raise OSError("No space left on device")
    replace(source, target)


def check_each_rank_uses_its_part_of_the_processors() -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    onepass.set_num_threads(None)
    at_import = onepass.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "5"  # set by the user: left as it is
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    assert _core.requested_threads() == 0
    del os.environ["OMP_NUM_THREADS"]
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    share = max(1, processors // WORLD.size)
    assert onepass.get_num_threads() == (at_import if WORLD.size == 1 else min(share, at_import))
    onepass.set_num_threads(7)  # likewise
    ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32))
    assert onepass.get_num_threads() == 7


# ---- Not checks: what other tests start ----


def save_and_die() -> None:
    """Save a set, then save another and be killed before the n-th time that something is done about a file."""
    folder, victim, count = pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    params = parameters()
    sharded = trained(WORLD, params, range(1), **OPTIONS)
    sharded.save(folder)
    for step in range(1, 3):
        every = exact(step, 0, params)
        sharded.step(every if WORLD.rank == 0 else [np.zeros_like(g) for g in every])
    calls = 0

    def counted(where: Any, name: str) -> None:
        function = getattr(where, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if WORLD.rank == victim % WORLD.size and calls == count:
                print(f"rank {WORLD.rank} dies before call {count}, {name}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(where, name, call)

    for name in ("open", "replace", "unlink"):
        counted(pathlib.Path, name)
    for name in ("fsync", "close"):
        counted(os, name)
    counted(onepass._checkpoint, "_write_array")  # type: ignore[attr-defined]
    sharded.save(folder)
    print(f"saved, with {calls} calls on rank {WORLD.rank}", flush=True)


def load_after_death() -> None:
    """Load what save_and_die left: each time the set of after one step or that of after three."""
    params = parameters()
    single = onepass.AdamW(params, **OPTIONS)
    states = []
    for step in range(3):
        single.step(exact(step, 0, params))
        states.append(single.state_dict())
    for folder in sys.argv[2:]:
        sharded = trained(WORLD, parameters(), range(0), folder, **OPTIONS)
        assert sharded.step_count in (1, 3)
        single.load_state_dict(states[sharded.step_count - 1])
        same_state(sharded, single, folder)
        if WORLD.rank == 0:
            print(f"{pathlib.Path(folder).name}: loaded the set of step {sharded.step_count}", flush=True)


def step_and_die() -> None:
    """Be killed in the middle of a step."""
    sharded = ShardedOptimizer(WORLD, onepass.Adam, parameters(), chunk=SMALL)
    if WORLD.rank == WORLD.size - 1:
        sharded._ready = lambda k: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    sharded.step(exact(0, WORLD.rank, parameters()))


def main() -> None:
    checks = {
        name.removeprefix("check_"): function for name, function in globals().items() if name.startswith("check_")
    }
    for name in sys.argv[1:] or checks:
        try:
            checks[name]()
        except BaseException:
            print(f"rank {WORLD.rank} in {name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            WORLD.Abort(1)
        WORLD.Barrier()
        if WORLD.rank == 0:
            print(f"passed {name}", flush=True)


if __name__ == "__main__":
    asked = int(os.environ.get("RANKS", WORLD.size))  # another MPI's mpiexec starts as many that are alone
    assert asked == WORLD.size, f"there are {WORLD.size} ranks, not {asked}"
    others = {function.__name__: function for function in (save_and_die, load_after_death, step_and_die)}
    others.get((sys.argv[1:] or [""])[0], main)()
