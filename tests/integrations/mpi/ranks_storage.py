"""Checks of storage in fewer bits: the bits of one process, checkpoints and conversions."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ranks_common import SMALL, WORLD, raises, same_state, shared_folder

import onepass
from onepass.integrations.mpi import ShardedOptimizer
from support import BFLOAT16, assert_same_bits, comparable, snapshot

Array = Any

# Below and above 4,096 elements, no multiple of 128, in both orders, empty, and with last blocks of a few elements.
SHAPES: list[tuple[tuple[int, ...], str]] = [
    ((130, 301), "C"),
    ((), "C"),
    ((4095,), "C"),
    ((0, 3), "C"),
    ((70, 200), "F"),
    ((4097,), "C"),
    ((4096,), "C"),
    ((5, 1639), "F"),
    ((3, 30_001), "C"),  # float32 in every storage
]

# dtype of the parameters, options
STORAGES: list[tuple[Any, dict[str, Any]]] = [
    (np.float32, {"state_dtype": "bfloat16"}),
    (np.float32, {"state_dtype": "float8"}),
    (BFLOAT16, {}),
    (BFLOAT16, {"state_dtype": "float8", "master_bits": 24}),
    (BFLOAT16, {"state_dtype": "bfloat16", "master_bits": 16}),
    (BFLOAT16, {"state_dtype": "float8", "master_bits": 16, "rounding": "nearest"}),
]

RULES: list[tuple[Any, dict[str, Any]]] = [
    (onepass.Adam, {"ema_decay": 0.9, "weight_decay": 0.1}),
    (onepass.NAdam, {"clip_norm": 1e-3, "nonfinite": "skip"}),
    (onepass.SGD, {"momentum": 0.9, "clip_value": 1e-4}),
    (onepass.Lion, {"betas": (0.9, 0.95), "lr": lambda t: 0.01 / t}),
    (onepass.Adagrad, {"initial_accumulator_value": 0.1}),
]


def made(dtype: Any) -> list[Array]:
    rng = np.random.default_rng(1)
    dtypes = [dtype] * (len(SHAPES) - 1) + [np.float32]
    return [np.array(rng.standard_normal(shape), own, order=order) for (shape, order), own in zip(SHAPES, dtypes)]


def exact(step: int, rank: int, dtype: Any = np.float32) -> list[Array]:
    """Return gradients of a few bits, whose sums over ranks are exact in any order and in bfloat16."""
    rng, common = np.random.default_rng([step, rank]), np.random.default_rng(step)
    return [
        np.array(np.ldexp(rng.integers(-31, 32, shape), common.integers(-12, -6, shape)), dtype, order=order)
        for shape, order in SHAPES
    ]


def summed(step: int, ranks: int) -> list[Array]:
    return [np.asarray(sum(each[1:], each[0])) for each in zip(*(exact(step, rank) for rank in range(ranks)))]


def on_first_rank(step: int, rank: int, ranks: int) -> list[Array]:
    """Return gradients whose sum does not depend on the number of ranks."""
    own = summed(step, ranks)
    return own if rank == 0 else [np.zeros_like(gradient) for gradient in own]


def assert_equal(sharded: ShardedOptimizer, single: onepass.Optimizer, context: object) -> None:
    """Assert that parameters, stored state and counts have the same bits."""
    params = [[x] if isinstance(x, np.ndarray) else x for x in (sharded.params, single.params)]
    assert_same_bits(map(comparable, params[0]), map(comparable, params[1]), context)
    same_state(sharded, single, context)


def run(
    kind: Any, dtype: Any, options: dict[str, Any], *, grads: Any = np.float32, steps: int = 3, flat: bool = False
) -> tuple[ShardedOptimizer, onepass.Optimizer]:
    """Step a sharded and a single optimizer, and assert that they have the same bits."""
    params = made(dtype)
    sharded = ShardedOptimizer(
        WORLD, kind, onepass.flatten(params) if flat else params, average=False, chunk=SMALL, seed=7, **options
    )
    single = kind(made(dtype), seed=7, **options)
    for step in range(steps):
        own = exact(step, WORLD.rank, grads)
        sharded.step(onepass.flatten(own) if flat else own)
        single.step(summed(step, WORLD.size))
        assert repr(sharded.grad_norm) == repr(single.grad_norm)
    assert_equal(sharded, single, (kind.__name__, dtype, options, grads))
    return sharded, single


def check_every_storage_is_bit_identical_to_one_process() -> None:
    for dtype, options in STORAGES:
        run(onepass.AdamW, dtype, options)
    for (kind, own), (dtype, options) in itertools.product(RULES, STORAGES[1:4:2]):
        run(kind, dtype, own | options)


class WithHelper(onepass.AdamW):
    """Optimizer that creates another one with parameters of its own."""

    def __init__(self, params: Any, **options: Any) -> None:
        self.helper = onepass.SGD(made(np.float32), momentum=0.9, lr=0.1, state_dtype="float8")
        super().__init__(params, **options)


class OfViews(onepass.AdamW):
    """Optimizer that steps views of its parameters."""

    def __init__(self, params: Any, **options: Any) -> None:
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        super().__init__([{**group, "params": [p[...] for p in group["params"]]} for group in groups], **options)


def check_optimizer_created_by_a_subclass_is_bit_identical_to_one_process() -> None:
    sharded, single = run(WithHelper, np.float32, {"state_dtype": "float8"})
    helpers: list[Any] = [each.helper for each in (sharded.optimizer, single)]  # type: ignore[attr-defined]
    for helper in helpers:
        helper.step(exact(0, 0))
    assert_same_bits(*(map(comparable, helper.params) for helper in helpers))
    for name in ("momentum_buffer", "momentum_buffer_scale"):
        one, other = ([state[name] for state in snapshot(helper) if name in state] for helper in helpers)
        assert_same_bits(map(comparable, one), map(comparable, other), name)


def check_subclass_that_steps_views_is_bit_identical_to_one_process() -> None:
    run(OfViews, np.float32, {"state_dtype": "float8"})


def check_empty_parameter_at_the_address_of_another_matches_one_process() -> None:
    def params() -> list[Array]:
        return onepass.flatten([np.zeros(0, np.float32), np.ones(4096, np.float32)])

    sharded = ShardedOptimizer(WORLD, onepass.AdamW, params(), state_dtype="float8")
    single = onepass.AdamW(params(), state_dtype="float8")
    for optimizer in (sharded, single):
        optimizer.step(params())
    assert_equal(sharded, single, "empty")


def check_narrow_gradients_of_any_dtype_are_summed_in_float32() -> None:
    for dtype, options in (STORAGES[0], STORAGES[3], (np.float64, {})):
        for grads in (BFLOAT16, np.float16):
            run(onepass.AdamW, dtype, options, grads=grads)
    # Sums over ranks that no bfloat16 number holds.
    w, v = np.zeros(5000, BFLOAT16), np.zeros(5000, BFLOAT16)
    gradient = np.full(5000, 1 + 2**-7 if WORLD.rank else 256, BFLOAT16)
    sharded, single = ShardedOptimizer(WORLD, onepass.SGD, w, lr=1.0, average=False), onepass.SGD(v, lr=1.0)
    sharded.step(gradient)
    single.step(np.full(5000, 256 + (1 + 2**-7) * (WORLD.size - 1), np.float32))
    assert_equal(sharded, single, "sums")


def check_flat_bfloat16_parameters_are_sent_without_a_copy() -> None:
    for grads, copied in ((np.float32, set()), (BFLOAT16, {np.dtype(np.float32)})):
        sharded, _ = run(onepass.AdamW, BFLOAT16, {"state_dtype": "float8"}, grads=grads, flat=True)
        assert sharded._buffers.packed.keys() == copied
    sharded, _ = run(onepass.AdamW, BFLOAT16, {})
    assert sharded._buffers.packed.keys() == {np.dtype(np.float32), np.dtype(np.uint16)}


def check_groups_with_different_storage_are_bit_identical_to_one_process() -> None:
    kinds: list[dict[str, Any]] = [{"state_dtype": "float8"}, {"state_dtype": "bfloat16", "rounding": "nearest"}, {}]
    mine, theirs = made(BFLOAT16), made(BFLOAT16)

    def groups(params: list[Array]) -> list[dict[str, Any]]:
        return [{"params": params[3 * k : 3 * k + 3], **own} for k, own in enumerate(kinds)]

    sharded = ShardedOptimizer(WORLD, onepass.AdamW, groups(mine), chunk=SMALL, seed=1)
    single = onepass.AdamW(groups(theirs), seed=1)
    for step in range(3):
        own, whole = exact(step, WORLD.rank), summed(step, WORLD.size)
        if step == 1:
            own[0] = whole[0] = own[6] = whole[6] = None
        sharded.step(own)
        single.step(whole, grad_scale=1 / WORLD.size)
    assert_same_bits(map(comparable, mine), map(comparable, theirs))
    same_state(sharded, single, "groups")


def check_gradients_that_are_not_finite_leave_narrow_state_unchanged() -> None:
    options = {"state_dtype": "float8", "clip_norm": 1e-2, "ema_decay": 0.5}
    sharded, single = run(onepass.AdamW, BFLOAT16, options)
    bad = exact(9, WORLD.rank)
    if WORLD.rank == WORLD.size - 1:
        bad[8][2, 4000] = np.inf
    sharded.nonfinite = single.nonfinite = "raise"
    with raises(FloatingPointError, "gradient 8 is not finite, or its squares are not"):
        sharded.step(bad)
    assert_equal(sharded, single, "raise")
    sharded.nonfinite = single.nonfinite = "skip"
    whole = summed(9, WORLD.size)
    whole[8][2, 4000] = np.inf
    sharded.step(bad)
    single.step(whole)
    assert sharded.skipped == single.skipped == 1
    sharded.step(exact(3, WORLD.rank))
    single.step(summed(3, WORLD.size))
    assert_equal(sharded, single, "skip")


def check_narrow_training_resumes_bit_identically_on_any_number_of_ranks() -> None:
    ranks = WORLD.size
    for number, (dtype, options) in enumerate(STORAGES[1:5]):
        options = {**options, "ema_decay": 0.9, "seed": 3}
        single = onepass.AdamW(made(dtype), **options)
        sharded = ShardedOptimizer(WORLD, onepass.AdamW, made(dtype), average=False, chunk=SMALL, **options)
        for step in range(2):
            sharded.step(on_first_rank(step, WORLD.rank, ranks))
            single.step(summed(step, ranks))
        folder = shared_folder()
        sharded.save(folder / "set")
        sharded.save(folder / "file", gathered=True)
        halfway = [p.copy("K") for p in sharded.params]
        if WORLD.rank == 0:
            single.save(folder / "single")
            assert (folder / "file").read_bytes() == (folder / "single").read_bytes()
        for step in range(2, 4):
            single.step(summed(step, ranks))
        for fewer in range(1, ranks + 1):
            some = WORLD.Split(int(WORLD.rank < fewer))
            sources = ("set", "file") if fewer == ranks else ("set",)
            for source in sources if WORLD.rank < fewer else ():
                params = [p.copy("K") for p in halfway]
                again = ShardedOptimizer(
                    some, onepass.AdamW, params, average=False, chunk=SMALL, **{**options, "seed": 0}
                )
                again.load(folder / source)
                assert again.seed == 3
                for step in range(2, 4):
                    again.step(on_first_rank(step, some.rank, ranks))
                assert_equal(again, single, (number, source, fewer))
            some.Free()


def check_narrow_state_on_disk_is_bit_identical_to_state_in_memory() -> None:
    folder = shared_folder()
    with onepass.state_dir(folder):
        sharded, single = run(onepass.AdamW, BFLOAT16, {"state_dtype": "float8"})
    assert sharded.optimizer._state_folder == str(folder)
    sharded.save(folder / "set")
    sharded.step(exact(9, WORLD.rank))
    for param, saved in zip(sharded.params, single.params):
        np.copyto(param, saved)
    sharded.load(folder / "set")
    assert_equal(sharded, single, "loaded")


def check_loading_converts_storage_like_an_ordinary_optimizer() -> None:
    plain, bfloat16, float8, rounded = (np.float32, {}), STORAGES[0], STORAGES[1], STORAGES[4]
    pairs: list[Any] = [(plain, float8), (float8, plain), (bfloat16, float8), (float8, bfloat16)]
    pairs += [(plain, STORAGES[2]), (float8, rounded), (rounded, float8)]
    pairs += itertools.permutations(STORAGES[2:5], 2)
    pairs += [(STORAGES[2], plain), (STORAGES[3], float8)]
    for (old, saved), (new, own) in pairs:
        sharded, single = run(onepass.AdamW, old, saved, steps=2)
        folder = shared_folder()
        sharded.save(folder / "set")
        sharded.save(folder / "file", gathered=True)
        other = onepass.AdamW(made(new), **own)
        with warned() as losses:
            other.load_state_dict(single.state_dict())
        for source in ("set", "file", "dict"):
            params = made(new)
            again = ShardedOptimizer(WORLD, onepass.AdamW, params, chunk=SMALL, **own)
            with warned() as found:
                again.load_state_dict(single.state_dict()) if source == "dict" else again.load(folder / source)
            same_state(again, other, (saved, own, source))
            found = [message for message in found if "was saved with other values" not in message]
            assert [message.partition("(")[2] for message in found] == [
                message.partition("(")[2].replace(", and params=True loads the weights too", "") for message in losses
            ], (found, losses)


@contextmanager
def warned() -> Iterator[list[str]]:
    """Collect the messages of warnings."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(each.message) for each in caught]


