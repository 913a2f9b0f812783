"""State in memory-mapped files: the same bits, and no memory of the process."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from support import DTYPES, assert_same_bits, ordinary, snapshot, unsanitized

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and counts of memory as on Linux")


def is_mapped(array: Any) -> bool:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return type(getattr(array.base, "obj", array.base)).__name__ == "mmap"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (onepass.AdamW, {"amsgrad": True, "ema_decay": 0.9}),
        (onepass.Adagrad, {"initial_accumulator_value": 0.5}),
        (onepass.SGD, {}),
    ],
)
def test_state_on_disk_is_bit_identical_to_state_in_memory(kind: Any, options: Any, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    start = [np.asfortranarray(ordinary(rng, (70, 33), dtype)), ordinary(rng, (), dtype)[()] * np.ones((), dtype)]
    start[1] = np.asarray(start[1])
    extra = ordinary(rng, 5000, dtype)
    made = []
    for on_disk in (True, False):
        params = [p.copy("K") for p in start]
        if on_disk:
            with onepass.state_dir(tmp_path):
                opt = kind(params, **options)
        else:
            opt = kind(params, **options)
        opt.add_group(extra.copy(), lr=0.5)  # outside the block, but state of the same optimizer
        made.append(opt)
    a, b = made
    for opt in made:
        for seed in range(3):
            grads = np.random.default_rng(seed)
            opt.step([ordinary(grads, p.shape, dtype) for p in opt.params])
    assert_same_bits(a.params, b.params)
    for one, other in zip(snapshot(a), snapshot(b)):
        names = [name for name in one if name != "step"]
        assert_same_bits([one[name] for name in names], [other[name] for name in names])
        assert all(is_mapped(one[name]) and not is_mapped(other[name]) for name in names)
    for copied in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
        assert not any(is_mapped(value) for state in snapshot(copied) for value in state.values() if np.ndim(value))
    if os.name == "posix":
        assert not list(tmp_path.iterdir())


def test_a_missing_or_full_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, error in (("none", FileNotFoundError), ("file", NotADirectoryError)):
        with pytest.raises(error) as caught, onepass.state_dir(tmp_path / name):
            pass
        assert caught.value.filename == str(tmp_path / name)
    (tmp_path / "gone").mkdir()
    with onepass.state_dir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        with pytest.raises(FileNotFoundError) as caught:
            onepass.Adam(np.zeros(3, np.float32))
    assert caught.value.filename == str(tmp_path / "gone")
    with onepass.state_dir(tmp_path):  # only in the block
        pass
    assert not is_mapped(onepass.Adam(np.zeros(3, np.float32)).state[0]["exp_avg"])
    if sys.platform == "linux":
        script = """
import resource, sys, numpy as np, onepass
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
w = np.zeros(1 << 20, np.float32)
with onepass.state_dir(sys.argv[1]):
    try:
        onepass.Adam(w)
    except OSError as error:
        print("refused:", error.strerror)
"""
        command = [sys.executable, "-c", script, str(tmp_path)]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "refused: File too large\n"


TRAIN = """
import os, resource, signal, sys, zlib, numpy as np, onepass
folder, where, kill = sys.argv[1:4]
size = 8 << 20
w, g = np.ones(size, np.float32), np.empty(size, np.float32)

def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what + ":")) >> 10

def step(opt, seed):
    g[...] = np.float32(seed)
    g[::7] = -3
    opt.step(g)

def made():
    if where == "memory":
        return onepass.Adam(w, lr=0.1)
    with onepass.state_dir(folder):
        return onepass.Adam(w, lr=0.1)

if where != "free":  # the parameters and gradients are there: half of the state more
    limit = (memory("VmData") << 20) + 4 * size
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
path = os.path.join(folder, "adam.npz")
try:
    opt = made()
    if os.path.exists(path):
        opt.load(path)
        w[...] = np.load(os.path.join(folder, "w.npy"), mmap_mode="r")
    step(opt, opt.step_count)
    step(opt, opt.step_count)
except MemoryError:
    print("no memory")
    sys.exit()
