"""Checkpoint files: exact, whole or not there at all, and nothing in them is trusted."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import random
import re
import stat
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass
from onepass import _checkpoint
from support import DTYPES, bits, hostile

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
SHAPES = [(), (0, 4), (1,), (7,), (1, 5), (3, 4), (2, 3, 4)]
StateDict = dict[str, Any]


def state_of(*parameters: Any, names: Any = None, **scalars: Any) -> StateDict:
    """A state dict whose parameters have these arrays as exp_avg, and their negatives as exp_avg_sq."""
    group = {
        "params": list(range(len(parameters))),
        **({"param_names": list(names)} if names else {}),
        "lr": 0.1 + 0.2,
        "betas": (0.9, 1 / 3),
        "eps": 1e-08,
        "maximize": False,
        "clip_value": None,
        "clip_norm": float("inf"),
        "eps_mode": "paper",
    }
    states = {i: {"step": 12, "exp_avg": a, "exp_avg_sq": np.asarray(-a), **scalars} for i, a in enumerate(parameters)}
    own = {"version": 1, "optimizer": "AdamW", "step_count": 2**53, "skipped": 0}
    return {**own, "state": states, "param_groups": [group]}


def small_state() -> StateDict:
    return state_of(np.array([1.5, -2, np.nan], np.float32), np.array(3.0), names=["w", "b"])


def assert_equal(found: Any, expected: Any) -> None:
    """The same values to the bit, of the same types, in the same order in memory."""
    if isinstance(expected, np.ndarray):
        assert type(found) is np.ndarray and found.dtype == expected.dtype and found.shape == expected.shape
        assert np.array_equal(bits(found), bits(expected))
        assert found.flags.writeable
        if expected.flags.forc:
            assert found.flags.c_contiguous == expected.flags.c_contiguous
    elif isinstance(expected, dict):
        assert type(found) is dict and found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for item, other in zip(found, expected):
            assert_equal(item, other)
    else:
        assert type(found) is type(expected) and found == expected


def temporaries(folder: Path) -> list[Path]:
    return list(folder.glob(".onepass-*.tmp"))


@contextmanager
def allocating_at_most(size: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak} bytes"


def refused(path: Path, like: StateDict, message: str = "cannot load", cause: type[BaseException] = Exception) -> str:
    """Reading raises a ValueError that names the file and has a cause, and costs little memory."""
    before = copy.deepcopy(like)
    with allocating_at_most(4 << 20), pytest.raises(ValueError, match=re.escape(message)) as caught:
        _checkpoint.read(path, like)
    assert caught.type is ValueError and str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)
    assert len(str(caught.value)) < len(str(path)) + 300
    assert_equal(like, before)
    return str(caught.value)


def archive(path: Path, members: Any, **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members.items() if isinstance(members, dict) else members:
            file.writestr(name, data)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _checkpoint.write(tmp_path / "state.npz", small_state())
    return tmp_path / "state.npz"


# ---- What is written can be read ----


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(tmp_path: Path, dtype: Any, order: Any) -> None:
    rng = np.random.default_rng(0)
    state = state_of(*(np.array(hostile(rng, shape, dtype), order=order) for shape in SHAPES), mu_product=0.1 + 0.7)
    _checkpoint.write(tmp_path / "x", state)
    before = copy.deepcopy(state)
    found = _checkpoint.read(tmp_path / "x", state)
    assert_equal(found, before)
    assert_equal(state, before)
    for i, entry in found["state"].items():
        assert not np.shares_memory(entry["exp_avg"], state["state"][i]["exp_avg"])


def test_arrays_longer_than_a_chunk_come_back(tmp_path: Path) -> None:
    state = state_of(np.random.default_rng(0).standard_normal((3, 50_001)))
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


@pytest.mark.parametrize("shape", [(2, 3, 4), (301, 303)])
@pytest.mark.parametrize(("written", "read"), ["CF", "FC"])
def test_arrays_come_in_the_order_of_the_optimizer_at_hand(
    tmp_path: Path, written: Any, read: Any, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    _checkpoint.write(tmp_path / "x", state_of(np.array(x, order=written)))
    like = state_of(np.array(x, order=read))
    assert_equal(_checkpoint.read(tmp_path / "x", like), like)


def test_arrays_that_are_not_contiguous_are_written_too(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(4, 6)[:, ::2]
    _checkpoint.write(tmp_path / "x", state_of(x))
    assert_equal(_checkpoint.read(tmp_path / "x", state_of(x.copy())), state_of(x.copy()))


def test_a_scheduled_learning_rate_is_none_on_either_side(tmp_path: Path) -> None:
    state, like = small_state(), small_state()
    state["param_groups"][0]["lr"] = None
    _checkpoint.write(tmp_path / "x", state)
    assert _checkpoint.read(tmp_path / "x", like)["param_groups"][0]["lr"] is None
    like["param_groups"][0]["lr"] = None
    _checkpoint.write(tmp_path / "x", small_state())
    assert _checkpoint.read(tmp_path / "x", like)["param_groups"][0]["lr"] == 0.1 + 0.2


@pytest.mark.parametrize("groups", [1, 2000])
def test_many_parameters_and_groups_come_back(tmp_path: Path, groups: int) -> None:
    state = state_of(*(np.array(i, np.float32) for i in range(2000)))
    own = state["param_groups"][0]
    state["param_groups"] = [{**own, "params": list(map(int, p))} for p in np.array_split(np.arange(2000), groups)]
    if groups > 1:  # plain SGD has no arrays
        state["state"] = {i: {"step": entry["step"]} for i, entry in state["state"].items()}
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


def test_the_longest_numbers_fit_where_the_shortest_were(tmp_path: Path) -> None:
    like, state = (state_of(*np.zeros((5000, 0))) for _ in range(2))
    for own, step, lr in [(like, 0, 0.0), (state, 2**53, 2.2250738585072014e-308)]:
        own["param_groups"] = [{"params": [i], "lr": lr, "betas": (lr, lr)} for i in range(5000)]
        own["state"] = {i: {"step": step} for i in range(5000)}
    _checkpoint.write(tmp_path / "x", state)
    assert_equal(_checkpoint.read(tmp_path / "x", like), state)


def test_numpy_reads_it_without_pickle(saved: Path) -> None:
    state = small_state()
    with np.load(saved, allow_pickle=False) as file:
        assert set(file.files) == {"onepass", *(f"state/{i}/{n}" for i in (0, 1) for n in ("exp_avg", "exp_avg_sq"))}
        assert_equal(file["state/0/exp_avg"], state["state"][0]["exp_avg"])
        scalars = json.loads(bytes(file["onepass"]))
    assert scalars["optimizer"] == "AdamW" and scalars["state"] == [{"step": 12}] * 2
    assert scalars["param_groups"][0]["lr"] == 0.1 + 0.2


def test_what_numpy_saves_again_can_be_read(saved: Path, tmp_path: Path) -> None:
    with np.load(saved) as file:
        np.savez(tmp_path / "again.npz", **dict(file))
    assert_equal(_checkpoint.read(tmp_path / "again.npz", small_state()), small_state())


def test_equal_states_give_equal_files(saved: Path, tmp_path: Path) -> None:
    state = small_state()
    state["state"] = {1: dict(reversed(state["state"][1].items())), 0: state["state"][0]}
    _checkpoint.write(tmp_path / "other", dict(reversed(state.items())))
    assert (tmp_path / "other").read_bytes() == saved.read_bytes()


def test_members_are_plain_and_of_no_date(saved: Path) -> None:
    with zipfile.ZipFile(saved) as file:
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)


def test_files_beyond_four_gigabytes_are_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    state = state_of(np.arange(1000.0), np.arange(500.0))
    _checkpoint.write(tmp_path / "x", state)
    monkeypatch.undo()
    assert b"PK\x06\x06" in (tmp_path / "x").read_bytes()
    assert_equal(_checkpoint.read(tmp_path / "x", state), state)


def test_the_path_is_taken_as_it_is(tmp_path: Path) -> None:
    for path in [tmp_path / "a", str(tmp_path / "b.ckpt"), tmp_path / "c.npz"]:
        _checkpoint.write(path, small_state())
        assert_equal(_checkpoint.read(path, small_state()), small_state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.ckpt", "c.npz"]


def test_a_bare_name_is_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "n" * 255  # the longest that there may be
    _checkpoint.write(name, small_state())
    assert_equal(_checkpoint.read(name, small_state()), small_state())


def test_memory_is_one_copy_to_read_and_none_to_write(tmp_path: Path) -> None:
    x = np.zeros((2500, 2500), np.float32)
    state = state_of(x)
    size = 2 * x.nbytes
    assert size == 50_000_000
    with allocating_at_most(1 << 20):
        _checkpoint.write(tmp_path / "x", state)
    with allocating_at_most(size + (1 << 20)):
        _checkpoint.read(tmp_path / "x", state)
    transposed = state_of(np.asfortranarray(x))
    with allocating_at_most(size + (1 << 20)):
        _checkpoint.read(tmp_path / "x", transposed)


# ---- The old file or the new one ----


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("old", [True, False])
def test_an_error_at_any_byte_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool, error: BaseException
) -> None:
    path = tmp_path / "state.npz"
    _checkpoint.write(path, small_state())
    size = path.stat().st_size
    before = path.read_bytes() if old else path.unlink()

    class Full(io.FileIO):
        room = 0

        def write(self, data: Any) -> int:
            if self.tell() + len(data) > self.room:
                raise error
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda self, mode, **_: Full(self, mode))
    for room in [*range(0, size, 37), size - 1]:
        Full.room = room
        with pytest.raises(type(error)):
            _checkpoint.write(path, state_of(np.zeros(3, np.float32), np.zeros(()), names=["w", "b"]))
        monkeypatch.setattr(Full, "room", 0)
        assert (path.read_bytes() if path.exists() else None) == before
        assert temporaries(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = saved.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="Input/output error"):
        _checkpoint.write(saved, state_of(np.zeros(3)))
    assert saved.read_bytes() == before and temporaries(saved.parent) == []


def test_the_file_reaches_the_disk_before_its_name_and_the_folder_after(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else f"file of {status.st_size}"
        events.append(f"fsync {kind}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append(f"replace {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    _checkpoint.write(saved, small_state())
    folder = ["fsync folder"] if os.name == "posix" else []
    assert events == [f"fsync file of {saved.stat().st_size}", "replace state.npz", *folder]


@POSIX
@pytest.mark.parametrize(("code", "silent"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed_is_no_error_but_one_that_fails_is(
    saved: Path, monkeypatch: pytest.MonkeyPatch, code: int, silent: bool
) -> None:
    fsync = os.fsync

    def folders_fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", folders_fail)
    if silent:
        _checkpoint.write(saved, small_state())
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            _checkpoint.write(saved, small_state())
    assert temporaries(saved.parent) == []


PROGRAM = """
import os, random, resource, signal, sys, time
from pathlib import Path
import numpy as np
import onepass
from onepass import _checkpoint
def state(n):
    arrays = {name: np.full(SIZE, n, np.float32) for name in ("exp_avg", "exp_avg_sq")}
    groups = [{"params": [0], "lr": 0.1}]
    own = {"version": 1, "optimizer": "Adam", "step_count": n, "skipped": 0}
    return {**own, "state": {0: {"step": n, **arrays}}, "param_groups": groups}
