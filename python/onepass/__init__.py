"""onepass: Adam for NumPy in one pass over memory.

Example:
    >>> import numpy as np, onepass
    >>> w = np.zeros(3, np.float32)
    >>> opt = onepass.Adam(w, lr=0.1)
    >>> opt.step(np.array([1, 2, 3], np.float32))
    >>> w
    array([-0.1, -0.1, -0.1], dtype=float32)
"""

from typing import TYPE_CHECKING, Any

from . import _alone as _alone  # in this order

try:
    from . import _core
except ImportError as error:  # about ONEPASS_ISA, say
    error.name = error.name or __name__  # python -m onepass then shows what it says, and no traceback
    raise
from .arrays import flatten, state_dir
from .base import Optimizer
from .functional import adam_step
from .groups import Group
from .machine import config, get_num_threads, set_num_threads, show_config
from .optimizers import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Lion, NAdam, RMSprop
from .presets import presets
from .sparse import SparseRows

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Group",
    "Lion",
    "NAdam",
    "Optimizer",
    "RMSprop",
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

if TYPE_CHECKING:  # a checker must not think that every name is there
    from . import integrations as integrations
    from . import schedules
else:

    def __getattr__(name: str) -> Any:
        if name in ("integrations", "schedules"):  # take long to import, and not everyone needs them
            from importlib import import_module

            return import_module(f"onepass.{name}")
        raise AttributeError(f"module 'onepass' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "integrations", *(name for name in globals() if name.startswith("__"))})
