"""Tests on other platforms: the tests exist, and only the numbers of a complete run are recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.platforms import arm
from tools.platforms.record import passed_and_failed


@pytest.mark.parametrize(
    ("summary", "status", "numbers"),
    [
        ("=== 12 passed, 3 skipped in 3.21s ===", 0, (12, 0)),
        ("=== 1 failed, 12 passed, 2 errors in 3.21s ===", 1, (12, 3)),
    ],
)
def test_a_complete_run_gives_the_numbers_of_its_summary(summary: str, status: int, numbers: tuple[int, int]) -> None:
    assert passed_and_failed("musl", summary, status) == numbers


@pytest.mark.parametrize(
    ("summary", "status"),
    [
        ("", -11),
        ("no tests ran in 0.01s", 5),
        ("1 error in 0.10s", 2),
        ("12 passed in 3.21s", 2),
        ("12 passed in 3.21s", -11),
        ("1 failed, 12 passed in 3.21s", 2),
        ("1 failed, 12 passed in 3.21s", 0),
    ],
)
def test_a_run_that_ended_early_is_refused(summary: str, status: int) -> None:
    with pytest.raises(RuntimeError, match=r"^musl: expected a complete run of the tests, got status"):
        passed_and_failed("musl", summary, status)


@pytest.mark.parametrize("test", arm.TESTS)
def test_the_tests_for_arm_exist(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}" in Path(__file__).parents[1].joinpath(file).read_text(encoding="utf-8")
