"""README, CONTRIBUTING and the benchmarks page: commands, links and examples that exist."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from support import make_targets

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"


class TestReadme:
    text = README.read_text(encoding="utf-8")

    def test_the_example_in_readme_is_the_quick_start(self) -> None:
        quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
        assert quickstart.split('"""\n', 1)[1].strip() in self.text.replace("\r\n", "\n")

    def test_make_commands_in_the_documents_exist(self) -> None:
        targets = make_targets(ROOT)
        for document in (README, ROOT / "CONTRIBUTING.md", BENCHMARKS):
            for target in re.findall(r"\bmake ([a-z-]+)\b", document.read_text(encoding="utf-8")):
                assert target in targets or target == "is", f"{document.name}: make {target}"

    def test_contributing_and_make_help_list_all_commands(self) -> None:
        listed = re.findall(r"^\| `make ([a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
        helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert re.findall(r"^make ([a-z-]+): \w", helped, re.MULTILINE) == listed
        hidden = {
            "help",
            "install",
            "clean",
            "lint-build",
            "lint-run",
            "sanitize-core",
            "sanitize-python",
            "cross-musl",
        }
        assert set(listed) == make_targets(ROOT) - hidden

    def test_relative_links_in_readme_and_the_benchmarks_page_exist(self) -> None:
        for document in (README, BENCHMARKS):
            for link in re.findall(
                r"\]\(([^)#]+)\)|srcset=\"([^\"]+)\"|src=\"([^\"]+)\"", document.read_text(encoding="utf-8")
            ):
                path = next(filter(None, link))
                if not path.startswith("http"):
                    assert (document.parent / path).exists(), path


def test_the_architecture_page_names_every_source_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.split("```text\n")[1].split("```")[0]
    patterns, folders = [], [""]
    for line, following in pairwise([*tree.splitlines(), ""]):
        depth = (len(line) - len(line.lstrip())) // 2
        folder = folders[depth]
        if following.startswith("  " * (depth + 1)):  # a folder whose files are listed
            folders[depth + 1 :] = [folder + line.split()[0]]
        else:
            names = re.findall(r"[\w*]+(?:/|\.(?:py|[hc]pp|inl|\*))(?=[\s,;:]|$)", line)
            patterns += [folder + name + "*" * name.endswith("/") for name in names]
    files = [path for folder in ("src", "python") for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = [path.relative_to(ROOT).as_posix() for path in files if path.suffix in {".py", ".hpp", ".cpp", ".inl"}]
    assert len(names) > 100
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []
