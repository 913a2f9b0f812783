"""The paper's comparison: its readers, its networks' gradients, and the program that draws the picture."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import onepass
from support import Array, assert_same_bits

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def data() -> ModuleType:
    return importlib.import_module("comparison_data")


@pytest.fixture
def models() -> ModuleType:
    return importlib.import_module("comparison_models")


@pytest.fixture
def program() -> ModuleType:
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package)
    return importlib.import_module("compare_optimizers")


# ---- CIFAR-10's files ----


def write_cifar(folder: Path, each: int = 20) -> dict[str, Array]:
    """Records of random pixels in the six files, and what was written."""
    rng = np.random.default_rng(0)
    written = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (each, 3073), np.uint8)
        records[:, 0] = np.arange(each) % 10
        (folder / name).write_bytes(records.tobytes())
        written[name] = records
    return written


def test_cifars_files_are_read_as_images(data: ModuleType, tmp_path: Path) -> None:
    written = write_cifar(tmp_path)
    images, labels = data.read_cifar_file(tmp_path / "data_batch_2.bin")
    record = written["data_batch_2.bin"][7]
    assert images.shape == (20, 32, 32, 3) and images.dtype == np.float32
    assert labels.tolist() == [i % 10 for i in range(20)]
    for row, column, channel in [(0, 0, 0), (0, 31, 0), (5, 3, 1), (31, 31, 2)]:  # red rows, then green, then blue
        assert images[7, row, column, channel] == np.float32(record[1 + 1024 * channel + 32 * row + column]) / 255


def test_cifars_five_training_files_become_one_set_without_its_mean(data: ModuleType, tmp_path: Path) -> None:
    written = write_cifar(tmp_path)
    found = data.read_cifar(tmp_path)
    assert found.train.shape == (100, 32, 32, 3) and found.test.shape == (20, 32, 32, 3)
    assert np.abs(found.train.mean(axis=0)).max() < 1e-6
    red = np.concatenate([written[f"data_batch_{i}.bin"][:, 1] for i in range(1, 6)]) / 255
    assert np.allclose(found.train[:, 0, 0, 0], red - red.mean(), atol=1e-6)
    assert np.allclose(found.test[:, 0, 0, 0], written["test_batch.bin"][:, 1] / 255 - red.mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: b"", "data_batch_3.bin: 0 bytes"),
        (lambda whole: whole[:-1], "data_batch_3.bin: 61459 bytes, which are no whole number of records of 3073"),
        (
            lambda whole: whole[: 3073 * 4] + b"\x0a" + whole[3073 * 4 + 1 :],
            "data_batch_3.bin: record 4 has the label 10",
        ),
    ],
    ids=["empty", "cut", "no such class"],
)
def test_a_damaged_cifar_file_is_refused_and_named(
    data: ModuleType, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    write_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        data.read_cifar(tmp_path)


def test_a_missing_cifar_file_is_named(data: ModuleType, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.read_cifar(tmp_path)


# ---- Bags of words ----


def write_reviews(folder: Path, count: int = 60) -> None:
    """Reviews of 30 words, in which word 0 occurs if they are good and word 1 if they are bad; word 2 in all."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        lines = []
        for i in range(count):
            good = i % 2 == 0
            words = sorted({int(not good), 2, *rng.integers(3, 30, 5).tolist()})
            stars = (7, 8, 9, 10)[i % 4] if good else (1, 2, 3, 4)[i % 4]
            lines.append(f"{stars} " + " ".join(f"{word}:{1 + i % 3}" for word in words) + "\n")
        (folder / part).mkdir()
        (folder / part / "labeledBow.feat").write_text("".join(lines))


def test_reviews_are_read_as_words_that_occur_and_what_is_thought(data: ModuleType, tmp_path: Path) -> None:
    write_reviews(tmp_path)
    found = data.read_reviews(tmp_path)
    assert found.train.shape[0] == 60 and found.test.shape == found.train.shape
    assert set(found.train.data.tolist()) == {1.0} and found.train.dtype == np.float32
    assert found.train_labels.tolist() == [1, 0] * 30
    assert np.array_equal(found.train.toarray()[:, 0], found.train_labels)
    assert np.array_equal(found.test.toarray()[:, 1], 1 - found.test_labels)


