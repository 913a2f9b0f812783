"""onepass's optimizers as methods of ``scipy.optimize.minimize``."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

optimize = pytest.importorskip("scipy.optimize")

import onepass  # noqa: E402
import onepass.integrations.scipy as ours  # noqa: E402

TARGET = np.array([1.0, -2.0, 0.5])


def bowl(x: Any) -> float:
    return float(((x - TARGET) ** 2).sum())


def slope(x: Any) -> Any:
    return 2 * (x - TARGET)


@pytest.mark.parametrize(("name", "options"), [
    ("adam", {"lr": 0.1}), ("adamw", {"lr": 0.1, "weight_decay": 0.0}), ("adamax", {"lr": 0.1}), ("nadam", {"lr": 0.1}),
    ("adagrad", {"lr": 1.0}), ("adadelta", {"lr": 10.0}), ("sgd", {"lr": 0.1}), ("sgd", {"lr": 0.02, "momentum": 0.9}),
    ("rmsprop", {"lr": onepass.schedules.exponential(0.1, 0.98)}),
    ("lion", {"lr": onepass.schedules.exponential(0.1, 0.98)}),
])  # fmt: skip
def test_each_finds_the_bottom(name: str, options: dict[str, Any]) -> None:
    options = {"maxiter": 5000, "gtol": 1e-4, **options}
    found = optimize.minimize(bowl, np.zeros(3), jac=slope, method=getattr(ours, name), options=options)
    assert found.success and found.status == 0 and np.abs(found.jac).max() <= 1e-4
    np.testing.assert_allclose(found.x, TARGET, atol=1e-3)
    assert found.fun == bowl(found.x) and found.nfev == found.njev == found.nit + 1


def test_the_steps_are_the_optimizers() -> None:
    seen: list[Any] = []
    optimize.minimize(
        bowl, np.zeros(3), jac=slope, method=ours.adam, options={"lr": 0.3, "maxiter": 7}, callback=seen.append
    )
    x = np.zeros(3)
    optimizer = onepass.Adam(x, lr=0.3)
    for at in seen:
        optimizer.step(slope(x))
        np.testing.assert_array_equal(at, x)
    assert len(seen) == 7


@pytest.mark.parametrize("jac", [None, "2-point", "3-point"])
def test_a_missing_gradient_is_estimated(jac: Any) -> None:
    options = {"lr": 0.1, "maxiter": 3000, "gtol": 1e-4}
    found = optimize.minimize(bowl, np.zeros(3), jac=jac, method=ours.adam, options=options)
    assert found.success and found.nfev > 3 * found.nit
    np.testing.assert_allclose(found.x, TARGET, atol=1e-3)


def test_value_and_gradient_from_one_function_with_arguments() -> None:
    def both(x: Any, shift: float) -> tuple[float, Any]:
        return bowl(x - shift), slope(x - shift)

    found = optimize.minimize(
        both, np.zeros(3), args=(1.0,), jac=True, method=ours.adam, options={"lr": 0.1, "maxiter": 3000}
    )
    np.testing.assert_allclose(found.x, TARGET + 1, atol=1e-3)


@pytest.mark.parametrize("bounds", [[(0, 0.5), (-1, None), (None, None)], optimize.Bounds([0, -1, -9], [0.5, 9, 9])])
def test_bounds_hold_at_every_step_and_at_the_end(bounds: Any) -> None:
    def check(x: Any) -> None:
        assert 0 <= x[0] <= 0.5 and x[1] >= -1

    found = optimize.minimize(bowl, np.full(3, 5.0), jac=slope, bounds=bounds, method=ours.adam, callback=check,
                              options={"lr": 0.05, "maxiter": 3000})  # fmt: skip
    assert found.success
    np.testing.assert_allclose(found.x, [0.5, -1, 0.5], atol=1e-3)


def test_how_it_may_end() -> None:
    def run(**options: Any) -> Any:
        callback = options.pop("callback", None)
        return optimize.minimize(options.pop("fun", bowl), np.zeros(3), jac=options.pop("jac", slope), method=ours.sgd,
                                 callback=callback, options=options)  # fmt: skip

    short = run(lr=0.001, maxiter=3)
    assert (short.success, short.status, short.nit) == (False, 1, 3)
    assert run(lr=1e-9, xtol=1e-6).status == 2
    nan = run(lr=0.1, fun=lambda x: np.nan if x[0] > 0.3 else bowl(x))
    assert (nan.success, nan.status) == (False, 3) and np.isfinite(nan.fun) and nan.x[0] <= 0.3
    assert run(lr=0.1, fun=lambda x: np.nan).status == 3
    assert run(lr=0.1, jac=lambda x: np.full(3, np.inf)).status == 3
    assert run(lr=0.1, callback=lambda x: x[0] > 0.3).status == 99

    def stop(*, intermediate_result: Any) -> None:
        if intermediate_result.fun < 1:
            raise StopIteration

    stopped = run(lr=0.1, callback=stop)
    assert stopped.status == 99 and not stopped.success and 0 < stopped.fun < 1
    nothing = run(lr=0.1, maxiter=0)
    assert nothing.nit == 0 and (nothing.x == 0).all()


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    optimize.minimize(bowl, TARGET, jac=slope, method=ours.adam, options={"disp": True})
    assert "within gtol" in capsys.readouterr().out


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"hess": lambda x: np.eye(3)}, ValueError, "no second derivatives"),
    ({"constraints": {"type": "eq", "fun": sum}}, ValueError, "no constraints but bounds"),
    ({"bounds": [(0, 1)]}, ValueError, "bounds"),
    ({"bounds": [(1, 0)] * 3}, ValueError, "bound"),
    ({"options": {"lr": -1}}, ValueError, "lr must be at least 0"),
    ({"options": {"lrr": 1}}, TypeError, "lrr"),
    ({"jac": lambda x: np.zeros(2)}, ValueError, "jac returned 2 numbers, x has 3"),
])  # fmt: skip
def test_wrong_input(keywords: dict[str, Any], error: Any, message: str) -> None:
    start = np.zeros(3)
    with pytest.raises(error, match=message):
        optimize.minimize(bowl, start, **{"jac": slope, "method": ours.adam, **keywords})
    assert (start == 0).all()


def test_the_examples_run() -> None:
    tested = doctest.testmod(ours)
    assert tested.attempted > 2 and tested.failed == 0
