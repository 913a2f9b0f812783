"""Gradients as arrays that the core can read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._checks import real_floating
from ._types import Array


def checked_gradient(label: str, grad: Any, shape: tuple[int, ...]) -> Array:
    """Return the gradient as a plain array, or raise."""
    if isinstance(grad, np.floating):
        grad = np.asarray(grad)
    real_floating(label, grad)
    plain: Array = np.asarray(grad)  # subclasses may override these attributes
    if plain.shape != shape:
        raise ValueError(f"{label}: expected shape {shape}, got {plain.shape}")
    return plain


def copy_into(scratch: Array, grad: Array) -> Array:
    """Copy the gradient into the scratch array, in its dtype and order, and return it."""
    with np.errstate(all="ignore"):  # a value too large for the dtype becomes infinite, as in any cast
        np.copyto(scratch, grad, casting="same_kind")
    return scratch
