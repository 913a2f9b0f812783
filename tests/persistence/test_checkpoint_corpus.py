"""Every file that fuzzing has found worth keeping, once more; and no file makes anything unpickle or evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz_target import CORPUS, Target

INPUTS = sorted(CORPUS.iterdir())
FORBIDDEN = ("pickle.find_class", "exec", "compile", "import", "os.system", "subprocess.Popen", "ctypes.dlopen")


def test_every_file_of_the_corpus_is_refused_or_loads_its_contents(tmp_path: Path) -> None:
    target = Target(tmp_path)
    for _ in range(2):  # the second pass imports no module any more
        for path in INPUTS:
            target(path.read_bytes())
    assert target.loaded > 3 and target.refused > 20


_events: list[tuple[str, Any]] | None = None


def _hook(event: str, arguments: Any) -> None:
    if _events is not None and event in FORBIDDEN:
        _events.append((event, arguments))


def test_loading_unpickles_compiles_and_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global _events
    target = Target(tmp_path)
    for path in INPUTS:
        target(path.read_bytes())
    sys.addaudithook(_hook)
    for path in INPUTS:
        data = path.read_bytes()
        if not data:
            continue
        (tmp_path / "x").write_bytes(data[1:])
        _events = []
        try:
            target.made[data[0] % len(target.made)].load(tmp_path / "x")
        except ValueError:
            pass
        finally:
            found, _events = _events, None
        assert found == [], path.name