peak = memory("RssAnon"), memory("RssFile")
print(opt.step_count, "steps; MB resident, anonymous and of files:", *peak, flush=True)  # before the kill
opt.save(path)
np.save(os.path.join(folder, "w.npy"), w)
if kill == "kill":
    step(opt, 99)
    os.kill(os.getpid(), signal.SIGKILL)
print(zlib.crc32(w), zlib.crc32(opt.state[0]["exp_avg_sq"]))
"""


@linux
@unsanitized
def test_state_larger_than_the_memory_limit_trains_on_disk_and_survives_a_crash(tmp_path: Path) -> None:
    def train(where: str, folder: str, kill: str = "") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        command = [sys.executable, "-c", TRAIN, str(tmp_path / folder), where, kill]
        environment = {**os.environ, "ONEPASS_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        print(where, kill, done.stdout, done.stderr)
        assert done.returncode == (-9 if kill else 0), done.stderr
        return done.stdout

    assert train("memory", "memory") == "no memory\n"
    crashed = train("disk", "disk", "kill")
    assert crashed.startswith("2 steps")
    anonymous, files = map(int, crashed.split()[-2:])
    assert files > 64  # the state
    assert anonymous < 64 + 48  # parameters, gradients, the interpreter
    again = train("disk", "disk")
    assert again.startswith("4 steps")
    train("free", "free", "kill")
    assert train("free", "free").splitlines()[1] == again.splitlines()[1]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC])
def test_a_file_system_without_fallocate_is_accepted_and_a_full_one_refused(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reserve(file: int, begin: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve, raising=False)
    with onepass.state_dir(tmp_path):
        if number == errno.ENOSPC:
            with pytest.raises(OSError, match=os.strerror(number)):
                onepass.Adam(np.zeros(3, np.float32))
        else:
            assert is_mapped(onepass.Adam(np.zeros(3, np.float32)).state[0]["exp_avg"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on open files")
def test_many_arrays_share_a_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a relative path of the folder, too, and change the current folder after construction."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    params = [np.ones(3, np.float32) for _ in range(300)]
    monkeypatch.chdir(tmp_path)
    Path("state").mkdir()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        with onepass.state_dir("state"):
            opt = onepass.Adam(params, ema_decay=0.9)
        opt.step(params)
        opt.save("saved.npz", params=True)
        monkeypatch.chdir("/")
        opt.step(params)
        opt.load(tmp_path / "saved.npz", params=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert opt.step_count == 1


FORK = """
import os, sys, zlib, numpy as np, onepass
w, g = np.ones(1000, np.float32), np.ones(1000, np.float32)
with onepass.state_dir(sys.argv[1]):
    opt = onepass.Adam(w, ema_decay=0.5)
in_memory = onepass.Adam(np.ones(1000, np.float32))
opt.step(g)
saved, path = opt.state_dict(), os.path.join(sys.argv[1], "adam.npz")
opt.save(path)
opt.step(g)

def state():
    return [zlib.crc32(a) for a in (w, opt.ema, opt.state[0]["exp_avg"], opt.state[0]["exp_avg_sq"])]

before = state()
if os.fork() == 0:
    calls = {
        "step": lambda: opt.step(g),
        "load": lambda: opt.load(path),
        "load_state_dict": lambda: opt.load_state_dict(saved),
        "add_group": lambda: opt.add_group(np.ones(3, np.float32)),
    }
    for name, call in calls.items():
        try:
            call()
        except RuntimeError as error:
            assert "create another optimizer here" in str(error), error
            print(name, "refused,", state() == before)
    again = onepass.Adam(w, ema_decay=0.5)
    again.load_state_dict(opt.state_dict())
    again.step(g)
    with onepass.state_dir(sys.argv[1]):
        own = onepass.Adam(np.ones(1000, np.float32), ema_decay=0.5)
    own.load(path)
    own.step(g)
    in_memory.step(g)
    print(opt.step_count, again.step_count, own.step_count, in_memory.step_count, state()[1:] == before[1:], flush=True)
    os._exit(0)
os.wait()
print(state() == before, len(opt.params.shape), opt.step_count)
opt.step(g)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_read_but_not_change_state_on_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = [f"{name} refused, True" for name in ("step", "load", "load_state_dict", "add_group")]
    assert done.stdout.splitlines() == [*refused, "2 3 2 1 True", "True 1 2"]
