"""Schedules that change or read the optimizer that is calling them."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import ones, refused


def test_lr_set_by_its_own_schedule_is_used_from_the_next_step() -> None:
    w = np.zeros(1)
    optimizer = onepass.SGD(w)

    def schedule(t: int) -> float:
        optimizer.lr = 0.25
        return 0.5

    optimizer.lr = schedule
    optimizer.step(ones(1))
    assert (w.item(), optimizer.lr) == (-0.5, 0.25)
    optimizer.step(ones(1))
    assert w.item() == -0.75


def test_options_set_by_a_schedule_are_used_from_the_next_step() -> None:
    w = np.zeros(1)
    optimizer = onepass.SGD(w, lr=1, ema_decay=lambda t: 0.5)

    def schedule(t: int) -> float:
        optimizer.groups[0].ema_decay = 0.25
        optimizer.clip_norm = 0.5
        return 1

    optimizer.lr = schedule
    optimizer.step(ones(1))
    assert w.item() == -1 and optimizer.clip_norm == 0.5
    optimizer.step(ones(1))
    assert w.item() == -1.5


def test_a_schedule_set_by_another_groups_schedule_is_used_from_the_next_step() -> None:
    w, b = np.zeros(1), np.zeros(1)

    def schedule(t: int) -> float:
        optimizer.groups[0].lr = lambda t: 0.25
        return 0.5

    optimizer = onepass.SGD([{"params": w, "lr": 0.125}, {"params": b, "lr": schedule}])
    optimizer.step([ones(1), ones(1)])
    assert (w.item(), b.item()) == (-0.125, -0.5)
    optimizer.step([ones(1), ones(1)])
    assert (w.item(), b.item()) == (-0.375, -1)


@pytest.mark.parametrize("what", ["resize", "read-only", "dtype"])
def test_a_step_whose_schedule_changes_a_gradient_is_refused(what: str) -> None:
    g = ones(100_000)

    def schedule(t: int) -> float:
        if what == "resize":
            g.resize(1, refcheck=False)
        else:
            g.__setstate__((1, (100_000,), np.dtype(np.float64), False, bytes(800_000)))
        return 0.1

    optimizer = onepass.SGD([ones(100_000), ones(100_000)], lr=schedule)
    if what == "read-only":
        optimizer.lr = lambda t: g.setflags(write=False) or 0.1
        optimizer.step([None, g])
        return
    with refused(ValueError, "a gradient was changed while the step was prepared", optimizer):
        optimizer.step([None, g])


@pytest.mark.parametrize(
    "call",
    [
        lambda optimizer: optimizer.add_group(ones(3)),
        lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
        lambda optimizer: optimizer.state_dict(),
    ],
)
def test_a_schedule_that_calls_its_own_optimizer_is_refused(call: Callable[[Any], Any]) -> None:
    def schedule(t: int) -> float:
        call(optimizer)
        return 0.1

    optimizer = onepass.Adam([ones(2)], lr=schedule)
    with refused(ValueError, "this optimizer is in use by this thread", optimizer):
        optimizer.step([ones(2)])
    optimizer.lr = 0.1
    optimizer.step([ones(2)])


def test_a_save_inside_a_save_is_refused(tmp_path: Path) -> None:
    class Again:
        def __fspath__(self) -> str:
            optimizer.save(tmp_path / "inner")
            return str(tmp_path / "outer")

    optimizer = onepass.Adam([ones(2)])
    with refused(
        RuntimeError, "this optimizer is in use by this thread: a schedule, a gradient's own code or", optimizer
    ):
        optimizer.save(Again())
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_a_signal_handler_that_saves_during_a_step_is_refused(tmp_path: Path) -> None:
    def schedule(t: int) -> float:
        signal.raise_signal(signal.SIGTERM)
        return 0.1

    optimizer = onepass.Adam([ones(2)], lr=schedule)
    before = signal.signal(signal.SIGTERM, lambda *arguments: optimizer.save(tmp_path / "x"))
    try:
        with refused(ValueError, "or a signal handler called it again", optimizer):
            optimizer.step([ones(2)])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_schedule_may_read_its_optimizer() -> None:
    seen: list[Any] = []

    def schedule(t: int) -> float:
        state = optimizer.state[0]
        seen.append((t, optimizer.step_count, state["step"], state["mu_product"], optimizer.skipped, repr(optimizer)))
        return 0.1

    optimizer = onepass.NAdam([ones(2)], lr=schedule)
    for _ in range(2):
        optimizer.step([ones(2)])
    assert [s[:3] for s in seen] == [(1, 0, 0), (2, 1, 1)]


def test_an_error_of_the_number_that_a_schedule_returns_is_reported() -> None:
    class Broken:
        def __float__(self) -> float:
            raise RuntimeError("no number today")

    optimizer = onepass.Adam([ones(2)], lr=lambda t: Broken(), ema_decay=0.5)
    with refused(ValueError, "at step 1: no number today", optimizer) as caught:
        optimizer.step([ones(2)])
    assert isinstance(caught.value.__cause__, RuntimeError)
    optimizer.lr = 0.5
    optimizer.groups[0].ema_decay = lambda t: 1.5
    with refused(
        ValueError,
        "the ema_decay of group 0 returned 1.5 at step 1: ema_decay: expected at least 0 and less",
        optimizer,
    ):
        optimizer.step([ones(2)])


@pytest.mark.parametrize("when", ["asked", "read"])
def test_a_memory_error_in_a_schedule_is_raised_unchanged(when: str) -> None:
    class Large:
        def __float__(self) -> float:
            raise MemoryError

    def schedule(t: int) -> Any:
        if when == "asked":
            raise MemoryError
        return Large()

    optimizer = onepass.Adam([ones(2)], lr=schedule)
    with refused(MemoryError, "", optimizer):
        optimizer.step([ones(2)])


def test_schedules_run_before_gradients_are_checked() -> None:
    w, g = np.ones(2), np.ones(2)

    def spoiling(t: int) -> float:
        g[:] = np.nan
        return 0.1

    optimizer = onepass.SGD(w, lr=spoiling, nonfinite="skip")
    optimizer.step(g)
    assert optimizer.skipped == 1 and (w == 1).all()


def test_options_set_by_a_schedule_called_twice_are_used_from_the_next_step() -> None:
    w, b = np.zeros(1), np.zeros(1)

    def schedule(t: int) -> float:
        optimizer.groups[0].lr = lambda t: 0.25
        optimizer.groups[0].clip_value = 10.0
        return 0.5

    optimizer = onepass.SGD([{"params": b, "lr": schedule}, {"params": w, "lr": 0.125}])
    optimizer.groups[0].lr, optimizer.groups[1].lr = 0.125, schedule
    optimizer.step([np.ones(1)] * 2)
    assert b.item() == -0.125 and w.item() == -0.5
    optimizer.step([np.ones(1)] * 2)
    assert b.item() == -0.375


class Knowing:
    """Schedule that refers to its optimizer."""

    optimizer: Any

    def __call__(self, t: int) -> float:
        return 0.1


def test_a_schedule_that_refers_to_its_optimizer_is_copied_with_it() -> None:
    schedule = Knowing()
    schedule.optimizer = optimizer = onepass.Adam(np.zeros(2), lr=schedule)
    for copied in (copy.deepcopy(optimizer), copy.deepcopy(schedule).optimizer):
        assert copied.lr.optimizer is copied is not optimizer
        assert copied.params is not optimizer.params
