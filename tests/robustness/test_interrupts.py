"""Ctrl-C at any moment: the optimizer is as before the call or as after it, and continues from there."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import schedules
from support import bits, snapshot

F = np.float32
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in discarded objects
# Events of a profiler after which a signal handler may run: a call of a Python function, its return, the return of a C
# function. A handler may also run when a loop jumps back, which is no event: only the test of signals at random moments
# covers it.
EVENTS = {"call", "return", "c_return"}


class Interrupted(BaseException):
    """Stand-in for KeyboardInterrupt that nothing else raises."""


def interrupted(moment: int, call: Callable[[], Any]) -> bool:
    """Raise at the given event of a call. Return True if the call reached it."""
    left, came = moment, False

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal left, came
        yields = event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR  # no handler runs there
        if event in EVENTS and not yields and frame.f_code is not interrupted.__code__:
            left -= 1
            if left == 0:
                came = True
                del argument  # else the traceback keeps a returned file open, and Windows deletes no open files
                raise Interrupted

    sys.setprofile(profile)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.setprofile(None)
    return came


def made() -> Any:
    """Return an optimizer with groups, a schedule, averages and two dtypes, after some steps."""
    rng = np.random.default_rng(0)
    groups = [
        {"params": [rng.standard_normal((3, 2)).astype(F), rng.standard_normal(4)]},
        {"params": [rng.standard_normal(5).astype(F)], "lr": schedules.linear(0.5, 0.1, 9), "weight_decay": 0.1},
    ]
    optimizer = onepass.NAdam(groups, lr=0.25, ema_decay=0.5, clip_norm=2.0, nonfinite="skip")
    for _ in range(2):
        optimizer.step(gradients())
    return optimizer


def gradients() -> list[Any]:
    """Return a gradient that needs no conversion, one of another dtype and layout, and a sparse one."""
    return [onepass.SparseRows([2, 0, 2], np.ones((3, 2), F)), np.arange(8, dtype=np.float16)[::2], np.full(5, 0.5, F)]


def everything(optimizer: Any) -> list[Any]:
    """Return all visible state of an optimizer."""
    return [
        list(zip(optimizer.state, map(plain, snapshot(optimizer)))),
        [bits(p).tolist() for group in optimizer.groups for p in group.params],
        [bits(p).tolist() for p in optimizer.params],
        (optimizer.step_count, optimizer.skipped, repr(optimizer.grad_norm), repr(optimizer)),
        [plain(dict(group)) for group in optimizer.groups],
        plain(optimizer.state_dict()),
    ]


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return (value.dtype.str, bits(value).tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def and_goes_on(optimizer: Any) -> list[Any]:
    """Return the state now and after two steps, to check that Python and the core agree on both."""
    found = everything(optimizer)
    for _ in range(2):
        optimizer.step([*gradients(), *([np.ones(2, F)] * (len(optimizer.params) - 3))])
    return [*found, everything(optimizer)]


class Saved:
    """Return a checkpoint from a different step, as a dict and as a file."""

    def __init__(self, folder: Path) -> None:
        optimizer = made()
        optimizer.step(gradients())
        optimizer.groups[0].eps = 0.125
        optimizer.groups[1].betas = (0.5, 0.5)
        optimizer.clip_norm, optimizer.nonfinite = None, "raise"
        self.path, self.state = folder / "saved.npz", optimizer.state_dict()
        optimizer.save(self.path, params=True)


def set_items(optimizer: Any, saved: Saved) -> None:
    optimizer.groups[1]["lr"] = 0.125


def set_schedule(optimizer: Any, saved: Saved) -> None:
    optimizer.groups[0].lr = schedules.linear(0.5, 0.1, 9)


def add_group(optimizer: Any, saved: Saved) -> None:
    optimizer.add_group(np.ones(2, F), betas=(0.25, 0.75))


ACTIONS: dict[str, Callable[[Any, Saved], Any]] = {
    "step": lambda optimizer, saved: optimizer.step(gradients(), 0.5),
    "skipped step": lambda optimizer, saved: optimizer.step([np.full((3, 2), np.nan, F), None, None]),
    "an option": set_items,
    "an option that is a function": set_schedule,
    "clip_norm": lambda optimizer, saved: setattr(optimizer, "clip_norm", 0.5),
    "nonfinite": lambda optimizer, saved: setattr(optimizer, "nonfinite", "propagate"),
    "add_group": add_group,
    "load_state_dict": lambda optimizer, saved: optimizer.load_state_dict(saved.state),
    "load": lambda optimizer, saved: optimizer.load(saved.path, params=True),
    "state_dict": lambda optimizer, saved: optimizer.state_dict(),
    "deepcopy": lambda optimizer, saved: copy.deepcopy(optimizer),
    "pickle": lambda optimizer, saved: pickle.loads(pickle.dumps(optimizer)),
    "reading": lambda optimizer, saved: (dict(optimizer.state), optimizer.ema, optimizer.params),
}

# Test every n-th moment of functions with many moments, or all of them with ONEPASS_EVERY_MOMENT=1 (minutes).
STRIDES = {"load": 23, "load_state_dict": 3, "add_group": 3, "save": 7, "deepcopy": 7, "pickle": 5}
if os.environ.get("ONEPASS_EVERY_MOMENT"):
    STRIDES = {}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_call_interrupted_at_any_moment_is_atomic(action: str, tmp_path: Path) -> None:
    saved, act = Saved(tmp_path), ACTIONS[action]
    ends = []
    for acted in (False, True):
        optimizer = made()
        if acted:
            act(optimizer, saved)
        ends.append((everything(optimizer), and_goes_on(optimizer)))
    not_at_all, whole = ends
    moment, came, seen = 1, True, {False: 0, True: 0}
    while came:
        optimizer, again = made(), made()
        came = interrupted(moment, lambda optimizer=optimizer: act(optimizer, saved))
        found = everything(optimizer)
        assert found in (not_at_all[0], whole[0]), f"half done at moment {moment}"
        done = found == whole[0]
        seen[done] += 1
        assert and_goes_on(optimizer) == (whole if done else not_at_all)[1], f"of two minds after moment {moment}"
        assert other_threads_may_set(optimizer), f"locked after moment {moment}"
        if not done:  # the same call then works
            interrupted(moment, lambda again=again: act(again, saved))
            act(again, saved)
            assert and_goes_on(again) == whole[1], f"not to be done again after moment {moment}"
        moment += STRIDES.get(action, 1)
    assert moment > 1 and seen[True]


def other_threads_may_set(optimizer: Any) -> bool:
    def change() -> None:
        for group in optimizer.groups:
            group.eps = 0.5
        optimizer.state_dict()

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_an_interrupted_construction_changes_no_parameter() -> None:
    w, b, made = np.ones((3, 2), F), np.ones(4), []

    def make() -> None:
        made.append(onepass.AdamW([{"params": w}, {"params": b, "lr": 0.5}], ema_decay=0.5, clip_norm=1.0))

    make()  # which may import
    moment = 1
    while interrupted(moment, make):
        moment += 1
        assert (w == 1).all() and (b == 1).all()
    made[-1].step([np.ones((3, 2), F), np.ones(4)])
    assert moment > 50 and made[-1].step_count == 1 and (w < 1).all()


def test_a_save_interrupted_at_any_moment_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path, optimizer = tmp_path / "state.npz", made()
    optimizer.save(path)
    old = path.read_bytes()
    optimizer.step(gradients())
    optimizer.save(tmp_path / "new.npz")
    new, before = (tmp_path / "new.npz").read_bytes(), everything(optimizer)
    moment, came, seen = 0, True, set()
    while came:
        moment += STRIDES.get("save", 1)
        path.write_bytes(old)
        came = interrupted(moment, lambda: optimizer.save(path))
        seen.add(path.read_bytes())
        assert sorted(p.name for p in tmp_path.iterdir()) == ["new.npz", "state.npz"], f"something stayed at {moment}"
    assert seen == {old, new} and everything(optimizer) == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_signals_at_random_moments_leave_only_complete_steps(tmp_path: Path) -> None:
    params = [np.zeros(3), np.zeros(100_000)]
    optimizer = onepass.SGD(params, lr=1.0, momentum=0.5, dampening=0.5, ema_decay=0.0)
    grads = [np.ones(3, F), np.ones(100_000)]
    path = tmp_path / "x"
    optimizer.save(path, params=True)  # on a slow disk no later one may come to its end

    def check() -> None:
        count = optimizer.step_count
        for param, average, state in zip(params, optimizer.ema, optimizer.state.values()):
            assert (param == -count).all() and (average == param).all() and state["step"] == count
            assert (state["momentum_buffer"] == min(count, 1)).all()

    rng, seen = random.Random(0), 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        start = time.monotonic()
        while (lasted := time.monotonic() - start) < 2 or (seen <= 20 and lasted < 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 10 ** rng.uniform(-5, -2))
                while signal.getitimer(signal.ITIMER_REAL)[0]:  # also if Python ignores the exception
                    optimizer.step(grads)
                    optimizer.groups[0].weight_decay = 0.0
                    optimizer.save(path, params=True)
                    optimizer.load(path, params=True)
                time.sleep(0.01)
            except KeyboardInterrupt:
                seen += 1
            check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen > 20 and optimizer.step_count > 20
    optimizer.load(path, params=True)
