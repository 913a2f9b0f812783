"""A fixture that every test uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import onepass


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    """Reset the number of threads after each test: a number that was set is a limit, even if it is the default."""
    yield
    onepass.set_num_threads(None)
