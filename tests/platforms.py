"""The wheels that cibuildwheel will make are those that docs/installing.md lists: python tests/platforms.py.

And its settings are what its own schema allows: it looks at some of them only when it builds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import tomllib

ROOT = Path(__file__).parents[1]
# What the wheels workflow's runners are: the platform, its processor.
RUNNERS = [("linux", "x86_64"), ("linux", "aarch64"), ("macos", "x86_64"), ("macos", "arm64"), ("windows", "AMD64")]


def configured() -> set[str]:
    """What cibuildwheel says it would build on each."""
    found: set[str] = set()
    for platform, architecture in RUNNERS:
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
        ran = subprocess.run([*command, "--archs", architecture, ROOT], capture_output=True, text=True, check=True)
        found |= set(ran.stdout.split())
    return found


def documented() -> set[str]:
    """The page's table: a platform in each row, the Pythons in the second column."""
    page = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`cp[^|]+`) \|", page, re.MULTILINE)
    return {f"{python}-{platform}" for platform, pythons in rows for python in re.findall(r"`(\w+)`", pythons)}


def main() -> int:
    schema = json.loads((files("cibuildwheel") / "resources" / "cibuildwheel.schema.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    jsonschema.validate(project["tool"]["cibuildwheel"], schema)
    here, there = configured(), documented()
    for word, names in (("does not list", here - there), ("lists, but cibuildwheel would not make", there - here)):
        if names:
            print(f"docs/installing.md {word}: {', '.join(sorted(names))}")
    print(f"platforms: {len(here)} wheels are configured")
    return here != there


if __name__ == "__main__":
    sys.exit(main())
