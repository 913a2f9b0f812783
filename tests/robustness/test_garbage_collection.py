"""Reference cycles and garbage collection at the wrong moment."""

from __future__ import annotations

import gc
import subprocess
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import onepass
from support import ones


class Param(np.ndarray):  # type: ignore[type-arg]
    """Parameter that refers to its optimizer."""


class Key:
    """Name that is not a string; all names print alike."""

    def __repr__(self) -> str:
        return "key"


def cycle_through_a_parameter() -> Any:
    w = ones(2).view(Param)
    optimizer = onepass.Adam([w, ones(3)])
    w.opt = optimizer
    return optimizer


def cycle_through_a_key() -> Any:
    key: Any = Key()
    key.opt = onepass.Adam({key: ones(2)})
    return key.opt


def cycle_through_a_schedule() -> Any:
    optimizer = onepass.Adam(ones(2))
    optimizer.lr = lambda t: 0.1 * len(optimizer.groups)
    return optimizer


@pytest.mark.parametrize("make", [cycle_through_a_parameter, cycle_through_a_key, cycle_through_a_schedule])
def test_an_optimizer_in_a_reference_cycle_is_collected(make: Callable[[], Any]) -> None:
    optimizer = make()
    gone = weakref.ref(optimizer)
    gc.collect()
    assert gone() is optimizer
    del optimizer
    gc.collect()
    assert gone() is None


class Finalizer:
    """Object in a reference cycle that calls a function when it is collected."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.cycle, self.function = self, function

    def __del__(self) -> None:
        self.function()


@contextmanager
def collecting_at_every_chance() -> Iterator[list[str]]:
    """Collect garbage at every allocation that can start a collection; yield the list of collections."""
    runs: list[str] = []

    def record(phase: str, info: Any) -> None:
        runs.append(phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(record)
    gc.set_threshold(1)
    try:
        yield runs
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(record)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0, "nonfinite": "raise"}])
def test_a_fast_step_starts_no_garbage_collection(options: Any) -> None:
    optimizer = onepass.Adam([ones(100_000), ones(3)], **options)
    gradients = [ones(100_000), ones(3)]
    optimizer.step(gradients)
    with collecting_at_every_chance() as runs:
        before = len(runs)
        optimizer.step(gradients)
        after = len(runs)
        odd = [ones(100_000).astype(np.float64), ones(3)]
        before_odd = len(runs)
        optimizer.step(odd)
        # Converting a gradient starts collections, unless CPython has no GIL and counts 512 allocations at a time.
        assert len(runs) > before_odd or sysconfig.get_config_var("Py_GIL_DISABLED")
    assert after == before


@pytest.mark.parametrize("change", ["parameter", "gradient"])
def test_a_step_whose_arrays_a_finalizer_changes_is_refused(change: str) -> None:
    w, plain, late = ones(1000), ones(1000), []
    optimizer = onepass.SGD([w, ones(3)], lr=0.5)

    def make_unfit() -> None:
        late.append(optimizer)
        if change == "parameter":
            w.flags.writeable = False
        else:
            plain.resize(100_000, refcheck=False)

    def schedule(t: int) -> float:
        Finalizer(make_unfit)
        gc.collect()
        return 0.5

    optimizer.lr = schedule
    message = "parameter 0 was made read-only" if change == "parameter" else "a gradient was changed while the step"
    with pytest.raises(ValueError, match=message):
        optimizer.step([plain, ones(3)])
    assert late and optimizer.step_count == 0 and (w[:1000] == 1).all()


def test_garbage_collection_at_the_first_use_of_a_subclass_is_harmless() -> None:
    code = (
        "import gc, numpy as np, onepass\n"
        "gc.set_threshold(1, 1, 1)\n"
        "for i in range(20): type('S', (onepass.Adam,), {})(np.zeros(2))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
