"""An optimizer that is called, changed or thrown away at the wrong moment: neither a crash nor a wrong step."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import sysconfig
import threading
import time
import timeit
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _core
from support import Array, refused

F = np.float32


def ones(*shape: int, dtype: Any = F) -> Array:
    return np.ones(shape, dtype)


# ---- Schedules that meddle ----


def test_a_schedule_that_sets_lr_has_its_value_used_now_and_the_new_one_next() -> None:
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


def test_a_schedule_that_sets_ema_or_other_options() -> None:
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


def test_a_schedule_that_makes_another_groups_lr_a_function_serves_the_next_step() -> None:
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
def test_a_schedule_that_changes_a_gradient(what: str) -> None:
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
def test_a_schedule_that_would_change_the_optimizer_itself(call: Callable[[Any], Any]) -> None:
    def schedule(t: int) -> float:
        call(optimizer)
        return 0.1

    optimizer = onepass.Adam([ones(2)], lr=schedule)
    with refused(ValueError, "in the middle of a step", optimizer):
        optimizer.step([ones(2)])
    optimizer.lr = 0.1
    optimizer.step([ones(2)])


def test_a_schedule_may_read_everything() -> None:
    seen: list[Any] = []

    def schedule(t: int) -> float:
        state = optimizer.state[0]
        seen.append((t, optimizer.step_count, state["step"], state["mu_product"], optimizer.skipped, repr(optimizer)))
        return 0.1

    optimizer = onepass.NAdam([ones(2)], lr=schedule)
    for _ in range(2):
        optimizer.step([ones(2)])
    assert [s[:3] for s in seen] == [(1, 0, 0), (2, 1, 1)]


def test_a_schedule_whose_number_raises() -> None:
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
        ValueError, "the ema_decay of group 0 returned 1.5 at step 1: ema_decay must be at least 0 and less", optimizer
    ):
        optimizer.step([ones(2)])


@pytest.mark.parametrize("when", ["asked", "read"])
def test_a_schedule_without_memory_is_not_to_blame(when: str) -> None:
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


# ---- Threads ----


@contextmanager
def busy(*functions: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Other threads call these over and over, switching as often as can be; their errors are collected."""
    stop, errors = threading.Event(), []

    def loop(function: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                function()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=loop, args=(function,)) for function in functions]
    try:
        for thread in threads:
            thread.start()
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


def test_a_step_never_sees_half_of_a_change_between_a_number_and_a_schedule() -> None:
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


def test_two_threads_that_set_options_lose_none() -> None:
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
            if name == "step_count" and rates:  # it is looked at early, and at the very end
                thread = threading.Thread(target=setattr, args=(optimizer, "lr", rates.pop()))
                thread.start()
                thread.join()
            return super().__getitem__(name)

    optimizer.load_state_dict(Slow(optimizer.state_dict()))  # which says no rate: it was a function
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
def test_the_interpreter_may_end_while_a_thread_steps(step: str) -> None:
    for _ in range(5):
        ended = subprocess.run([sys.executable, "-c", EXIT.format(step=step)], capture_output=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, b"")


# ---- Objects that are not quite made, or are made twice ----


@pytest.mark.parametrize("kind", [onepass.Adam, onepass.SGD])
def test_an_optimizer_cannot_be_made_again(kind: Any) -> None:
    w = ones(2)
    optimizer = kind([w], lr=0.5, ema_decay=0.5)
    optimizer.step([ones(2)])
    with refused(RuntimeError, f"this {kind.__name__} is already initialized", optimizer):
        optimizer.__init__([ones(3)], lr=0.25)
    optimizer.step([ones(2)])
    assert optimizer.params[0] is w and optimizer.step_count == 2


