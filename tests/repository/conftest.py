"""Tests of the repository: pages, examples, benchmarks, tools; left out where only the package is installed."""

from __future__ import annotations

from pathlib import Path

collect_ignore_glob = [] if (Path(__file__).parents[2] / "Makefile").exists() else ["test_*.py"]
