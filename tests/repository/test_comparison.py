"""Comparison of optimizers: dataset readers, gradients of the models, the program and its page."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import onepass
from mnist_files import write_mnist
from support import Array, assert_same_bits

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "comparison.md"
RESULTS = ROOT / "docs" / "images" / "comparison.json"
LABELS = np.array([0, 2, 1, 2, 0, 1, 1])
NAMES = ["AdaGrad", "RMSProp", "SGD Nesterov", "AdaDelta", "Adam"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    _ = [pytest.importorskip(package) for package in ("sklearn", "matplotlib", "tqdm")]
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("comparison.run")


@pytest.fixture
def few_texts(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the docstrings of two subpackages: reading all of them takes seconds."""
    few, again = (run.data.documentation(("scipy.cluster", "sklearn.cluster")) for _ in range(2))
    assert (few.train != again.train).nnz == 0 and np.array_equal(few.test_labels, again.test_labels)
    assert few.classes == 2 and len(few.train_labels) == few.train.shape[0] > 50
    monkeypatch.setattr(run.data, "documentation", lambda: few)


# ---- Datasets ----


def write_cifar(folder: Path) -> Array:
    """Write six files of random pixels; return all records, with the test file last."""
    records = np.random.default_rng(0).integers(0, 256, (6, 10, 3073), np.uint8)
    records[:, :, 0] = np.arange(10)
    for name, file in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], records, strict=True):
        (folder / f"{name}.bin").write_bytes(file.tobytes())
    return records


def write_reviews(folder: Path) -> None:
    """Write 60 reviews per file: word 0 occurs in the positive ones, word 1 in the negative ones, word 2 in all."""
    for part, highest in (("train", 30), ("test", 35)):
        others = np.random.default_rng(0).integers(3, highest, (60, 5))
        bags = [[i % 2, 2, *sorted({*row})] for i, row in enumerate(others)]
        lines = (f"{(7, 1, 9, 4)[i % 4]} " + " ".join(f"{word}:3" for word in bag) + "\n" for i, bag in enumerate(bags))
        (folder / part).mkdir()
        (folder / part / "labeledBow.feat").write_text("".join(lines))


def test_cifar_images_are_read_with_the_mean_image_subtracted(run: ModuleType, tmp_path: Path) -> None:
    planes = write_cifar(tmp_path)[:, :, 1:].reshape(6, 10, 3, 32, 32) / 255  # red rows, then green, then blue
    found, mean = run.data.read_cifar(tmp_path), planes[:5].mean(axis=(0, 1))
    assert found.train.shape == (50, 32, 32, 3) and found.train_labels.tolist() == [*range(10)] * 5
    assert np.allclose(found.train[27], (planes[2, 7] - mean).transpose(1, 2, 0), atol=1e-6)
    assert np.allclose(found.test[4], (planes[5, 4] - mean).transpose(1, 2, 0), atol=1e-6)


def test_reviews_become_indicators_of_frequent_words_and_labels(run: ModuleType, tmp_path: Path) -> None:
    write_reviews(tmp_path)
    found, labels = run.data.read_reviews(tmp_path, features=3), [1, 0] * 30
    expected = np.array([[label, 1 - label, 1] for label in labels], np.float32)
    assert_same_bits([found.train.toarray(), found.test.toarray()], [expected, expected])
    assert found.train_labels.tolist() == found.test_labels.tolist() == labels


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3.bin", bytes(3072), "whole records of 3073 bytes, got 3072 bytes"),
        ("data_batch_3.bin", bytes(3073) + b"\x0a" + bytes(3072), "record 1: .* got 10"),
        ("test/labeledBow.feat", b"9 0:1\n5 1:1\n", "review 1: .* got 5"),
        ("train/labeledBow.feat", b"9 0:1\n2 x:1\n", "not in svmlight format"),
    ],
)
def test_a_damaged_data_file_is_refused_by_name(
    run: ModuleType, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write_cifar(tmp_path)
    write_reviews(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name.replace('/', '.')}: .*{message}"):
        (run.data.read_cifar if name.endswith("bin") else run.data.read_reviews)(tmp_path)


# ---- Models ----


def bags() -> Any:
    return pytest.importorskip("scipy.sparse").random(7, 40, 0.15, "csr", np.float32, np.random.default_rng(0))


def dense(gradient: Any, parameter: Array) -> Array:
    full = np.zeros_like(parameter)
    full[getattr(gradient, "indices", ...)] = getattr(gradient, "values", gradient)
    return full


MODELS = {
    "logistic regression": lambda m, rng: (m.logistic_regression(5, 3, l2=0.1), rng.random((7, 5))),
    "perceptron": lambda m, rng: (m.perceptron(5, [8, 6], 3, rng), rng.random((7, 5))),
    "convolutional": lambda m, rng: (m.convolutional((8, 4, 2), [3, 5], 6, 3, rng), rng.random((7, 8, 4, 2))),
    "sparse": lambda m, rng: (m.SparseLogisticRegression(40, 3), bags().astype(np.float64)),
}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_match_finite_differences_of_the_loss(run: ModuleType, name: str) -> None:
    rng = np.random.default_rng(0)
    model, inputs = MODELS[name](run.models, rng)
    for layer in (layers := getattr(model, "layers", [model])):  # in float64, and away from 0, the kink of ReLUs
        layer.parameters = [p + 0.1 * rng.standard_normal(p.shape) for p in layer.parameters]
    model.parameters = [parameter for layer in layers for parameter in layer.parameters]
    _, gradients = model.loss_and_gradients(inputs, LABELS, np.random.default_rng(2))
    for parameter, gradient in zip(model.parameters, gradients, strict=True):
        for direction in rng.standard_normal((20, *parameter.shape)):
            losses = []
            for shift in (1e-6, -2e-6, 1e-6):  # the shifts add up to zero
                parameter += shift * direction
                losses.append(model.loss_and_gradients(inputs, LABELS, np.random.default_rng(2))[0])
            slope = np.vdot(dense(gradient, parameter), direction)
            assert slope == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-7) and slope != 0