def test_an_optimizer_that_was_never_made_says_so(tmp_path: Path) -> None:
    optimizer = onepass.Adam.__new__(onepass.Adam)
    for name in ("step_count", "skipped", "grad_norm", "clip_norm", "nonfinite"):
        with pytest.raises(TypeError, match="__init__ was not called"):
            getattr(optimizer, name)
    with pytest.raises(TypeError, match="__init__ was not called"):
        optimizer.step(ones(2))
    uses: list[Callable[[], Any]] = [
        partial(pickle.dumps, optimizer),
        partial(copy.deepcopy, optimizer),
        partial(optimizer.save, tmp_path / "state.npz"),
        partial(optimizer.load_state_dict, {}),
        optimizer.state_dict,
        partial(optimizer._add_group, _core.Optimizer._Form.array, None, [], [], [], [], {}),  # type: ignore[arg-type]
        partial(optimizer._restore, [], [], 0.0, _core.Optimizer._Nonfinite.skip, 0, 0, [], []),
        partial(optimizer._prepare_step, [], 1.0),
        partial(optimizer._commit_step, 0.0, None),
    ]
    while uses:
        with pytest.raises(TypeError, match="__init__ was not called"):
            uses.pop()()
    gc.collect()  # which visits it
    del optimizer
    gc.collect()


def test_the_common_class_is_none_that_can_be_made() -> None:
    with pytest.raises(TypeError, match=r"use a subclass such as onepass\.Adam"):
        onepass.Optimizer([ones(2)])


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_group_is_not_copied_without_its_optimizer(use: Any) -> None:
    optimizer = onepass.Adam(ones(2))
    with refused(TypeError, "a group is part of its optimizer: copy or pickle the optimizer", optimizer):
        use(optimizer.groups[0])


# ---- Cycles ----


class Param(np.ndarray):  # type: ignore[type-arg]
    """A parameter that knows its optimizer."""


class Key:
    """A name that is no string; all of them print alike."""

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
def test_an_optimizer_in_a_cycle_is_collected(make: Callable[[], Any]) -> None:
    optimizer = make()
    gone = weakref.ref(optimizer)
    gc.collect()
    assert gone() is optimizer
    del optimizer
    gc.collect()
    assert gone() is None


# ---- The garbage collector ----


