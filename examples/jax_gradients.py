"""Gradients from JAX: a compiled function over NumPy arrays, which onepass updates in place.

python examples/jax_gradients.py
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import onepass

Params = dict[str, np.ndarray]


def loss(params: Params, x: np.ndarray, y: np.ndarray) -> jax.Array:
    """The mean squared error of a network with one hidden layer."""
    hidden = jnp.tanh(x @ params["W1"] + params["b1"])
    return jnp.mean((hidden @ params["W2"] + params["b2"] - y) ** 2)


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, (256, 1)).astype(np.float32)
    y = np.sin(2 * x)
    params: Params = {
        "W1": rng.standard_normal((1, 32), dtype=np.float32),
        "b1": rng.standard_normal(32, dtype=np.float32),
        "W2": rng.standard_normal((32, 1), dtype=np.float32) / 6,
        "b2": np.zeros(1, np.float32),
    }
    optimizer = onepass.Adam(params, lr=0.02)
    loss_and_gradients = jax.jit(jax.value_and_grad(loss))
    for step in range(1, 501):
        value, gradients = loss_and_gradients(params, x, y)
        # JAX computes in the background and may read the very arrays that it was given: wait until it is done before
        # they change. np.asarray shows its result without a copy.
        optimizer.step({name: np.asarray(gradient) for name, gradient in jax.block_until_ready(gradients).items()})
        if step == 1 or step % 100 == 0:
            print(f"step {step:3}: mean squared error {value:.5f}")


if __name__ == "__main__":
    main()
