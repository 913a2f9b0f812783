"""Threads that step at the same time, or change what another thread steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import onepass.integrations.torch as ours
from integrations.pytorch.helpers import run_in_threads


def steps(optimizer: Any, count: int) -> Callable[[], Any]:
    """Return a function that steps the optimizer this number of times."""
    return lambda: [optimizer.step() for _ in range(count)]


def test_concurrent_steps_of_optimizers_that_share_state_are_all_counted() -> None:
    p = torch.nn.Parameter(torch.zeros(300_000))
    p.grad = torch.ones_like(p)
    first, second = ours.Adam([p], lr=1e-4), ours.Adam([p], lr=1e-4)
    first.step()
    second.state = first.state
    run_in_threads(steps(optimizer, 60) for optimizer in (first, second))
    assert 119 <= first.state[p]["step"] <= 121  # PyTorch too may lose a count at the very same moment


def test_concurrent_first_steps_with_sparse_gradients_are_all_counted() -> None:
    embedding = torch.nn.Embedding(50, 4, sparse=True)
    optimizer = ours.Adagrad(embedding.parameters(), lr=0.1)
    embedding(torch.arange(30)).sum().backward()
    run_in_threads([steps(optimizer, 50)] * 3)
    assert int(optimizer.state[embedding.weight]["step"]) == 150


def test_threads_that_change_groups_and_state_do_not_corrupt_parameters() -> None:
    params = [torch.nn.Parameter(torch.ones(50)) for _ in range(8)]
    optimizer = ours.Adam([{"params": [p]} for p in params], lr=0.001)
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            groups = optimizer.param_groups
            groups.append(groups.pop())
            optimizer.state.clear()
            groups[0]["lr"] = 0.001
            groups[1]["amsgrad"] = False
            params[2].data = params[2].data.clone()

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(300):
            for p in params:
                p.grad = torch.ones(50)
            with suppress(KeyError, IndexError, RuntimeError):  # state that was removed during the step
                optimizer.step()
    finally:
        done.set()
        thread.join()
    assert all(torch.isfinite(p).all() and len(p) == 50 for p in params)


class Pausing:
    """An option that pauses the thread that reads it."""

    def __init__(self) -> None:
        self.is_read, self.go_on = threading.Event(), threading.Event()

    def __bool__(self) -> bool:
        self.is_read.set()
        return self.go_on.wait() and False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_child_forked_during_a_slow_step_of_another_thread_raises_and_does_not_hang() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = ours.ScheduleFreeAdamW([p], lr=0.5)
    optimizer.param_groups[0]["maximize"] = pausing = Pausing()
    stepping = threading.Thread(target=optimizer.step)
    stepping.start()
    pausing.is_read.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # instead of waiting forever
        try:
            pausing.go_on.set()
            for call in (optimizer.step, optimizer.eval, optimizer.train):
                with pytest.raises(RuntimeError, match="forked while another thread was inside a step"):
                    call()
            ours.SGD([p], lr=1.0).step()  # a new optimizer works
            os._exit(0)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    pausing.go_on.set()
    stepping.join()
    assert code == 0
    assert p.tolist() == [0.5, 0.5]