def check_loading_warns_once_of_each_parameter_whose_weights_lose_bits() -> None:
    w, b = np.ones(50_000, BFLOAT16), np.ones(5, BFLOAT16)
    gradient = np.linspace(0.1, 0.3, 50_000, dtype=np.float32)
    sharded = ShardedOptimizer(WORLD, onepass.SGD, [b, w], lr=0.3, average=False)
    single = onepass.SGD([b.copy(), w.copy()], lr=0.3)
    sharded.step([None, gradient * (WORLD.rank == 0)])
    single.step([None, gradient])
    folder = shared_folder()
    sharded.save(folder / "set")
    sharded.save(folder / "file", gathered=True)
    equal = onepass.SGD([b.astype(np.float32), np.ones(50_000, np.float32)], lr=0.3)
    equal.step([None, gradient])  # the float32 weights joined from both halves
    kept = equal.params[1][:4096].copy()
    equal.params[1][:4096] = 1
    wide = ShardedOptimizer(WORLD, onepass.SGD, equal.params, lr=0.3, chunk=SMALL)
    with warned() as found:
        wide.load(folder / "set")
    assert len(found) == 1 and found[0].startswith("the weights of parameter 1 have more bits than"), found
    equal.params[1][:4096] = kept
    with warned() as found:
        wide.load(folder / "set")
    assert not found
    params = [p.copy() for p in sharded.params]
    other = ShardedOptimizer(WORLD, onepass.SGD, params, lr=0.3, chunk=SMALL, master_bits=24)
    for source in ("set", "file", "dict"):
        with warned() as found:
            other.load_state_dict(single.state_dict()) if source == "dict" else other.load(folder / source)
        assert len(found) == 1 and found[0].startswith("the weights of parameter 1 have more bits than"), found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = repr(other.state_dict())
        with raises(UserWarning, "the weights of parameter 1 have more bits"):
            other.load(folder / "set")
        assert repr(other.state_dict()) == before


