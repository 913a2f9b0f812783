"""onepass's optimizers for thinc compared with thinc's own: equal weights, averages, state and training."""

from __future__ import annotations

import copy
import doctest
import pickle
from typing import Any

import numpy as np
import pytest

thinc = pytest.importorskip("thinc.api")

import onepass.integrations.thinc as ours
from support import assert_same_bits

F = np.float32
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"learn_rate": 0.01}),
    ("Adam", {"learn_rate": 0.01, "grad_clip": 0.0, "use_averages": False, "eps": 1e-3}),
    ("Adam", {"learn_rate": 0.01, "L2": 0.1}),
    ("Adam", {"learn_rate": 0.01, "L2": 0.1, "L2_is_weight_decay": False, "beta1": 0.5, "beta2": 0.9}),
    ("Adam", {"learn_rate": 0.01, "L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0}),
    ("RAdam", {"learn_rate": 0.01}),
    ("RAdam", {"learn_rate": 0.01, "L2": 0.1, "beta2": 0.9, "eps": 1e-3}),
    ("RAdam", {"learn_rate": 0.01, "L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0}),
    ("SGD", {"learn_rate": 0.1}),
    ("SGD", {"learn_rate": 0.1, "L2": 0.1, "grad_clip": 0.5, "use_averages": False}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_weights_averages_and_state_match_thinc(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    shapes = {(1, "W"): (30, 20), (1, "b"): (20,), (2, "W"): (7, 3, 2)}
    start = {key: rng.standard_normal(shape).astype(F) for key, shape in shapes.items()}
    mine, other = ({key: w.copy() for key, w in start.items()} for _ in range(2))
    own, theirs = getattr(ours, name)(**options), getattr(thinc, name)(**options)
    for _ in range(30):
        for key, shape in shapes.items():
            gradient = rng.standard_normal(shape).astype(F)
            lr_scale = float(rng.uniform(0.5, 1))
            weights, zeros = own(key, mine[key], gradient.copy(), lr_scale=lr_scale)
            assert np.shares_memory(weights, mine[key]) and not zeros.any() and weights.shape == zeros.shape == shape
            other[key], _ = theirs(key, other[key], gradient.copy(), lr_scale=lr_scale)
        own.step_schedules()
        theirs.step_schedules()
    assert own.nr_update == theirs.nr_update
    for key in shapes:
        distance = np.abs(other[key] - start[key]).mean()
        np.testing.assert_allclose(mine[key], other[key], rtol=0, atol=1e-4 * distance)
        for moments in ("mom1", "mom2"):
            a, b = getattr(own, moments), getattr(theirs, moments)
            assert a.keys() == b.keys()
            for each in b:
                assert a[each].shape == b[each].shape
                np.testing.assert_allclose(a[each], b[each], rtol=1e-3, atol=1e-5)
        if theirs.averages is None:
            assert own.averages is None
        else:
            np.testing.assert_allclose(own.averages[key], theirs.averages[key], rtol=1e-4, atol=1e-5)


def test_schedules_are_evaluated_as_in_thinc() -> None:
    runs = []
    for module in (ours, thinc):
        weights = np.ones(5, F)
        optimizer = module.Adam(thinc.warmup_linear(0.1, 3, 10), beta1=thinc.decaying(0.9, 0.1))
        for t in range(8):
            optimizer((0, "W"), weights, np.full(5, 1 + t, F))
            optimizer.step_schedules()
        runs.append(weights)
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4)


def test_configuration_finds_the_optimizers_without_an_import() -> None:
    from thinc.api import Config, registry

    config = Config().from_str(
        """
        [adam]
        @optimizers = "onepass.Adam.v1"
        L2 = 0.01

        [adam.learn_rate]
        @schedules = "constant.v1"
        rate = 0.25

        [radam]
        @optimizers = "onepass.RAdam.v1"

        [sgd]
        @optimizers = "onepass.SGD.v1"
        learn_rate = 0.5
        grad_clip = 0.0
        """
    )
    resolved = registry.resolve(config)
    for name, moved in (("adam", 0.25 * (1 - 0.25 * 0.01)), ("radam", 0.001 * 0.1 / 0.19 / 3**0.5), ("sgd", 0.5)):
        weights = np.zeros(3, F)
        resolved[name]((0, "W"), weights, np.ones(3, F))
        np.testing.assert_allclose(weights, -moved, rtol=1e-6)
    assert resolved["radam"].use_radam


@pytest.mark.parametrize("name", ["Adam", "RAdam", "SGD"])
def test_model_trains_as_with_thincs_optimizers(name: str) -> None:
    losses = []
    for module in (ours, thinc):
        thinc.fix_random_seed(0)
        rng = np.random.default_rng(0)
        x = rng.standard_normal((200, 10)).astype(F)
        y = np.tanh(x @ rng.standard_normal((10, 2))).astype(F)
        model = thinc.chain(thinc.Relu(16), thinc.Linear(2)).initialize(x, y)
        optimizer = getattr(module, name)(0.01)
        seen = []
        for _ in range(50):
            guess, back = model.begin_update(x)
            back((guess - y) / len(x))
            model.finish_update(optimizer)
            optimizer.step_schedules()
            with model.use_params(optimizer.averages):
                seen.append(float(((model.predict(x) - y) ** 2).mean()))
        losses.append(seen)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
    assert losses[0][-1] < losses[0][5]


@pytest.fixture
def thinc_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of each step that thinc's own code takes, for the optimizers of both libraries."""
    steps = []
    thincs = thinc.Optimizer.__call__

    def called(self: Any, key: Any, *arguments: Any, **named: Any) -> Any:
        steps.append(self.nr_update[key])
        return thincs(self, key, *arguments, **named)

    monkeypatch.setattr(thinc.Optimizer, "__call__", called)
    return steps


LAYOUTS: dict[str, Any] = {
    "transposed": lambda a: np.asfortranarray(a),
    "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "float64": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["weights", "gradient", "average"])
def test_unusual_layouts_and_dtypes_are_left_to_thinc(thinc_steps: list[int], which: str, layout: str) -> None:
    runs = []
    for module in (ours, thinc):
        rng = np.random.default_rng(0)
        arrays = {name: rng.standard_normal((6, 4)).astype(F) for name in ("weights", "gradient", "average")}
        arrays[which] = LAYOUTS[layout](arrays[which])
        optimizer = module.SGD(0.1)
        optimizer.averages[0, "W"] = arrays["average"]
        weights, _ = optimizer((0, "W"), arrays["weights"], arrays["gradient"])
        assert optimizer.averages[0, "W"] is arrays["average"]
        runs.append((weights, arrays["average"]))
    assert_same_bits(*runs)
    assert thinc_steps == [0, 0]


def test_average_that_is_a_view_changes_only_its_elements(thinc_steps: list[int]) -> None:
    n = 64
    around = np.full(3 * n, 7, F)
    optimizer, weights = ours.Adam(0.1), np.ones(n, F)
    optimizer.averages[0, "W"] = around[n : 2 * n][::-1]
    optimizer((0, "W"), weights, np.linspace(-1, 1, n, dtype=F))
    assert (around[:n] == 7).all() and (around[2 * n :] == 7).all() and (around[n : 2 * n] != 7).all()
    optimizer.averages[0, "W"] = np.ones(n, F)
    optimizer.averages[0, "W"].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        optimizer((0, "W"), weights, np.ones(n, F))
    assert (optimizer.averages[0, "W"] == 1).all()
    optimizer.averages[0, "W"] = np.ones((8, 8), F)  # the same number of elements
    with pytest.raises(ValueError, match="broadcast"):
        optimizer((0, "W"), weights, np.ones(n, F))
    assert thinc_steps == [0, 1, 2]


@pytest.mark.parametrize("moments", ["mom1", "mom2"])
@pytest.mark.parametrize("wrong", ["reversed", "read-only", "float64", "short"])
def test_moments_that_cannot_be_written_are_refused(moments: str, wrong: str, thinc_steps: list[int]) -> None:
    around = np.zeros(24, np.float64 if wrong == "float64" else F)
    found = around[8:15] if wrong == "short" else around[8:16]
    found = found[::-1] if wrong == "reversed" else found
    found.flags.writeable = wrong != "read-only"
    optimizer, weights = ours.Adam(0.1), np.ones(8, F)
    getattr(optimizer, moments)[0, "W"] = found
    with pytest.raises(ValueError, match=f"the {moments} of .*: expected a contiguous, writeable array of 8 float32"):
        optimizer((0, "W"), weights, np.ones(8, F))
    assert (
        (weights == 1).all() and not around.any() and not optimizer.nr_update and not thinc_steps
    )  # thinc's Adam writes into this array


def test_flat_gradient_is_accepted_as_in_thinc(thinc_steps: list[int]) -> None:
    runs = []
    for module in (ours, thinc):
        rng = np.random.default_rng(0)
        weights, gradient = rng.standard_normal((6, 4)).astype(F), rng.standard_normal(24).astype(F)
        weights, zeros = module.Adam(0.1)((0, "W"), weights, gradient)
        assert zeros.shape == (24,) and not zeros.any()
        runs.append([weights])
    assert_same_bits(*runs)
    assert thinc_steps == [0, 0]


def test_all_steps_of_radam_are_taken_by_onepass(thinc_steps: list[int]) -> None:
    optimizer, weights = ours.RAdam(), np.ones(2, F)
    for _ in range(20):
        optimizer((0, "W"), weights, np.ones(2, F))
    assert thinc_steps == [] and optimizer.nr_update[0, "W"] == 20


def test_copies_and_pickles_continue_bit_identically() -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 5)).astype(F)
    optimizer, weights = ours.Adam(0.1), np.ones(5, F)
    for gradient in gradients[:3]:
        optimizer((0, "W"), weights, gradient.copy())
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        runs = []
        for each in (optimizer, copied):
            each, w = copy.deepcopy(each), weights.copy()
            for gradient in gradients[3:]:
                each((0, "W"), w, gradient.copy())
            runs.append((w, each.averages[0, "W"]))
        assert_same_bits(runs[1], runs[0])


def test_subnormal_weights_are_flushed_to_zero() -> None:
    weights = np.array([1e-40, 1.0], F)
    ours.SGD(0.1)((0, "W"), weights, np.zeros(2, F))
    assert (weights == [0, 1]).all()


def test_wrong_input_is_refused_and_changes_nothing() -> None:
    optimizer, weights = ours.Adam(0.1), np.ones(4, F)
    with pytest.raises(ValueError, match=r"expected shape \(4,\), got \(3,\)"):
        optimizer((0, "W"), weights, np.ones(3, F))
    with pytest.raises(ValueError, match="shares memory"):
        optimizer((0, "W"), weights, weights)
    with pytest.raises(ValueError, match="overflows float32"):
        ours.Adam(1e300)((0, "W"), weights, np.ones(4, F))
    assert (weights == 1).all() and not optimizer.nr_update and not optimizer.mom1 and not optimizer.averages
    empty = np.ones((0, 3), F)
    assert optimizer((0, "W"), empty, empty.copy())[0] is empty


def test_docstring_examples_run() -> None:
    tested = doctest.testmod(ours)
    assert tested.attempted > 3 and tested.failed == 0
