"""Second moments in fewer bits compared with float32: after a change of the gradients' sizes, and after a spike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from train_digits import Array

import onepass

STORAGES: dict[str, dict[str, Any]] = {
    "float8, stochastic": {"state_dtype": "float8"},
    "bfloat16, stochastic": {"state_dtype": "bfloat16"},
    "float8, nearest": {"state_dtype": "float8", "rounding": "nearest"},
    "bfloat16, nearest": {"state_dtype": "bfloat16", "rounding": "nearest"},
}
ELEMENTS = 4096
GROUP = 128  # elements that share a scale
SPIKE = 1e5


def second_moments(opt: Any) -> Array:
    """Return float32 copies of the second moments."""
    moments: Array = opt.decoded_state(0)["exp_avg_sq"]
    return moments


def optimizers(seed: int) -> dict[str, Any]:
    """Return an optimizer with lr=0 for each storage, and one with float32 state under the name "exact"."""
    options = {"exact": {}, **STORAGES}
    weights = {name: np.zeros(ELEMENTS, np.float32) for name in options}
    return {name: onepass.Adam(weights[name], lr=0.0, seed=seed, **own) for name, own in options.items()}


def change_of_sizes(seeds: Sequence[int], half: int, every: int) -> dict[str, Any]:
    """Measure √v along Gaussian gradients whose sizes change halfway.

    The sizes are log-normal (σ = 1), and a tenth of them is 50 times smaller. The error of an element is the natural
    logarithm of √v over its float32 value; the figures are the medians over the elements of its absolute value, and of
    its signed value.
    """
    steps = [*range(every, 2 * half + 1, every)]
    found: dict[str, Any] = {name: {"error": [], "bias": []} for name in STORAGES}
    for seed in seeds:
        rng, opts = np.random.default_rng(seed), optimizers(seed)
        curves: dict[str, list[tuple[float, float]]] = {name: [] for name in STORAGES}
        for t in range(1, 2 * half + 1):
            if t in (1, half + 1):
                sizes = np.exp(rng.normal(0, 1, ELEMENTS)) * np.where(rng.random(ELEMENTS) < 0.1, 1 / 50, 1)
            gradient = (sizes * rng.standard_normal(ELEMENTS)).astype(np.float32)
            for opt in opts.values():
                opt.step(gradient)
            if t % every == 0:
                exact = second_moments(opts["exact"])
                for name, curve in curves.items():
                    logs = np.log(second_moments(opts[name]) / exact) / 2
                    curve.append((float(np.median(abs(logs))), float(np.median(logs))))
        for name, curve in curves.items():
            errors, biases = zip(*curve, strict=True)
            found[name]["error"].append([*errors])
            found[name]["bias"].append([*biases])
    return {"seeds": [*seeds], "half": half, "steps": steps, "storages": found}


def after_a_spike(seed: int, before: int, after: int, every: int) -> dict[str, Any]:
    """Measure √v of the neighbours of an element that once gets a gradient of 1e5, when all others are ±1."""
    rng, opts = np.random.default_rng(seed), optimizers(seed)
    curves: dict[str, list[float]] = {name: [] for name in STORAGES}
    for t in range(1 - before, after + 1):
        gradient = rng.choice(np.array([-1, 1], np.float32), ELEMENTS)
        if t == 1:
            gradient[0] = SPIKE
        for opt in opts.values():
            opt.step(gradient)
        if t >= 1 and (t - 1) % every == 0:
            exact = second_moments(opts["exact"])[1:GROUP]
            for name, curve in curves.items():
                curve.append(float(np.median(np.sqrt(second_moments(opts[name])[1:GROUP] / exact))))
    return {"size": SPIKE, "steps": [*range(1, after + 1, every)], "storages": curves}
