"""Checks of checkpoints: on any number of ranks, damaged, and of ranks that are killed."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
from ranks_common import (
    OPTIONS,
    SMALL,
    WORLD,
    compare,
    exact,
    on_first,
    parameters,
    raises,
    raising,
    replaced,
    same_state,
    shared_folder,
    time_limit,
    trained,
)

import onepass
from onepass.integrations.mpi import ShardedOptimizer
from support import assert_same_bits, snapshot


@contextmanager
def warns_of_other_parameters() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert any("other values" in str(one.message) for one in caught), caught


def check_training_resumes_bit_identically_on_any_number_of_ranks() -> None:
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


def check_state_on_disk_is_bit_identical_to_state_in_memory() -> None:
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


def check_loading_state_on_disk_opens_few_files() -> None:
    folder = shared_folder()
    params = [np.zeros(8, np.float32) for _ in range(150)]
    with onepass.state_dir(folder):
        sharded = ShardedOptimizer(WORLD, onepass.AdamW, params)
    sharded.step(params)
    sharded.save(folder / "set")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))  # fewer than the 300 arrays of state
    try:
        sharded.load(folder / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def check_gathered_file_equals_the_file_of_one_process() -> None:
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


def check_functions_and_options_given_to_load_are_used() -> None:
    def rate(t: int) -> float:
        return 0.5 / t

    folder = shared_folder()
    functions = [
        rate,
        lambda t: 0.25,
        partial(pow, 0.5),
        onepass.schedules.warmup(rate, 3),
        onepass.schedules.cosine(0.5, 9),
    ]
    for number, function in enumerate(functions):
        sharded = trained(WORLD, parameters(), range(1), lr=function)
        sharded.save(folder / str(number))
        sharded.load(folder / str(number))
        sharded.load_state_dict(sharded.state_dict())
        assert sharded.groups[0].lr == function
    other = ShardedOptimizer(WORLD, onepass.AdamW, parameters(), lr=0.125)
    with raises(ValueError, "lr of group 0 was a function"):
        other.load(folder / "0")
    other.load(folder / "0", lr=rate, betas=[0.5, 0.75])
    assert other.groups[0].lr is rate and other.groups[0].betas == (0.5, 0.75)
    other.load(folder / "0", lr=np.float64(0.25) if WORLD.rank else 0.25)
    with raises(ValueError, "the ranks disagree") if WORLD.size > 1 else nullcontext():
        other.load(folder / "0", lr=0.25 * (1 + WORLD.rank))
    assert other.groups[0].lr == 0.25
    other.save(folder / "whole", gathered=True)
    changed = parameters()
    for p in changed:
        p += 1
    with warns_of_other_parameters():
        ShardedOptimizer(WORLD, onepass.AdamW, changed, lr=0.125).load(folder / "whole")


def check_checkpoint_of_other_parameters_is_refused_and_changes_nothing() -> None:
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
    with raises(ValueError, "it was saved with "):
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
    spoil(manifest, lambda data: data.replace(b'"version": 1', b'"version": 2'), "version: expected 1, got 2")
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

    def recut(files: list[Any]) -> list[Any]:
        parameter, start, _ = files[0]["pieces"][0]
        return [{**files[0], "pieces": [[parameter, start, start + 100], *files[0]["pieces"][1:]]}, *files[1:]]

    spoil(manifest, refiled(recut), "expected a parameter and a range of blocks of its elements")
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


def check_a_failed_write_raises_on_all_ranks_and_leaves_the_old_checkpoint() -> None:
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


def check_a_failed_write_of_the_manifest_leaves_no_new_files() -> None:
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
    # A failure once the manifest is in its place leaves the new set, and the old files.
    flush = onepass._archive._flush_folder  # type: ignore[attr-defined]

    def unflushed(where: pathlib.Path) -> None:
        flush(where)
        if kept[-1].read_bytes() != manifest:
            raise OSError("late")

    manifest = kept[-1].read_bytes()
    assert kept[-1].name == "manifest.json"
    WORLD.Barrier()
    with time_limit(), on_first(OSError, "late"), replaced(onepass._archive, "_flush_folder", unflushed):  # type: ignore[attr-defined]
        sharded.save(folder)
    assert kept[-1].read_bytes() != manifest
    sharded.load(folder)


def refused_manifest(source: pathlib.Path, target: pathlib.Path, replace: Any = pathlib.Path.replace) -> None:
    if target.name == "manifest.json":
        raise OSError("No space left on device")
    replace(source, target)


def save_and_die() -> None:
    """Save a checkpoint, then save another one and be killed before the n-th operation on a file."""
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
    counted(onepass._archive, "_write_array")  # type: ignore[attr-defined]
    sharded.save(folder)
    print(f"saved, with {calls} calls on rank {WORLD.rank}", flush=True)


def load_after_death() -> None:
    """Load the checkpoint that save_and_die left: it was saved after step one or after step three."""
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
