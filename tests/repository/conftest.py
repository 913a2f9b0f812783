"""Tests of the repository's pages, examples, benchmarks and tools; left out beside an installed package."""

from __future__ import annotations

from pathlib import Path

collect_ignore_glob = [] if (Path(__file__).parents[2] / "Makefile").exists() else ["test_*.py"]
