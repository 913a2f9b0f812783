"""A step uses several threads, and its bits do not depend on how many."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import onepass
from cases import rules
from support import DTYPES, Array, assert_same_bits, ordinary, unsanitized

RULES = rules("ema_decay")


def trained(kind: str, dtype: Any, threads: int, **options: Any) -> list[Array]:
    """Return parameters and state after three steps over arrays of many sizes."""
    onepass.set_num_threads(threads)
    rng = np.random.default_rng(0)
    sizes = [1_200_003, 5, 0, 700_001, 4097, *[100] * 50]
    params = [ordinary(rng, size, dtype) for size in sizes]
    optimizer = getattr(onepass, kind)(params, **options)
    grads = [ordinary(rng, size, dtype) for size in sizes]
    for _ in range(3):
        optimizer.step(grads)
    norm = [] if optimizer.grad_norm is None else [np.array(optimizer.grad_norm)]
    averages = [] if optimizer.ema is None else optimizer.ema
    return [*params, *norm, *averages, *(a for s in optimizer.state.values() for a in s.values() if np.ndim(a))]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "chosen"), RULES.values(), ids=RULES)
def test_results_are_bit_identical_with_any_number_of_threads(
    kind: str, chosen: Any, dtype: Any, clip_norm: float | None
) -> None:
    more = {} if clip_norm is None else {"clip_norm": clip_norm, "ema_decay": 0.9}
    options: dict[str, Any] = {**chosen, **more}
    alone = trained(kind, dtype, 1, **options)
    for threads in (2, 3, 5, 16):
        assert_same_bits(trained(kind, dtype, threads, **options), alone, threads)


def test_a_first_step_by_rows_on_several_threads_starts_from_the_current_weights() -> None:
    onepass.set_num_threads(3)
    p = np.zeros((60_000, 20), np.float32)
    optimizer = onepass.ScheduleFreeAdamW(p, lr=0.1)
    p[...] = 5
    optimizer.step(onepass.SparseRows(range(0, 60_000, 2), np.ones((30_000, 20), np.float32)))
    z = optimizer.state[0]["z"]
    assert (z[1::2] == 5).all() and (z[::2] == p[::2]).all() and (abs(p[::2] - 4.9) < 1e-6).all()


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_gradient_that_is_not_finite_is_found_at_any_index(nonfinite: str) -> None:
    onepass.set_num_threads(3)
    params = [np.ones(1_500_000, np.float32), np.ones(1_500_000, np.float32)]
    optimizer = onepass.Adam(params, nonfinite=nonfinite)
    for which in (0, 1):
        for where in (0, 700_000, 1_499_999):
            grads = [np.ones_like(p) for p in params]
            grads[which][where] = np.nan
            if nonfinite == "raise":
                with pytest.raises(FloatingPointError, match=f"gradient {which} "):
                    optimizer.step(grads)
            else:
                optimizer.step(grads)
            assert (params[0] == 1).all() and (params[1] == 1).all()
    assert optimizer.skipped == (6 if nonfinite == "skip" else 0)


def test_optimizers_in_many_threads_do_not_disturb_each_other() -> None:
    onepass.set_num_threads(2)
    expected = np.zeros(1_000_000, np.float32)
    gradient = np.ones_like(expected)
    alone = onepass.Adam(expected)
    for _ in range(10):
        alone.step(gradient)
    arrays = [np.zeros_like(expected) for _ in range(4)]

    def work(array: Array) -> None:
        optimizer = onepass.Adam(array)
        for _ in range(10):
            optimizer.step(gradient)

    threads = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same_bits(arrays, [expected] * 4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fifty_forked_children_step_with_their_own_threads() -> None:
    onepass.set_num_threads(2)
    param, gradient = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)
    expected = param.copy()
    optimizer, other = onepass.Adam(param), onepass.Adam(expected)
    other.step(gradient)
    other.step(gradient)
    optimizer.step(gradient)  # creates the threads

    def child() -> None:
        optimizer.step(gradient)
        assert_same_bits([param], [expected])

    for _ in range(50):
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        hangs = process.is_alive()
        process.kill()
        assert not hangs and process.exitcode == 0
    optimizer.step(gradient)
    assert_same_bits([param], [expected])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_another_threads_step_raises_and_does_not_hang() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def schedule(t: int) -> float:
        inside.set()
        go_on.wait()
        return 0.5

    param = np.ones(2)
    optimizer = onepass.SGD(param, lr=schedule)
    stepping = threading.Thread(target=optimizer.step, args=[np.ones(2)])
    stepping.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # instead of waiting forever
        try:
            onepass.SGD(param, lr=1).step(np.ones(2))  # a new optimizer works
            with pytest.raises(RuntimeError, match="forked"):
                optimizer.step(np.ones(2))
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    stepping.join()
    assert (param == 0.5).all()


def threads_with(**environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    code = "import onepass; print(onepass.get_num_threads(), onepass.config()['threads'])"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout


def test_the_environment_sets_the_number_of_threads() -> None:
    assert threads_with(ONEPASS_NUM_THREADS="3", OMP_NUM_THREADS="5") == "3 3\n"
    assert threads_with(OMP_NUM_THREADS="5") == "5 5\n"
    assert threads_with(OMP_NUM_THREADS="4,2") == "4 4\n"
    default = threads_with()
    for nonsense in ("", "0", "-1", "many", "2x", "99999999999"):
        assert threads_with(ONEPASS_NUM_THREADS=nonsense) == default
    if hasattr(os, "sched_getaffinity"):
        assert 1 <= int(default.split()[0]) <= len(os.sched_getaffinity(0))


ON_ONE_PROCESSOR = {
    "linux": "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n",
    "win32": "from ctypes import c_void_p, windll; assert windll.kernel32.SetProcessAffinityMask(c_void_p(-1), 1)\n",
}


@pytest.mark.skipif(sys.platform not in ON_ONE_PROCESSOR, reason="no affinity here")
def test_a_process_pinned_to_one_processor_uses_one_thread() -> None:
    code = ON_ONE_PROCESSOR[sys.platform] + "import onepass; print(onepass.get_num_threads())"
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    printed = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert printed.stdout == "1\n"


def configured(**environment: str) -> dict[str, Any]:
    """Return the configuration and the hint in a process with only these environment variables about threads."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_TIMEOUT"))}
    code = "import json, onepass; from onepass._config import thread_hint\n"
    code += "print(json.dumps({**onepass.config(), 'hint': thread_hint()}))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(printed))


