"""Deviations of onepass from torch.optim and from optax: ``python tests/integrations/deviations.py``.

The table gives, for each rule and dtype, the largest deviation after 50 steps with all the options below. The tests of
this folder run the same cases.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

import onepass
from onepass import _reference

Array = npt.NDArray[Any]
Options = Mapping[str, Any]
STEPS = 50
SHAPES: list[tuple[int, ...]] = [(101,), (7, 5)]
DTYPES = ("float32", "float64")

# Options of each rule besides its learning rate. Every number is large enough to show.
MOMENTS: list[dict[str, Any]] = [
    {},
    {"betas": (0.5, 0.8)},
    {"eps": 1e-2},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
]
ADAM = [*MOMENTS, {"amsgrad": True, "betas": (0.8, 0.7)}, {**MOMENTS[-1], "amsgrad": True}]
CASES: dict[str, list[dict[str, Any]]] = {
    "Adam": ADAM,
    "AdamW": ADAM,
    "Adamax": MOMENTS,
    "NAdam": [
        *MOMENTS,
        {"momentum_decay": 0.1},
        {"decoupled_weight_decay": True, "weight_decay": 0.1},
        {**MOMENTS[-1], "momentum_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "RAdam": [
        *MOMENTS,
        {"decoupled_weight_decay": True, "weight_decay": 0.1},
        {**MOMENTS[-1], "decoupled_weight_decay": True},
    ],
    "RMSprop": [
        {},
        {"alpha": 0.7},
        {"eps": 1e-2},
        {"weight_decay": 0.1},
        {"momentum": 0.6},
        {"centered": True},
        {"centered": True, "momentum": 0.6, "alpha": 0.7, "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
    ],
    "Adagrad": [
        {},
        {"lr_decay": 0.1},
        {"initial_accumulator_value": 0.5},
        {"eps": 1e-2},
        {"weight_decay": 0.1},
        {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
    ],
    "Adadelta": [
        {},
        {"rho": 0.5},
        {"eps": 1e-2},
        {"weight_decay": 0.1},
        {"rho": 0.5, "eps": 1e-2, "weight_decay": 0.1, "maximize": True},
    ],
    "SGD": [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.6},
        {"momentum": 0.6, "dampening": 0.3},
        {"momentum": 0.6, "nesterov": True},
        {"momentum": 0.6, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
        {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1, "maximize": True},
    ],
}
# Options of the rules that are compared with optax, whose names are the keys of OPTAX.
OPTAX: dict[str, list[dict[str, Any]]] = {
    "Lion": [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.8), "weight_decay": 0.1}],
    # optax adds epsilon where the paper does.
    "RAdam": [{"eps": 0.0}, {"betas": (0.5, 0.8), "eps": 0.0}],
    "AdEMAMix": [
        {},
        {"betas": (0.5, 0.8, 0.95), "alpha": 2.0, "eps": 1e-2, "weight_decay": 0.1},
        {"betas": (0.5, 0.8, 0.999), "alpha_warmup": 40, "beta3_warmup": 30},
    ],
}
LR = dict.fromkeys((*CASES, *OPTAX), 0.05) | {"Adadelta": 5.0}


def numbers(dtype: str, seed: int = 0, steps: int = STEPS) -> tuple[list[Array], list[list[Array]]]:
    """Return the parameters before the first step, and the gradients of each step."""
    rng = np.random.default_rng(seed)
    params, *grads = ([rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(steps + 1))
    return params, grads


def run_onepass(kind: str, dtype: str, options: Options) -> tuple[list[Array], list[dict[str, Any]]]:
    """Return onepass's parameters and state after the steps."""
    params, steps = numbers(dtype)
    optimizer = getattr(onepass, kind)(params, **{"lr": LR[kind], **options})
    for grads in steps:
        optimizer.step(grads)
    return params, [dict(optimizer.state[i]) for i in range(len(params))]


def run_torch(kind: str, dtype: str, options: Options) -> tuple[list[list[Array]], list[dict[str, Any]]]:
    """Return torch's parameters before the first and after each step, and its state after the last step."""
    params, steps = numbers(dtype)
    with mu_product_in_double() if kind == "NAdam" else nullcontext():
        weights, optimizer = torch_optimizer(kind, params, **{"lr": LR[kind], **options})
        path = [params]
        for grads in steps:
            torch_step(weights, optimizer, grads)
            path.append([w.detach().numpy().copy() for w in weights])
        return path, [torch_state(optimizer, w) for w in weights]


def run_optax(kind: str, dtype: str, options: Options) -> list[list[Array]]:
    """Return the parameters of optax's optimizer before the first and after each step."""
    import optax

    params, steps = numbers(dtype)
    with jax_in_double() if dtype == "float64" else nullcontext():
        import jax.numpy as jnp

        optimizer = optax_optimizer(kind, {**_reference.defaults(kind), "lr": LR[kind], **options})
        weights = [jnp.asarray(p) for p in params]
        state, path = optimizer.init(weights), [params]
        for grads in steps:
            updates, state = optimizer.update([jnp.asarray(g) for g in grads], state, weights)
            weights = optax.apply_updates(weights, updates)
            path.append([np.array(w) for w in weights])
    return path