"""


def run(program: str, folder: Path, **constants: int) -> str:
    lines = "\n".join(f"{name} = {value}" for name, value in constants.items())
    result = subprocess.run(
        [sys.executable, "-c", f"{PROGRAM}\n{lines}\n{program}"],
        cwd=folder,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # so that it may fork
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@POSIX
def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path: Path) -> None:
    program = """
_checkpoint.write("x", state(1))
like, seen = state(0), set()
random.seed(0)

def unfinished():
    return [p for p in os.listdir() if p != "x"]

attempt = 0
while attempt < 30 or (attempt < 300 and not (len(seen) > 2 < len(unfinished()))):  # where the machine is busy, longer
    attempt += 1
    child = os.fork()
    if not child:
        n = 1000 * attempt
        while True:
            n += 1
            _checkpoint.write("x", state(n))
    time.sleep(random.uniform(0, 0.001 * max(30, attempt)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = _checkpoint.read("x", like)
    n = found["step_count"]
    assert found["state"][0]["step"] == n
    for name in ("exp_avg", "exp_avg_sq"):
        assert (found["state"][0][name] == n).all()
    seen.add(n)
rest = unfinished()
assert all(p.startswith(".onepass-") and p.endswith(".tmp") for p in rest), rest
print(len(seen), len(rest))
"""
    files, killed_while_writing = map(int, run(program, tmp_path, SIZE=100_000).split())
    assert files > 2 and killed_while_writing > 2


@POSIX
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    program = """
_checkpoint.write("x", state(1))
before = Path("x").read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    _checkpoint.write("x", state(2))
except OSError as error:
    print(os.strerror(error.errno), os.listdir(), Path("x").read_bytes() == before)
"""
    assert run(program, tmp_path, SIZE=100_000).strip() == f"{os.strerror(errno.EFBIG)} ['x'] True"


def test_a_state_that_is_no_json_writes_nothing(tmp_path: Path) -> None:
    state = small_state()
    state["param_groups"][0]["lr"] = lambda t: 0.1
    with pytest.raises(TypeError):
        _checkpoint.write(tmp_path / "x", state)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        _checkpoint.write(tmp_path / "nowhere" / "x", small_state())
    assert caught.value.filename == os.path.realpath(tmp_path / "nowhere" / "x")


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_an_error(saved: Path) -> None:
    before = saved.read_bytes()
    saved.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            _checkpoint.write(saved, small_state())
    finally:
        saved.parent.chmod(0o700)
    assert saved.read_bytes() == before and temporaries(saved.parent) == []


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        _checkpoint.write(tmp_path, small_state())
    with pytest.raises((IsADirectoryError, PermissionError)):
        _checkpoint.read(tmp_path, small_state())


@POSIX
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a regular file"):
        _checkpoint.write(tmp_path / "pipe", small_state())
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
def test_the_permissions_of_the_old_file_are_kept(saved: Path, mode: int) -> None:
    saved.chmod(mode)
    _checkpoint.write(saved, small_state())
    assert stat.S_IMODE(saved.stat().st_mode) == mode


@POSIX
def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        _checkpoint.write(tmp_path / "x", small_state())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@POSIX
@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    target, link, second = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "second"
    link.symlink_to("there/target")
    second.symlink_to(link)
    if exists:
        _checkpoint.write(target, state_of(np.zeros(3)))
    _checkpoint.write(second, small_state())
    assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
    for path in (target, link, second):
        assert_equal(_checkpoint.read(path, small_state()), small_state())


@POSIX
def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for call in (_checkpoint.write, _checkpoint.read):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            call(tmp_path / "a", small_state())


# ---- Damaged files ----


def test_a_file_cut_at_any_byte_is_refused(saved: Path) -> None:
    for size in reversed(range(saved.stat().st_size)):
        os.truncate(saved, size)
        with pytest.raises(ValueError, match="cannot load") as caught:
            _checkpoint.read(saved, small_state())
        assert caught.type is ValueError and caught.value.__cause__ is not None


def test_a_file_with_any_byte_changed_is_refused_or_reads_the_same(saved: Path) -> None:
    whole, state = saved.read_bytes(), small_state()
    rng = random.Random(0)
    accepted = 0
    with saved.open("r+b", buffering=0) as file:
        for position, byte in enumerate(whole):
            for mask in (0xFF, 1 << rng.randrange(8), 0):
                file.seek(position)
                file.write(bytes([byte ^ mask]))
                if not mask:
                    continue  # repaired
                caught = None
                try:
                    assert_equal(_checkpoint.read(saved, state), state)
                    accepted += 1
                except ValueError as error:
                    caught = error
                assert caught is None or (type(caught) is ValueError and caught.__cause__ and str(saved) in str(caught))
    assert saved.read_bytes() == whole
    assert accepted < len(whole) / 2  # dates, versions and sizes that nobody needs


def test_bytes_before_or_after_do_not_matter_or_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for junk in (b"junk", b"PK\x05\x06", whole):
        for data in (junk + whole, whole + junk):
            saved.write_bytes(data)
            try:
                found = _checkpoint.read(saved, small_state())
            except ValueError:
                continue
            assert_equal(found, small_state())


def test_no_memory_is_no_damage(saved: Path) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        _checkpoint.read(saved, small_state(), room=exhausted)


def test_a_missing_file_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _checkpoint.read(tmp_path / "x", small_state())


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights\n" * 100),
    "a .npy": lambda path: path.write_bytes(npy(np.zeros(3))),
    "pickle": lambda path: path.write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00."),
    "an empty zip": lambda path: archive(path, {}),
    "another zip": lambda path: archive(path, {"readme.txt": b"hello"}),
    "another .npz": lambda path: archive(path, {"a.npy": npy(np.zeros(3)), "b.npy": npy(np.ones(3))}),
    "pickled objects": lambda path: archive(path, {"onepass.npy": npy(np.array([{}, print], object))}),
    "names that climb": lambda path: archive(path, {"../../evil.npy": b"x", "/etc/passwd": b"x"}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "foreign"
    FOREIGN[case](path)
    refused(path, small_state())
    assert list(tmp_path.iterdir()) == [path]


EXP_AVG = "state/0/exp_avg.npy"
MEMBERS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "a missing array": ({EXP_AVG: None}, "the state of parameter 0 ('w') lacks ['exp_avg']"),
    "an unknown array": (
        {"state/0/ema.npy": npy(np.zeros(3))},
        "it was saved with ema_decay: create the optimizer with ema_decay",
    ),
    "an array of no parameter": ({"state/2/exp_avg.npy": npy(np.zeros(3))}, "unknown members ['state/2/exp_avg.npy']"),
    "a name that climbs": ({"../x.npy": b"x"}, "unknown members ['../x.npy']"),
    "another spelling": ({"state/00/exp_avg.npy": npy(np.zeros(3))}, "unknown members ['state/00/exp_avg.npy']"),
    "another dtype": (
        {EXP_AVG: npy(np.zeros(3))},
        "exp_avg of parameter 0 ('w'): expected the parameter's dtype float32, got float64",
    ),
    "the other byte order": ({EXP_AVG: npy(np.zeros(3, ">f4"))}, "expected the parameter's dtype float32, got >f4"),
    "another shape": ({EXP_AVG: npy(np.zeros((3, 1), "f4"))}, "('w') must have shape (3,), got (3, 1)"),
    "a scalar": ({EXP_AVG: npy(np.float32(1))}, "('w') must have shape (3,), got ()"),
    "objects": ({EXP_AVG: npy(np.array([1, 2, print], object))}, "expected the parameter's dtype float32, got |O"),
    "a structure": ({EXP_AVG: npy(np.zeros(3, [("a", "f4")]))}, "exp_avg.npy does not have the header of a plain"),
    "no header": ({EXP_AVG: b"numbers"}, "the file is damaged, or no checkpoint ("),
    "an empty member": ({EXP_AVG: b""}, "ends too early)"),
    "the version 2 of headers": ({EXP_AVG: b"\x93NUMPY\x02\x00" + npy(np.zeros(3, "f4"))[8:]}, "does not have the he"),
    "too few numbers": ({EXP_AVG: npy(np.zeros(3, "f4"))[:-4]}, "bytes, wrong for (3,) float32"),
    "too many numbers": ({EXP_AVG: npy(np.zeros(3, "f4")) + b"\0"}, "bytes, wrong for (3,) float32"),
    "no metadata": ({"onepass.npy": None}, "not a onepass checkpoint (missing member 'onepass.npy')"),
    "metadata that is no JSON": ({"onepass.npy": npy(np.frombuffer(b"{", "u1"))}, "Expecting property name"),
    "metadata that is no text": ({"onepass.npy": npy(np.frombuffer(b'"\xff"', "u1"))}, "'utf-8' codec can't decode"),
    "metadata of numbers": ({"onepass.npy": npy(np.frombuffer(b"[1, 2]", "u1"))}, "onepass.npy holds no state dict"),
    "metadata without a state": ({"onepass.npy": npy(np.frombuffer(b"{}", "u1"))}, "onepass.npy holds no state dict"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_members_that_do_not_fit_are_refused(saved: Path, case: str) -> None:
    edits, message = MEMBERS[case]
    members = {**members_of(saved), **edits}
    archive(saved, {name: data for name, data in members.items() if data is not None})
    refused(saved, small_state(), message)


def test_a_member_that_is_there_twice_is_refused(saved: Path) -> None:
    members = members_of(saved)
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(saved, [*members.items(), (EXP_AVG, members[EXP_AVG])])
    refused(saved, small_state(), "duplicate archive member")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "SGD", "checkpoint is for 'SGD', not 'AdamW'"),
        ("version", 2, "it was written by a newer onepass"),
        ("state", [1, 2], "the state of parameter 0 ('w') must be a mapping, got 1"),
        ("state", [], "it holds 0 parameters, the optimizer has 2"),
        ("param_groups", 3, "param_groups must be a list, got 3"),
        ("param_groups", [3], "group 0 must be a mapping, got 3"),
        ("skipped", -1, "skipped must be at least 0"),
        ("skipped", 1e300, "skipped must be an integer"),
        ("extra", None, "the state dict has unknown ['extra']"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(saved: Path, key: str, value: Any, message: str) -> None:
    members = members_of(saved)
    scalars = json.loads(members["onepass.npy"].split(b"\n", 1)[1])
    text = json.dumps({**scalars, key: value}).encode()
    archive(saved, {**members, "onepass.npy": npy(np.frombuffer(text, "u1"))})
    refused(saved, small_state(), message)


def test_compressed_members_are_refused(saved: Path) -> None:
    archive(saved, members_of(saved), compression=zipfile.ZIP_DEFLATED)
    refused(saved, small_state(), "onepass.npy is compressed; onepass checkpoints are stored uncompressed")


def test_an_encrypted_member_is_refused(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    saved.write_bytes(data)
    refused(saved, small_state(), "encrypted")


def test_a_member_that_is_shorter_than_its_array_is_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "x", state_of(np.ones(2, np.float32))
    _checkpoint.write(path, state)
    data, short = bytearray(path.read_bytes()), npy(state["state"][0]["exp_avg"])[:-4]  # one number could be broadcast
    entry = data.rindex(EXP_AVG.encode()) - 46  # in the directory
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 16 : entry + 24] = struct.pack("<2I", zlib.crc32(short), len(short))  # but the full file size
    path.write_bytes(data)
    refused(path, state, "state/0/exp_avg.npy ends too early", EOFError)


def test_what_the_zip_reader_said_is_the_cause(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[data.index(np.float32(-2).tobytes())] ^= 1
    saved.write_bytes(data)
    message = refused(saved, small_state(), cause=zipfile.BadZipFile)
    assert "the file is damaged, or no checkpoint (Bad CRC-32 for file 'state/0/exp_avg.npy')" in message


def header(text: bytes, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def plain_header(shape: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode())


BOMBS: dict[str, dict[str, bytes]] = {
    "a huge shape": {EXP_AVG: plain_header(f"({2**50},)")},
    "a shape beyond all numbers": {EXP_AVG: plain_header(f"({2**62}, {2**62})")},
    "a shape of a number without end": {EXP_AVG: plain_header(f"({'9' * 60_000},)")},
    "a shape of a long number": {EXP_AVG: plain_header(f"({'9' * 4_000},)")},
    "a huge item": {EXP_AVG: header(b"{'descr': '|V2000000000', 'fortran_order': False, 'shape': (), }\n")},
    "a header without end": {EXP_AVG: header(b"(" * 60_000)},
    "a header of signs": {EXP_AVG: header(b"-" * 9_000 + b"1\n")},
    "a header of 30 MB": {EXP_AVG: header(b" " * 30_000_000 + b"\n", version=2)},
    "metadata of 30 MB": {"onepass.npy": npy(np.frombuffer(b"[" + b"0," * 15_000_000 + b"0]", "u1"))},
    "metadata nested without end": {"onepass.npy": npy(np.frombuffer(b"[" * 60_000, "u1"))},
    "a member of 30 MB": {EXP_AVG: npy(np.zeros(3, "f4")) + bytes(30_000_000)},
    "a member of 30 MB that nobody needs": {"x": bytes(30_000_000)},
    "a number without end": {"onepass.npy": npy(np.frombuffer(b"9" * 60_000, "u1"))},
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_cost_no_memory(saved: Path, case: str) -> None:
    archive(saved, {**members_of(saved), **BOMBS[case]})
    refused(saved, small_state())


@pytest.mark.parametrize("length", [1, 60_000])
def test_a_directory_of_many_members_costs_no_memory(saved: Path, length: int) -> None:
    names = [f"{i:0{length}}" for i in range(40_000 if length == 1 else 60)]
    archive(saved, {**members_of(saved), **dict.fromkeys(names, b"")})
    refused(saved, small_state(), "its directory or onepass.npy has")


def test_a_small_file_that_claims_a_huge_array_costs_no_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = small_state()
    for name in ("exp_avg", "exp_avg_sq"):
        like["state"][0][name] = np.broadcast_to(np.float32(0), (1 << 40,))
    for name in ("exp_avg", "exp_avg_sq"):  # the shape fits, the size in the directory does not
        archive(saved, {**members_of(saved), f"state/0/{name}.npy": plain_header(f"({1 << 40},)")})
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("an array was allocated"))
    with pytest.raises(ValueError, match="bytes, wrong for"):
        _checkpoint.read(saved, like)


@pytest.mark.parametrize("case", [case for case in MEMBERS if "metadata" not in case])
def test_the_last_array_is_checked_before_the_first_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    last = "state/1/exp_avg_sq.npy"
    edits, _ = MEMBERS[case]
    members = {**members_of(saved), **{last if name == EXP_AVG else name: data for name, data in edits.items()}}
    if case == "a scalar":
        members[last] = npy(np.zeros(1))
    if case == "another dtype":
        members[last] = npy(np.float32(0))
    archive(saved, {name: data for name, data in members.items() if data is not None})
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("an array was allocated"))
    with pytest.raises(ValueError, match="cannot load"):
        _checkpoint.read(saved, small_state())


# ---- State dicts that do not fit ----


def test_a_state_dict_fits_itself_whatever_its_layout_and_numbers() -> None:
    like = state_of(np.ones((3, 4)), mu_product=0.5)
    state = state_of(np.zeros((4, 6)).T[::2], mu_product=1e-300)
    state["param_groups"][0] |= {"lr": None, "betas": [0, 1], "eps_mode": "hat", "params": (0,)}
    state["skipped"] = 2**53
    before = copy.deepcopy(state), copy.deepcopy(like)
    _checkpoint.check(state, like)
    assert_equal((state, like), before)


def put(value: Any, *keys: Any) -> Callable[[StateDict], Any]:
    """An edit that puts a value at the place in the state dict."""

    def edit(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return edit


def drop(*keys: Any) -> Callable[[StateDict], Any]:
    def edit(state: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return edit


GROUP = ("param_groups", 0)
ENTRY = ("state", 1)
F8 = np.float64

MISFITS: dict[str, tuple[Callable[[StateDict], Any], type[Exception], str]] = {
    "no version": (drop("version"), ValueError, "the state dict lacks ['version']"),
    "no optimizer": (drop("optimizer"), ValueError, "the state dict lacks ['optimizer']"),
    "no state": (drop("state"), ValueError, "the state dict lacks ['state']"),
    "an unknown key": (put(1, "rng"), ValueError, "the state dict has unknown ['rng']"),
    "a newer version": (put(2, "version"), ValueError, "it was written by a newer onepass: version must be 1, got 2"),
    "an older version": (put(0, "version"), ValueError, "version must be 1, got 0"),
    "a version of text": (put("1", "version"), TypeError, "version must be an integer, got '1'"),
    "a version of truth": (put(True, "version"), TypeError, "version must be an integer, got True"),
    "another optimizer": (put("Adam", "optimizer"), ValueError, "checkpoint is for 'Adam', not 'AdamW'"),
    "an optimizer of bytes": (put(b"AdamW", "optimizer"), TypeError, "optimizer must be a string, got b'AdamW'"),
    "a step count < 0": (put(-1, "step_count"), ValueError, "step_count must be at least 0"),
    "a step count too large": (put(2**62 + 1, "step_count"), ValueError, "at most 2**62, got 4611686018427387905"),
    "a float step count": (put(1.0, "step_count"), TypeError, "step_count must be an integer, got 1.0"),
    "a step count of truth": (put(True, "step_count"), TypeError, "step_count must be an integer, got True"),
    "skipped < 0": (put(-1, "skipped"), ValueError, "skipped must be at least 0"),
    "groups in a mapping": (put({}, "param_groups"), TypeError, "param_groups must be a list, got {}"),
    "no groups": (put([], "param_groups"), ValueError, "it holds 0 groups, the optimizer has 1"),
    "a group of text": (put(["a"], "param_groups"), TypeError, "group 0 must be a mapping, got 'a'"),
    "a missing option": (drop(*GROUP, "eps"), ValueError, "group 0 lacks ['eps']"),
    "an unknown option": (put(1, *GROUP, "rho"), ValueError, "group 0 has unknown ['rho']"),
    "missing and unknown": (put([{"params": [0]}], "param_groups"), ValueError, "group 0 lacks ['param_names', 'lr', "),
    "no names": (
        drop(*GROUP, "param_names"),
        ValueError,
        "checkpoint is for parameters without names, but this optimizer's have names: make the optimizer with an",
    ),
    "other names": (
        put(["w", "c"], *GROUP, "param_names"),
        ValueError,
        "the name of parameter 1 of its group: expected 'b', got 'c' in the checkpoint",
    ),
    "names of numbers": (put(["w", 1], *GROUP, "param_names"), TypeError, "item 1, must be 'b', got 1"),
    "one name": (put("wb", *GROUP, "param_names"), TypeError, "param_names of group 0 must be a list, got 'wb'"),
    "fewer in a group": (
        put([0], *GROUP, "params"),
        ValueError,
        "it holds 1 parameter in params of group 0, the optimizer",
    ),
    "another order": (
        put([1, 0], *GROUP, "params"),
        ValueError,
        "the index of parameter 0 of its group: expected 0, got 1",
    ),
    "params of arrays": (put([0, np.zeros(2)], *GROUP, "params"), TypeError, "item 1, must be 1, got array"),
    "params of truth": (put([0, True], *GROUP, "params"), TypeError, "item 1, must be 1, got True"),
    "a schedule": (put(print, *GROUP, "lr"), TypeError, "lr of group 0 must be a number, a string or None"),
    "an option of bytes": (put(b"x", *GROUP, "eps"), TypeError, "eps of group 0 must be a number, a string or None"),
    "an option of arrays": (put(np.zeros(2), *GROUP, "betas"), TypeError, "betas of group 0 must be a number"),
    "an option of texts": (put(["a"], *GROUP, "betas"), TypeError, "an item of betas of group 0 must be a number"),
    "state in a list": (put([], "state"), TypeError, "state must be a mapping, got []"),
    "more parameters": (put({}, "state", 2), ValueError, "it holds 3 parameters, the optimizer has 2"),
    "fewer parameters": (drop("state", 0), ValueError, "it holds 1 parameter, the optimizer has 2"),
    "other keys": (
        lambda d: d["state"].update({"1": d["state"].pop(1)}),
        ValueError,
        "state lacks [1] and has unknown ['1']",
    ),
    "a parameter's state of text": (put("x", *ENTRY), TypeError, "the state of parameter 1 ('b') must be a mapping"),
    "a missing array": (drop(*ENTRY, "exp_avg"), ValueError, "the state of parameter 1 ('b') lacks ['exp_avg']"),
    "an unknown array": (
        put(0, *ENTRY, "ema"),
        ValueError,
        "the state of parameter 1 ('b'): it was saved with ema_decay",
    ),
    "another dtype": (
        put(np.zeros((), "f4"), *ENTRY, "exp_avg"),
        ValueError,
        "exp_avg of parameter 1 ('b'): expected the parameter's dtype float64, got float32",
    ),
    "the other byte order": (
        put(np.zeros((), ">f8"), *ENTRY, "exp_avg"),
        ValueError,
        "expected the parameter's dtype float64, got >f8",
    ),
    "another shape": (
        put(np.zeros(1), *ENTRY, "exp_avg"),
        ValueError,
        "exp_avg of parameter 1 ('b') must have shape (), got (1,)",
    ),
    "a number for an array": (put(0.0, *ENTRY, "exp_avg"), TypeError, "('b') must be a NumPy array, got 0.0"),
    "a NumPy number": (put(F8(0), *ENTRY, "exp_avg"), TypeError, "exp_avg of parameter 1 ('b') must be a NumPy array"),
    "a mask": (put(np.ma.masked_array(0.0), *ENTRY, "exp_avg"), TypeError, "must be a NumPy array, got masked_array"),
    "a step < 0": (put(-1, *ENTRY, "step"), ValueError, "step of parameter 1 ('b') must be at least 0"),
    "a float step": (put(2.0, *ENTRY, "step"), TypeError, "step of parameter 1 ('b') must be an integer, got 2.0"),
    "a step of truth": (put(False, *ENTRY, "step"), TypeError, "step of parameter 1 ('b') must be an integer"),
    "NaN": (put(float("nan"), *ENTRY, "mu_product"), ValueError, "mu_product of parameter 1 ('b') must be finite"),
    "an integer": (put(1, *ENTRY, "mu_product"), TypeError, "mu_product of parameter 1 ('b') must be a float, got 1"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_state_dict_that_does_not_fit_is_refused(case: str) -> None:
    edit, error, message = MISFITS[case]
    like, state = (state_of(np.zeros(3, "f4"), np.zeros(()), names=["w", "b"], mu_product=0.5) for _ in range(2))
    edit(state)
    with pytest.raises(error, match=re.escape(message)) as caught:
        _checkpoint.check(state, like)
    assert caught.type is error


@pytest.mark.parametrize("value", [None, [], "state", 3])
def test_what_is_no_mapping_is_no_state_dict(value: Any) -> None:
    with pytest.raises(TypeError, match="a state dict must be a mapping"):
        _checkpoint.check(value, small_state())


def test_parameters_without_names_are_numbered() -> None:
    state = state_of(np.zeros(3), np.zeros(2))
    del state["state"][1]["step"]
    with pytest.raises(ValueError, match=r"the state of parameter 1 lacks \['step'\]"):
        _checkpoint.check(state, state_of(np.zeros(3), np.zeros(2)))


def test_names_on_one_side_only_are_said_in_words(tmp_path: Path) -> None:
    w = np.zeros(2, np.float32)
    named, bare = onepass.Adam({"w": w}), onepass.Adam(w)
    for saved, other, message in (
        (bare, named, "parameters without names, but this optimizer's have names: make the optimizer with an array"),
        (
            named,
            bare,
            "parameters with names, ['w'], but this optimizer's have none: make the optimizer with a mapping",
        ),
    ):
        saved.save(tmp_path / "adam.npz")
        with pytest.raises(ValueError, match=re.escape(f"checkpoint is for {message}")):
            other.load(tmp_path / "adam.npz")
        with pytest.raises(ValueError, match=re.escape(f"checkpoint is for {message}")):
            other.load_state_dict(saved.state_dict())


def test_a_folder_of_several_ranks_is_no_file(tmp_path: Path) -> None:
    optimizer = onepass.Adam(np.zeros(2, np.float32))
    with pytest.raises(OSError, match=re.escape(str(tmp_path))) as caught:
        optimizer.load(tmp_path)
    assert "ShardedOptimizer" not in str(caught.value)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(
        IsADirectoryError, match="the folder of a ShardedOptimizer: load it with one, or have one save "
    ):
        optimizer.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        optimizer.load(tmp_path / "none")
