"""Checks before a release: a wheel or a file that is wrong, missing or duplicated is reported."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from tools import wheels
from tools.wheels import ROOT

VERSION = wheels.PROJECT["version"]
INFO = f"onepass-{VERSION}.dist-info/"
PLATFORMS = {
    "manylinux_x86_64": "manylinux_2_27_x86_64.manylinux_2_28_x86_64",
    "manylinux_aarch64": "manylinux_2_27_aarch64.manylinux_2_28_aarch64",
    "musllinux_x86_64": "musllinux_1_2_x86_64",
    "musllinux_aarch64": "musllinux_1_2_aarch64",
    "macosx_x86_64": "macosx_10_13_x86_64",
    "macosx_arm64": "macosx_11_0_arm64",
    "win_amd64": "win_amd64",
}


def made(folder: Path, name: str, without: str = "", extra: str = "", size: int = 0) -> Path:
    """Write a wheel of that name with fake contents in the files of a real wheel."""
    python, _, platform = name.partition("-")
    wheel = folder / f"onepass-{VERSION}-{python.rstrip('t')}-{python}-{PLATFORMS[platform]}.whl"
    names = [file.removeprefix("python/") for file in wheels.output("git", "-C", ROOT, "ls-files", "python").split()]
    names += [INFO + file for file in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")]
    names += [
        "onepass/_core.cp-win_amd64.pyd" if platform == "win_amd64" else "onepass/_core.cpython-x.so",
        extra,
        "onepass/",
    ]
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in names:
            if file and file != without:
                archive.writestr(file, os.urandom(size) if "_core.c" in file else "")
    return wheel


MISTAKES = {
    "a library of another's": ({"extra": "onepass.libs/libstdc++-0123abcd.so.6"}, "brings onepass.libs/libstdc++"),
    "a file outside the package": ({"extra": "conftest.py"}, "brings conftest.py"),
    "a source": ({"extra": "onepass/module.cpp"}, "brings onepass/module.cpp"),
    "a module that is missing": ({"without": "onepass/_reference/rules.py"}, "has no onepass/_reference/rules.py"),
    "no license": ({"without": INFO + "licenses/LICENSE"}, f"has no {INFO}licenses/LICENSE"),
    "nothing compiled": ({"without": "onepass/_core.cpython-x.so"}, "has 0 compiled modules"),
    "too much": ({"size": max(wheels.LARGEST_WITH_CXX.values()) + 1}, "bytes, more than"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_unexpected_and_missing_files_in_a_wheel_are_reported(mistake: str, tmp_path: Path) -> None:
    options, words = MISTAKES[mistake]
    assert wheels.problems_of(made(tmp_path, "cp312-musllinux_x86_64")) == []
    (problem,) = wheels.problems_of(made(tmp_path, "cp312-musllinux_x86_64", **options))
    assert words in problem


def test_a_windows_wheel_may_contain_only_microsofts_cxx_library(tmp_path: Path) -> None:
    library = "onepass.libs/msvcp140-0123456789abcdef.dll"
    assert wheels.problems_of(made(tmp_path, "cp312-win_amd64", extra=library)) == []
    assert wheels.problems_of(made(tmp_path, "cp312-win_amd64", extra=library.replace("msvcp", "vcomp"))) != []
    assert wheels.problems_of(made(tmp_path, "cp312-macosx_arm64", extra=library)) != []


def test_a_module_that_requires_a_newer_glibc_than_its_tag_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "needed", lambda wheel: {"GLIBC_2.27": ["a"], "GLIBCXX_3.4.30": ["b"]})
    assert wheels.problems_of(made(tmp_path, "cp312-manylinux_x86_64")) == []
    monkeypatch.setattr(wheels, "needed", lambda wheel: {"GLIBC_2.28": ["a"]})
    assert wheels.problems_of(made(tmp_path, "cp312-manylinux_x86_64")) != []


def test_a_release_with_a_missing_duplicate_or_unknown_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "needed", lambda wheel: {})
    monkeypatch.setattr(wheels, "check", lambda wheel: "")  # which runs other programs
    sdist = tmp_path / f"onepass-{VERSION}.tar.gz"
    sdist.touch()
    files = [sdist, *(made(tmp_path, name) for name in wheels.documented())]
    assert len(files) > 50
    assert wheels.check_release(files) == 0
    (tmp_path / "x").mkdir()
    again, unknown = made(tmp_path / "x", "cp312-win_amd64"), made(tmp_path, "cp399-win_amd64")
    for wrong, words in [
        (files[1:], "0 source archives"),
        (files[:-1], "is there 0 times"),
        ([*files, again], "cp312-win_amd64 is there 2 times"),
        ([*files, unknown], "does not list cp399-win_amd64"),
        ([*files, tmp_path / "notes.txt"], "notes.txt is no part of a release"),
    ]:
        capsys.readouterr()
        assert wheels.check_release(wrong) == 1
        assert words in capsys.readouterr().out
