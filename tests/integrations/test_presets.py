"""Each preset takes the steps that its library takes.

Today's libraries run themselves, left at their defaults, where they are installed. Those of the article are gone or
have changed: for them, the formula that their documentation or source gives stands here in NumPy.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import onepass
from integrations.deviations import jax_in_double
from onepass import presets, schedules
from support import Array

STEPS, SIZE = 20, 50
# The size of the gradients, epsilon (None: the default), and True if the place of epsilon makes a difference.
CASES = {
    "ordinary gradients": (1.0, None, False),
    "gradients as small as epsilon": (1e-8, None, True),
    "an epsilon of 0.01": (1.0, 1e-2, True),
}


# ---- Libraries: from zero, along the gradients, with their defaults but for epsilon if one is given ----


def torch(grads: Array, eps: float | None) -> Array:
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimizer = torch.optim.Adam([w], **given(eps=eps))
    for g in grads:
        w.grad = torch.from_numpy(g.copy())
        optimizer.step()
    return w.detach().numpy()


def keras3(grads: Array, eps: float | None) -> Array:
    backend = next(filter(importlib.util.find_spec, ["jax", "torch", "tensorflow"]), "numpy")
    os.environ.setdefault("KERAS_BACKEND", backend)
    keras = pytest.importorskip("keras", minversion="3")
    floatx = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        with jax_in_double():
            w = keras.Variable(np.zeros(SIZE), dtype="float64")
            optimizer = keras.optimizers.Adam(**given(epsilon=eps))
            for g in grads:
                optimizer.apply([keras.ops.convert_to_tensor(g)], [w])
            return np.array(keras.ops.convert_to_numpy(w.value))
    finally:
        keras.config.set_floatx(floatx)


def optax(grads: Array, eps: float | None) -> Array:
    optax = pytest.importorskip("optax")
    with jax_in_double() as jax:
        optimizer = optax.adam(presets["optax"]["lr"], **given(eps=eps))
        w = jax.numpy.zeros(SIZE)
        state = optimizer.init(w)
        for g in grads:
            updates, state = optimizer.update(jax.numpy.asarray(g), state, w)
            w = optax.apply_updates(w, updates)
        return np.array(w)


def sklearn(grads: Array, eps: float | None) -> Array:
    network = pytest.importorskip("sklearn.neural_network")
    optimizers = pytest.importorskip("sklearn.neural_network._stochastic_optimizers")
    options = network.MLPClassifier(**given(epsilon=eps)).get_params()
    assert options["solver"] == "adam"
    w = np.zeros(SIZE)
    # As MLPClassifier._fit_stochastic makes it.
    optimizer = optimizers.AdamOptimizer(
        [w], options["learning_rate_init"], options["beta_1"], options["beta_2"], options["epsilon"]
    )
    for g in grads:
        optimizer.update_params([w], [g.copy()])
    return w


def thinc(grads: Array, eps: float | None) -> Array:
    api = pytest.importorskip("thinc.api")
    w = np.zeros(SIZE, np.float32)
    optimizer = api.Adam(grad_clip=0.0, **given(eps=eps))  # it clips to a norm of 1 by default
    for g in grads:
        w, _ = optimizer((0, "w"), w, g.astype(np.float32))
    return w


def pennylane(grads: Array, eps: float | None) -> Array:
    qml = pytest.importorskip("pennylane")
    w = qml.numpy.zeros(SIZE, requires_grad=True)
    optimizer = qml.AdamOptimizer(**given(eps=eps))
    for g in grads:
        (w,) = optimizer.apply_grad((g,), (w,))
    return np.array(w)


def qiskit(grads: Array, eps: float | None) -> Array:
    optimizers = pytest.importorskip("qiskit_algorithms.optimizers")
    following = iter(grads)
    optimizer = optimizers.ADAM(maxiter=STEPS, tol=0, **given(noise_factor=eps))  # tol=0: steps of any size continue
    result = optimizer.minimize(lambda w: 0.0, np.zeros(SIZE), jac=lambda w: next(following))
    assert result.nfev == STEPS
    return np.array(result.x)


def given(**option: Any) -> dict[str, Any]:
    """Return the option as a dictionary, empty for None, which stands for the default."""
    return {name: value for name, value in option.items() if value is not None}


# ---- Formulas: the article's libraries, with the defaults that it lists ----


def tensorflow(grads: Array, eps: float | None, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999) -> Array:
    """The documentation of tf.train.AdamOptimizer."""
    var, m, v = np.zeros((3, SIZE))
    epsilon = 1e-8 if eps is None else eps
    for t, g in enumerate(grads, 1):
        lr_t = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        var = var - lr_t * m / (np.sqrt(v) + epsilon)
    return var


def keras(grads: Array, eps: float | None, lr: float = 0.001, decay: float = 0.0) -> Array:
    """keras.optimizers.Adam.get_updates."""
    p, m, v = np.zeros((3, SIZE))
    epsilon, beta_1, beta_2 = 1e-8 if eps is None else eps, 0.9, 0.999
    for iterations, g in enumerate(grads):
        t = iterations + 1
        lr_t = lr * (1 / (1 + decay * iterations)) * (math.sqrt(1 - beta_2**t) / (1 - beta_1**t))
        m = (beta_1 * m) + (1 - beta_1) * g
        v = (beta_2 * v) + (1 - beta_2) * np.square(g)
        p = p - lr_t * m / (np.sqrt(v) + epsilon)
    return p


def blocks(grads: Array, eps: float | None, learning_rate: float = 0.002, decay_factor: float = 1) -> Array:
    """blocks.algorithms.Adam.compute_step."""
    parameter, mean, variance = np.zeros((3, SIZE))
    epsilon, beta1, beta2 = 1e-8 if eps is None else eps, 0.9, 0.999
    for t1, g in enumerate(grads, 1):
        beta_1_decayed = beta1 * decay_factor ** (t1 - 1)
        rate = learning_rate * math.sqrt(1 - beta2**t1) / (1 - beta_1_decayed**t1)
        mean = beta_1_decayed * mean + (1 - beta_1_decayed) * g
        variance = beta2 * variance + (1 - beta2) * g**2
        parameter = parameter - rate * mean / (np.sqrt(variance) + epsilon)
    return parameter


def lasagne(grads: Array, eps: float | None, learning_rate: float = 0.001) -> Array:
    """lasagne.updates.adam."""
    param, m, v = np.zeros((3, SIZE))
    epsilon, beta1, beta2 = 1e-8 if eps is None else eps, 0.9, 0.999
    for t, g_t in enumerate(grads, 1):
        a_t = learning_rate * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        m = beta1 * m + (1 - beta1) * g_t
        v = beta2 * v + (1 - beta2) * g_t**2
        param = param - a_t * m / (np.sqrt(v) + epsilon)
    return param


def caffe(grads: Array, eps: float | None, base_lr: float = 0.001, momentum: float = 0.9) -> Array:
    """AdamSolver::ComputeUpdateValue."""
    data, val_m, val_v = np.zeros((3, SIZE))
    delta, momentum2 = 1e-8 if eps is None else eps, 0.999
    for t, diff in enumerate(grads, 1):
        correction = math.sqrt(1 - momentum2**t) / (1 - momentum**t)
        val_m = (1 - momentum) * diff + momentum * val_m
        val_v = (1 - momentum2) * (diff * diff) + momentum2 * val_v
        data = data - base_lr * correction * (val_m / (val_v**0.5 + delta))
    return data


def mxnet(grads: Array, eps: float | None, learning_rate: float = 0.001) -> Array:
    """mxnet.optimizer.Adam.update, and adam_update."""
    weight, mean, var = np.zeros((3, SIZE))
    epsilon, beta1, beta2 = 1e-8 if eps is None else eps, 0.9, 0.999
    for t, grad in enumerate(grads, 1):
        coef1, coef2 = 1 - beta1**t, 1 - beta2**t
        lr = learning_rate * (math.sqrt(coef2) / coef1)
        mean = beta1 * mean + (1 - beta1) * grad
        var = beta2 * var + (1 - beta2) * grad**2
        weight = weight - lr * mean / (np.sqrt(var) + epsilon)
    return weight


RUNS: dict[str, Callable[[Array, float | None], Array]] = {
    run.__name__: run
    for run in (
        *(tensorflow, keras, blocks, lasagne, caffe, mxnet),
        *(torch, keras3, optax, sklearn, thinc, pennylane, qiskit),
    )
}
# Deviations after 20 steps, in units of lr. thinc computes in float32, with 1 - 0.999f, which is off by 1.3e-5.
TOLERANCE = {**dict.fromkeys(RUNS, 1e-12), "thinc": 2e-4}


def test_every_preset_is_checked() -> None:
    assert set(RUNS) == set(presets)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", presets)
def test_steps_with_a_preset_match_its_library(name: str, case: str) -> None:
    size, eps, place_shows = CASES[case]
    grads = size * np.random.default_rng(0).standard_normal((STEPS, SIZE))
    theirs = RUNS[name](grads, eps)
    assert theirs.dtype == (np.float32 if name == "thinc" else np.float64)
    options = {**presets[name], **given(eps=eps)}

    def deviation(**changed: Any) -> float:
        w = np.zeros(SIZE, theirs.dtype)
        optimizer = onepass.Adam(w, **{**options, **changed})
        for g in grads:
            optimizer.step(g)
        return float(np.max(np.abs(w.astype(np.float64) - theirs.astype(np.float64))) / options["lr"])

    assert deviation() <= TOLERANCE[name]
    elsewhere = {"paper": "hat", "hat": "paper"}[options["eps_mode"]]
    assert (deviation(eps_mode=elsewhere) > 0.1) == place_shows


def test_the_decay_of_keras_matches_the_inverse_time_schedule() -> None:
    grads = np.random.default_rng(0).standard_normal((STEPS, SIZE))
    w = np.zeros(SIZE)
    optimizer = onepass.Adam(w, **{**presets["keras"], "lr": schedules.inverse_time(0.01, decay=0.1)})
    for g in grads:
        optimizer.step(g)
    np.testing.assert_allclose(w, keras(grads, None, lr=0.01, decay=0.1), rtol=0, atol=1e-14)
