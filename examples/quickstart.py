"""Linear regression on made-up data: onepass.Adam steps two NumPy arrays, in place."""

import numpy as np

import onepass

rng = np.random.default_rng(0)
x = rng.standard_normal((1000, 20), dtype=np.float32)
noise = 0.1 * rng.standard_normal((1000, 3), dtype=np.float32)
y = x @ rng.standard_normal((20, 3), dtype=np.float32) + 1 + noise  # a linear model plus noise

W, b = np.zeros((20, 3), np.float32), np.zeros(3, np.float32)
opt = onepass.Adam([W, b], lr=0.05)
for step in range(1, 201):
    error = x @ W + b - y
    dW, db = 2 / error.size * x.T @ error, 2 / error.size * error.sum(axis=0)
    opt.step([dW, db])  # W and b change in place
    if step == 1 or step % 40 == 0:
        print(f"step {step:3}: mean squared error {np.mean(error**2):.4f}")  # the noise leaves about 0.01
