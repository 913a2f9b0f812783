"""Checks of errors: on all ranks, and nothing has changed on any."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import numpy as np
from ranks_common import (
    SMALL,
    WORLD,
    Array,
    compare,
    exact,
    on_first,
    parameters,
    raises,
    raising,
    replaced,
    shared_folder,
    time_limit,
    trained,
)

import onepass
from onepass import _core
from onepass.integrations import mpi
from onepass.integrations.mpi import ShardedOptimizer
from support import assert_same_bits


class Untold(ValueError):
    def __str__(self) -> str:
        raise AttributeError("words")


def check_disagreement_at_construction_raises_on_all_ranks() -> None:
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
        (TypeError, "parameter 0: expected") if last else (RuntimeError, f"rank {WORLD.size - 1} raised TypeError")
    )
    with raises(error, message):
        make([3] if last else [w(3)])
    error, message = (
        (ValueError, "lr: expected at") if last else (RuntimeError, f"rank {WORLD.size - 1} raised ValueError: lr")
    )
    with raises(error, message):
        make(w(3), lr=-1 if last else 1)
    make(w(3)).step(w(3))  # and the communicator still works


def check_wrong_arguments_are_refused_on_every_rank() -> None:
    w = np.ones(3, np.float32)
    with raises(TypeError, "kind: expected an optimizer class"):
        ShardedOptimizer(WORLD, onepass.adam_step, w)  # type: ignore[arg-type]
    with raises(ValueError, "kind: expected an optimizer without eval(), got ScheduleFreeAdamW"):
        ShardedOptimizer(WORLD, onepass.ScheduleFreeAdamW, w)
    with raises(TypeError, "comm: expected an mpi4py intracommunicator, got str"):
        ShardedOptimizer("world", onepass.Adam, w)
    with raises(TypeError, "chunk: expected an integer, got 1.5"):
        ShardedOptimizer(WORLD, onepass.Adam, w, chunk=1.5)  # type: ignore[arg-type]
    with raises(ValueError, "chunk: expected at least 1, got 0"):
        ShardedOptimizer(WORLD, onepass.Adam, w, chunk=0)
    with raises(TypeError, "average: expected True or False"):
        ShardedOptimizer(WORLD, onepass.Adam, w, average=1)  # type: ignore[arg-type]
    with raises(TypeError, "unexpected keyword argument 'momentum'"):
        ShardedOptimizer(WORLD, onepass.Adam, w, momentum=0.9)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, [w])
    with raises(TypeError, "gradient 0 is given by rows"):
        sharded.step([onepass.SparseRows([0], np.ones(1, np.float32))])
    with raises(TypeError, "the gradient: expected an array of shape (3,), got None"):
        ShardedOptimizer(WORLD, onepass.Adam, np.ones(3, np.float32)).step(None)
    v = np.ones(2, np.float32)
    grouped = ShardedOptimizer(WORLD, onepass.Adam, [{"params": [w, v]}, {"params": [np.ones(1, np.float32)]}])
    with raises(ValueError, "gradients come as one flat sequence, in the order of the groups"):
        grouped.step([[w, v], [np.ones(1, np.float32)]])
    with raises(TypeError, "load() got an unexpected keyword argument 'lrr'. Did you mean 'lr'?"):
        grouped.load("missing", lrr=0.1)
    with raises(TypeError, "load_state_dict() got an unexpected keyword argument 'lrr'. Did you mean 'lr'?"):
        grouped.load_state_dict({}, lrr=0.1)
    with raises(TypeError, "cannot be copied or pickled"):
        __import__("copy").deepcopy(sharded)


def check_an_error_on_one_rank_raises_on_all_ranks_and_changes_nothing() -> None:
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
    with elsewhere(TypeError, "gradient 1: expected a real floating-point dtype, got int64"):
        sharded.step([good[0], np.array(3), *good[2:]] if first else good)
    with elsewhere(ValueError, "grad_scale: expected a finite number, got nan"):
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
        with raises(ValueError, f"rank {size - 1} has other options of the groups, or schedules that return"):
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


def check_interrupted_step_breaks_the_optimizer() -> None:
    params = parameters()
    sharded = ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL)
    folder = shared_folder()
    sharded.save(folder / "set")
    with raises(KeyboardInterrupt, ""), patch.object(mpi.sharded, "allgather", raising(KeyboardInterrupt, "")):
        sharded.step(exact(0, WORLD.rank, params))
    for call in (
        lambda: sharded.step(exact(0, WORLD.rank, params)),
        lambda: sharded.save(folder / "set"),
        lambda: sharded.load(folder / "set"),
    ):
        sharded._broken = True
        with raises(RuntimeError, "failed part-way"):
            call()
        sharded._broken = WORLD.rank == 0  # on one rank only, and the others raise too
        with raises(RuntimeError, "failed part-way"):
            call()


def check_new_optimizer_works_after_an_interrupted_step() -> None:
    size, chunks = 100_000, 0
    ring_allgather = mpi.exchange.ring_allgather

    def interrupted(*arguments: Any) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            raise KeyboardInterrupt
        ring_allgather(*arguments)

    for flat in (True, False):
        params = [np.ones(size, np.float32), np.ones(3, np.float32)]
        sharded = ShardedOptimizer(WORLD, onepass.SGD, onepass.flatten(params) if flat else params, chunk=SMALL)
        chunks = 0
        with time_limit(), raises(KeyboardInterrupt, ""), patch.object(mpi.exchange, "ring_allgather", interrupted):
            sharded.step([np.ones(size, np.float32), np.ones(3, np.float32)])
        assert chunks == 2
        del sharded, params
        with time_limit():
            compare(WORLD, onepass.Adam, {}, flat=flat)


def check_an_interrupt_on_one_rank_raises_on_all_ranks() -> None:
    folder, interrupt = shared_folder(), raising(KeyboardInterrupt, "now")
    w = np.ones(20_000, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w)
    with time_limit():
        with on_first(KeyboardInterrupt, "now"), replaced(mpi.sharded, "create_layout", interrupt):
            ShardedOptimizer(WORLD, onepass.Adam, w)
        with on_first(KeyboardInterrupt, "now"), replaced(mpi.sharded, "check_gradients", interrupt):
            sharded.step(w)
        with on_first(KeyboardInterrupt, "now"), replaced(onepass._checkpoint, "write", interrupt):  # type: ignore[attr-defined]
            sharded.save(folder / "set")
        sharded.save(folder / "set")
        with on_first(KeyboardInterrupt, "now"), replaced(mpi.checkpoint, "read_set", interrupt):
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


def check_ranks_that_make_different_calls_raise_on_all_ranks() -> None:
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


def check_error_without_a_message_raises_on_all_ranks() -> None:
    w = np.ones(3, np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.Adam, w)
    with time_limit(), replaced(mpi.sharded, "check_gradients", raising(Untold, "")):
        if WORLD.rank:
            with raises(RuntimeError, "rank 0 raised Untold"):
                sharded.step(w)
        else:
            with suppress(Untold):
                sharded.step(w)
    assert sharded.step_count == 0


def check_memory_error_on_one_rank_raises_on_all_ranks() -> None:
    folder, full = shared_folder(), raising(MemoryError, "no room")
    sharded = trained(WORLD, parameters(), range(1), ema_decay=0.5)
    calls: list[Callable[[], Any]] = [
        lambda: sharded.save(folder / "whole.npz", gathered=True),
        sharded.state_dict,
        sharded.gather_ema,
    ]
    with time_limit():
        for call in calls:
            with on_first(MemoryError, "no room"), replaced(mpi.state, "empty_states", full):
                call()
            sharded._broken = WORLD.rank == 0
            with on_first(RuntimeError, "a previous step or load failed part-way"):
                call()
            sharded._broken = False
            call()
        other = ShardedOptimizer(WORLD, onepass.Adam, parameters(), chunk=SMALL)
        with on_first(MemoryError, "no room"), replaced(mpi.sharded, "reserve", full):
            other.step(parameters())
        assert other.step_count == 0
        other.step(parameters())


def check_a_load_that_fails_late_on_one_rank_breaks_all_optimizers() -> None:
    folder = shared_folder() / "set"
    sharded = trained(WORLD, parameters(), range(1))
    sharded.save(folder)
    with time_limit():
        full = raising(MemoryError, "no room")
        with on_first(MemoryError, "no room"), replaced(onepass.AdamW, "load_state_dict", full):
            sharded.load(folder)
        with raises(RuntimeError, "failed part-way"):
            sharded.step(parameters())


def step_and_die() -> None:
    """Be killed in the middle of a step."""
    sharded = ShardedOptimizer(WORLD, onepass.Adam, parameters(), chunk=SMALL)
    with replaced(mpi.sharded, "allgather", lambda *_: os.kill(os.getpid(), signal.SIGKILL), WORLD.size - 1):
        sharded.step(exact(0, WORLD.rank, parameters()))
