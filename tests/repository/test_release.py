"""Requirements of a release: one place for the version, a changelog, a citation that names no version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tools import rehearse_release, release

import onepass

ROOT = Path(__file__).parents[2]


def version() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (found,) = re.findall(r'^version = "([\d.]+)"$', text, re.MULTILINE)  # the line that the release workflow reads
    return str(found)


def test_the_package_version_equals_the_version_in_pyproject() -> None:
    assert onepass.__version__ == version()


def test_the_version_is_written_in_no_file_but_pyproject() -> None:
    files = [ROOT / "CMakeLists.txt", ROOT / "CITATION.cff", ROOT / "Makefile", ROOT / "docs" / "conf.py"]
    for folder in ("src", "python"):
        files += [file for file in (ROOT / folder).rglob("*") if file.suffix in (".py", ".pyi", ".cpp", ".hpp", ".inl")]
    assert len(files) > 40
    for file in files:
        assert version() not in file.read_text(encoding="utf-8"), file.name


def test_the_changelog_begins_with_an_unreleased_section() -> None:
    sections = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert sections[1:] == sorted(sections[1:], key=lambda s: tuple(map(int, s.split("."))), reverse=True)


def test_every_action_is_pinned_by_the_hash_of_a_commit() -> None:
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    used = [use for file in workflows for use in re.findall(r"uses: (\S+.*)", file.read_text(encoding="utf-8"))]
    assert len(used) > 20
    for use in used:
        assert use.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", use), use


def test_each_job_has_a_description() -> None:
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        lines = file.read_text(encoding="utf-8").partition("\njobs:\n")[2].splitlines()
        for number, line in enumerate(lines):
            if re.fullmatch(r"  [\w-]+:", line):
                assert number > 0 and lines[number - 1].startswith("  # "), f"{file.name}: {line.strip()}"


# ---- Obstacles to a release ----

READY = {
    "README.md": "`pip install onepass`, and the [docs](docs/installing.md)\n",
    "docs/installing.md": "There is a release.\n",
    "docs/api/index.md": "The release notes yet to come.\n",
    "SECURITY.md": "Report it at https://example.org/onepass/security.\n",
    "python/onepass/__main__.py": "ADDRESS = 'https://example.org/onepass/issues'\n",
    "pyproject.toml": """\
[project]
dynamic = ["readme"]

[project.urls]
Changelog = "https://example.org/onepass/changelog"
Repository = "https://example.org/onepass"

[tool.scikit-build]
metadata.readme.provider = "scikit_build_core.metadata.fancy_pypi_readme"
""",
}


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_complete_repository_is_ready_for_a_release(tmp_path: Path) -> None:
    assert release.unready(written(tmp_path, READY)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("README.md", "`pip", "There is no release yet. `pip", "README.md: still says"),
        ("docs/installing.md", "a release", "no\nrelease yet", "docs/installing.md: still says"),
        ("docs/installing.md", "There is a", "With a release there will be a", "docs/installing.md: still says"),
        ("docs/api/index.md", "The", "(There is no release yet.) The", "docs/api/index.md: still says"),
        ("SECURITY.md", "https://example.org/onepass", "the repository", "SECURITY.md: has no"),
        ("python/onepass/__main__.py", "example.org", "example.com", "__main__.py: has no"),
        ("pyproject.toml", "fancy_pypi_readme", "nothing", "README.md: 1 links are relative, docs/installing.md"),
        ("pyproject.toml", "\nRepository", "\n[tool.x]\nRepository", "pyproject.toml: [project.urls] has no"),
        ("pyproject.toml", "[project.urls]", "[tool.x]", "pyproject.toml: [project.urls] has no"),
    ],
)
def test_a_release_is_refused_if_something_is_missing(
    tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    assert old in READY[name]
    found = release.unready(written(tmp_path, {**READY, name: READY[name].replace(old, new, 1)}))
    assert any(message in sentence for sentence in found), found


def test_all_pages_agree_whether_onepass_is_released() -> None:
    install = ["README.md", "docs/distributed.md", "docs/index.md", "docs/installing.md", "docs/quickstart.md"]
    assert release.before_a_release(ROOT) in ([], install)
    text = (ROOT / "RELEASING.md").read_text(encoding="utf-8")
    assert "python -m tools.release" in text


@pytest.mark.skipif(shutil.which("git") is None or os.name == "nt", reason="needs git and a POSIX shell")
def test_a_release_with_a_wrong_tag_version_changelog_or_branch_is_refused(tmp_path: Path) -> None:
    script = rehearse_release.checks_of_the_tag(
        (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    )

    def git(*arguments: str) -> None:
        options = ["-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def accepted(tag: str) -> bool:
        environment = {**os.environ, "TAG": tag}
        return subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env=environment).returncode == 0

    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.4] - 2026-02-02\n## [1.2.3] - 2026-01-01\n")
    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "onepass 1.2.3")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    assert accepted("v1.2.3")
    assert not accepted("v1.2.4")
    git("commit", "-q", "-m", "not on main", "--allow-empty")
    assert not accepted("v1.2.3")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.2] - 2026-01-01\n")
    assert not accepted("v1.2.3")


def test_a_rehearsal_gives_the_version_a_section_of_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = rehearse_release.changelog_of_release(text, "9.8.7", "2026-02-03")
    assert "\n## [Unreleased]\n\n## [9.8.7] - 2026-02-03\n" in released
    assert released.replace("\n\n## [9.8.7] - 2026-02-03\n", "\n", 1) == text
    assert rehearse_release.changelog_of_release(released, "9.8.7", "2026-02-04") == released


def test_a_package_index_lists_each_file_with_its_checksum(tmp_path: Path) -> None:
    file = tmp_path / "onepass-9.8.7.tar.gz"
    file.write_bytes(b"abc")
    checksum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", from FIPS 180-2
    assert f'<a href="{file.as_uri()}#sha256={checksum}">{file.name}</a>' in rehearse_release.index_page([file])


def test_text_files_have_unix_line_ends_on_every_platform() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git")
    listed = subprocess.run(["git", "ls-files", "--eol"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed.count("\n") > 400
    for line in listed.splitlines():
        assert re.match(r"i/(lf|none) .*attr/text=auto eol=lf|i/\S+ .*attr/-text", line), line


def test_pre_commit_and_make_lint_pin_the_same_versions() -> None:
    hooks = re.findall(r'additional_dependencies: \["(.+?)"\]', (ROOT / ".pre-commit-config.yaml").read_text())
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(hooks) == 3 and all(f'"{hook}"' in settings for hook in hooks)


def test_every_tested_python_version_has_a_classifier() -> None:
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = set(re.findall(r'"(3\.\d+)"', re.findall(r"python: (\[.*\])", workflow)[0]))
    assert set(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', settings)) == tested - {"3.15"}  # a beta
