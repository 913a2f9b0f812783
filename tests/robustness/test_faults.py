"""Faults of the machine during training: no threads, full disks, inaccessible folders, death during a step."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _checkpoint
from support import MODE, mode, refused, unsanitized

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
F = np.float32


def python(code: str, folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options.setdefault("env", {**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# ---- Threads ----

THREADS = """
import ctypes, numpy as np, onepass
refuse = ctypes.CDLL(None).refuse_threads
onepass.set_num_threads(8)
n = 9_000_000
def trained(steps):
    w = np.ones(n, np.float32)
    optimizer = onepass.AdamW(w, lr=0.5, clip_norm=1.0, ema_decay=0.5)
    for t in range(steps):
        refuse(t % 2 == 0)
        optimizer.step(np.full(n, t + 1, np.float32))
    return w, optimizer
w, optimizer = trained(4)
refuse(0)
onepass.set_num_threads(1)
again, other = trained(4)
assert (w == again).all() and (optimizer.ema == other.ema).all() and optimizer.grad_norm == other.grad_norm
print("done")
"""


@LINUX
@unsanitized
def test_results_are_bit_identical_if_some_threads_cannot_be_created(preloaded: Path, tmp_path: Path) -> None:
    result = python(THREADS, tmp_path, env={**os.environ, "LD_PRELOAD": str(preloaded), "OPENBLAS_NUM_THREADS": "1"})
    assert result.stdout == "done\n", result.stderr


# ---- Disks ----

SAVING = """
import numpy as np, onepass, resource, signal, sys, os
from pathlib import Path
optimizer = onepass.Adam(np.zeros(50_000, np.float32), ema_decay=0.5)
optimizer.step(np.ones(50_000, np.float32))
"""


@LINUX
def test_a_disk_that_fills_up_leaves_the_old_file_and_the_optimizer(tmp_path: Path) -> None:
    code = """