def test_only_the_most_frequent_words_are_kept(data: ModuleType, tmp_path: Path) -> None:
    write_reviews(tmp_path)
    found = data.read_reviews(tmp_path, features=3)
    assert found.train.shape == (60, 3) and found.test.shape == (60, 3)
    assert found.train.toarray().sum(axis=0).tolist() == [30, 30, 60]


@pytest.mark.parametrize("word", [2, 77])
def test_a_test_set_with_fewer_or_more_words_gets_the_trainings(data: ModuleType, tmp_path: Path, word: int) -> None:
    write_reviews(tmp_path)
    (tmp_path / "test" / "labeledBow.feat").write_text(f"9 0:1 1:0 {word}:1\n2 1:4\n")
    found = data.read_reviews(tmp_path)
    assert found.test.shape == (2, found.train.shape[1])
    assert found.test.toarray()[:, :2].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no reviews"),
        ("9 0:1\n5 1:1\n", "review 1 has 5 stars"),
        ("9 0:1\n11 1:1\n", "review 1 has 11 stars"),
        ("9 0:1\n2 1\n", "not in svmlight's format"),
        ("9 0:1\n2 x:1\n", "not in svmlight's format"),
        ("9 5:1 3:1\n", "not in svmlight's format"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_damaged_reviews_are_refused_and_named(
    data: ModuleType, tmp_path: Path, part: str, text: str, message: str
) -> None:
    write_reviews(tmp_path)
    path = tmp_path / part / "labeledBow.feat"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{part}.labeledBow.feat: {message}"):
        data.read_reviews(tmp_path)


def test_missing_reviews_are_named(data: ModuleType, tmp_path: Path) -> None:
    write_reviews(tmp_path)
    (tmp_path / "test" / "labeledBow.feat").unlink()
    with pytest.raises(FileNotFoundError, match=r"test.labeledBow\.feat"):
        data.read_reviews(tmp_path)


def test_long_docstrings_are_found_wherever_they_are_each_once(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {name: " ".join([name] * 20) for name in ("module", "function", "method", "otherwise")}
    source = [
        f'"""{said["module"]}"""',
        f'def a():\n    """{said["function"]}"""',
        f'def again():\n    """{said["function"]}"""',
        f'def short():\n    """{" ".join(["short"] * 19)}"""',
        f'if a:\n    class B:\n        def c(self):\n            """{said["method"]}"""',
        f'else:\n    def d():\n        """{said["otherwise"]}"""',
    ]
    folder = tmp_path / "tests" / "spoken"  # of tests are those that are in the package
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text("\n".join(source) + "\n")
    (folder / "tests" / "__init__.py").write_text(f'"""{" ".join(["tested"] * 20)}"""\n')
    monkeypatch.syspath_prepend(folder.parent)
    assert sorted(data.docstrings("spoken")) == sorted(said.values())


def test_docstrings_become_bags_without_the_names_that_tell(data: ModuleType) -> None:
    found = data.documentation(("scipy.cluster", "sklearn.cluster"))
    assert found.classes == 2 and len(found.train_labels) == found.train.shape[0] > 50
    assert len(found.test_labels) == found.test.shape[0]
    again = data.documentation(("scipy.cluster", "sklearn.cluster"))
    assert (found.train != again.train).nnz == 0 and np.array_equal(found.test_labels, again.test_labels)
    texts = data.docstrings("scipy.cluster")
    assert len(texts) == len(set(texts)) and all(len(text.split()) >= 20 for text in texts)
    assert any("dendrogram" in text for text in texts)


# ---- Gradients ----


def in_double(model: Any) -> Any:
    """The model with float64 parameters."""
    for layer in getattr(model, "layers", [model]):
        layer.parameters = [parameter.astype(np.float64) for parameter in layer.parameters]
    if hasattr(model, "layers"):
        model.parameters = [parameter for layer in model.layers for parameter in layer.parameters]
    return model


def dense(gradient: Any, parameter: Array) -> Array:
    if not isinstance(gradient, onepass.SparseRows):
        return np.asarray(gradient)
    full = np.zeros_like(parameter)
    full[gradient.indices] = gradient.values
    return full


def check_gradients(model: Any, inputs: Any, labels: Array) -> None:
    """Every gradient is the slope of the loss, element by element, the same units being dropped each time."""
    rng = np.random.default_rng(1)
    for parameter in model.parameters:  # away from zeros, where a ReLU may have its kink
        parameter += 0.1 * rng.standard_normal(parameter.shape)
    _, gradients = model.loss_and_gradients(inputs, labels, np.random.default_rng(2))
    for parameter, gradient in zip(model.parameters, gradients, strict=True):
        gradient = dense(gradient, parameter)
        assert gradient.shape == parameter.shape and np.any(gradient)
        for place in rng.permutation(parameter.size)[:40]:
            losses = []
            for way in (1e-6, -1e-6):
                kept = parameter.flat[place]
                parameter.flat[place] += way
                losses.append(model.loss_and_gradients(inputs, labels, np.random.default_rng(2))[0])
                parameter.flat[place] = kept
            assert gradient.flat[place] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-5, abs=1e-8)


LABELS = np.array([0, 2, 1, 2, 0, 1, 1])


def test_the_gradients_of_logistic_regression_are_the_losss_slopes(models: ModuleType) -> None:
    inputs = np.random.default_rng(0).standard_normal((7, 5))
    check_gradients(in_double(models.logistic_regression(5, 3, l2=0.1)), inputs, LABELS)


def test_the_gradients_of_the_perceptron_with_dropout_are_the_losss_slopes(models: ModuleType) -> None:
    rng = np.random.default_rng(0)
    check_gradients(in_double(models.perceptron(5, [8, 6], 3, rng)), rng.standard_normal((7, 5)), LABELS)


def test_the_gradients_of_the_convolutional_network_are_the_losss_slopes(models: ModuleType) -> None:
    rng = np.random.default_rng(0)
    network = in_double(models.convolutional((8, 4, 2), [3, 5], 6, 3, rng))
    check_gradients(network, rng.standard_normal((7, 8, 4, 2)), LABELS)


def bags(count: int = 7, words: int = 40) -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    return sparse.random(count, words, 0.15, "csr", np.float32, np.random.default_rng(0))


def test_the_gradients_on_sparse_rows_are_the_losss_slopes(models: ModuleType) -> None:
    check_gradients(in_double(models.SparseLogisticRegression(40, 3)), bags().astype(np.float64), LABELS)


def test_a_convolution_is_what_its_definition_says(models: ModuleType) -> None:
    rng = np.random.default_rng(0)
    layer = in_double(models.Convolution(3, 2, 4, rng))
    x = rng.standard_normal((2, 5, 6, 2))
    y = layer.forward(x, None)
    kernels = layer.parameters[0].reshape(3, 3, 2, 4)  # row, column, input channel, output channel
    for n, i, j in [(0, 0, 0), (1, 4, 5), (0, 2, 3)]:
        expected = np.zeros(4)
        for di in range(3):
            for dj in range(3):
                if 0 <= i + di - 1 < 5 and 0 <= j + dj - 1 < 6:
                    expected += x[n, i + di - 1, j + dj - 1] @ kernels[di, dj]
        assert np.allclose(y[n, i, j], expected)


def test_the_first_of_equal_pixels_alone_takes_the_gradient(models: ModuleType) -> None:
    pool = models.MaxPool()
    x = np.zeros((1, 2, 4, 1))
    x[0, 1, 3] = 5
    assert pool.forward(x, None).ravel().tolist() == [0, 5]
    towards = pool.back(np.array([1.0, 2.0]).reshape(1, 1, 2, 1))
    assert towards[0, :, :, 0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 2]]


