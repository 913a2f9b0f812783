"""A policy learns to balance a pole (REINFORCE): a small network, whose optimizer costs more in calls than arithmetic.

python examples/torch_policy.py [--updates 60] [--optimizer onepass|torch]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from train_digits import positive

import onepass.integrations.torch

POLES, STEPS = 32, 200  # number of poles that are balanced at once, and the maximum number of steps of each


def push(state: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cart and pole 0.02 s later (Barto, Sutton and Anderson 1983): position, speed, angle and its speed."""
    _, speed, angle, turning = state.T
    force, sin, cos = np.where(right, 10.0, -10.0), np.sin(angle), np.cos(angle)
    shared = (force + 0.05 * turning**2 * sin) / 1.1
    bending = (9.8 * sin - cos * shared) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
    change = np.stack([speed, shared - 0.05 * bending * cos / 1.1, turning, bending], axis=1)
    return np.asarray(state + 0.02 * change)


def main(arguments: list[str] | None = None) -> float:
    """The mean number of steps balanced in the last update."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=positive, default=60)
    parser.add_argument("--optimizer", choices=("onepass", "torch"), default="onepass")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    policy = torch.nn.Sequential(
        torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
    )
    library = onepass.integrations.torch if options.optimizer == "onepass" else torch.optim
    optimizer = library.Adam(policy.parameters(), lr=3e-3)

    balanced, stepping = 0.0, 0.0
    for update in range(1, options.updates + 1):
        state, alive = rng.uniform(-0.05, 0.05, (POLES, 4)), np.ones(POLES, bool)
        states: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        lived: list[np.ndarray] = []
        while alive.any() and len(states) < STEPS:
            with torch.no_grad():
                right = rng.random(POLES) < torch.sigmoid(policy(torch.from_numpy(state).float())[:, 0]).numpy()
            states.append(state)
            actions.append(right)
            lived.append(alive)
            state = push(state, right)
            alive = alive & (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.21)
        life = np.array(lived)
        returns = np.cumsum(life[::-1], axis=0)[::-1]  # the steps that were still to come
        advantage = (returns - returns[life].mean())[life] / (returns[life].std() + 1e-6)

        optimizer.zero_grad()
        logits = policy(torch.from_numpy(np.array(states)[life]).float())[:, 0]
        chosen = torch.from_numpy(np.array(actions)[life]).float()
        unlikely = torch.nn.functional.binary_cross_entropy_with_logits(logits, chosen, reduction="none")
        (unlikely * torch.from_numpy(advantage).float()).mean().backward()
        began = time.perf_counter()
        optimizer.step()
        stepping += time.perf_counter() - began

        balanced = float(life.sum(axis=0).mean())
        if update == 1 or update % 10 == 0:
            print(f"update {update:3}: balanced for {balanced:5.1f} steps of {STEPS}")
    print(f"{options.optimizer}: {1e6 * stepping / options.updates:.0f} µs an optimizer step")
    return balanced


if __name__ == "__main__":
    main()