def check_weights_rounded_from_the_saved_weights_get_lower_bits() -> None:
    _, single = run(onepass.AdamW, np.float32, {}, steps=1)
    path = shared_folder() / f"file-{WORLD.rank}"
    single.save(path, params=True)
    rounded = [np.array(p, BFLOAT16 if p.dtype == np.float32 else p.dtype, order="K") for p in single.params]
    for options in ({}, {"master_bits": 24, "state_dtype": "float8"}):
        for source in ("file", "dict"):
            sharded = ShardedOptimizer(WORLD, onepass.AdamW, [p.copy("K") for p in rounded], chunk=SMALL, **options)
            other = onepass.AdamW([p.copy("K") for p in rounded], **options)
            lost = []
            for optimizer in (sharded, other):
                with warned() as found:
                    if source == "file":
                        optimizer.load(path)
                    else:
                        optimizer.load_state_dict(single.state_dict(params=True))
                (message,) = found  # of ties, and of all weights with 24 bits
                lost.append(message.partition(" have more bits")[0])
            assert lost[0] == lost[1], lost
            assert other.state[0]["param_low"].any()
            assert_equal(sharded, other, (options, source))


def check_float8_state_in_the_other_memory_order_is_converted() -> None:
    folder = shared_folder()
    w = np.ones((80, 90), np.float32)
    rows, columns = (onepass.Adam(w.copy(order), state_dtype="float8") for order in "CF")
    if WORLD.rank == 0:
        rows.step(np.random.default_rng(0).standard_normal((80, 90)))
        rows.save(folder / "rows")
    state = WORLD.bcast(rows.state_dict())
    columns.load_state_dict(state)
    for source in ("file", "dict"):
        other = ShardedOptimizer(WORLD, onepass.Adam, w.copy("F"), chunk=SMALL, state_dtype="float8")
        other.load_state_dict(state) if source == "dict" else other.load(folder / "rows")
        same_state(other, columns, "another order")


