"""onepass's optimizers for NumPy take the steps of ``torch.optim`` and, with the same bits, of the PyTorch adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onepass
from integrations import deviations
from integrations.deviations import (
    CASES,
    DTYPES,
    deviation,
    distance,
    numbers,
    torch_optimizer,
    torch_state,
    torch_step,
)
from onepass import presets

torch = pytest.importorskip("torch")

import onepass.integrations.torch as adapter
from integrations.pytorch.helpers import gradient

# The deviations are below 2.5e-6 and 4e-15 (deviations.py prints them).
TOLERANCE = {"float32": 5e-6, "float64": 1e-13}
COMBINATIONS = [(kind, options) for kind, cases in CASES.items() for options in cases]


def case_name(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items()) or "defaults"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "options"), COMBINATIONS, ids=case_name)
class TestRule:
    def test_parameters_and_state_match_pytorch(self, kind: str, options: dict[str, Any], dtype: str) -> None:
        for name, found in deviations.from_torch(kind, dtype, options).items():
            assert found <= TOLERANCE[dtype], name

    def test_state_has_the_names_and_step_counts_of_pytorch(
        self, kind: str, options: dict[str, Any], dtype: str
    ) -> None:
        _, ours = deviations.run_onepass(kind, dtype, options)
        _, theirs = deviations.run_torch(kind, dtype, options)
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys() - {"step"} == b.keys() - {"step"}  # torch's SGD counts no steps
            assert a["step"] == b.get("step", deviations.STEPS) == deviations.STEPS

    def test_an_error_in_any_option_exceeds_the_tolerance(self, kind: str, options: dict[str, Any], dtype: str) -> None:
        """Change each number by a tenth: the deviation exceeds the tolerance, which therefore hides no wrong term."""
        for name, value in {"lr": deviations.LR[kind], **options}.items():
            for wrong in wrong_values(value):
                changed = {name: wrong}
                if name == "nesterov":
                    changed["dampening"] = 0.0
                found = deviations.from_torch(kind, dtype, options, **changed)["params"]
                assert found > 10 * TOLERANCE[dtype], changed


def wrong_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple):
        return [(0.9 * value[0], value[1]), (value[0], 0.9 * value[1])]
    return [0.9 * value]


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_have_their_own_options(dtype: str) -> None:
    params, steps = numbers(dtype)
    weights = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
    of_group = [{"lr": 0.05}, {"lr": 0.01, "weight_decay": 0.3, "betas": (0.5, 0.9)}]
    theirs = torch.optim.Adam([{"params": [w], **o} for w, o in zip(weights, of_group)], foreach=False)
    ours = onepass.Adam([{"params": [p], **o} for p, o in zip(params, of_group)])
    path = [[p.copy() for p in params]]
    for t, grads in enumerate(steps):
        if t == 20:
            ours.groups[0].lr = theirs.param_groups[0]["lr"] = 0.02
        ours.step(grads)
        torch_step(weights, theirs, grads)
        path.append([w.detach().numpy().copy() for w in weights])
    for i in range(2):
        one = [[arrays[i]] for arrays in path]
        assert deviation([params[i]], one[-1], distance(one)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CASES)
def test_parameter_without_a_gradient_keeps_its_value_state_and_count(kind: str, dtype: str) -> None:
    params, steps = numbers(dtype)
    options = {"lr": deviations.LR[kind], **CASES[kind][-1]}
    with deviations.mu_product_in_double():
        weights, theirs = torch_optimizer(kind, params, **options)
        ours = getattr(onepass, kind)(params, **options)
        path = [[p.copy() for p in params]]
        for t, grads in enumerate(steps):
            given = [None if t % 3 == 0 else grads[0], None if t % 5 == 4 else grads[1]]
            ours.step(given)
            torch_step(weights, theirs, given)
            path.append([w.detach().numpy().copy() for w in weights])
    assert deviation(params, path[-1], distance(path)) <= TOLERANCE[dtype]
    assert [ours.state[i]["step"] for i in range(2)] == [33, 40]
    for i, w in enumerate(weights):
        expected = torch_state(theirs, w)
        assert expected.get("step", ours.state[i]["step"]) == ours.state[i]["step"]
        for name in expected.keys() - {"step"}:
            size = np.mean(np.abs(expected[name]))
            assert np.max(np.abs(ours.state[i][name] - expected[name])) <= TOLERANCE[dtype] * size, name


SPARSE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # class in torch, options, options of onepass only
    "SGD": ("SGD", {"lr": 0.05}, {}),
    "SGD, maximize": ("SGD", {"lr": 0.05, "maximize": True}, {}),
    "Adagrad": ("Adagrad", {"lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-2}, {}),
    "Adam": ("SparseAdam", {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-2}, {"eps_mode": "hat"}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPARSE)
def test_sparse_rows_match_sparse_gradients_of_pytorch(case: str, dtype: str) -> None:
    name, options, own = SPARSE[case]
    rng = np.random.default_rng(0)
    param = rng.standard_normal((20, 4)).astype(dtype)
    weight = torch.nn.Parameter(torch.from_numpy(param.copy()))
    plain = {} if name == "SparseAdam" else {"foreach": False}
    theirs = getattr(torch.optim, name)([weight], **options, **plain)
    ours = getattr(onepass, case.partition(",")[0])(param, **options, **own)
    path = [[param.copy()]]
    for _ in range(deviations.STEPS):
        indices, values = rng.integers(0, 18, 6), rng.standard_normal((6, 4)).astype(dtype)
        ours.step(onepass.SparseRows(indices, values))
        weight.grad = torch.sparse_coo_tensor(
            torch.from_numpy(indices)[None], torch.from_numpy(values), weight.shape, check_invariants=True
        )
        with torch.sparse.check_sparse_tensor_invariants():  # torch warns unless a program chooses whether to check
            theirs.step()
        path.append([weight.detach().numpy().copy()])
    assert deviation([param], path[-1], distance(path)) <= TOLERANCE[dtype]
    assert np.array_equal(param[18:], path[0][0][18:])
    for key in torch_state(theirs, weight).keys() - {"step"}:
        expected = torch_state(theirs, weight)[key]
        assert np.max(np.abs(ours.state[0][key] - expected)) <= TOLERANCE[dtype] * np.mean(np.abs(expected)), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_clip_norm_matches_clip_grad_norm(kind: str, dtype: str) -> None:
    """PyTorch adds 1e-6 to the norm, which changes gradients of a million by one part in 10^12 or less."""
    size, limit = 1e6, 8e6
    options = {"lr": 0.05, "eps": size / 100} if kind == "Adam" else {"lr": 0.05 / size}
    params, steps = numbers(dtype)
    weights, theirs = torch_optimizer(kind, params, **options)
    ours = getattr(onepass, kind)(params, clip_norm=limit, **options)
    path, clipped = [[p.copy() for p in params]], 0
    for t, grads in enumerate(steps):
        given = [g * np.asarray(size * (0.3 + 0.1 * (t % 11)), dtype) for g in grads]
        ours.step(given)
        for w, g in zip(weights, given):
            w.grad = torch.from_numpy(g.copy())
        norm = float(torch.nn.utils.clip_grad_norm_(weights, limit))
        theirs.step()
        assert ours.grad_norm == pytest.approx(norm, rel=1e-6 if dtype == "float32" else 1e-14)
        clipped += norm > limit
        path.append([w.detach().numpy().copy() for w in weights])
    assert 10 < clipped < 40  # some steps are clipped and some are not
    assert deviation(params, path[-1], distance(path)) <= max(TOLERANCE[dtype], 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_running_average_matches_averaged_model(dtype: str) -> None:
    """Update PyTorch's average before the first step, because its first update copies the weights."""
    swa = torch.optim.swa_utils
    params, steps = numbers(dtype)
    weights, theirs = torch_optimizer("AdamW", params, lr=0.05)
    model = torch.nn.ParameterList(weights)
    averaged = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    ours = onepass.AdamW(params, lr=0.05, ema_decay=0.9)
    path = [[p.copy() for p in params]]
    for grads in steps:
        ours.step(grads)
        torch_step(weights, theirs, grads)
        averaged.update_parameters(model)
        path.append([w.detach().numpy().copy() for w in averaged.module])
    assert deviation(ours.ema, path[-1], distance(path)) <= TOLERANCE[dtype]


