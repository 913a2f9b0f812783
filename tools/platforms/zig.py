"""Zig's C++ compiler for other platforms, from PyPI's package ziglang, with the C library of each target."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .record import ROOT

WORK = ROOT / "build" / "platforms"


def version() -> str:
    """Return the version of Zig."""
    ran = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True, check=True)
    return f"Zig {ran.stdout.strip()}"


def compilers(target: str) -> dict[str, Path]:
    """Write programs cc, c++, ar and ranlib for a target, such as aarch64-linux-gnu.2.28, and return their paths."""
    folder = WORK / f"zig-{target}"
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name in ("cc", "c++", "ar", "ranlib"):
        of_target = f" -target {target}" if name in ("cc", "c++") else ""
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -m ziglang {name}{of_target} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        written[name] = path
    return written
