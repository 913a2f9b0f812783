"""Adapters to other libraries, without these libraries; tests/integrations tests the adapters with them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import onepass.integrations

ADAPTERS = sorted(path.stem for path in Path(onepass.integrations.__file__).parent.glob("[a-z]*"))
LIBRARIES = {adapter: {"mpi": "mpi4py"}.get(adapter, adapter) for adapter in ADAPTERS}


@pytest.mark.parametrize(("adapter", "library"), LIBRARIES.items())
def test_an_adapter_without_its_library_names_the_package_to_install(
    adapter: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith(f"onepass.integrations.{adapter}")]:
        monkeypatch.delitem(sys.modules, name)

    class Nowhere:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name.partition(".")[0] == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=library)

    monkeypatch.setattr(sys, "meta_path", [Nowhere, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=f"{adapter} needs {library}, .*: pip install {library}$") as caught:
        importlib.import_module(f"onepass.integrations.{adapter}")
    assert caught.value.name == library


def test_the_import_error_of_a_librarys_own_dependency_is_unchanged() -> None:
    with (
        pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"),
        onepass.integrations.needed("torch"),
    ):
        importlib.import_module("no_such_module")


def test_importing_onepass_imports_no_optional_library() -> None:
    script = "import sys, onepass; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not set(loaded) & {*LIBRARIES.values(), "matplotlib", "sklearn", "tqdm"}
