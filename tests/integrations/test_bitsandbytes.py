"""AdEMAMix takes the steps of bitsandbytes' AdEMAMix in float32, the schedules of the paper included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")

import onepass

OPTIONS: dict[str, Any] = {"lr": 0.05, "betas": (0.5, 0.8, 0.999), "alpha": 2.0, "weight_decay": 0.1}
NAMES = {"alpha_warmup": "t_alpha", "beta3_warmup": "t_beta3"}
TOLERANCE = 5e-6  # of the distance travelled; bitsandbytes deviates by 5e-7


@pytest.fixture(scope="module", autouse=True)
def warmed_up() -> None:
    """Take a first step: in one process of twelve, bitsandbytes' first step deviates by 1e-5, and no later one does."""
    param = torch.nn.Parameter(torch.ones(5000))
    param.grad = torch.ones(5000)
    bitsandbytes.optim.AdEMAMix([param], **OPTIONS).step()


def deviation(options: dict[str, Any], **changed: Any) -> float:
    """Return the largest deviation after 50 steps; ``changed`` are options of onepass only."""
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(5000, generator=generator))
    ours, travelled = theirs.detach().numpy().copy(), 0.0
    renamed = {NAMES.get(name, name): value for name, value in options.items()}
    optimizers = bitsandbytes.optim.AdEMAMix([theirs], **renamed), onepass.AdEMAMix(ours, **{**options, **changed})
    for _ in range(50):
        theirs.grad = torch.randn(5000, generator=generator)
        before = theirs.detach().clone()
        optimizers[0].step()
        optimizers[1].step(theirs.grad.numpy())
        travelled += float((theirs.detach() - before).abs().mean())
    return float(np.abs(theirs.detach().numpy() - ours).max()) / travelled


@pytest.mark.parametrize("warmups", [{}, {"alpha_warmup": 40}, {"alpha_warmup": 40, "beta3_warmup": 30}], ids=str)
def test_steps_match_bitsandbytes(warmups: dict[str, int]) -> None:
    options = OPTIONS | warmups
    assert deviation(options) <= TOLERANCE
    wrong: list[dict[str, Any]] = [{"alpha": 1.9}, {"betas": (0.5, 0.8, 0.9985)}, {"weight_decay": 0.09}]
    for changed in [*wrong, {"alpha_warmup": 35}, {"beta3_warmup": 27}, {"eps": 1e-4}]:
        assert deviation(options, **changed) > 10 * TOLERANCE, changed
