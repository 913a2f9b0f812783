"""Whatever docs/integrations.md shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
SNIPPETS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: re.findall(r"import (\w+)", code)[0])
def test_a_snippet_runs(code: str) -> None:
    for library in re.findall(r"^(?:import|from) (torch|thinc|scipy)", code, re.MULTILINE):
        pytest.importorskip(library)
    exec(compile(code, str(PAGE), "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 4


def test_the_line_for_pytorch_in_readme_runs_in_a_new_process() -> None:
    pytest.importorskip("torch")
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    (imported,) = re.findall(r"`(import onepass\.integrations[^`]*)`", text)
    (line,) = re.findall(r"`(optimizer = [^`]*)`", text)
    code = ["import torch", "model = torch.nn.Linear(2, 1)", imported, line]
    code += ["model(torch.ones(2)).sum().backward()", "optimizer.step()"]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True)