optimizer.save("x")
old, size = Path("x").read_bytes(), Path("x").stat().st_size
optimizer.step(np.ones(50_000, np.float32))
before = optimizer.state_dict()
for limit in [*range(0, size, size // 50), size - 1, size]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # Python ignores SIGXFSZ
    try:
        optimizer.save("x")
        assert limit == size
    except OSError:
        assert Path("x").read_bytes() == old and limit < size
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir() == ["x"]
assert Path("x").read_bytes() != old
optimizer.load("x")
assert all((before["state"][0][n] == optimizer.state[0][n]).all() for n in ("exp_avg", "exp_avg_sq"))
print("done")
"""
    result = python(SAVING + code, tmp_path)
    assert result.stdout == "done\n", result.stderr


@LINUX
def test_a_read_only_folder_is_an_error_for_an_unprivileged_child_of_root(tmp_path: Path) -> None:
    """Like `test_a_folder_that_is_read_only_is_an_error` when the tests run as root: in a child of user nobody."""
    if os.geteuid() != 0:
        pytest.skip("not root: test_atomic_save.py tests it")
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o755)
    code = """
folder = os.open(sys.argv[1] if len(sys.argv) > 1 else FOLDER, os.O_RDONLY)
os.fchdir(folder)
optimizer.save("x")
old = Path("x").read_bytes()
os.setgid(65534)
os.setuid(65534)
try:
    optimizer.save("x")
except PermissionError as error:
    print(type(error).__name__, Path("x").read_bytes() == old, os.listdir())
optimizer.load("x")
"""
    result = python(
        SAVING + f"FOLDER = {str(folder)!r}\nfrom onepass import _checkpoint; import zipfile\n" + code, tmp_path
    )
    if "PermissionError" in result.stderr and "import" in result.stderr:
        pytest.skip("nobody may not read Python here")
    assert result.stdout == "PermissionError True ['x']\n", result.stdout + result.stderr


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="Not a regular file"):
        _checkpoint.write("/dev/full", onepass.Adam(np.zeros(2)).state_dict())
    assert Path("/dev/full").is_char_device()


# ---- A small file, much memory ----


@LINUX
@unsanitized
def test_a_load_needs_memory_for_only_one_copy_of_the_state(tmp_path: Path) -> None:
    """With memory for one copy a load works. With less it works, or raises a MemoryError and changes nothing."""
    code = """
n = 4_000_000
optimizer = onepass.Adam(np.zeros(n, np.float32))
optimizer.step(np.ones(n, np.float32))
optimizer.save("x")
before = optimizer.state_dict()
optimizer.step(np.ones(n, np.float32))
optimizer.load("x")  # what it imports is there
copy = 8 * n
seen = set()
for room in [0, copy // 4, copy // 2 + (1 << 20), copy + (8 << 20)]:
    optimizer.step(np.ones(n, np.float32))
    count = optimizer.step_count
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + room, hard))
    try:
        optimizer.load("x")
        ok = True
    except MemoryError:
        ok = False
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert optimizer.step_count == (1 if ok else count), room
    assert (optimizer.state[0]["exp_avg"] == before["state"][0]["exp_avg"]).all() == ok, room
    seen.add((room > copy, ok))
print(sorted(seen))
"""
    result = python(SAVING + code, tmp_path)
    assert result.stdout.startswith("[(False, False), ") and result.stdout.endswith("(True, True)]\n"), (
        result.stdout + result.stderr
    )


# ---- The end of the interpreter ----

END = """
import threading, numpy as np, onepass, sys
optimizer = onepass.AdamW([np.ones(1_000_000, np.float32), np.ones(5, np.float32)], clip_norm=1.0, ema_decay=0.5)
grads = [np.ones(1_000_000), np.ones(5, np.float32)]
onepass.set_num_threads(2)
started = [threading.Event() for _ in range(3)]
def forever(event, call):
    while True:
        call()
        event.set()
calls = [lambda: optimizer.step(grads), lambda: optimizer.save("x"), lambda: optimizer.state_dict()]
for event, call in zip(started, calls):
    threading.Thread(target=forever, args=(event, call), daemon=True).start()
for event in started:
    event.wait()
"""


def test_the_interpreter_can_exit_while_threads_step_save_and_read(tmp_path: Path) -> None:
    for _ in range(int(os.environ.get("ONEPASS_ENDS", "8"))):
        result = python(END, tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        whole = onepass.AdamW([np.ones(1_000_000, F), np.ones(5, F)], ema_decay=0.5)
        with pytest.warns(UserWarning, match="other values"):
            whole.load(tmp_path / "x")


# ---- Interpreters within the interpreter ----

INNER = """
import sys
try:
    import _interpreters as inner
except ImportError:
    import _xxsubinterpreters as inner
which = inner.create()
def run(code):
    try:
        found = inner.run_string(which, code)  # 3.13 returns what was raised
    except Exception as error:
        found = error
    return found
import onepass, numpy as np
said = run(
    "import onepass, numpy as np\\n"
    "w = np.ones(3)\\n"
    "onepass.SGD(w, lr=1.0).step(np.ones(3))\\n"
    "assert (w == 0).all()"
)
print("right" if said is None else str(getattr(said, "msg", said)))
w = np.ones(3)
onepass.SGD(w, lr=1.0).step(np.ones(3))  # the outer one goes on
assert (w == 0).all()
"""


def test_a_subinterpreter_computes_correctly_or_is_refused(tmp_path: Path) -> None:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("interpreters within one without a GIL are not asked for")
    result = python(INNER, tmp_path)
    assert result.returncode == 0, result.stderr
    said = result.stdout.strip()
    assert said == "right" or "subinterpreters" in said, said


# ---- The processor's mode ----


def test_no_call_or_error_changes_the_floating_point_mode(tmp_path: Path) -> None:
    w = np.ones(100_000, F)
    g = np.full(100_000, 1e-30, F)
    optimizer = onepass.AdamW([w], lr=lambda t: 0.1, clip_norm=1e-3, nonfinite="raise", ema_decay=0.5)
    calls: list[Any] = [
        lambda: optimizer.step([g]),
        lambda: optimizer.save(tmp_path / "x"),
        lambda: optimizer.load(tmp_path / "x"),
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: onepass.adam_step(w, g, *np.zeros((2, 100_000), F), 1),
    ]
    wrong: list[Any] = [
        (FloatingPointError, lambda: optimizer.step([np.full(100_000, np.nan, F)])),
        (ValueError, lambda: optimizer.step([g], 1e300)),
        (ValueError, lambda: optimizer.step([g[:5]])),
        (TypeError, lambda: optimizer.step([g.astype(int)])),
        (ValueError, lambda: optimizer.load(Path(__file__))),
    ]
    for threads in (1, 4):
        onepass.set_num_threads(threads)
        for call in calls:
            call()
            assert mode() == MODE
            assert np.finfo(F).tiny / F(2) > 0
        for error, call in wrong:
            with refused(error, "", optimizer):
                call()
            assert mode() == MODE