class Finalizer:
    """An object in a cycle that calls a function when it is collected."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.cycle, self.function = self, function

    def __del__(self) -> None:
        self.function()


@contextmanager
def collecting_at_every_chance() -> Iterator[list[str]]:
    """Collect garbage at every allocation that can start it; lists the collections."""
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
        # The conversion of a gradient starts some; not without a GIL, where CPython counts 512 allocations at a time.
        assert len(runs) > before_odd or sysconfig.get_config_var("Py_GIL_DISABLED")
    assert after == before


@pytest.mark.parametrize("change", ["parameter", "gradient"])
def test_a_finalizer_that_changes_arrays_during_a_step_makes_it_an_error(change: str) -> None:
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


# ---- Objects that lie ----


def test_names_that_print_alike_do_not_hide_that_an_array_is_passed_twice() -> None:
    w = ones(2)
    with refused(ValueError, "parameter key is the same memory as parameter key", arrays=[w]):
        onepass.Adam({Key(): w, Key(): w})
    optimizer = onepass.Adam({Key(): w})
    with refused(ValueError, "parameter key is the same memory as parameter key", optimizer):
        optimizer.add_group({Key(): w})


class Liar(np.ndarray):  # type: ignore[type-arg]
    """It says that it is smaller than it is, that it is well laid out, and that it lies elsewhere."""

    shape = property(lambda self: (2,))  # type: ignore[assignment]
    size = property(lambda self: 0)  # type: ignore[assignment]
    nbytes = property(lambda self: 0)  # type: ignore[assignment]
    ndim = property(lambda self: 1)  # type: ignore[assignment]
    flags = property(lambda self: np.ones(1).flags)  # type: ignore[assignment]
    __array_interface__ = property(lambda self: np.ones(1).__array_interface__)  # type: ignore[assignment]


def test_a_parameter_that_lies_about_its_size_is_stepped_whole() -> None:
    w = ones(1000)
    optimizer = onepass.Adam([w.view(Liar)], lr=0.5, ema_decay=0.5)
    optimizer.step([ones(1000)])
    assert (w == 0.5).all() and optimizer.state[0]["exp_avg"].shape == (1000,)
    with refused(ValueError, "gradient 0: expected shape (1000,), got (2,)", optimizer):
        optimizer.step([ones(2)])


def test_parameters_that_lie_about_their_layout_or_place_are_found_out() -> None:
    w = ones(1000)
    read_only = ones(3)
    read_only.flags.writeable = False
    for lying, message in [
        ([w.view(Liar), w.view(Liar)], "parameter 1 is the same memory as parameter 0"),
        ([w[:600].view(Liar), w[500:]], "overlaps"),
        ([w[::-1].view(Liar)], "parameter 0 is not contiguous"),
        ([read_only.view(Liar)], "parameter 0 is read-only"),
    ]:
        with refused(ValueError, message, arrays=[w]):
            onepass.Adam(lying)


def test_adam_step_is_not_deceived_either() -> None:
    p, m = ones(1000), ones(1000)
    for arrays, message in [
        ((p.view(Liar), ones(2), m.view(Liar), ones(2)), "exp_avg_sq has shape (2,), param (1000,)"),
        ((p[::-1].view(Liar), ones(1000), m, ones(1000)), "param is not contiguous"),
        ((p, ones(1000), m.view(Liar), m.view(Liar)), "exp_avg_sq is the same memory as exp_avg"),
    ]:
        with refused(ValueError, message, arrays=[p, m]):
            onepass.adam_step(*arrays, 1)


def test_rows_of_a_parameter_that_lies_about_having_some() -> None:
    optimizer = onepass.SGD(np.array(1, F).view(Liar))
    with refused(ValueError, "SparseRows requires a parameter in C order", optimizer):
        optimizer.step(onepass.SparseRows([0], np.array([1], F)))


def test_a_gradient_that_lies_about_its_shape_is_found_out() -> None:
    optimizer = onepass.Adam([ones(2)])
    with refused(ValueError, "gradient 0: expected shape (2,), got (1000,)", optimizer):
        optimizer.step([ones(1000).view(Liar)])
    with refused(ValueError, "got shape (3, 3)", optimizer):
        optimizer.step([onepass.SparseRows([0, 1], ones(3, 3).view(Liar))])
    optimizer.step([ones(4)[::2].view(Liar)])
    assert optimizer.step_count == 1


# ---- Numbers and arguments ----


class Interrupted:
    def __float__(self) -> float:
        raise KeyboardInterrupt("interrupted")


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (Interrupted(), KeyboardInterrupt, "interrupted"),
        (10**400, ValueError, "grad_scale must be a finite number"),
        (1 + 0j, TypeError, "grad_scale must be a number, got (1+0j)"),
        (np.complex64(1), TypeError, "grad_scale must be a number"),
        (float("nan"), ValueError, "grad_scale must be finite, got nan"),
    ],
)
def test_a_scale_that_is_no_number(scale: Any, error: type[BaseException], message: str) -> None:
    optimizer = onepass.Adam([ones(2)], lr=0.5)
    with refused(error, message, optimizer):
        optimizer.step([ones(2)], grad_scale=scale)
    optimizer.step([ones(2)], np.float64(2))
    optimizer.step([ones(2)], np.int8(2))
    assert optimizer.step_count == 2


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "step() is missing the argument 'grads'"),
        ((), {"grad_scale": 1.0}, "step() is missing the argument 'grads'"),
        (([],), {"scale": 1.0}, "step() got an unexpected keyword argument 'scale'"),
        (([],), {"grads": []}, "step() got multiple values for argument 'grads'"),
        (([], 1.0), {"grad_scale": 1.0}, "step() got multiple values for argument 'grad_scale'"),
        (([], 1.0, 2.0), {}, "step() takes 2 arguments, grads and grad_scale, but 3 were given"),
    ],
)
def test_step_called_with_wrong_arguments(arguments: Any, named: Any, message: str) -> None:
    optimizer = onepass.Adam([ones(2)])
    with refused(TypeError, message, optimizer):
        optimizer.step(*arguments, **named)
    optimizer.step(grad_scale=1.0, grads=[ones(2)])


def test_a_schedule_is_asked_before_gradients_are_measured() -> None:
    w, g = np.ones(2), np.ones(2)

    def spoiling(t: int) -> float:
        g[:] = np.nan
        return 0.1

    optimizer = onepass.SGD(w, lr=spoiling, nonfinite="skip")
    optimizer.step(g)
    assert optimizer.skipped == 1 and (w == 1).all()


def test_state_that_is_exchanged_with_its_own_live_arrays_loads_right() -> None:
    w = np.ones(3)
    optimizer = onepass.Adam(w)
    optimizer.step(np.array([1.0, 2.0, 3.0]))
    first, second = (optimizer.state[0][name].copy() for name in ("exp_avg", "exp_avg_sq"))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = optimizer.state[0]["exp_avg_sq"]
    saved["state"][0]["exp_avg_sq"] = optimizer.state[0]["exp_avg"]
    optimizer.load_state_dict(saved)
    assert (optimizer.state[0]["exp_avg"] == second).all() and (optimizer.state[0]["exp_avg_sq"] == first).all()


def test_state_cannot_be_added_as_a_parameter() -> None:
    optimizer = onepass.Adam(np.ones(3))
    with pytest.raises(ValueError, match="state 'exp_avg' is the same memory as parameter 1"):
        optimizer.add_group(optimizer.state[0]["exp_avg"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_parameter_whose_dtype_is_changed_in_place_is_noticed() -> None:
    w = np.ones(3)
    optimizer = onepass.Adam(w)
    w.dtype = np.int64
    with pytest.raises(ValueError, match="create a new optimizer"):
        optimizer.step(np.ones(3))


def test_a_scale_that_overflows_is_not_blamed_on_the_gradient() -> None:
    optimizer = onepass.Adam(np.ones(3, np.float32), nonfinite="skip")
    with pytest.raises(ValueError, match="overflows float32"):
        optimizer.step(np.ones(3, np.float32), 1e300)
    assert optimizer.skipped == 0


def test_a_first_state_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows float32"):
        onepass.Adagrad(np.ones(3, np.float32), initial_accumulator_value=1e39)


def test_names_that_only_their_identity_tells_apart_survive_copies() -> None:
    class Name:
        pass

    optimizer = onepass.SGD({Name(): np.ones(2)}, lr=0.5)
    assert next(iter(copy.deepcopy(optimizer).params.values())).tolist() == [1, 1]


# ---- What was found by trying ----


def test_a_collection_while_the_first_of_a_class_is_made_does_no_harm() -> None:
    code = (
        "import gc, numpy as np, onepass\n"
        "gc.set_threshold(1, 1, 1)\n"
        "for i in range(20): type('S', (onepass.Adam,), {})(np.zeros(2))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_that_add_groups_lose_and_repeat_none() -> None:
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


def test_reading_the_state_while_a_group_waits_to_be_added() -> None:
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


def test_options_that_a_schedule_sets_twice_count_from_the_next_step_on() -> None:
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


def test_a_copy_made_while_another_thread_steps_is_of_one_moment() -> None:
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


class Knowing:
    """A schedule that knows of its optimizer."""

    optimizer: Any

    def __call__(self, t: int) -> float:
        return 0.1


def test_a_schedule_that_knows_of_its_optimizer_is_copied_with_it() -> None:
    schedule = Knowing()
    schedule.optimizer = optimizer = onepass.Adam(np.zeros(2), lr=schedule)
    for copied in (copy.deepcopy(optimizer), copy.deepcopy(schedule).optimizer):
        assert copied.lr.optimizer is copied is not optimizer
        assert copied.params is not optimizer.params


def test_properties_of_the_class_refuse_other_objects() -> None:
    for name in ("step_count", "grad_norm", "skipped"):
        with pytest.raises(TypeError, match="not an optimizer"):
            getattr(onepass.Adam, name).__get__(object())


@pytest.mark.parametrize("change", ["strides", "shape"])
@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_a_parameter_of_another_layout_than_it_had_is_noticed(change: str) -> None:
    w = np.zeros((2, 3))
    optimizer = onepass.SGD(w, lr=1.0)
    setattr(w, change, {"strides": (8, 16), "shape": (3, 2)}[change])
    with pytest.raises(ValueError, match="after the optimizer was created"):
        optimizer.step(np.ones((2, 3)))
    assert not w.any()


def test_a_large_state_dict_loads_in_linear_time() -> None:
    small, large = (onepass.Adam([np.zeros(1) for _ in range(n)]) for n in (100, 3000))
    times = []
    for optimizer in (small, large):
        load = partial(optimizer.load_state_dict, optimizer.state_dict())
        times.append(min(timeit.repeat(load, number=1, repeat=3)))
    assert times[1] < 300 * times[0] + 0.5
