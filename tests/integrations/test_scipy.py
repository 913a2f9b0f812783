"""onepass's optimizers as methods of ``scipy.optimize.minimize``."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

optimize = pytest.importorskip("scipy.optimize")

import onepass
import onepass.integrations.scipy as ours

TARGET = np.array([1.0, -2.0, 0.5])


def bowl(x: Any) -> float:
    return float(((x - TARGET) ** 2).sum())


def slope(x: Any) -> Any:
    return 2 * (x - TARGET)


def run_sgd(fun: Any = bowl, jac: Any = slope, callback: Any = None, tol: float | None = None, **options: Any) -> Any:
    """Minimize with SGD, starting at zero."""
    return optimize.minimize(fun, np.zeros(3), jac=jac, method=ours.sgd, callback=callback, tol=tol, options=options)


@pytest.mark.parametrize(("name", "options"), [
    ("adam", {"lr": 0.1}), ("adamw", {"lr": 0.1, "weight_decay": 0.0}), ("adamax", {"lr": 0.1}), ("nadam", {"lr": 0.1}),
    ("radam", {"lr": 0.1}),
    ("adagrad", {"lr": 1.0}), ("adadelta", {"lr": 10.0}), ("sgd", {"lr": 0.1}), ("sgd", {"lr": 0.02, "momentum": 0.9}),
    ("rmsprop", {"lr": onepass.schedules.exponential(0.1, 0.98)}),
    ("ademamix", {"lr": 0.1, "betas": (0.9, 0.999, 0.99)}),
    ("lion", {"lr": onepass.schedules.exponential(0.1, 0.98)}),
])  # fmt: skip
def test_every_method_finds_the_minimum(name: str, options: dict[str, Any]) -> None:
    options = {"maxiter": 5000, "gtol": 1e-4, **options}
    found = optimize.minimize(bowl, np.zeros(3), jac=slope, method=getattr(ours, name), options=options)
    assert found.success and found.status == 0 and np.abs(found.jac).max() <= 1e-4
    np.testing.assert_allclose(found.x, TARGET, atol=1e-3)
    assert found.fun == bowl(found.x) and found.nfev == found.njev == found.nit + 1


def test_steps_are_bit_identical_to_the_optimizers_steps() -> None:
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


def test_missing_gradient_is_estimated() -> None:
    options = {"lr": 0.1, "maxiter": 3000, "gtol": 1e-4}
    found = optimize.minimize(bowl, np.zeros(3), method=ours.adam, options=options)
    assert found.success and found.nfev == 4 * (found.nit + 1)
    np.testing.assert_allclose(found.x, TARGET, atol=1e-3)


def test_estimated_gradient_is_accurate_and_stays_within_the_bounds() -> None:
    start = np.array([1e-3, 7.0, -3e8, 2.0, 2.0, 0.5])
    low = np.array([-np.inf, 7.0 - 1e-9, -4e8, 2.0, -np.inf, 0.5])
    high = np.array([np.inf, 7.0 + 1e-10, np.inf, 9.0, 2.0, 0.5])

    def smooth(x: Any) -> float:
        assert (low <= x).all() and (x <= high).all()
        return float(np.sin(x[:2]).sum() + ((x[2:] / start[2:]) ** 2).sum())

    def run(method: Any, **options: Any) -> Any:
        bounds = list(zip(low, high))
        return optimize.minimize(smooth, start, bounds=bounds, method=method, options={"maxiter": 0, **options})

    exact = np.concatenate([np.cos(start[:2]), 2 / start[2:]])
    np.testing.assert_allclose(run(ours.sgd).jac[[0, 2, 3, 4]], exact[[0, 2, 3, 4]], rtol=1e-6)
    assert run(ours.sgd).jac[1] == pytest.approx(exact[1], abs=1e-5)  # there is no room for a longer step


def test_fixed_variable_has_an_estimated_gradient_of_zero() -> None:
    bounds = [(1, 1), (None, None), (0.5, 0.5)]
    found = optimize.minimize(
        bowl, np.zeros(3), bounds=bounds, method=ours.adam, options={"lr": 0.1, "maxiter": 3000, "gtol": 1e-4}
    )
    assert found.success and found.x[0] == 1 and found.x[1] == pytest.approx(-2, abs=1e-3)
    assert found.jac[0] == found.jac[2] == 0
    nothing = optimize.minimize(bowl, TARGET, bounds=list(zip(TARGET, TARGET)), method=ours.adam)
    assert nothing.success and nothing.nfev == 1


def test_one_function_can_return_value_and_gradient() -> None:
    def both(x: Any, shift: float) -> tuple[float, Any]:
        return bowl(x - shift), slope(x - shift)

    found = optimize.minimize(
        both, np.zeros(3), args=(1.0,), jac=True, method=ours.adam, options={"lr": 0.1, "maxiter": 3000}
    )
    np.testing.assert_allclose(found.x, TARGET + 1, atol=1e-3)


@pytest.mark.parametrize("bounds", [[(0, 0.5), (-1, None), (None, None)], optimize.Bounds([0, -1, -9], [0.5, 9, 9])])
def test_bounds_are_kept_at_every_step_and_at_the_end(bounds: Any) -> None:
    def check(x: Any) -> None:
        assert 0 <= x[0] <= 0.5 and x[1] >= -1

    found = optimize.minimize(bowl, np.full(3, 5.0), jac=slope, bounds=bounds, method=ours.adam, callback=check,
                              options={"lr": 0.05, "maxiter": 3000})  # fmt: skip
    assert found.success
    np.testing.assert_allclose(found.x, [0.5, -1, 0.5], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "success", "status", "steps"),
    [
        ({"lr": 0.001, "maxiter": 3}, False, 1, 3),
        ({"lr": 0.1, "maxiter": 0}, False, 1, 0),
        ({"lr": 1e-9, "xtol": 1e-6}, True, 2, 1),
        ({"lr": 0.1, "fun": lambda x: np.nan}, False, 3, 0),
        ({"lr": 0.1, "jac": lambda x: np.full(3, np.inf)}, False, 3, 0),
    ],
    ids=["maxiter", "no step", "xtol", "value is NaN", "gradient is infinite"],
)
def test_status_reports_why_the_minimization_ended(options: Any, success: bool, status: int, steps: int) -> None:
    found = run_sgd(**options)
    assert (found.success, found.status, found.nit) == (success, status, steps)
    assert steps > 0 or (found.x == 0).all()


def test_minimization_ends_before_a_point_whose_value_is_nan() -> None:
    found = run_sgd(lr=0.1, fun=lambda x: np.nan if x[0] > 0.3 else bowl(x))
    assert (found.success, found.status) == (False, 3) and np.isfinite(found.fun) and found.x[0] <= 0.3


def test_callback_can_stop_the_minimization() -> None:
    def stop(*, intermediate_result: Any) -> None:
        if intermediate_result.fun < 1:
            raise StopIteration

    found = run_sgd(lr=0.1, callback=stop)
    assert found.status == 99 and not found.success and 0 < found.fun < 1


def test_return_value_of_a_callback_is_ignored() -> None:
    for callback in (bowl, lambda x: True, lambda x: x, lambda intermediate_result: True):
        for method in (ours.sgd, "BFGS"):
            found = optimize.minimize(bowl, np.zeros(3), jac=slope, method=method, callback=callback)
            assert found.status == (1 if method is ours.sgd else 0)


@pytest.mark.parametrize("ends", [{"xtol": 0.1}, {"callback": True}])
def test_last_finite_point_is_returned_without_success(ends: dict[str, Any]) -> None:
    def broken(x: Any) -> Any:
        return np.where(x > 1e-13, np.nan, slope(x))

    def stop(x: Any) -> None:
        raise StopIteration

    callback = stop if "callback" in ends else None
    for fun, jac in ((bowl, broken), (lambda x: np.nan if x[0] else bowl(x), slope)):
        found = run_sgd(fun, jac, callback, lr=1e-12, xtol=ends.get("xtol", 0.0))
        assert (found.success, found.status, found.nit) == (False, 3, 1)
        assert (found.x == 0).all() and np.isfinite(found.fun) and np.isfinite(found.jac).all()


def test_steps_lost_to_rounding_are_not_reported_as_success() -> None:
    found = optimize.minimize(lambda x: 1e-3 * abs(x[0]), [1e14], jac=lambda x: 1e-3 * np.sign(x), method=ours.sgd,
                              options={"lr": 1.0, "maxiter": 5})  # fmt: skip
    assert (found.success, found.status, found.nit) == (False, 1, 5)


def test_tol_sets_gtol_unless_gtol_is_given() -> None:
    for tol, options, within in ((1e-2, {}, 1e-2), (1e-2, {"gtol": 1e-4}, 1e-4), (None, {"gtol": None}, 1e-5)):
        found = run_sgd(tol=tol, lr=0.1, **options)
        assert found.success and 0.5 * within < np.abs(found.jac).max() <= within


def test_maxiter_of_none_means_one_thousand() -> None:
    found = run_sgd(lr=1e-9, maxiter=None)
    assert (found.status, found.nit) == (1, 1000)


@pytest.mark.parametrize("maxiter", [1e1, np.int64(10), np.inf])
def test_maxiter_may_be_a_whole_float_or_infinity(maxiter: Any) -> None:
    found = run_sgd(lr=0.1, maxiter=maxiter)
    assert (found.status, found.nit) == ((1, 10) if maxiter == 10 else (0, found.nit))


def test_another_name_of_a_method_gets_a_suggestion() -> None:
    with pytest.raises(AttributeError, match=r"'adams'\. Did you mean 'adam'\?.* Valid methods: adadelta"):
        getattr(ours, "adams")  # noqa: B009


def test_disp_prints_why_the_minimization_ended(capsys: pytest.CaptureFixture[str]) -> None:
    optimize.minimize(bowl, TARGET, jac=slope, method=ours.adam, options={"disp": True})
    assert "within gtol" in capsys.readouterr().out


@pytest.mark.parametrize(("keywords", "error", "message"), [
    ({"constraints": {"type": "eq", "fun": sum}}, ValueError, "constraints are not supported"),
    ({"bounds": [(0, 1)]}, ValueError, "bounds"),
    ({"bounds": [(1, 0)] * 3}, ValueError, "bound"),
    ({"bounds": [(0, 1), (0, np.nan), (0, 1)]}, ValueError, "bound is NaN"),
    ({"bounds": optimize.Bounds(np.nan, 1)}, ValueError, "bound is NaN"),
    ({"options": {"ema_decay": 0.9}}, ValueError, "option 'ema_decay' is not supported by minimize"),
    ({"options": {"maximize": True}}, ValueError, "option 'maximize' is not supported"),
    ({"options": {"nonfinite": "skip"}}, ValueError, "option 'nonfinite' is not supported"),
    ({"fun": lambda x: np.array([x @ x, 1.0])}, ValueError, "the objective function: expected one number, got"),
    ({"options": {"lr": -1}}, ValueError, "lr: expected at least 0"),
    ({"options": {"maxiter": "a"}}, TypeError, "maxiter: expected an integer, got 'a'"),
    ({"options": {"maxiter": 10.5}}, TypeError, "maxiter: expected an integer, got 10.5"),
    ({"options": {"maxiter": -1}}, ValueError, "maxiter: expected at least 0"),
    ({"method": ours}, AttributeError, "expected a method of onepass.integrations.scipy, such as adam, got the module"),
    ({"method": onepass.Adam}, TypeError, "use a method of onepass.integrations.scipy, such as method=adam"),
    ({"jac": lambda x: np.zeros(2)}, ValueError, "jac: expected 3 numbers, one for each element of x, got 2"),
])  # fmt: skip
def test_wrong_input_is_refused(keywords: dict[str, Any], error: Any, message: str) -> None:
    start = np.zeros(3)
    with pytest.raises(error, match=message):
        optimize.minimize(**{"fun": bowl, "x0": start, "jac": slope, "method": ours.adam, **keywords})
    assert (start == 0).all()


def test_unknown_option_warns_as_in_scipys_own_methods() -> None:
    def run(method: Any, **options: Any) -> Any:
        return optimize.minimize(bowl, np.zeros(3), jac=slope, method=method, options=options)

    for method, options in ((ours.adam, {"lr": 0.1, "clip_norm": 1.0}), ("BFGS", {})):
        with pytest.warns(optimize.OptimizeWarning, match="^Unknown solver options: learning_rate, maxfev") as caught:
            found = run(method, learning_rate=1, maxfev=3, **options)
        assert method == "BFGS" or "Did you mean 'lr'?" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert (found.x == run(method, **options).x).all()


@pytest.mark.parametrize("name", ["hess", "hessp"])
def test_second_derivatives_are_ignored_with_scipys_warning(name: str) -> None:
    results = []
    for method in (ours.adam, "BFGS"):
        with pytest.warns(RuntimeWarning, match=f"does not use Hessian.*{name}") as caught:
            found = optimize.minimize(bowl, np.zeros(3), jac=slope, method=method, **{name: lambda x, *p: np.eye(3)})
        assert caught[0].filename == __file__
        results.append(found)
    assert (results[0].x == optimize.minimize(bowl, np.zeros(3), jac=slope, method=ours.adam).x).all()


def test_ftol_ends_the_minimization_when_the_objective_hardly_changes() -> None:
    found = run_sgd(lr=0.1, gtol=0.0, ftol=1e-3)
    values: list[float] = []
    run_sgd(lr=0.1, maxiter=found.nit, callback=lambda x: values.append(bowl(x)))
    changes = -np.diff([bowl(np.zeros(3)), *values])
    limits = 1e-3 * np.maximum(1, [bowl(np.zeros(3)), *values[:-1]])
    assert (
        (found.success, found.status) == (True, 4) and (changes[:-1] > limits[:-1]).all() and changes[-1] <= limits[-1]
    )


def test_arrays_of_the_result_are_copies() -> None:
    buffer, seen = np.empty(3), []

    def into_buffer(x: Any) -> Any:
        seen.append(x)
        buffer[:] = slope(x)
        return buffer

    found = optimize.minimize(bowl, np.zeros(3), jac=into_buffer, method=ours.adam, options={"maxiter": 3})
    kept = [found.x.copy(), found.jac.copy()]
    for array in (buffer, *seen):
        array[:] = np.nan
    assert [found.x.tolist(), found.jac.tolist()] == [array.tolist() for array in kept]


def test_help_lists_the_options_with_their_defaults() -> None:
    assert ours.adam.__doc__ and ours.sgd.__doc__
    for text in ("lr=0.001", "betas=(0.9, 0.999)", "maxiter=1000", "ftol=0.0", "method=adam"):
        assert text in ours.adam.__doc__
    assert "momentum=0.0" in ours.sgd.__doc__ and "ema_decay" not in ours.sgd.__doc__


def test_docstring_examples_run() -> None:
    tested = doctest.testmod(ours)
    assert tested.attempted > 2 and tested.failed == 0


@pytest.mark.parametrize("jac", [lambda x: 2 * (x - 3), None])
def test_objective_may_change_its_argument(jac: Any) -> None:
    def shifted(x: Any) -> float:
        x -= 3
        return float((x**2).sum())

    found = optimize.minimize(shifted, [0.0, 1.0], jac=jac, method=ours.adam, options={"lr": 0.1, "maxiter": 500})
    assert found.success and np.allclose(found.x, 3, atol=1e-4)