def optax_optimizer(kind: str, options: Options) -> Any:
    """Return optax's optimizer with all these options of onepass."""
    import optax

    lr, betas, weight_decay = options["lr"], options["betas"], options["weight_decay"]
    if kind == "Lion":
        return optax.lion(lr, *betas, weight_decay=weight_decay)
    if kind == "RAdam":
        return optax.radam(lr, *betas, eps=options["eps"])
    beta1, beta2, beta3 = betas
    rising = {
        "alpha": ademamix_alpha(options["alpha"], options["alpha_warmup"]),
        "b3": ademamix_beta3(beta1, beta3, options["beta3_warmup"]),
    }
    return optax.contrib.ademamix(lr, beta1, beta2, **rising, eps=options["eps"], weight_decay=weight_decay)


def ademamix_alpha(alpha: float, warmup: int | None) -> Any:
    """Return the paper's schedule of alpha for optax, which counts steps from 0."""
    import jax.numpy as jnp

    return alpha if warmup is None else lambda t: alpha * jnp.minimum(1.0, (t + 1.0) / warmup)


def ademamix_beta3(beta1: float, beta3: float, warmup: int | None) -> Any:
    """Return the paper's schedule of the slow decay for optax, multiplied out."""
    import jax.numpy as jnp

    if warmup is None:
        return beta3
    fast, slow = np.log(beta1), np.log(beta3)

    def decay(t: Any) -> Any:
        x = jnp.minimum(1.0, (t + 1.0) / warmup)
        return jnp.minimum(beta3, jnp.exp(fast * slow / ((1 - x) * slow + x * fast)))

    return decay


def torch_optimizer(kind: str, params: Sequence[Array], **options: Any) -> tuple[list[Any], Any]:
    """Return copies of the parameters, and torch's single-tensor implementation of the optimizer for them."""
    import torch

    weights = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    return weights, getattr(torch.optim, kind)(weights, foreach=False, **options)


def torch_step(weights: Sequence[Any], optimizer: Any, grads: Sequence[Array | None]) -> None:
    import torch

    for w, g in zip(weights, grads, strict=True):
        w.grad = None if g is None else torch.from_numpy(g.copy())
    optimizer.step()


def torch_state(optimizer: Any, weight: Any) -> dict[str, Any]:
    """Return the state as NumPy arrays, without the buffers that torch names but does not have."""
    return {name: np.asarray(value) for name, value in optimizer.state[weight].items() if value is not None}


@contextmanager
def mu_product_in_double() -> Iterator[None]:
    """Make float64 the default dtype, in which torch's NAdam keeps the product of momenta of any parameter."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def jax_in_double() -> Iterator[Any]:
    if importlib.util.find_spec("jax") is None:
        yield None
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield jax
    finally:
        jax.config.update("jax_enable_x64", before)


def distance(path: Sequence[Sequence[Array]]) -> float:
    """Return the length of an element's path, back and forth, on average: the sum of its steps."""
    steps = [flat(after) - flat(before) for before, after in itertools.pairwise(path)]
    return float(np.mean(np.sum(np.abs(steps), axis=0)))


def deviation(ours: Sequence[Array], theirs: Sequence[Array], unit: float) -> float:
    """Return the largest difference of any element, in this unit."""
    assert [(a.dtype, a.shape) for a in ours] == [(a.dtype, a.shape) for a in theirs]
    return float(np.max(np.abs(flat(ours) - flat(theirs)))) / unit


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def from_torch(kind: str, dtype: str, options: Options, **changed: Any) -> dict[str, float]:
    """Return the deviations of the parameters, in units of the distance travelled, and of each state, in its mean size.

    ``changed`` are options that onepass gets and torch does not.
    """
    params, states = run_onepass(kind, dtype, {**options, **changed})
    path, expected = run_torch(kind, dtype, options)
    found = {"params": deviation(params, path[-1], distance(path))}
    for name in expected[0].keys() - {"step", "mu_product"} if not changed else ():
        theirs = [state[name] for state in expected]
        found[name] = deviation([state[name] for state in states], theirs, float(np.mean(np.abs(flat(theirs)))))
    if "mu_product" in expected[0] and not changed:
        found["mu_product"] = float(abs(states[0]["mu_product"] / expected[0]["mu_product"] - 1))
    return found


def from_optax(kind: str, dtype: str, options: Options, **changed: Any) -> float:
    """Return the deviation in units of the distance travelled; ``changed`` as in `from_torch`."""
    params, _ = run_onepass(kind, dtype, {**options, **changed})
    path = run_optax(kind, dtype, options)
    return deviation(params, path[-1], distance(path))


def main() -> None:
    """Print the table."""
    print(
        "| rule | against | "
        + " | ".join(f"{dtype}, {what}" for dtype in DTYPES for what in ("parameters", "state"))
        + " |"
    )
    print("| --- | --- | --: | --: | --: | --: |")
    for kind, cases in CASES.items():
        cells = []
        for dtype in DTYPES:
            found = [from_torch(kind, dtype, options) for options in cases]
            cells.append(max(each.pop("params") for each in found))
            cells.append(max((value for each in found for value in each.values()), default=0.0))
        print(f"| {kind} | torch | " + " | ".join(f"{cell:.1e}" for cell in cells) + " |")
    for kind, cases in OPTAX.items():
        found = [max(from_optax(kind, dtype, options) for options in cases) for dtype in DTYPES]
        print(f"| {kind} | optax | {found[0]:.1e} | | {found[1]:.1e} | |")


if __name__ == "__main__":
    main()
