"""Memory that runs out, at one allocation after the other: a MemoryError, no change, and the same call then works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support import unsanitized

HERE = Path(__file__).parent

pytestmark = [
    unsanitized,
    pytest.mark.skipif(sys.version_info >= (3, 12), reason="CPython's own comprehensions crash without memory there"),
    pytest.mark.skipif(np.__version__ < "2", reason="NumPy's own sums crash without memory there"),
]


def run(preloaded: Path, folder: Path, code: str, **environment: str) -> str:
    """Run a program in a child process with the library preloaded and return its output."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM + code],
        cwd=folder,
        env={
            # Without the variables of `make coverage`: allocations of the tracer would fail too.
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "LD_PRELOAD": str(preloaded),
            "PYTHONMALLOC": "malloc",
            "OPENBLAS_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "cannot be preloaded" in result.stderr or "incompatible" in result.stderr:
        pytest.skip("the library cannot be preloaded here")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


PROGRAM = """
import ctypes, os
import numpy as np, onepass
from onepass import _checkpoint, schedules
from test_interrupts import everything
F = np.float32
library = ctypes.CDLL(None)
fail_from, stop_failing = library.fail_from, library.stop_failing
fail_from.argtypes, stop_failing.restype = [ctypes.c_long] * 2, ctypes.c_long
library.spare.argtypes = [ctypes.c_size_t] * 2
for name in ("_multiarray_umath", "onepass/_core"):
    maps = [line.split()[0] for line in open("/proc/self/maps") if name in line and " r-xp " in line]
    library.spare(*(int(border, 16) for border in maps[0].split("-")))
library.set_interpreter(ctypes.cast(ctypes.pythonapi._PyEval_EvalFrameDefault, ctypes.c_void_p))

# Many of each, so that even the core's small lists are no small objects; and some state that is large.
COUNT = 16
DENSITY = 40 if os.environ.get("ONEPASS_EVERY_MOMENT") else 4
G = [onepass.SparseRows(np.arange(0, 400, 2), np.ones((200, 2), F))]
G += [np.full(200, i, np.float16)[::2] for i in range(COUNT)]

def made():
    rng = np.random.default_rng(0)
    groups = [{"params": [rng.standard_normal((400, 2)).astype(F)]},
              {"params": [rng.standard_normal(100) for _ in range(COUNT)], "lr": schedules.linear(0.5, 0.1, 9)}]
    optimizer = onepass.NAdam(groups, lr=0.25, ema_decay=0.5, clip_norm=2.0, nonfinite="skip")
    optimizer.step([np.ones((400, 2), F), *[np.ones(100)] * COUNT])
    return optimizer

def tried(call, first, burst):
    try:
        fail_from(first, burst)
        call()
    except BaseException as error:
        failed = stop_failing()
        # Messages of Python if NumPy returns null without setting an exception, or if one of Python's locks fails.
        known = "without exception", "without setting an exception", "can't allocate"
        assert isinstance(error, MemoryError) or any(words in str(error) for words in known), (first, repr(error))
        assert failed, first
        return True, failed
    return False, stop_failing()

def at_every_allocation(act, burst):
    '''How many allocations were refused; how often the call went on without.'''
    untouched = everything(made())
    optimizer = made()
    act(optimizer)
    after = everything(optimizer)
    first = raised = survived = 0
    while True:
        first += 1 + first // DENSITY  # each of the first, then fewer and fewer
        optimizer = made()
        error, failed = tried(lambda: act(optimizer), first, burst)
        if error:
            raised += 1
            assert everything(optimizer) == untouched, f"changed at allocation {first}"
            act(optimizer)
        survived += not error and failed > 0
        assert everything(optimizer) == after, f"wrong after allocation {first}"
        if not failed:
            return raised, survived
"""

ACTIONS = {
    "step": "lambda o: o.step(G)",
    "an option": "lambda o: setattr(o.groups[0], 'betas', (0.5, 0.75))",
    "a schedule": "lambda o: setattr(o.groups[0], 'lr', schedules.linear(0.5, 0.1, 9))",
    "add_group": "lambda o: o.add_group([np.ones(100, F) for _ in range(COUNT)], lr=0.5)",
    "state_dict": "lambda o: o.state_dict()",
    "load_state_dict": "lambda o: o.load_state_dict(saved)",
    "load": "lambda o: o.load('saved')",
    "save": "lambda o: o.save('new')",
}


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_call_that_runs_out_of_memory_at_any_allocation_changes_nothing(
    preloaded: Path, tmp_path: Path, action: str, burst: int
) -> None:
    if action == "step" and burst > 1:
        pytest.skip("NumPy's errstate crashes")
    code = f"""
o = made(); o.step(G); o.groups[0].eps = 0.125; o.clip_norm = None
saved = o.state_dict(); o.save("saved")
act = {ACTIONS[action]}
act(made())
print(*at_every_allocation(act, {burst}))
"""
    raised, _ = map(int, run(preloaded, tmp_path, code).split())
    assert raised > 2
    if burst == 1:  # or there may be none to delete it
        assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