def test_one_thread_is_the_default_if_blas_threads_spin() -> None:
    found = configured()
    if found["spinning_blas"] is None:
        pytest.skip("NumPy's BLAS has no threads that spin here")
    assert "openblas" in found["spinning_blas"] and found["threads"] == 1
    assert found["processors"] == 1 or "OPENBLAS_THREAD_TIMEOUT=16" in found["hint"]
    for environment in ({"OPENBLAS_THREAD_TIMEOUT": "16"}, {"OPENBLAS_NUM_THREADS": "1"}):
        quiet = configured(**environment)
        assert quiet["spinning_blas"] is None and quiet["hint"] is None
        assert quiet["threads"] == quiet["processors"] == found["processors"]
    assert configured(OPENBLAS_THREAD_TIMEOUT="26")["threads"] == 1
    for number in (1, 3):
        set_by_user = configured(ONEPASS_NUM_THREADS=str(number))
        assert set_by_user["threads"] == number and set_by_user["hint"] is None


def test_an_openblas_variable_set_after_importing_numpy_has_no_effect() -> None:
    found = configured()
    blas = found["spinning_blas"]
    if blas is not None and not hasattr(ctypes.CDLL(blas), "openblas_thread_timeout"):
        pytest.skip("this OpenBLAS does not report its timeout")
    code = "import os, numpy; os.environ['OPENBLAS_THREAD_TIMEOUT'] = '16'\n"
    code += "import onepass; print(onepass.get_num_threads())"
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_TIMEOUT"))}
    ran = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert int(ran.stdout) == found["threads"]


def test_none_resets_the_number_of_threads() -> None:
    first = onepass.get_num_threads()
    onepass.set_num_threads(first + 3)
    assert onepass.get_num_threads() == first + 3
    onepass.set_num_threads(None)
    assert onepass.get_num_threads() == first


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (4097, ValueError),
        (10**400, ValueError),
        (1.0, TypeError),
        ("2", TypeError),
    ],
)
def test_wrong_numbers_of_threads_are_refused(count: Any, error: type[Exception]) -> None:
    onepass.set_num_threads(3)
    with pytest.raises(error, match=r"^the number of threads: expected "):
        onepass.set_num_threads(count)
    assert onepass.get_num_threads() == 3


@unsanitized
def test_a_step_works_without_threads_that_cannot_be_created() -> None:
    code = """
import resource, threading, numpy as np, onepass
w, g = np.zeros(3_000_000, np.float32), np.ones(3_000_000, np.float32)
optimizer = onepass.Adam(w, lr=0.5)
onepass.set_num_threads(64)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 20_000_000,) * 2)  # two stacks at most
optimizer.step(g)
assert w.min() == w.max() == -0.5  # without an array of results: small stacks leave no memory
print("done")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limit is Linux's")
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert printed.stdout == "done\n", printed.stderr
