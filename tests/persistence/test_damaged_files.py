"""Damaged, foreign and forged files are refused, and cost no memory."""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint_files import archive, assert_equal, members_of, npy, refused, small_state, state_of
from onepass import _checkpoint


def test_a_file_truncated_at_any_byte_is_refused(saved: Path) -> None:
    for size in reversed(range(saved.stat().st_size)):
        os.truncate(saved, size)
        with pytest.raises(ValueError, match="cannot load") as caught:
            _checkpoint.read(saved, small_state())
        assert caught.type is ValueError and caught.value.__cause__ is not None


def test_a_file_with_a_changed_byte_is_refused_or_reads_the_same(saved: Path) -> None:
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
                assert caught is None or (
                    type(caught) is ValueError and caught.__cause__ and repr(str(saved)) in str(caught)
                )
    assert saved.read_bytes() == whole
    assert accepted < len(whole) / 2  # dates, versions and sizes that are not read


def test_a_file_with_extra_bytes_around_it_is_refused_or_reads_the_same(saved: Path) -> None:
    whole = saved.read_bytes()
    for junk in (b"junk", b"PK\x05\x06", whole):
        for data in (junk + whole, whole + junk):
            saved.write_bytes(data)
            try:
                found = _checkpoint.read(saved, small_state())
            except ValueError:
                continue
            assert_equal(found, small_state())


def test_out_of_memory_is_not_reported_as_a_damaged_file(saved: Path) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        _checkpoint.read(saved, small_state(), allocate=exhausted)


def test_a_missing_file_raises_file_not_found(tmp_path: Path) -> None:
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
    "names outside the folder": lambda path: archive(path, {"../../evil.npy": b"x", "/etc/passwd": b"x"}),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused(tmp_path: Path, case: str) -> None:
    path = tmp_path / "foreign"
    FOREIGN[case](path)
    refused(path, small_state())
    assert list(tmp_path.iterdir()) == [path]


EXP_AVG = "state/0/exp_avg.npy"
MEMBERS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "a missing array": ({EXP_AVG: None}, "the state of parameter 0 ('w') is missing ['exp_avg']"),
    "an unknown array": (
        {"state/0/ema.npy": npy(np.zeros(3))},
        "it was saved with ema_decay: create the optimizer with ema_decay",
    ),
    "an array of no parameter": ({"state/2/exp_avg.npy": npy(np.zeros(3))}, "unknown members ['state/2/exp_avg.npy']"),
    "a name outside the folder": ({"../x.npy": b"x"}, "unknown members ['../x.npy']"),
    "another spelling": ({"state/00/exp_avg.npy": npy(np.zeros(3))}, "unknown members ['state/00/exp_avg.npy']"),
    "another dtype": (
        {EXP_AVG: npy(np.zeros(3))},
        "exp_avg of parameter 0 ('w'): expected the parameter's dtype float32, got float64",
    ),
    "the other byte order": ({EXP_AVG: npy(np.zeros(3, ">f4"))}, "expected the parameter's dtype float32, got >f4"),
    "another shape": ({EXP_AVG: npy(np.zeros((3, 1), "f4"))}, "('w'): expected shape (3,), got (3, 1)"),
    "a scalar": ({EXP_AVG: npy(np.float32(1))}, "('w'): expected shape (3,), got ()"),
    "objects": ({EXP_AVG: npy(np.array([1, 2, print], object))}, "expected the parameter's dtype float32, got |O"),
    "a structure": ({EXP_AVG: npy(np.zeros(3, [("a", "f4")]))}, "exp_avg.npy does not have the header of a plain"),
    "no header": ({EXP_AVG: b"numbers"}, "the file is damaged or not a checkpoint ("),
    "an empty member": ({EXP_AVG: b""}, "ends too early)"),
    "a header of version 2": ({EXP_AVG: b"\x93NUMPY\x02\x00" + npy(np.zeros(3, "f4"))[8:]}, "does not have the he"),
    "too few numbers": ({EXP_AVG: npy(np.zeros(3, "f4"))[:-4]}, "bytes, wrong for (3,) float32"),
    "too many numbers": ({EXP_AVG: npy(np.zeros(3, "f4")) + b"\0"}, "bytes, wrong for (3,) float32"),
    "no metadata": ({"onepass.npy": None}, "not a onepass checkpoint (missing member 'onepass.npy')"),
    "metadata that is not JSON": ({"onepass.npy": npy(np.frombuffer(b"{", "u1"))}, "Expecting property name"),
    "metadata that is not UTF-8": ({"onepass.npy": npy(np.frombuffer(b'"\xff"', "u1"))}, "'utf-8' codec can't decode"),
    "metadata of numbers": ({"onepass.npy": npy(np.frombuffer(b"[1, 2]", "u1"))}, "onepass.npy holds no state dict"),
    "metadata without a state": ({"onepass.npy": npy(np.frombuffer(b"{}", "u1"))}, "onepass.npy holds no state dict"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_archive_members_that_do_not_match_the_optimizer_are_refused(saved: Path, case: str) -> None:
    edits, message = MEMBERS[case]
    members = {**members_of(saved), **edits}
    archive(saved, {name: data for name, data in members.items() if data is not None})
    refused(saved, small_state(), message)


def test_a_duplicate_archive_member_is_refused(saved: Path) -> None:
    members = members_of(saved)
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(saved, [*members.items(), (EXP_AVG, members[EXP_AVG])])
    refused(saved, small_state(), "duplicate archive member")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "SGD", "checkpoint is for 'SGD', not 'AdamW'"),
        ("version", 2, "it was written by a newer onepass"),
        ("state", [1, 2], "the state of parameter 0 ('w'): expected a mapping, got 1"),
        ("state", [], "it holds 0 parameters, the optimizer has 2"),
        ("param_groups", 3, "param_groups: expected a list, got 3"),
        ("param_groups", [3], "group 0: expected a mapping, got 3"),
        ("skipped", -1, "skipped: expected at least 0"),
        ("skipped", 1e300, "skipped: expected an integer"),
        ("extra", None, "the state dict has unknown ['extra']"),
    ],
)
def test_invalid_metadata_is_refused(saved: Path, key: str, value: Any, message: str) -> None:
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


