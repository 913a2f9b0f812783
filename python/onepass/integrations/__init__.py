"""Where people train: onepass behind the interfaces of other libraries.

Each module here imports its library, and nothing else imports them: ``import onepass.integrations.torch``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(library: str, module: str | None = None) -> Iterator[None]:
    """Say which package to install where the imports in this block do not find the library.

    Args:
        library: the package, which is also what is imported.
        module: the module of this folder that needs it, if that has another name.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != library:  # something that the library itself lacks
            raise
        message = (
            f"onepass.integrations.{module or library} needs {library}, which is not installed: pip install {library}"
        )
        raise ModuleNotFoundError(message, name=library) from None
