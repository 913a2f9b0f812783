"""Configuration of the build and of this process."""

from __future__ import annotations

import os
import sys
from typing import Any

from . import _core
from ._checks import integer_in


def config() -> dict[str, Any]:
    """Return how onepass was built and what it uses on this machine.

    Returns:
        ``version``; ``compiler``; ``instruction_sets``: the built-in instruction sets; ``usable_instruction_sets``: the
        instruction sets that this processor supports; ``instruction_set``: the instruction set in use, which the
        environment variable ``ONEPASS_ISA`` can force; ``threads``: the maximum number of threads of a step;
        ``processors``: the number of processors that this process may use; ``spinning_blas``: the path of NumPy's
        OpenBLAS if its threads keep the processors busy between steps, else None; ``torch_openmp``: the path of the
        OpenMP runtime on whose threads `onepass.integrations.torch` steps, or None; ``can_flush_denormals``: True if
        ``flush_denormals=True`` has an effect.

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
        "processors": _core.processor_count(),
        "spinning_blas": _core.spinning_blas(),
        "torch_openmp": _core.torch_openmp() if "torch" in sys.modules else None,
        "can_flush_denormals": _core.can_flush_denormals,
    }


def set_num_threads(count: int | None) -> None:
    """Set the maximum number of threads of a step, from the next step on, in this process and its forks.

    Small steps use fewer threads. The number does not change the bits of a result. The import takes it from the
    environment variable ``ONEPASS_NUM_THREADS``, else from ``OMP_NUM_THREADS``. Without these variables it is 1 if
    NumPy's BLAS keeps the processors busy between steps (see `show_config`), and otherwise the number of processors
    that this process may use. A number that you set also limits the steps of `onepass.integrations.torch`, which
    otherwise use as many threads as PyTorch.

    Args:
        count: 1 or more; None: the number at import.

    Raises:
        TypeError: the number is not an integer.
        ValueError: the number is below 1 or above 4096.

    Example:
        >>> import onepass
        >>> onepass.set_num_threads(1)
        >>> onepass.get_num_threads()
        1
        >>> onepass.set_num_threads(None)
    """
    if count is None:
        _core.reset_num_threads()
        return
    _core.set_num_threads(integer_in(range(1, 4097), "at least 1 and at most 4096", "the number of threads", count))


def get_num_threads() -> int:
    """Return the maximum number of threads of a step: see `set_num_threads`.

    Example:
        >>> import onepass
        >>> onepass.get_num_threads() >= 1
        True
    """
    return _core.get_num_threads()


def show_config() -> None:
    """Print `config`, one line per item, and a hint if more threads could be used."""
    for name, value in config().items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    if hint := thread_hint():
        print(f"\n{hint}")


def thread_hint() -> str | None:
    """Return a hint on using more threads, or None if nothing but the user's own settings limits them."""
    set_by_user = _core.requested_threads() or os.environ.get("OMP_NUM_THREADS")
    if set_by_user or not _core.spinning_blas() or _core.processor_count() == 1:
        return None
    return (
        "Steps use 1 thread: NumPy's OpenBLAS keeps its threads spinning after each matrix product, so that a second "
        "thread\nwould slow down the products. To use all processors, set the environment variable "
        "OPENBLAS_THREAD_TIMEOUT=16\nbefore Python starts (or before NumPy is imported)."
    )
