"""Gradients as arrays that the core can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._checks import real_floating
from ._types import Array


def checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """The gradient as a plain array, or the error that says what is wrong with it."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    real_floating(label, grad)
    plain: Array = np.asarray(grad)  # a subclass might say what it likes about its shape
    if plain.shape != shape:
        raise ValueError(f"{label} has shape {plain.shape}, its parameter {shape}: they must be equal")
    return plain


def copy_into(scratch: Array, grad: Array) -> Array:
    """The scratch array, now with the gradient's values in its dtype and order."""
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="same_kind")
    return scratch
