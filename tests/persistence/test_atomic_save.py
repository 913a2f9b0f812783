"""A save that fails, at any byte, leaves the old file; permissions and links are kept."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_files import POSIX, assert_equal, small_state, state_of, temporaries
from onepass import _archive, _checkpoint

WINDOWS = pytest.mark.skipif(os.name != "nt", reason="needs Windows")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("old", [True, False])
def test_an_error_at_any_byte_of_a_save_leaves_the_old_file(
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
def test_a_failed_fsync_or_rename_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = saved.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="Input/output error"):
        _checkpoint.write(saved, state_of(np.zeros(3)))
    assert saved.read_bytes() == before and temporaries(saved.parent) == []


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_rename_that_the_system_refuses_for_a_moment_is_repeated(
    saved: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    before, replace, calls = saved.read_bytes(), Path.replace, iter(range(10))

    def refused_at_first(self: Path, target: Path) -> Path:
        if next(calls) < refusals:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(_archive, "_PAUSES", [0.0, 0.0])
    monkeypatch.setattr(Path, "replace", refused_at_first)
    new = state_of(np.zeros(3))
    if refusals == 2:
        _checkpoint.write(saved, new)
        assert_equal(_checkpoint.read(saved, new), new)
    else:
        with pytest.raises(PermissionError):
            _checkpoint.write(saved, new)
        assert saved.read_bytes() == before
    assert next(calls) == 3 and temporaries(saved.parent) == []


def test_a_rename_onto_a_read_only_file_is_not_repeated(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def refused(*_: Any) -> None:
        nonlocal calls
        calls += 1
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(_archive, "_PAUSES", [0.0, 0.0])
    monkeypatch.setattr(Path, "replace", refused)
    saved.chmod(stat.S_IREAD)
    with pytest.raises(PermissionError, match="Access is denied"):
        _checkpoint.write(saved, state_of(np.zeros(3)))
    saved.chmod(stat.S_IREAD | stat.S_IWRITE)
    assert calls == 1 and temporaries(saved.parent) == []


@WINDOWS
@pytest.mark.parametrize("reason", ["open", "read-only"])
def test_a_file_that_windows_does_not_replace_stays_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(_archive, "_PAUSES", [0.0])
    if reason == "read-only":
        (saved.parent / "new").touch()
        (saved.parent / "read-only").touch(stat.S_IREAD)
        with contextlib.suppress(PermissionError):
            (saved.parent / "new").replace(saved.parent / "read-only")
            pytest.skip("this Windows (wine, as root) replaces read-only files")
        saved.chmod(stat.S_IREAD)
    with saved.open("rb") if reason == "open" else contextlib.nullcontext(), pytest.raises(PermissionError):
        _checkpoint.write(saved, small_state())
    assert saved.read_bytes() == before and temporaries(saved.parent) == []
    saved.chmod(stat.S_IREAD | stat.S_IWRITE)
    _checkpoint.write(saved, small_state())
    assert_equal(_checkpoint.read(saved, small_state()), small_state())


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(
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
def test_a_folder_without_fsync_is_accepted_and_a_failing_fsync_raises(
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
    groups = [{"params": [0], "lr": 0.1, "state_dtype": None}]
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
def test_a_process_killed_while_saving_leaves_a_complete_file(tmp_path: Path) -> None:
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


def test_state_that_json_cannot_hold_is_refused_and_writes_nothing(tmp_path: Path) -> None:
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
def test_saving_through_a_symbolic_link_writes_its_target(tmp_path: Path, exists: bool) -> None:
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
def test_circular_symbolic_links_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for call in (_checkpoint.write, _checkpoint.read):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            call(tmp_path / "a", small_state())
