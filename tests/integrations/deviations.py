"""How far onepass ends from torch.optim, and Lion from optax: ``python tests/integrations/deviations.py``.

The table gives, for each rule and dtype, the largest deviation over 50 steps and all the options below. The tests of
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

Array = npt.NDArray[Any]
Options = Mapping[str, Any]
STEPS = 50
SHAPES: list[tuple[int, ...]] = [(101,), (7, 5)]
DTYPES = ("float32", "float64")

# What each rule is tried with, besides its learning rate. Every number is large enough to show.
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
LION: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.8), "weight_decay": 0.1}]
LR = dict.fromkeys((*CASES, "Lion"), 0.05) | {"Adadelta": 5.0}


def numbers(dtype: str, seed: int = 0, steps: int = STEPS) -> tuple[list[Array], list[list[Array]]]:
    """The parameters to start from, and each step's gradients."""
    rng = np.random.default_rng(seed)
    params, *grads = ([rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(steps + 1))
    return params, grads


def run_onepass(kind: str, dtype: str, options: Options) -> tuple[list[Array], list[dict[str, Any]]]:
    """Where onepass is after the steps, and its state."""
    params, steps = numbers(dtype)
    optimizer = getattr(onepass, kind)(params, **{"lr": LR[kind], **options})
    for grads in steps:
        optimizer.step(grads)
    return params, [dict(optimizer.state[i]) for i in range(len(params))]


def run_torch(kind: str, dtype: str, options: Options) -> tuple[list[list[Array]], list[dict[str, Any]]]:
    """Where torch is after each of the steps, from the start on, and its state in the end."""
    params, steps = numbers(dtype)
    with mu_product_in_double() if kind == "NAdam" else nullcontext():
        weights, optimizer = torch_optimizer(kind, params, **{"lr": LR[kind], **options})
        way = [params]
        for grads in steps:
            torch_step(weights, optimizer, grads)
            way.append([w.detach().numpy().copy() for w in weights])
        return way, [torch_state(optimizer, w) for w in weights]


def run_optax(dtype: str, options: Options) -> list[list[Array]]:
    """Where optax's Lion is after each of the steps, from the start on."""
    import optax

    params, steps = numbers(dtype)
    betas = options.get("betas", (0.9, 0.99))
    with jax_in_double() if dtype == "float64" else nullcontext():
        import jax.numpy as jnp

        lion = optax.lion(LR["Lion"], *betas, weight_decay=options.get("weight_decay", 0.0))
        weights = [jnp.asarray(p) for p in params]
        state, way = lion.init(weights), [params]
        for grads in steps:
            updates, state = lion.update([jnp.asarray(g) for g in grads], state, weights)
            weights = optax.apply_updates(weights, updates)
            way.append([np.array(w) for w in weights])
    return way


def torch_optimizer(kind: str, params: Sequence[Array], **options: Any) -> tuple[list[Any], Any]:
    """Copies of the parameters, and the optimizer for them that torch says is its plainest."""
    import torch

    weights = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    return weights, getattr(torch.optim, kind)(weights, foreach=False, **options)


def torch_step(weights: Sequence[Any], optimizer: Any, grads: Sequence[Array | None]) -> None:
    import torch

    for w, g in zip(weights, grads, strict=True):
        w.grad = None if g is None else torch.from_numpy(g.copy())
    optimizer.step()


def torch_state(optimizer: Any, weight: Any) -> dict[str, Any]:
    """As NumPy's arrays; a buffer that torch names but does not have is left out."""
    return {name: np.asarray(value) for name, value in optimizer.state[weight].items() if value is not None}


@contextmanager
def mu_product_in_double() -> Iterator[None]:
    """NAdam's product of momenta is kept in torch's default dtype, whatever the parameter's."""
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


def distance(way: Sequence[Sequence[Array]]) -> float:
    """How far an element travels, back and forth: the sum of its steps, on average."""
    steps = [flat(after) - flat(before) for before, after in itertools.pairwise(way)]
    return float(np.mean(np.sum(np.abs(steps), axis=0)))


def deviation(ours: Sequence[Array], theirs: Sequence[Array], unit: float) -> float:
    """The largest over all elements."""
    assert [(a.dtype, a.shape) for a in ours] == [(a.dtype, a.shape) for a in theirs]
    return float(np.max(np.abs(flat(ours) - flat(theirs)))) / unit


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def from_torch(kind: str, dtype: str, options: Options, **changed: Any) -> dict[str, float]:
    """Deviations: the parameters' by the distance travelled, each state's by its mean size.

    ``changed`` are options that onepass gets and torch does not.
    """
    params, states = run_onepass(kind, dtype, {**options, **changed})
    way, expected = run_torch(kind, dtype, options)
    found = {"params": deviation(params, way[-1], distance(way))}
    for name in expected[0].keys() - {"step", "mu_product"} if not changed else ():
        theirs = [state[name] for state in expected]
        found[name] = deviation([state[name] for state in states], theirs, float(np.mean(np.abs(flat(theirs)))))
    if "mu_product" in expected[0] and not changed:
        found["mu_product"] = float(abs(states[0]["mu_product"] / expected[0]["mu_product"] - 1))
    return found


def from_optax(dtype: str, options: Options, **changed: Any) -> float:
    """Lion's deviation by the distance travelled; ``changed`` as in `from_torch`."""
    params, _ = run_onepass("Lion", dtype, {**options, **changed})
    way = run_optax(dtype, options)
    return deviation(params, way[-1], distance(way))


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
    found = [max(from_optax(dtype, options) for options in LION) for dtype in DTYPES]
    print(f"| Lion | optax | {found[0]:.1e} | | {found[1]:.1e} | |")


if __name__ == "__main__":
    main()