def test_an_archive_member_shorter_than_its_array_is_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "x", state_of(np.ones(2, np.float32))
    _checkpoint.write(path, state)
    data, short = bytearray(path.read_bytes()), npy(state["state"][0]["exp_avg"])[:-4]  # one number could be broadcast
    entry = data.rindex(EXP_AVG.encode()) - 46  # in the directory
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 16 : entry + 24] = struct.pack("<2I", zlib.crc32(short), len(short))  # but the full file size
    path.write_bytes(data)
    refused(path, state, "state/0/exp_avg.npy ends too early", EOFError)


def test_the_zip_readers_error_is_the_cause_of_the_exception(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[data.index(np.float32(-2).tobytes())] ^= 1
    saved.write_bytes(data)
    message = refused(saved, small_state(), cause=zipfile.BadZipFile)
    assert "the file is damaged or not a checkpoint (Bad CRC-32 for file 'state/0/exp_avg.npy')" in message


def header(text: bytes, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


def plain_header(shape: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode())


BOMBS: dict[str, dict[str, bytes]] = {
    "a huge shape": {EXP_AVG: plain_header(f"({2**50},)")},
    "a shape that overflows 64 bits": {EXP_AVG: plain_header(f"({2**62}, {2**62})")},
    "a shape of a number of 60,000 digits": {EXP_AVG: plain_header(f"({'9' * 60_000},)")},
    "a shape of a number of 4,000 digits": {EXP_AVG: plain_header(f"({'9' * 4_000},)")},
    "a huge item": {EXP_AVG: header(b"{'descr': '|V2000000000', 'fortran_order': False, 'shape': (), }\n")},
    "a header of 60,000 open parentheses": {EXP_AVG: header(b"(" * 60_000)},
    "a header of 9,000 minus signs": {EXP_AVG: header(b"-" * 9_000 + b"1\n")},
    "a header of 30 MB": {EXP_AVG: header(b" " * 30_000_000 + b"\n", version=2)},
    "metadata of 30 MB": {"onepass.npy": npy(np.frombuffer(b"[" + b"0," * 15_000_000 + b"0]", "u1"))},
    "metadata of 60,000 open brackets": {"onepass.npy": npy(np.frombuffer(b"[" * 60_000, "u1"))},
    "a member of 30 MB": {EXP_AVG: npy(np.zeros(3, "f4")) + bytes(30_000_000)},
    "an unknown member of 30 MB": {"x": bytes(30_000_000)},
    "metadata of a number of 60,000 digits": {"onepass.npy": npy(np.frombuffer(b"9" * 60_000, "u1"))},
}


@pytest.mark.parametrize("case", BOMBS)
def test_decompression_bombs_are_refused_without_using_memory(saved: Path, case: str) -> None:
    archive(saved, {**members_of(saved), **BOMBS[case]})
    refused(saved, small_state())


@pytest.mark.parametrize("length", [1, 60_000])
def test_an_archive_of_many_members_is_refused_without_using_memory(saved: Path, length: int) -> None:
    names = [f"{i:0{length}}" for i in range(40_000 if length == 1 else 60)]
    archive(saved, {**members_of(saved), **dict.fromkeys(names, b"")})
    refused(saved, small_state(), "its directory or onepass.npy has")


def test_a_small_file_that_claims_a_huge_array_uses_no_memory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
