"""The example that fine-tunes a GPT-2 with fewer bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ = [pytest.importorskip(package) for package in ("torch", "transformers", "accelerate", "sklearn", "matplotlib")]

PROGRAM = Path(__file__).parents[4] / "examples" / "low_precision" / "fine_tuning.py"


def test_a_quick_run_fine_tunes_with_every_storage(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    subprocess.run([sys.executable, PROGRAM, "--quick", "--seeds", "1", "--out", out], cwd=tmp_path, check=True)
    assert out.read_bytes().startswith(b"\x89PNG")
    plain, float8, weights = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["storages"].values()
    for own in (float8, weights):
        assert own["held_out"] == pytest.approx(plain["held_out"], rel=0.01) and own["losses"] != plain["losses"]
        assert own["state"][0] < 0.6 * plain["state"][0]
