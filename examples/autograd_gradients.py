"""Gradients from HIPS autograd: logistic regression on a mapping of arrays, which autograd and onepass both take.

python examples/autograd_gradients.py
"""

from __future__ import annotations

from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad

import onepass


def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    """The cross-entropy of labels ±1."""
    return anp.mean(anp.log1p(anp.exp(-y * (x @ params["w"] + params["b"]))))


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 8))
    y = np.sign(x @ rng.standard_normal(8) + 0.5 + 0.1 * rng.standard_normal(500))

    params = {"w": np.zeros(8), "b": np.zeros(())}  # float64, as autograd computes
    optimizer = onepass.Adam(params, lr=0.1)
    loss_and_gradients = value_and_grad(loss)
    for step in range(1, 101):
        value, gradients = loss_and_gradients(params, x, y)
        optimizer.step(gradients)  # a mapping with the parameters' names
        if step == 1 or step % 25 == 0:
            right = np.mean(np.sign(x @ params["w"] + params["b"]) == y)
            print(f"step {step:3}: cross-entropy {value:.4f}, {right:.1%} right")


if __name__ == "__main__":
    main()
