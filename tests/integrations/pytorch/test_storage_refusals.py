"""State and weights in fewer bits: options, parameters and state that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onepass
import onepass.integrations.torch as ours
from integrations.pytorch.storage_helpers import make_params, same_bits, set_gradients, train


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Adam", {"state_dtype": "float16"}, "state_dtype: expected None, 'bfloat16' or 'float8', got 'float16'"),
        ("Adam", {"state_dtype": "float8", "amsgrad": True}, "does not work with amsgrad=True"),
        ("RMSprop", {"state_dtype": "bfloat16", "centered": True}, "does not work with centered=True"),
        ("Adam", {"state_dtype": "bfloat16", "eps": 1e-20}, "needs an eps of at least"),
        (
            "AdamW",
            {"state_dtype": "float8", "betas": (0.999, 0.999)},
            r"betas\[0\]: expected at most 0.99 with state_dtype=.float8., got 0.999",
        ),
        ("Lion", {"state_dtype": "float8", "betas": (0.9, 0.999)}, r"betas\[1\]: expected at most 0.99"),
        ("SGD", {"state_dtype": "float8", "momentum": 0.995}, "momentum: expected at most 0.99"),
        ("Adadelta", {"state_dtype": "float8", "rho": 0.99}, "rho: expected at most 0.95"),
        ("Adam", {"state_dtype": "float8", "flush_denormals": False}, "needs flush_denormals=True"),
        ("Adam", {"master_bits": 24}, "master_bits=24 needs bfloat16 parameters, got float32"),
        ("Adam", {"master_bits": 8}, "master_bits: expected 32, 24 or 16"),
        ("Adam", {"seed": -1}, "seed: expected at least 0"),
    ],
)
def test_impossible_options_are_refused_as_in_the_numpy_optimizer(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(onepass, name)(np.ones(3, np.float32), **options)
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(make_params(), **options)
    whole = {k: v for k, v in options.items() if k == "flush_denormals"}
    optimizer = getattr(ours, name)([torch.nn.Parameter(torch.ones(3))], seed=5, **whole)
    message = "seed: expected at least 0" if "seed" in options else message
    group = {k: v for k, v in options.items() if k not in whole}
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": make_params(), **group})
    assert len(optimizer.param_groups) == 1


def test_group_with_another_seed_is_refused() -> None:
    params = make_params()
    optimizer = ours.Adam(params[:1], seed=3, state_dtype="float8")
    with pytest.raises(ValueError, match=r"seed: expected one for all groups, got \[3, 4\]"):
        optimizer.add_param_group({"params": params[1:], "seed": 4})
    optimizer.add_param_group({"params": params[1:]})
    assert optimizer.seed == 3 and [group["seed"] for group in optimizer.param_groups] == [3, 3]


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_impossible_parameters_and_gradients_are_refused_and_nothing_changes(name: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(5000)), torch.nn.Parameter(torch.zeros(5000, dtype=torch.float64))]
    optimizer = getattr(ours, name)(params, state_dtype="float8")
    set_gradients(params, 0)
    with pytest.raises(ValueError, match=r"parameter 1: state_dtype='float8' needs float32 or bfloat16 parameters"):
        optimizer.step()
    params[1].grad = None
    params[0].grad = params[0].grad.to_sparse()
    with pytest.raises(ValueError, match="the gradient of parameter 0: expected a dense gradient"):
        optimizer.step()
    assert not params[0].any() and not optimizer.state
    (plain,) = make_params(torch.bfloat16, [(5, 3)])
    optimizer = getattr(ours, name)([plain])
    plain.grad = torch.ones_like(plain).to_sparse()
    with pytest.raises(ValueError, match="expected a dense gradient"):
        optimizer.step()


@pytest.mark.parametrize(
    ("option", "wrong", "message"),
    [
        ("state_dtype", None, "state_dtype is fixed once there is state: expected 'float8', got None"),
        ("master_bits", 16, "master_bits is fixed"),
        ("rounding", "nearest", "rounding is fixed"),
        ("amsgrad", True, "does not work with amsgrad"),
        ("betas", (0.999, 0.999), r"betas\[0\]: expected at most"),
        ("eps", 1e-30, "needs an eps"),
        ("seed", -1, "seed: expected"),
    ],
)
def test_option_that_becomes_impossible_is_refused_until_it_is_set_back(option: str, wrong: Any, message: str) -> None:
    params = make_params(torch.bfloat16)
    optimizer = ours.AdamW(
        params, state_dtype="float8", master_bits=24, rounding="stochastic", amsgrad=False, eps=1e-8, seed=1
    )
    train(optimizer, params, range(1))
    group = optimizer.param_groups[0]
    kept, group[option] = group[option], wrong
    with pytest.raises(ValueError, match=message):
        train(optimizer, params, range(1, 2))
    group[option] = kept
    train(optimizer, params, range(2, 3))
    assert optimizer.state[params[0]]["step"] == 2


def test_state_in_other_storage_is_refused_until_it_is_loaded() -> None:
    params = make_params()
    optimizer = ours.AdamW(params, state_dtype="float8")
    train(optimizer, params, range(1))
    state = optimizer.state[params[0]]
    kept, state["exp_avg"] = state["exp_avg"], state["exp_avg"].float()
    with pytest.raises(ValueError, match=r"the state of parameter 0: expected .*float8_e4m3fn.*load a state dict"):
        train(optimizer, params, range(1, 2))
    state["exp_avg"] = kept
    scale = state.pop("exp_avg_scale")
    with pytest.raises(KeyError, match="no tensor 'exp_avg_scale'"):
        train(optimizer, params, range(1, 2))
    state["exp_avg_scale"] = scale[1:].clone()
    with pytest.raises(ValueError, match=r"the scales of the state of parameter 0: expected \[41\]"):
        train(optimizer, params, range(1, 2))
    state["exp_avg_scale"] = scale
    train(optimizer, params, range(1, 2))
    assert state["step"] == 2


def test_seed_can_be_set_between_steps() -> None:
    def run(seeds: list[int]) -> Any:
        params = make_params()
        optimizer = ours.AdamW(params, state_dtype="float8")
        for t, seed in enumerate(seeds):
            optimizer.seed = seed
            assert optimizer.seed == seed
            train(optimizer, params, range(t, t + 1))
        return optimizer.state[params[0]]["exp_avg"]

    assert same_bits(run([0, 1]), run([0, 1])) and not same_bits(run([0, 1]), run([0, 0]))
