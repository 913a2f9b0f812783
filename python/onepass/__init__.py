"""onepass: Adam for NumPy in one pass over memory.

Example:
    >>> import numpy as np, onepass
    >>> w = np.zeros(3, np.float32)
    >>> opt = onepass.Adam(w, lr=0.1)
    >>> opt.step(np.array([1, 2, 3], np.float32))
    >>> w
    array([-0.1, -0.1, -0.1], dtype=float32)
"""

from . import _core
from .base import Group, Optimizer
from .machine import config, show_config
from .optimizers import Adam, AdamW, adam_step

__all__ = ["Adam", "AdamW", "Group", "Optimizer", "adam_step", "config", "show_config"]
__version__ = _core.__version__
