"""What this copy of onepass is made of, and what it uses on this machine."""

from __future__ import annotations

from typing import Any

from . import _core


def config() -> dict[str, Any]:
    """How onepass was built and what it uses here.

    Returns:
        ``version``; ``compiler``; ``instruction_sets``, those built in; ``usable_instruction_sets``, those that this
        processor has; ``instruction_set``, the one in use, which the environment variable ``ONEPASS_ISA`` forces;
        ``threads``, how many a step uses; ``can_flush_denormals``, whether ``flush_denormals=True`` has an effect.

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
        "threads": 1,
        "can_flush_denormals": _core.can_flush_denormals,
    }


def show_config() -> None:
    """Print `config`, a line each."""
    for name, value in config().items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