def test_dropout_keeps_the_mean_and_is_off_without_noise(models: ModuleType) -> None:
    layer = models.Dropout(0.25)
    x = np.ones((400, 250), np.float32)
    dropped = layer.forward(x, np.random.default_rng(0))
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01) and dropped.mean() == pytest.approx(1, abs=0.01)
    assert layer.forward(x, None) is x


def test_images_that_cannot_be_halved_are_refused(models: ModuleType) -> None:
    with pytest.raises(ValueError, match="14×6 pixels cannot be halved 2 times"):
        models.convolutional((14, 6, 1), [2, 2], 4, 3, np.random.default_rng(0))


# ---- Sparse rows ----


@pytest.mark.parametrize("name", ["AdaGrad", "RMSProp", "SGD Nesterov", "AdaDelta", "Adam"])
def test_a_sparse_step_is_the_dense_one_for_the_words_that_occur_and_none_for_the_others(
    program: ModuleType, models: ModuleType, name: str
) -> None:
    inputs = bags()
    rows = models.SparseLogisticRegression(40, 3)
    whole = models.SparseLogisticRegression(40, 3)
    steps = [program.OPTIMIZERS[name].make(model.parameters, 0.1) for model in (rows, whole)]
    for _ in range(3):
        before = rows.parameters[0].copy()
        loss, gradients = rows.loss_and_gradients(inputs, LABELS, np.random.default_rng(1))
        assert isinstance(gradients[0], onepass.SparseRows)
        loss_again, given = whole.loss_and_gradients(inputs, LABELS, np.random.default_rng(1))
        assert loss == loss_again
        steps[0].step(gradients)
        steps[1].step([dense(given[0], whole.parameters[0]), given[1]])
        touched = gradients[0].indices
        assert 0 < len(touched) < 40
        assert_same_bits([rows.parameters[0][touched]], [whole.parameters[0][touched]])
        others = np.setdiff1d(np.arange(40), touched)
        assert_same_bits([rows.parameters[0][others]], [before[others]])


