"""The golden files of the core's own tests hold what the executable specification gives now."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from onepass import _core

CPP = Path(__file__).parents[1] / "cpp"


@pytest.mark.skipif(not CPP.exists(), reason="the source distribution has no tests of the core")
@pytest.mark.skipif(sys.platform != "linux", reason="some coefficients depend on the C library's pow, exp and log")
def test_golden_files_match_the_specification() -> None:
    spec = importlib.util.spec_from_file_location("golden", CPP / "golden.py")
    assert spec is not None and spec.loader is not None
    golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden)
    expected = golden.contents()
    assert expected.keys() == {file.name for file in golden.FOLDER.iterdir()}
    assert expected.keys() >= {f"{rule}.bin" for rule in _core.rules}
    changed = [name for name, data in expected.items() if (golden.FOLDER / name).read_bytes() != data]
    assert not changed, "make golden"