def test_convolution_and_dropout_match_their_definitions(run: ModuleType) -> None:
    rng = np.random.default_rng(0)
    layer, x = run.models.Convolution(3, 2, 4, rng), rng.standard_normal((2, 5, 6, 2))
    kernels = layer.parameters[0].reshape(3, 3, 2, 4)  # row, column, input channel, output channel
    padded, y = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), layer.forward(x, None)
    for n, i, j in [(0, 0, 0), (1, 4, 5), (0, 2, 3)]:
        assert np.allclose(y[n, i, j], np.einsum("ijc,ijco->o", padded[n, i : i + 3, j : j + 3], kernels))
    dropped = run.models.Dropout(0.25).forward(np.ones((400, 250), np.float32), np.random.default_rng(0))
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01) and dropped.mean() == pytest.approx(1, abs=0.01)
    model, noises = run.models.SparseLogisticRegression(40, 3), [None, *map(np.random.default_rng, range(2000))]
    whole, *draws = (dense(model.loss_and_gradients(bags(), LABELS, n)[1][0], model.parameters[0]) for n in noises)
    assert np.allclose(np.mean(draws, axis=0), whole, atol=0.1 * np.abs(whole).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_sparse_step_equals_the_dense_step_on_the_words_that_occur(run: ModuleType, name: str) -> None:
    sparse, full = (run.models.SparseLogisticRegression(40, 3) for _ in range(2))
    opts = [run.OPTIMIZERS[name].make(model.parameters, 0.1) for model in (sparse, full)]
    for _ in range(3):
        before = sparse.parameters[0].copy()
        rows, bias = sparse.loss_and_gradients(bags(), LABELS, np.random.default_rng(1))[1]
        opts[0].step([rows, bias])
        opts[1].step([dense(rows, before), bias])
        assert 0 < len(rows.indices) < len(np.unique(bags().indices))  # some words are dropped
        others = np.setdiff1d(np.arange(40), rows.indices)
        assert_same_bits([sparse.parameters[0][rows.indices]], [full.parameters[0][rows.indices]])
        assert_same_bits([sparse.parameters[0][others]], [before[others]])


# ---- The program ----


def digits_task(run: ModuleType, decay: bool = False) -> Any:
    digits = run.data.Data(*run.scanned_digits())
    return run.Task("", "", digits, lambda rng: run.models.perceptron(64, [8], 10, rng), 3, decay=decay)


def test_rates_decay_by_the_root_of_the_step_unless_the_rule_decays_itself(run: ModuleType) -> None:
    seen: list[Any] = []
    for decay, decays in [(True, False), (True, True), (False, False)]:
        optimizer = run.Optimizer(lambda p, rate: seen.append(rate) or onepass.SGD(p, rate), (), decays)
        run.train(digits_task(run, decay), optimizer, 0.01, seed=0, epochs=1)
    assert [seen[0](1), seen[0](4), *seen[1:]] == [pytest.approx(0.1), pytest.approx(0.05), 0.01, 0.01]


@pytest.mark.usefixtures("few_texts")
def test_every_optimizer_lowers_every_cost_and_a_seed_makes_it_repeatable(run: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "comparison.png"
    assert run.main(["--quick", "--out", str(out)]) == 0 and out.read_bytes().startswith(b"\x89PNG")
    tasks = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["tasks"]
    assert [list(task["optimizers"]) for task in tasks] == [NAMES] * 4
    for task in tasks:
        for name, found in task["optimizers"].items():
            (costs,), search = found["costs"], [tried["final_cost"] for tried in found["search"]]
            assert costs[-1] < 0.95 * costs[0], (task["title"], name)
            assert costs[-1] == min(search) and len(search) == 2 and not found["at_the_edge"]
    for task in run.tasks(None, None, None):
        once, again, other = (run.train(task, run.OPTIMIZERS["Adam"], 0.003, seed, 2) for seed in (5, 5, 6))
        assert once[0].tobytes() == again[0].tobytes() != other[0].tobytes() and once[1] == again[1]


def test_the_datasets_of_the_paper_are_trained_on(run: ModuleType, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("mnist", "cifar", "reviews")}
    for folder, write in zip(folders.values(), (write_mnist, write_cifar, write_reviews), strict=True):
        folder.mkdir()
        write(folder)
    for task, name in zip(run.tasks(**folders), ["mnist", "reviews", "mnist", "cifar"], strict=True):
        costs, _ = run.train(task, run.OPTIMIZERS["Adam"], 0.001, seed=0, epochs=3)
        assert task.data.name == name and costs[-1] < costs[0] < 6, (task.title, costs)


def test_a_diverging_run_has_infinite_cost_and_is_reported(run: ModuleType, tmp_path: Path) -> None:
    costs, _ = run.train(digits_task(run), run.OPTIMIZERS["SGD Nesterov"], 1e38, seed=0, epochs=3)
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    results["tasks"][2]["optimizers"]["SGD Nesterov"]["costs"][1][-1] = run.publish.number(costs[-1])
    assert math.isinf(costs[-1]) and "| SGD Nesterov | diverged " in run.report.table(results)
    assert "SGD Nesterov diverged, AdaGrad 0.0872" in run.report.claims(results)
    run.draw(results, tmp_path / "x.png")


def test_the_first_or_last_of_several_rates_is_reported_at_the_edge(run: ModuleType, monkeypatch: Any) -> None:
    for costs, edge in [((1, 2, 3), True), ((3, 2, 1), True), ((2, 1, 3), False), ((1, 2), False)]:
        monkeypatch.setattr(run, "OPTIMIZERS", {"any": run.Optimizer(None, tuple(range(len(costs))))})
        monkeypatch.setattr(run, "train", lambda task, optimizer, rate, *_, costs=costs: (np.array([costs[rate]]), 1.0))
        found = run.compare(digits_task(run), [0], slice(None), 1)["optimizers"]["any"]
        assert (found["rate"], found["at_the_edge"]) == (costs.index(1), edge)


@pytest.mark.parametrize("option", ["--mnist", "--cifar", "--reviews", "--out", "--page"])
def test_a_wrong_path_is_refused_before_the_training(run: ModuleType, tmp_path: Path, option: str) -> None:
    wrong = tmp_path / "x.json"
    wrong.write_text("<!-- table: begin -->\nold\n<!-- table: end -->\n")  # no markers for the claims
    with pytest.raises(SystemExit, match=re.escape(str(wrong))):
        run.main(["--out", str(tmp_path / "x.png"), option, str(wrong)])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and "old" in wrong.read_text()


# ---- The page ----


@pytest.mark.usefixtures("few_texts")
def test_an_interruption_leaves_the_page_and_the_results_unchanged(
    run: ModuleType, tmp_path: Path, monkeypatch: Any
) -> None:
    answers = iter([(np.ones(3), 1.0)] * 45)  # then StopIteration, in the second problem
    monkeypatch.setattr(run, "train", lambda *_: next(answers))
    page, saved = tmp_path / "page.md", tmp_path / "x.json"
    page.write_bytes(PAGE.read_bytes())
    saved.write_text("earlier results")
    with pytest.raises(StopIteration):
        run.main(["--out", str(tmp_path / "x.png"), "--page", str(page)])
    assert page.read_bytes() == PAGE.read_bytes() and saved.read_text() == "earlier results"


def test_the_page_is_written_from_the_results_in_the_repository(run: ModuleType, tmp_path: Path) -> None:
    text, page = PAGE.read_text(encoding="utf-8"), tmp_path / "page.md"
    page.write_text(text.replace("| Adam ", "| Eve "), encoding="utf-8")  # in both tables
    program = [sys.executable, EXAMPLES / "comparison" / "run.py", "--results", RESULTS]
    subprocess.run([*program, "--out", tmp_path / "x.png", "--page", page], cwd=tmp_path, check=True)
    assert page.read_text(encoding="utf-8") == text and "(edge)" not in text
    run.publish.write_json(json.loads(RESULTS.read_text(encoding="utf-8")), tmp_path / "x.json")
    assert (tmp_path / "x.json").read_bytes() == RESULTS.read_bytes()


@pytest.mark.parametrize(
    ("costs", "lower", "level"),
    [
        ([0.90, 0.80], "holds", "holds"),
        ([0.97, 0.96], "holds in part", "holds"),  # by less than 5 %
        ([1.01, 0.50], "holds in part", "holds"),  # not with every seed
        ([1.01, 1.01], "does not hold", "holds"),
        ([1.20, 1.10], "does not hold", "does not hold"),
    ],
)
def test_a_claim_is_judged_by_seeds_and_margin(run: ModuleType, costs: list[float], lower: str, level: str) -> None:
    ours, theirs = ({"costs": [[9, 9, 9, cost] for cost in one]} for one in (costs, [1.0, 1.0]))
    results, pair = {"tasks": [{"epochs": 4, "optimizers": {"A": ours, "B": theirs}}]}, [("A", "B")]
    text = f"A {np.mean(costs):#.3g}, B 1.00"
    assert run.report.verdict(run.report.Claim("", "", [0], pair), results) == (lower, text)
    assert run.report.verdict(run.report.Claim("", "", [0], level=pair), results) == (level, text)
