"""The examples that need another library run and print the results that they promise."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def numbers(pattern: str, printed: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, printed)]


def test_sparse_gradients_classify_texts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    assert importlib.import_module("sparse_text").main() > 0.9
    losses = numbers(r"loss ([\d.]+)", capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1


def test_losses_fall_along_autograds_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("autograd")
    importlib.import_module("autograd_gradients").main()
    losses = numbers(r"cross-entropy ([\d.]+)", capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1


def test_losses_fall_along_jaxs_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jax")
    importlib.import_module("jax_gradients").main()
    losses = numbers(r"squared error ([\d.]+)", capsys.readouterr().out)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.01


def test_policy_learns_to_balance_the_pole(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert importlib.import_module("torch_policy").main(["--updates", "30"]) > 150
    balanced = numbers(r"for +([\d.]+) steps", capsys.readouterr().out)
    assert balanced[0] < 50


def test_sklearn_classifier_fits_as_well_with_onepass(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    importlib.import_module("sklearn_mlp").main()
    theirs, ours = (
        numbers(r"(\d\.\d{6})", line) + numbers(r"([\d.]+)% right", line)
        for line in capsys.readouterr().out.splitlines()
    )
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-3)
    assert ours[3] == pytest.approx(theirs[3], abs=0.5) and ours[3] > 95


def test_sklearn_classifier_steps_with_onepass() -> None:
    pytest.importorskip("sklearn")
    import numpy as np

    import onepass

    recipe = importlib.import_module("sklearn_mlp")
    model = recipe.FasterMLPClassifier((8,), random_state=0)
    x = np.random.default_rng(0).standard_normal((64, 3))
    for _ in range(3):
        model.partial_fit(x, x[:, 0] > 0, classes=[False, True])
    assert type(model._optimizer.optimizer) is onepass.Adam
    assert model._optimizer.optimizer.step_count == 3


def test_sklearn_classifier_steps_replaced_weights() -> None:
    pytest.importorskip("sklearn")
    import numpy as np
    from sklearn.neural_network import MLPClassifier

    recipe = importlib.import_module("sklearn_mlp")
    x = np.random.default_rng(0).standard_normal((64, 3))
    fitted = []
    for cls in (recipe.FasterMLPClassifier, MLPClassifier):
        model = cls((8,), random_state=0)
        for _ in range(3):
            model.partial_fit(x, x[:, 0] > 0, classes=[False, True])
            model.coefs_ = [coefficients.copy() for coefficients in model.coefs_]
        fitted.append(model.coefs_)
    for ours, theirs in zip(*fitted):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_sklearn_classifier_with_another_solver_is_refused(solver: str) -> None:
    pytest.importorskip("sklearn")
    recipe = importlib.import_module("sklearn_mlp")
    with pytest.raises(ValueError, match=f"steps with Adam, not {solver}"):
        recipe.FasterMLPClassifier((8,), solver=solver, max_iter=1).fit([[0.0], [1.0]], [0, 1])


def test_policy_without_an_update_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    with pytest.raises(SystemExit):
        importlib.import_module("torch_policy").main(["--updates", "0"])
    assert "expected 1 or more" in capsys.readouterr().err
