"""Fixtures of the tests of the PyTorch adapter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import onepass.integrations


@pytest.fixture
def import_again(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Provide a function that imports another copy of the adapter, as with a PyTorch with other private names."""

    def import_again(**names: Any) -> ModuleType:
        import torch

        if "exchange" in names:
            monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", names["exchange"], raising=False)
        if "increment_version" in names:
            monkeypatch.setattr(torch._C, "_increment_version", names["increment_version"])
        # Undo the change by the import too.
        monkeypatch.setattr(onepass.integrations, "torch", None, raising=False)
        for name in [name for name in sys.modules if name.startswith("onepass.integrations.torch")]:
            monkeypatch.delitem(sys.modules, name)
        return importlib.import_module("onepass.integrations.torch")

    return import_again
