"""Fixtures of the tests of checkpoint files."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint_files import small_state
from onepass import _checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint file of `small_state`."""
    _checkpoint.write(tmp_path / "state.npz", small_state())
    return tmp_path / "state.npz"