def test_the_gradient_names_the_words_of_the_batch_that_were_not_dropped(models: ModuleType) -> None:
    model, inputs = models.SparseLogisticRegression(40, 3), bags()
    present = set(np.unique(inputs.indices).tolist())
    _, (gradient, _) = model.loss_and_gradients(inputs, LABELS, None)
    assert set(gradient.indices.tolist()) == present
    _, (gradient, _) = model.loss_and_gradients(inputs, LABELS, np.random.default_rng(0))
    assert set(gradient.indices.tolist()) < present


# ---- The program ----


def test_dropped_words_are_made_good_for_by_the_others(models: ModuleType) -> None:
    model, inputs = models.SparseLogisticRegression(40, 3), bags()
    whole = dense(model.loss_and_gradients(inputs, LABELS, None)[1][0], model.parameters[0])
    noises = map(np.random.default_rng, range(2000))
    dropped = [dense(model.loss_and_gradients(inputs, LABELS, noise)[1][0], model.parameters[0]) for noise in noises]
    assert np.allclose(np.mean(dropped, axis=0), whole, atol=0.1 * np.abs(whole).max())


def test_the_optimizers_are_the_papers(program: ModuleType) -> None:
    made = {name: it.make([np.zeros(3, np.float32)], 0.1) for name, it in program.OPTIMIZERS.items()}
    classes = [onepass.Adagrad, onepass.RMSprop, onepass.SGD, onepass.Adadelta, onepass.Adam]
    assert [type(one) for one in made.values()] == classes
    momentum = made["SGD Nesterov"].groups[0]
    assert momentum.nesterov and momentum.momentum == 0.9
    assert len({len(it.rates) for it in program.OPTIMIZERS.values()}) == 1


