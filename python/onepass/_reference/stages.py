"""Operations before and after every rule: scale, clamping, weight decay, running average, norm, sums of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .elements import Array, Elements, Numbers, rounded


def preprocessed(p: Elements, g: Elements, scale: float, o: Numbers) -> tuple[Elements, Elements]:
    """Scale and clamp the gradient and apply weight decay; return the parameter and the gradient."""
    k = rounded(
        p.values.dtype,
        scale=-scale if o.maximize else scale,
        clip_value=o.clip_value,
        weight_decay=o.weight_decay,
        shrink=1 - o.lr * o.weight_decay,
    )
    if k.scale != 1:
        g = g * k.scale
    if o.clip_value is not None:
        g = g.clamped(k.clip_value)
    if o.weight_decay != 0 and not o.decoupled_weight_decay:
        g = g + k.weight_decay * p
    if o.weight_decay != 0 and o.decoupled_weight_decay:
        p = p * k.shrink
    return p, g


def running_average(decay: float, e: Elements, p: Elements) -> Elements:
    """Return the running average e + w·(p - e). If p = e, the average keeps its bits; if w = 1, it is p."""
    k = rounded(p.values.dtype, w=1 - decay)
    return p if k.w == 1 else e + k.w * (p - e)


def global_norm(grads: Iterable[Array], grad_scale: float = 1.0) -> float:
    """|grad_scale| times the root of the sum of all squares, in double, of the elements as they lie in memory."""
    total = 0.0
    for grad in grads:
        elements = grad.ravel(order="K").astype(np.float64)
        for start in range(0, elements.size, 4096):
            total += sum_of_squares(elements[start : start + 4096])
    return abs(grad_scale) * math.sqrt(total)


def sum_of_squares(block: Array) -> float:
    """Return the sum of squares: element i is added to accumulator i % 16, and the accumulators are added as a tree."""
    squares = np.zeros((-(-block.size // 16), 16))
    squares.flat[: block.size] = block * block
    lanes = np.add.accumulate(squares)[-1]  # one row after the other
    for half in (8, 4, 2, 1):
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])


def is_usable(grad: Array, grad_scale: float, squares: bool) -> bool:
    """Return True if a scaled gradient is finite, and so are its squares if the rule takes them."""
    scale = grad.dtype.type(grad_scale)
    g = grad if scale == 1 else grad * scale
    return bool(np.isfinite(g * g if squares else g).all())


def summed_rows(indices: Iterable[int], values: Array) -> tuple[list[int], Array]:
    """Return the rows in ascending order, each once, and the sums of their values, added in the given order."""
    sums: dict[int, Array] = {}
    for row, value in zip(indices, values):
        sums[int(row)] = sums[int(row)] + value if int(row) in sums else value
    rows = sorted(sums)
    return rows, np.array([sums[row] for row in rows], values.dtype).reshape(len(rows), *values.shape[1:])
