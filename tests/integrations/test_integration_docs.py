"""The snippets of docs/integrations.md run."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
CLIENTS = {"stable_baselines3", "lightning", "transformers", "skorch", "gpytorch", "pyro"}  # which may warn
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not next to the tests")


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: re.findall(r"import (\w+)", code)[0])
def test_every_snippet_of_the_integrations_page_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some save files
    libraries = {*re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)} - {"onepass"}
    for library in sorted(libraries):
        pytest.importorskip(library)
    with warnings.catch_warnings():
        if libraries & CLIENTS:
            warnings.simplefilter("ignore")
        exec(compile(code, str(PAGE), "exec"), {})


def test_page_has_a_snippet_for_each_library() -> None:
    assert len(SNIPPETS) == 7 + len(CLIENTS)


def test_the_pytorch_line_of_readme_runs_in_a_new_process() -> None:
    pytest.importorskip("torch")
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`(optimizer = [^`]*)`", text)
    code = ["import torch", "import onepass", "model = torch.nn.Linear(2, 1)", line]
    code += ["model(torch.ones(2)).sum().backward()", "optimizer.step()"]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True)
