"""Parameters, gradients and comparisons that the checks of ranks.py share."""

from __future__ import annotations

import faulthandler
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
from mpi4py import MPI

import onepass
from onepass.integrations.mpi import ShardedOptimizer
from support import assert_same_bits, hostile

WORLD = MPI.COMM_WORLD

Array = Any

SMALL = 1  # a chunk then holds two blocks for each rank

# Sizes around block borders, both memory orders, both dtypes, empty arrays and scalars.
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

OPTIONS: dict[str, Any] = {
    "ema_decay": 0.9,
    "amsgrad": True,
    "clip_norm": 1e-3,
    "lr": onepass.schedules.inverse_sqrt(0.1),
}


def parameters(flat: bool = False) -> list[Array]:
    rng = np.random.default_rng(1)
    made = [np.array(rng.standard_normal(shape), dtype, order=order) for shape, dtype, order in SHAPES]
    return onepass.flatten(made) if flat else made


def exact(step: int, rank: int, params: list[Array]) -> list[Array]:
    """Return gradients with exact sums over ranks, in any order: small integers times a power of two per element."""
    rng, common = np.random.default_rng([step, rank]), np.random.default_rng(step)
    return [
        np.array(
            np.ldexp(rng.integers(-(2**18), 2**18, p.shape), common.integers(-40, -10, p.shape)),
            p.dtype,
            order="C" if p.flags.c_contiguous else "F",
        )
        for p in params
    ]


def on_one_rank(step: int, rank: int, params: list[Array], ranks: int) -> list[Array]:
    """Return hostile numbers; each of them is zero on all ranks except one."""
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
    """Step a sharded and a single optimizer, and assert that parameters, state and counts have the same bits."""
    mine, theirs = parameters(flat), parameters()

    def grouped(params: list[Array]) -> Any:
        if groups is None:
            return params
        return [{"params": params[:5], **groups[0]}, {"params": params[5:], **groups[1]}]

    sharded = ShardedOptimizer(comm, kind, grouped(mine), average=average, chunk=chunk, **options)
    single = kind(grouped(theirs), **options)
    for step in range(steps):
        every = [
            gradients(step, rank, mine, *([comm.size] if gradients is on_one_rank else [])) for rank in range(comm.size)
        ]
        total = reduced(every)
        own = onepass.flatten(every[comm.rank]) if flat else every[comm.rank]
        if step == 1 and without is not None and not flat:  # so that step counts differ
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


def trained(
    comm: MPI.Intracomm, params: list[Array], steps: range, path: Any = None, **options: Any
) -> ShardedOptimizer:
    """Return an AdamW after steps with gradients that do not depend on the number of ranks."""
    sharded = ShardedOptimizer(comm, onepass.AdamW, params, average=False, chunk=SMALL, **options)
    if path is not None:
        sharded.load(path)
    for step in steps:
        every = exact(step, 0, params)
        sharded.step(every if comm.rank == 0 else [np.zeros_like(g) for g in every])
    return sharded


def shared_folder(comm: MPI.Intracomm = WORLD) -> pathlib.Path:
    """Return a new folder that all ranks see. It is deleted with the folder in which the tests run."""
    return pathlib.Path(comm.bcast(tempfile.mkdtemp(dir=os.environ.get("RANKS_FOLDER")) if comm.rank == 0 else None))


@contextmanager
def time_limit(seconds: float = 30) -> Iterator[None]:
    """Print the traceback of a rank that is still in the block after the limit, and end all ranks."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def raises(error: type[BaseException], message: str, *others: Any) -> Iterator[None]:
    """Assert that the block raises this error on this rank."""
    try:
        yield
    except BaseException as caught:
        if not (type(caught) is error and message in str(caught)):
            raise
        print(f"rank {WORLD.rank} of {WORLD.size}: {type(caught).__name__}: {caught}", flush=True)
    else:
        raise AssertionError(f"did not raise {error.__name__}: {message}")


def on_first(error: type[BaseException], message: str) -> Any:
    """Assert that the block raises this error on rank 0 and reports it on the other ranks."""
    if WORLD.rank == 0:
        return raises(error, message)
    return raises(RuntimeError, f"rank 0 raised {error.__name__}: {message}".rstrip())


@contextmanager
def replaced(where: Any, name: str, function: Any, rank: int = 0) -> Iterator[None]:
    """Replace a function on one rank while the block runs."""
    with patch.object(where, name, function) if WORLD.rank == rank else nullcontext():
        yield


def raising(error: type[BaseException], message: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error(message)

    return call
