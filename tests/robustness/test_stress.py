"""Threads that use one optimizer, or one optimizer each, all at the same time.

ONEPASS_STRESS_STEPS sets the number of steps of each thread; tools/platforms takes more of them without the GIL.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from cases import CLASSES
from support import Array, assert_same_bits, busy, ordinary

STEPS = int(os.environ.get("ONEPASS_STRESS_STEPS", "8"))
STEPPERS = 3  # threads
SMALL = 1 << 12  # elements: state_dtype has an effect
LARGE = 1 << 16  # a step releases the GIL

OPTIMIZERS: dict[str, Callable[[Any], onepass.Optimizer]] = {
    "Adam": lambda params: onepass.Adam(params, lr=0.5, ema_decay=0.9),
    "Adam in float8": lambda params: onepass.Adam(params, lr=0.5, state_dtype="float8"),
    "NAdam": lambda params: onepass.NAdam(params, lr=0.5),
    "SGD": lambda params: onepass.SGD(params, lr=0.5, momentum=0.5),
    "ScheduleFreeAdamW": lambda params: onepass.ScheduleFreeAdamW(params, lr=0.5, warmup_steps=10),
}


@pytest.fixture(autouse=True)
def few_objects_to_collect() -> Iterator[None]:
    """Hide the objects of earlier tests: with all of them, each collection would stop every thread for a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def run_together(*functions: Callable[[], None]) -> None:
    """Call each function once in its own thread, and raise an error of theirs."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        try:
            barrier.wait()
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def moment(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a parameter's state, one number for each array, whose elements must all be equal."""
    found = {}
    for name, value in state.items():
        assert np.all(value == np.ravel(value)[:1])
        found[name] = np.ravel(value)[0].item()
    if "y" in found:  # in evaluation mode it is the parameter as it is trained
        found["param"] = found.pop("y")
    return found


class Course:
    """States of a parameter that starts at 0, along gradients of ones, after each number of steps."""

    def __init__(self, make: Callable[[Any], onepass.Optimizer]) -> None:
        optimizer = make(np.zeros(SMALL, np.float32))
        self.moments = [moment(optimizer.state_dict(params=True)["state"][0])]
        for _ in range(STEPPERS * STEPS):
            optimizer.step(np.ones(SMALL, np.float32))
            self.moments.append(moment(optimizer.state_dict(params=True)["state"][0]))

    def check(self, state_dict: Mapping[str, Any]) -> None:
        """Compare every parameter of a state dict with its state after as many steps."""
        for state in state_dict["state"].values():
            assert moment(state) == self.moments[state["step"]]


def params() -> list[Array]:
    return [np.zeros(SMALL, np.float32), np.zeros(LARGE, np.float32)]


def step(optimizer: Any) -> None:
    """Take STEPS steps along ones; try again after a refusal that other threads cause."""
    taken = 0
    while taken < STEPS:
        try:
            optimizer.step([np.ones_like(array) for array in optimizer.params])
            taken += 1
        except (ValueError, RuntimeError) as error:  # a group was added meanwhile, or the mode was switched
            if "gradients, got" not in str(error) and "evaluation mode" not in str(error):
                raise