def test_rates_fall_with_the_root_of_the_step_unless_the_optimizers_steps_do(
    program: ModuleType, data: ModuleType, models: ModuleType
) -> None:
    seen = {}

    def watch(name: str) -> Callable[..., Any]:
        def make(parameters: list[Array], rate: Any) -> onepass.SGD:
            seen[name] = [rate(t) for t in (1, 4)] if callable(rate) else rate
            return onepass.SGD(parameters, rate)

        return make

    task = program.Task("", data.rows(data_digits()), lambda _: models.logistic_regression(64, 10), 1, decay=True)
    for name, case, decays in [("falls", task, False), ("own", task, True), ("not", task._replace(decay=False), False)]:
        program.train(case, program.Optimizer(watch(name), (), decays), 0.01, seed=0, epochs=1)
    assert seen == {"falls": [pytest.approx(0.1), pytest.approx(0.05)], "own": 0.01, "not": 0.01}


def write_mnist(folder: Path) -> None:
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (10, 6, 6))
    for part, count in (("train", 200), ("t10k", 30)):
        labels = np.arange(count) % 10
        pixels = patterns[labels] + rng.integers(0, 40, (count, 6, 6))
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def small(program: ModuleType, data: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few docstrings in place of all: reading those takes seconds."""
    few = data.documentation(("scipy.cluster", "sklearn.cluster"))
    monkeypatch.setattr(data, "documentation", lambda: few)


def quick(program: ModuleType, out: Path, *more: Any) -> dict[str, Any]:
    assert program.main(["--quick", "--out", str(out), *map(str, more)]) == 0
    results: dict[str, Any] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return results


@pytest.mark.usefixtures("small")
def test_every_optimizer_lowers_the_cost_of_every_problem(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures" / "comparison.png"
    results = quick(program, out)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert len(results["tasks"]) == 4
    printed = capsys.readouterr().out
    for task in results["tasks"]:
        assert list(task["optimizers"]) == ["AdaGrad", "RMSProp", "SGD Nesterov", "AdaDelta", "Adam"]
        budgets = {(len(found["search"]), len(found["costs"])) for found in task["optimizers"].values()}
        assert len(budgets) == 1  # the same for all
        for name, found in task["optimizers"].items():
            (costs,) = found["costs"]
            assert costs[-1] < 0.95 * costs[0], (task["title"], name)
            assert costs[-1] == min(tried["final_cost"] for tried in found["search"])
            assert f"{costs[-1]:#.3g}" in printed
    assert "edge" not in printed  # of two rates either is the lowest or the highest


@pytest.mark.usefixtures("small")
def test_a_seed_fixes_first_weights_batches_and_dropout(program: ModuleType) -> None:
    for task in program.tasks(None, None, None):
        once, again, other = (program.train(task, program.OPTIMIZERS["Adam"], 0.003, seed, 2) for seed in (5, 5, 6))
        assert once[0].tobytes() == again[0].tobytes() and once[1] == again[1]
        assert once[0].tobytes() != other[0].tobytes()


def test_real_sets_are_trained_on(program: ModuleType, data: ModuleType, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("mnist", "cifar", "reviews")}
    for folder in folders.values():
        folder.mkdir()
    write_mnist(folders["mnist"])
    write_cifar(folders["cifar"], each=10)
    write_reviews(folders["reviews"])
    every = program.tasks(**folders)
    assert [task.data.name for task in every] == ["mnist", "reviews", "mnist", "cifar"]
    for task in every[:3]:
        costs, accuracy = program.train(task, program.OPTIMIZERS["Adam"], 0.003, seed=0, epochs=5)
        assert costs[-1] < costs[0] and accuracy > 0.3
    costs, _ = program.train(every[3], program.OPTIMIZERS["Adam"], 0.001, seed=0, epochs=1)
    assert 2 < costs[0] < 6  # of ten classes at random: log(10) is 2.3


def test_what_diverges_has_an_infinite_cost(program: ModuleType, data: ModuleType, models: ModuleType) -> None:
    task = program.Task("", data.rows(data_digits()), lambda rng: models.perceptron(64, [8], 10, rng), 3)
    costs, _ = program.train(task, program.OPTIMIZERS["SGD Nesterov"], 1e38, seed=0, epochs=3)
    assert math.isinf(costs[-1])


def data_digits() -> Any:
    return importlib.import_module("train_digits").scanned_digits()


@pytest.mark.parametrize("option", ["--mnist", "--cifar", "--reviews"])
def test_a_folder_without_the_files_is_an_error_that_names_it(
    program: ModuleType, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert program.main([option, str(tmp_path / "empty"), "--out", str(tmp_path / "x.png")]) == 1
    assert str(tmp_path / "empty") in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(("costs", "edge"), [((1, 2, 3), True), ((3, 2, 1), True), ((2, 1, 3), False), ((1, 2), False)])
def test_the_best_rate_is_at_the_edge_if_it_is_the_lowest_or_highest_of_several(
    program: ModuleType, data: ModuleType, monkeypatch: pytest.MonkeyPatch, costs: tuple[float, ...], edge: bool
) -> None:
    monkeypatch.setattr(program, "OPTIMIZERS", {"any": program.Optimizer(None, tuple(range(len(costs))))})
    monkeypatch.setattr(program, "train", lambda task, optimizer, rate, seed, epochs: (np.array([costs[rate]]), 1.0))
    task = program.Task("", data.rows(data_digits()), None, 1)
    found = program.compare(task, [0], slice(None), 1)["optimizers"]["any"]
    assert (found["rate"], found["at_the_edge"]) == (costs.index(1), edge)


@pytest.mark.parametrize("text", [None, "no marks\n"])
def test_a_page_is_refused_before_the_training(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    assert program.main(["--quick", "--out", str(tmp_path / "x.png"), "--page", str(page)]) == 1
    assert str(page) in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_picture_with_the_name_of_the_figures_is_refused(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--quick", "--out", str(tmp_path / "x.json")]) == 1
    assert "x.json: " in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_the_pages_numbers_are_those_of_the_figures_in_the_repository(program: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "images" / "comparison.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert program.table(results) in page and program.explain(results) in page
    prose = page.partition("## Does the ranking hold?")[2].partition("\n## ")[0]
    figures = {f"{cost:#.3g}" for cost, _ in itertools.chain.from_iterable(map(program.ranking, results["tasks"]))}
    searched = [one for task in results["tasks"] for found in task["optimizers"].values() for one in found["search"]]
    figures |= {f"{one['final_cost']:#.3g}" for one in searched}
    said = re.findall(r"0\.\d+", prose)
    assert len(said) > 10 and set(said) <= figures
    assert "in {} of {} cases an optimizer".format(*program.beside_the_best(results)) in prose
    assert not any(found["at_the_edge"] for task in results["tasks"] for found in task["optimizers"].values())


def test_the_edge_is_explained_only_where_the_table_has_one(program: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "images" / "comparison.json").read_text(encoding="utf-8"))
    assert "edge" not in program.table(results) + program.explain(results)
    results["tasks"][1]["optimizers"]["Adam"]["at_the_edge"] = True
    assert "(edge)" in program.table(results) and "; edge: the lowest" in program.explain(results)


def test_a_page_without_the_marks_is_refused_and_left_alone(program: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- comparison: begin -->\nold\n<!-- comparison: end -->\nb\n")
    program.put_into_page(page, "new")
    assert page.read_text() == "a\n<!-- comparison: begin -->\nnew\n<!-- comparison: end -->\nb\n"
    page.write_text("a\n<!-- comparison: begin -->\nold\n")
    with pytest.raises(ValueError, match=r"page\.md: lacks"):
        program.put_into_page(page, "new")
    assert page.read_text() == "a\n<!-- comparison: begin -->\nold\n"


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("wanted", [[0, 0, 0], [-50, 3, 4, 90, 91], [10, 30, 50], [5, 20, 21]])
def test_names_at_the_lines_ends_are_pushed_apart_in_their_order(wanted: list[float]) -> None:
    placed = importlib.import_module("comparison_figure").apart(wanted, 15, lowest=7)
    assert len(placed) == len(wanted) and min(placed) >= 7
    assert np.diff(placed).min() >= 15 - 1e-9
    if np.diff(wanted).min() >= 15:
        assert placed == wanted
