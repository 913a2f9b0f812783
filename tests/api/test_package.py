"""Docstrings and imports of the installed package."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onepass
from onepass import _core

README = Path(__file__).parents[2] / "README.md"
MODULES = ["onepass", *(module.name for module in pkgutil.walk_packages(onepass.__path__, "onepass."))]
MODULES = [name for name in MODULES if not name.startswith(("onepass.__main__", "onepass.integrations"))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some examples write files
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_the_example_of_the_compiled_step_runs() -> None:
    text = _core.Optimizer.step.__doc__
    assert text is not None and ">>>" in text
    example = doctest.DocTestParser().get_doctest(text, {}, "Optimizer.step", None, None)
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("name", onepass.__all__)
def test_everything_public_has_a_docstring_with_an_example(name: str) -> None:
    public = onepass._presets if name == "presets" else getattr(onepass, name)
    assert public.__doc__
    if name not in ("Optimizer", "show_config"):
        assert ">>> " in public.__doc__, f"{name} shows no example"


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") == 1])
def test_the_name_of_a_module_has_no_other_meaning(name: str) -> None:
    assert getattr(onepass, name.partition(".")[2]) is importlib.import_module(name)


def test_importing_onepass_needs_only_numpy_and_starts_no_threads() -> None:
    code = (
        "import sys, threading, numpy; before = set(sys.modules); import onepass; "
        "print(sorted(m.split('.')[0] for m in set(sys.modules) - before)); print(threading.active_count())"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules, threads = printed.stdout.splitlines()
    allowed = {"onepass", "numpy", "_interpreters", "_xxsubinterpreters"} | set(sys.stdlib_module_names)
    assert {m.strip("'[] ") for m in modules.split(",")} <= allowed
    assert threads == "1"


def test_importing_onepass_does_not_import_rarely_used_modules() -> None:
    few = "{'onepass._checkpoint', 'onepass.schedules', 'mmap', 'pathlib', 'tempfile', 'urllib.parse'}"
    code = f"import sys, numpy; before = {{*sys.modules}}; import onepass; print({few} & {{*sys.modules}} - before)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "set()\n"
    assert onepass.schedules.linear(1.0, 0.0, 2)(1) == 1
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onepass.nothing


@pytest.mark.skipif(not README.exists(), reason="README is missing")
def test_the_code_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # one of the programs saves a file
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
