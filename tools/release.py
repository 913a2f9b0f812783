"""Check that the repository is ready for a release: ``python -m tools.release`` prints the obstacles and exits with 1.

RELEASING.md explains each step. Needs only Python, because it runs before anything is built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Wording of the pages while `pip install onepass` finds nothing.
BEFORE = re.compile(r"\bno\s+release\s+yet\b|\bwith\s+a\s+release\s+there\s+will\s+be\b", re.IGNORECASE)
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")
WITH_ADDRESS = ("SECURITY.md", "python/onepass/__main__.py")  # their readers are to report something
ABSOLUTE_LINKS = "scikit_build_core.metadata.fancy_pypi_readme"  # makes README's links absolute for PyPI


def pages(root: Path) -> list[str]:
    """README and the pages of the site, by their paths."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [page.relative_to(root).as_posix() for page in found]


def before_a_release(root: Path) -> list[str]:
    """Return the pages that still announce a release."""
    return [page for page in pages(root) if BEFORE.search((root / page).read_text(encoding="utf-8"))]


def unready(root: Path = ROOT) -> list[str]:
    """Return a message for each obstacle; none if a release can be made."""
    found = [f"{page}: still says that there is no release" for page in before_a_release(root)]
    settings = (root / "pyproject.toml").read_text(encoding="utf-8")
    urls = re.search(r"^\[project\.urls\]\n((?:[^\[].*\n|\n)*)", settings, re.MULTILINE)
    address = re.search(r'^Repository = "(https://[^"]+)"', urls[1], re.MULTILINE) if urls else None
    if address is None:
        found.append('pyproject.toml: [project.urls] has no Repository = "https://..."')
    for name in WITH_ADDRESS:
        if address is None or address[1] not in (root / name).read_text(encoding="utf-8"):
            found.append(f"{name}: has no address of the repository")
    relative = LINK.findall((root / "README.md").read_text(encoding="utf-8"))
    if relative and ABSOLUTE_LINKS not in settings:
        found.append(f"README.md: {len(relative)} links are relative, {relative[0]} for one, and dead on PyPI")
    return found


if __name__ == "__main__":
    print("\n".join(unready()) or "ready for a release")
    sys.exit(len(unready()) > 0)