def check_parameters_that_cannot_have_narrow_state_are_refused() -> None:
    params = [np.zeros(300_000, np.float32), np.zeros(3)]
    with raises(ValueError, "parameter 1: state_dtype='float8' needs float32 or bfloat16 parameters, got float64"):
        ShardedOptimizer(WORLD, onepass.Adam, params, chunk=SMALL, state_dtype="float8")
    with raises(ValueError, "state_dtype='bfloat16' does not work with amsgrad=True"):
        ShardedOptimizer(WORLD, onepass.Adam, params[:1], state_dtype="bfloat16", amsgrad=True)
    with raises(ValueError, "master_bits=24 needs bfloat16 parameters, got float32"):
        ShardedOptimizer(WORLD, onepass.Adam, params[:1], master_bits=24)


def check_each_rank_stores_only_its_share_of_narrow_state() -> None:
    sharded, _ = run(onepass.AdamW, np.float32, {"state_dtype": "float8"}, steps=1)
    share = sum(stop - start for _, start, stop in sharded.share)
    sizes = [array.size for array in sharded.params]
    assert abs(share - sum(sizes) / WORLD.size) <= 4096
    moments = [state[name] for state in sharded.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    stored = WORLD.allreduce(sum(array.nbytes for array in moments))
    assert stored == 2 * sum(size * (1 if size >= 4096 else 4) for size in sizes)
