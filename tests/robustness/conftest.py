"""A library, for LD_PRELOAD, that makes memory and threads run out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the library."""
    if not sys.platform.startswith("linux") or COMPILER is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("allocations") / "allocations.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "allocations.c"), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True)
    if "needs glibc" in built.stderr:
        pytest.skip("needs glibc")
    assert built.returncode == 0, built.stderr
    return library