def copying(optimizer: Any, course: Course, path: Path) -> Callable[[], None]:
    """Return a function that copies an optimizer in one way after the other, and checks the copies."""

    def saved() -> Any:
        optimizer.save(path, params=True)
        with np.load(path) as file:
            states = json.loads(bytes(file["onepass"]))["state"]
            for _, index, name in (member.split("/") for member in file.files if "/" in member):
                states[int(index)][name] = file[f"state/{index}/{name}"]
        return {"state": dict(enumerate(states))}

    ways = cycle(
        [
            saved,
            lambda: optimizer.state_dict(params=True),
            lambda: copy.deepcopy(optimizer).state_dict(params=True),
        ]
    )
    return lambda: course.check(next(ways)())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_many_threads_use_takes_every_step_as_one_thread_would(name: str, tmp_path: Path) -> None:
    course = Course(OPTIMIZERS[name])
    optimizer: Any = OPTIMIZERS[name](params())
    room = iter(range(20))
    norms = cycle([None, np.inf])
    rates = cycle([onepass.schedules.exponential(0.5, rate=1.0), 0.5])
    policies = cycle(["propagate", "skip", "raise"])
    counts = cycle([1, 2, 3])

    def set_options() -> None:
        for group in optimizer.groups:
            group.lr = next(rates)
            group.weight_decay = 0.0
        optimizer.nonfinite = next(policies)

    def limit_norm() -> None:
        optimizer.clip_norm = next(norms)

    def read_norm() -> None:
        assert optimizer.clip_norm in (None, np.inf)
        norm = optimizer.grad_norm
        assert norm is None or norm**2 >= LARGE

    def read() -> None:
        assert len(optimizer.params) >= 2 and optimizer.skipped == 0
        assert set(optimizer.state) >= {0, 1} and repr(optimizer) and repr(optimizer.groups)
        assert 0 <= optimizer.decoded_state(0)["step"] <= optimizer.step_count
        assert (optimizer.ema is not None) == (name == "Adam")

    def add_group() -> None:
        if next(room, None) is not None:
            try:
                optimizer.add_group(np.zeros(SMALL, np.float32))
            except RuntimeError as error:
                if "evaluation mode" not in str(error):
                    raise

    def switch() -> None:
        if name == "ScheduleFreeAdamW":
            optimizer.eval()
            optimizer.train()

    def serialize() -> None:  # pickle takes the live arrays, which are in the middle of a step or behind one
        assert len(pickle.loads(pickle.dumps(optimizer)).params) >= 2

    def collect() -> None:
        onepass.set_num_threads(next(counts))
        gc.collect()

    others = [set_options, limit_norm, read_norm, read, add_group, switch, serialize, collect]
    with busy(*others, copying(optimizer, course, tmp_path / "saved.npz")) as errors:
        run_together(*[lambda: step(optimizer)] * STEPPERS)
    assert errors == []
    assert optimizer.step_count == STEPPERS * STEPS
    if name == "ScheduleFreeAdamW":
        optimizer.train()
    course.check(optimizer.state_dict(params=True))
    assert optimizer.state[0]["step"] == optimizer.state[1]["step"] == STEPPERS * STEPS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_that_is_loaded_while_threads_step_and_copy_is_whole(name: str, tmp_path: Path) -> None:
    course = Course(OPTIMIZERS[name])
    optimizer: Any = OPTIMIZERS[name](params())
    path = tmp_path / "first.npz"
    optimizer.save(path, params=True)

    def load() -> None:
        optimizer.load_state_dict(optimizer.state_dict(params=True), params=True)
        optimizer.load(path, params=True)

    with busy(load, copying(optimizer, course, tmp_path / "saved.npz")) as errors:
        run_together(*[lambda: step(optimizer)] * STEPPERS)
    assert errors == []
    course.check(optimizer.state_dict(params=True))


def train(cls: type[Any]) -> list[Array]:
    """Return the parameters after some steps, along gradients in forms that take every path."""
    rng = np.random.default_rng(0)
    trained = [ordinary(rng, shape, np.float32) for shape in [(LARGE,), (7, 3)]]
    optimizer = cls(trained, lr=onepass.schedules.inverse_sqrt(0.1), clip_norm=1.0)
    for _ in range(3):
        rows = onepass.SparseRows([5, 1, 5], ordinary(rng, (3, 3), np.float64))
        optimizer.step([ordinary(rng, LARGE, np.float32), rows])
        optimizer.step((ordinary(rng, LARGE, np.float64), None), grad_scale=np.float32(0.5))
    return trained


def test_optimizers_in_several_threads_compute_the_bits_of_one_thread() -> None:
    expected = {cls: train(cls) for cls in CLASSES.values()}

    def work() -> None:
        for cls in islice(cycle(CLASSES.values()), max(STEPS, len(CLASSES))):
            assert_same_bits(train(cls), expected[cls], cls.__name__)

    run_together(*[work] * STEPPERS)


def test_adam_step_in_several_threads_computes_the_bits_of_one_thread() -> None:
    gradient = ordinary(np.random.default_rng(0), LARGE, np.float32)

    def stepped() -> list[Array]:
        arrays = [np.zeros(LARGE, np.float32) for _ in range(3)]
        for t in range(1, 5):
            onepass.adam_step(arrays[0], gradient, *arrays[1:], t, lr=0.1)
        return arrays

    expected = stepped()

    def work() -> None:
        for _ in range(STEPS):
            assert_same_bits(stepped(), expected)

    run_together(*[work] * STEPPERS)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded Python")
def test_importing_onepass_leaves_the_gil_disabled() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    command = [sys.executable, "-W", "error", "-c", "import onepass, sys; print(sys._is_gil_enabled())"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("False\n", "")
