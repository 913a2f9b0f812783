"""Configuration of the build and of this process."""

from __future__ import annotations

import operator
from typing import Any

from . import _core

threads_set_by_user = False  # by set_num_threads


def config() -> dict[str, Any]:
    """Return how onepass was built and what it uses on this machine.

    Returns:
        ``version``; ``compiler``; ``instruction_sets``, those built in; ``usable_instruction_sets``, those that this
        processor has; ``instruction_set``, the one in use, which the environment variable ``ONEPASS_ISA`` forces;
        ``threads``, how many a step may use; ``can_flush_denormals``, whether ``flush_denormals=True`` has an effect.

    Example:
        >>> import onepass
        >>> onepass.config()["instruction_set"] in onepass.config()["usable_instruction_sets"]
        True
    """
    return {
        "version": _core.__version__,
        "compiler": _core.compiler,
        "instruction_sets": list(_core.built_instruction_sets),
        "usable_instruction_sets": list(_core.usable_instruction_sets),
        "instruction_set": _core.instruction_set,
        "threads": _core.get_num_threads(),
        "can_flush_denormals": _core.can_flush_denormals,
    }


def set_num_threads(count: int) -> None:
    """Set the maximum number of threads of a step, from the next one on, in this process and its forks.

    Small steps use fewer. The bits of the result do not depend on it. At import it is what the environment variable
    ``ONEPASS_NUM_THREADS`` says, else ``OMP_NUM_THREADS``, else the number of processors that this process may use.

    Args:
        count: 1 or more.

    Raises:
        TypeError: no integer.
        ValueError: less than 1, or more than 4096.

    Example:
        >>> import onepass
        >>> before = onepass.get_num_threads()
        >>> onepass.set_num_threads(1)
        >>> onepass.get_num_threads()
        1
        >>> onepass.set_num_threads(before)
    """
    try:
        number = operator.index(count)
    except TypeError:
        raise TypeError(f"the number of threads must be an integer, got {count!r}") from None
    if not 1 <= number <= 4096:
        raise ValueError(f"the number of threads must be at least 1 and at most 4096, got {number}")
    global threads_set_by_user
    threads_set_by_user = True
    _core.set_num_threads(number)


def get_num_threads() -> int:
    """Return the maximum number of threads of a step: see `set_num_threads`.

    Example:
        >>> import onepass
        >>> onepass.get_num_threads() >= 1
        True
    """
    return _core.get_num_threads()


def show_config() -> None:
    """Print `config`, a line each."""
    for name, value in config().items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