def test_lazily_negated_gradient_is_refused_until_it_is_resolved() -> None:
    w = np.zeros(2)
    negated = torch.tensor([1 + 2j, 1 + 2j], dtype=torch.complex128).conj().imag
    with pytest.raises(TypeError, match="resolve_neg"):
        onepass.SGD(w, lr=1.0).step(negated)
    onepass.SGD(w, lr=1.0).step(negated.resolve_neg())
    assert w.tolist() == [2, 2]


# ---- The PyTorch adapter ----


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", {"eps_mode": "hat", "bias_correction": False, "clip_value": 0.5}),
        ("Lion", {"weight_decay": 0.1, "clip_norm": 0.7, "maximize": True}),
        ("AdEMAMix", {"weight_decay": 0.1, "alpha_warmup": 3, "beta3_warmup": 4, "betas": [0.8, 0.9, 0.99]}),
        ("ScheduleFreeAdamW", {"weight_decay": 0.1, "clip_norm": 0.7, "warmup_steps": 3, "r": 0.5}),
        ("Adam", presets["keras3"]),
        ("SGD", {"flush_denormals": False, "ema_decay": 0.9}),
    ],
    ids=["Adam-hat", "Lion", "AdEMAMix", "ScheduleFreeAdamW", "Adam-keras3", "SGD"],
)
def test_adapter_is_bit_identical_to_the_numpy_optimizer(name: str, options: dict[str, Any]) -> None:
    w = np.linspace(-1, 1, 37, dtype=np.float32)
    p = torch.nn.Parameter(torch.from_numpy(w.copy()))
    options = {"lr": 0.1, **options}
    theirs, ours = getattr(onepass, name)(w, **options), getattr(adapter, name)([p], **options)
    for t in range(5):
        p.grad = gradient(p, t)
        theirs.step(p.grad.numpy().copy())
        ours.step()
    assert p.detach().numpy().tobytes() == w.tobytes()
