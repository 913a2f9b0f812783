"""Threads that step, read, change and copy one optimizer."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from support import Array, assert_same_bits, busy, ones


def test_replacing_lr_by_a_schedule_in_another_thread_is_atomic() -> None:
    w, g = np.zeros(1), np.ones(1)
    optimizer = onepass.SGD(w, lr=0.1)

    def schedule(t: int) -> float:
        return 0.1

    def change() -> None:
        optimizer.lr = schedule
        optimizer.lr = 0.1

    seen, end = set(), time.monotonic() + 1
    with busy(change) as errors:
        while time.monotonic() < end:
            for _ in range(20):
                w.fill(0)
                optimizer.step(g)
                seen.add(w.item())
    assert errors == [] and seen == {-0.1}


def test_no_option_is_lost_when_two_threads_set_options() -> None:
    group = onepass.Adam([ones(2)]).groups[0]

    def setter(name: str) -> Callable[[], None]:
        values = iter(range(1, 10**9))

        def change() -> None:
            value = next(values)
            setattr(group, name, value)
            assert getattr(group, name) == value

        return change

    with busy(setter("eps"), setter("weight_decay"), setter("clip_value")) as errors:
        time.sleep(0.5)
    assert errors == []
    assert group.eps > 100 and group.weight_decay > 100


def test_an_option_that_another_thread_sets_while_state_is_loaded_is_not_lost() -> None:
    optimizer = onepass.SGD(np.zeros(2), lr=lambda t: 0.5)
    first, *others = [lambda t: 0.1, lambda t: 0.2, lambda t: 0.3]
    rates = [first, *others]

    class Slow(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            if name == "momentum" and rates:  # read in the check, and after the optimizer's own options
                thread = threading.Thread(target=setattr, args=(optimizer, "lr", rates.pop()))
                thread.start()
                thread.join()
            return super().__getitem__(name)

    state_dict = optimizer.state_dict()  # without a rate, which is a function
    state_dict["param_groups"] = [Slow(group) for group in state_dict["param_groups"]]
    optimizer.load_state_dict(state_dict)
    assert optimizer.lr is first and not rates


def test_a_thread_may_add_groups_while_another_steps() -> None:
    optimizer = onepass.SGD({0: np.zeros(1)}, lr=0.5)
    keys = iter(range(1, 10**6))
    deadline = time.monotonic() + 0.3

    def add() -> None:
        optimizer.add_group({next(keys): np.zeros(1)})
        time.sleep(0.001)

    steps = 0
    with busy(add) as errors:
        while time.monotonic() < deadline:
            try:
                optimizer.step({key: np.ones(1) for key in list(optimizer.state)})
                steps += 1
            except ValueError:  # one came in between
                continue
    assert errors == [] and optimizer.step_count == steps > 0
    assert len(optimizer.params) == len(optimizer.groups) > 1


EXIT = """
import threading, numpy as np, onepass
n = 2_000_000
w, g, m, v = (np.ones(n, np.float32) for _ in range(4))
optimizer = onepass.Adam(w, nonfinite="skip", clip_norm=1.0)
started = threading.Event()

def work():
    while True:
        {step}
        started.set()

threading.Thread(target=work, daemon=True).start()
started.wait()
"""


@pytest.mark.parametrize("step", ["optimizer.step(g)", "onepass.adam_step(w, g, m, v, 1)"])
def test_the_interpreter_can_exit_while_a_thread_steps(step: str) -> None:
    for _ in range(5):
        ended = subprocess.run([sys.executable, "-c", EXIT.format(step=step)], capture_output=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, b"")


def test_groups_added_by_several_threads_are_added_exactly_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(40):
            optimizer, shared = onepass.SGD([np.zeros(1)], lr=1.0), np.zeros(1)
            barrier, refusals = threading.Barrier(3), []

            def add(optimizer: Any, array: Array, barrier: Any, refusals: list[Any]) -> None:
                barrier.wait()
                try:
                    optimizer.add_group(array)
                except ValueError as error:
                    refusals.append(error)

            arrays = [shared, shared, np.zeros(1)]
            threads = [threading.Thread(target=add, args=(optimizer, a, barrier, refusals)) for a in arrays]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(refusals) == 1
            assert len(optimizer.params) == 3 and list(optimizer.state) == [0, 1, 2]
    finally:
        sys.setswitchinterval(interval)


def test_state_can_be_read_while_another_thread_waits_to_add_a_group() -> None:
    adding = []

    def schedule(t: int) -> float:
        adding.append(threading.Thread(target=lambda: optimizer.add_group(np.zeros(1))))
        adding[0].start()
        time.sleep(0.1)
        assert len(dict(optimizer.state)) == 1
        optimizer.lr = 0.1
        return 0.1

    optimizer = onepass.SGD([np.zeros(1)], lr=schedule)
    optimizer.step([ones(1, dtype=np.float64)])
    adding[0].join()
    assert len(optimizer.state) == 2


def test_a_copy_made_while_another_thread_steps_is_consistent() -> None:
    params = [np.zeros(100_000), np.zeros(100_000)]
    optimizer = onepass.SGD(params, lr=1.0, momentum=0.5)
    done = threading.Event()

    def step() -> None:
        while not done.is_set():
            optimizer.step([np.ones(100_000)] * 2)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(30):
            copied = copy.deepcopy(optimizer)
            assert len({p[i] for p in copied.params for i in (0, -1)}) == 1
            assert copied.state[0]["step"] == copied.state[1]["step"]
    finally:
        done.set()
        thread.join()


def test_steps_of_one_optimizer_in_several_threads_are_serialized() -> None:
    n, steps = 100_000, 40  # large enough that the interpreter is released within the step
    w, expected, g = np.zeros(n, np.float32), np.zeros(n, np.float32), np.ones(n, np.float32)
    optimizer, alone = onepass.Adam(w), onepass.Adam(expected)
    threads = [threading.Thread(target=lambda: [optimizer.step(g) for _ in range(steps)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(4 * steps):
        alone.step(g)
    assert optimizer.step_count == 4 * steps
    assert_same_bits([w], [expected])


def test_other_threads_run_during_a_large_step() -> None:
    w, g = np.zeros(10_000_000, np.float32), np.ones(10_000_000, np.float32)
    optimizer = onepass.Adam(w)
    ticks, stop, running = [0], threading.Event(), threading.Event()

    def count() -> None:
        running.set()
        while not stop.is_set():
            ticks[0] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.3)  # so that only the step itself can have let the other thread run
    thread = threading.Thread(target=count)
    thread.start()
    try:
        running.wait()
        before = ticks[0]
        optimizer.step(g)
        during = ticks[0] - before
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert during > 0
