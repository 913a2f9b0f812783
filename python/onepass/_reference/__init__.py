"""Executable specification of the kernels in NumPy, one operation at a time.

`rules` has the update rules, `stages` the operations around every rule, `storage` the storage in fewer bits, and
`optimizer` whole optimizers. The kernels must give the same bits. Input is taken to be valid.
"""

from .optimizer import Reference, adam_step, defaults
from .rules import RULES

__all__ = ["RULES", "Reference", "adam_step", "defaults"]
