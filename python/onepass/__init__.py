"""onepass: fast, reproducible optimizers for NumPy arrays (and PyTorch on CPUs): Adam and its relatives.

An optimizer updates your arrays in place, in one pass over memory, with the same bits on every instruction set and any
number of threads. PyTorch, thinc and SciPy are supported by `onepass.integrations`.

Example:
    >>> import numpy as np, onepass
    >>> w = np.zeros(3, np.float32)
    >>> opt = onepass.Adam(w, lr=0.1)
    >>> opt.step(np.array([1, 2, 3], np.float32))
    >>> w
    array([-0.1, -0.1, -0.1], dtype=float32)
"""

import sys as _sys
import typing as _typing
from importlib import import_module as _import_module

try:
    _interpreters = _import_module("_interpreters" if _sys.version_info >= (3, 13) else "_xxsubinterpreters")
except ImportError:  # a Python without subinterpreters
    pass
else:  # in a subinterpreter, loading the core would deadlock
    if _interpreters.get_current() != _interpreters.get_main():
        raise ImportError("onepass does not support subinterpreters, as NumPy does not: use the main one")
try:
    from . import _core
except ImportError as _error:  # about ONEPASS_ISA, for example
    _error.name = _error.name or __name__  # python -m onepass then prints the message without a traceback
    raise
from ._allocate import state_dir
from ._config import config, get_num_threads, set_num_threads, show_config
from ._flatten import flatten
from ._group import Group
from ._optimizer import Optimizer
from ._presets import presets
from .functional import adam_step
from .optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AdEMAMix,
    Lion,
    NAdam,
    RAdam,
    RMSprop,
    ScheduleFreeAdamW,
)
from .sparse import SparseRows

__all__ = [
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Group",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "SparseRows",
    "adam_step",
    "config",
    "flatten",
    "get_num_threads",
    "presets",
    "schedules",
    "set_num_threads",
    "show_config",
    "state_dir",
]
__version__ = _core.__version__

if _typing.TYPE_CHECKING:  # checkers would take __getattr__ for a sign that every name exists
    from . import integrations as integrations
    from . import schedules
else:

    def __getattr__(name: str) -> _typing.Any:
        if name in ("integrations", "schedules"):  # slow to import, and rarely needed
            return _import_module(f"onepass.{name}")
        same = "".join(f": did you mean {public!r}?" for public in __all__ if public.lower() == name.lower())
        raise AttributeError(f"module 'onepass' has no attribute {name!r}{same}")


def __dir__() -> list[str]:
    return sorted({*__all__, "integrations", *(name for name in globals() if name.startswith("__"))})
