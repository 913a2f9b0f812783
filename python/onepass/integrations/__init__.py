"""Adapters for PyTorch, thinc (and spaCy), SciPy and MPI.

Each module imports its library when you first use the module, for example as ``onepass.integrations.torch.Adam``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("mpi", "scipy", "thinc", "torch"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def needed(library: str, module: str | None = None) -> Iterator[None]:
    """Name the package to install if the imports in this block do not find the library.

    Args:
        library: the name of the package and of the imported module.
        module: the module of this folder that needs the library, if it has another name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:  # a missing dependency of the library
            raise
        message = (
            f"onepass.integrations.{module or library} needs {library}, which is not installed: pip install {library}"
        )
        raise ModuleNotFoundError(message, name=library) from None
