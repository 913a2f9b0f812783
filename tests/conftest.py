"""A fixture of all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import onepass


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    """Let no test leave a number of threads behind: even the default counts as the user's limit if it was set."""
    yield
    onepass.set_num_threads(None)
