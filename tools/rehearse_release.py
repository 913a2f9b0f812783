"""Rehearse a release without GitHub and PyPI: python -m tools.rehearse_release [--python 3.12] [pytest's arguments].

Tags a release in a temporary clone of the last commit and does what .github/workflows/release.yml does with a tag: its
checks, the sdist, and wheels for the Pythons of this machine, repaired and tested. Then installs from a local package
index, and runs the self-check. Prints a line for each step; leaves out signatures and uploads.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import release
from .wheels import PROJECT, ROOT, digest, documented, environment, identifier, output, pythons

VERSION = PROJECT["version"]


def checks_of_the_tag(workflow: str) -> str:
    """Return the shell script of the release workflow that compares tag, version, changelog and branch."""
    (script,) = re.findall(r"- run: \|\n((?: {10}.*\n)+)", workflow)
    return str(script)


def changelog_of_release(text: str, version: str, date: str) -> str:
    """Return the changelog with what is unreleased as a section of the version."""
    if f"\n## [{version}]" in text:
        return text
    return text.replace("\n## [Unreleased]\n", f"\n## [Unreleased]\n\n## [{version}] - {date}\n", 1)


def index_page(files: list[Path]) -> str:
    """Return a project's page in a package index: a link with a checksum to each file."""
    links = [f'<a href="{file.as_uri()}#sha256={digest(file)}">{file.name}</a>' for file in files]
    return "<!DOCTYPE html>\n" + "\n".join(links) + "\n"


def tagged(clone: Path) -> None:
    """Clone the repository and make the commit and the tag of a release there."""
    output("git", "clone", "-q", ROOT, clone)
    changelog = clone / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    changelog.write_text(changelog_of_release(text, VERSION, f"{datetime.date.today()}"), encoding="utf-8")
    git: list[str | Path] = [
        "git",
        "-C",
        clone,
        "-c",
        "user.name=rehearsal",
        "-c",
        "user.email=",
        "-c",
        "commit.gpgsign=false",
    ]
    output(*git, "commit", "-q", "--allow-empty", "-a", "-m", f"onepass {VERSION}")
    output(*git, "tag", f"v{VERSION}")
    output(*git, "update-ref", "refs/remotes/origin/main", "HEAD")  # merged


def main() -> int:
    """Rehearse a release; return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        clone, dist = Path(folder, "onepass"), Path(folder, "onepass", "dist")
        tagged(clone)
        print(f"tag: v{VERSION}, in a clone of {output('git', '-C', ROOT, 'rev-parse', '--short', 'HEAD').strip()}")

        workflow = (clone / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
        output("bash", "-e", "-c", checks_of_the_tag(workflow), cwd=clone, env={**os.environ, "TAG": f"v{VERSION}"})
        print("checks: tag, version, changelog and branch agree")
        obstacles = release.unready(clone)
        print(f"ready: {'yes' if not obstacles else f'not yet, {len(obstacles)} tasks left (python -m tools.release)'}")

        built = [sys.executable, "-m", "tools.wheels", "--numpy", "newest", *sys.argv[1:]]
        if subprocess.run(built, cwd=clone).returncode:
            return 1
        files = sorted(dist.iterdir())
        names = {identifier(file) for file in files if file.suffix == ".whl"}
        if extra := names - documented().keys():
            sys.exit(f"docs/installing.md does not list {', '.join(sorted(extra))}")
        print(f"files: the sdist and {len(names)} of the {len(documented())} wheels in docs/installing.md")
        for file in files:
            print(f"  {digest(file)}  {file.name}, {file.stat().st_size / 1000:.0f} kB")

        page = Path(folder, "simple", "onepass", "index.html")
        page.parent.mkdir(parents=True)
        page.write_text(index_page(files), encoding="utf-8")
        for name, python in pythons().items():
            if not any(built_for.startswith(f"cp{name.replace('.', '')}-") for built_for in names):
                continue
            inside = environment(python, Path(folder, f"venv-{name}"), *PROJECT["dependencies"])
            # The dependencies are there, so that the local index can be the only source.
            pip: list[str | Path] = [inside, "-m", "pip", "--isolated", "install", "-q", "--only-binary", ":all:"]
            output(*pip, "--no-deps", "--index-url", page.parents[1].as_uri(), f"onepass=={VERSION}", cwd=folder)
            output(inside, "-m", "pip", "check", cwd=folder)
            output(inside, "-m", "onepass", cwd=folder)
            print(f"install: from the index into an empty environment of Python {name}; python -m onepass succeeds")
    print("left out: wheels of other platforms, attestations, the upload")
    return 0


if __name__ == "__main__":
    sys.exit(main())
