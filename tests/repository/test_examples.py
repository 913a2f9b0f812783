"""The examples run, and their reader of MNIST's files works."""

from __future__ import annotations

import gzip
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mnist_files import idx, write_mnist

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("train_digits")


def run(*arguments: Any) -> str:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_quick_start_fits_the_line() -> None:
    assert float(run(EXAMPLES / "quickstart.py").split()[-1]) < 0.011


def test_a_memory_mapped_file_is_stepped_in_chunks_and_kept(tmp_path: Path) -> None:
    arguments = ["--elements", "10007", "--chunk", "1000", "--steps", "2", "--folder", tmp_path]
    assert "from a step over the whole: 0\n" in run(EXAMPLES / "memory_map.py", *arguments)
    target = np.sin(0.001 * np.arange(10007))
    moved = np.fromfile(tmp_path / "param.f32", np.float32)
    assert np.mean((moved - target) ** 2) < np.mean(target**2)


def test_existing_files_are_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "exp_avg.f32").write_bytes(bytes(range(40)))
    assert "exp_avg.f32 is there already" in refused("--elements", "10", "--chunk", "3", "--folder", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["exp_avg.f32"]
    assert (tmp_path / "exp_avg.f32").read_bytes() == bytes(range(40))


@pytest.mark.parametrize("option", ["--elements", "--chunk", "--steps"])
@pytest.mark.parametrize("number", ["0", "-1"])
def test_zero_or_negative_elements_chunks_and_steps_are_refused(option: str, number: str) -> None:
    assert f"argument {option}: expected 1 or more, got {number}" in refused(f"{option}={number}")


def refused(*arguments: Any) -> str:
    """Return the message of memory_map.py for arguments that it refuses."""
    command = [sys.executable, str(EXAMPLES / "memory_map.py"), *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    return ended.stderr


def test_digits_are_learned_and_the_losses_match_textbook_adam(tmp_path: Path) -> None:
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "pictures" / "digits.png"
    printed = run(EXAMPLES / "train_digits.py", "--out", picture)
    accuracies = next(line.split()[-2:] for line in printed.splitlines() if line.startswith("test accuracy"))
    assert all(float(accuracy.rstrip("%")) >= 95 for accuracy in accuracies)
    losses = [line.split()[-2:] for line in printed.splitlines() if line.startswith("loss in epoch")]
    assert len(losses) == 15
    assert all(abs(float(ours) / float(textbook) - 1) < 1e-3 for ours, textbook in losses)
    assert picture.read_bytes().startswith(b"\x89PNG")


# ---- MNIST's files ----


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_mnist_files_are_read_with_dots_or_dashes_zipped_or_not(
    digits: ModuleType, tmp_path: Path, dotted: bool, zipped: bool
) -> None:
    write_mnist(tmp_path, dotted=dotted, zipped=zipped)
    found = digits.read_mnist(tmp_path)
    assert found.train_images.shape == (90, 20)
    assert found.test_images.shape == (30, 20)
    assert found.train_images.dtype == np.float32
    assert 0 <= found.train_images.min() <= found.train_images.max() <= 1
    assert found.test_labels.tolist() == [i % 10 for i in range(30)]


def test_the_digits_example_trains_on_mnist_files(digits: ModuleType, tmp_path: Path) -> None:
    for package in ("matplotlib", "tqdm"):
        pytest.importorskip(package)
    write_mnist(tmp_path, images=400)
    arguments = ["--data", tmp_path, "--out", tmp_path / "x.png", "--hidden", "16", "--epochs", "20", "--lr", "0.01"]
    assert digits.main([str(a) for a in arguments]) == 0
    assert (tmp_path / "x.png").exists()


def wrong_files() -> dict[str, tuple[str, bytes, str]]:
    good = idx(np.zeros((90, 5, 4), np.uint8))
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    return {
        "empty": (images, b"", "bad magic number"),
        "of another kind": (images, b"\0\0\x0d\3" + good[4:], "bad magic number"),
        "labels for images": (images, idx(np.zeros(90, np.uint8)), "bad magic number"),
        "cut in the header": (images, good[:9], "truncated"),
        "cut in the data": (images, good[:-1], "truncated"),
        "too long": (images, good + b"\0", "too long"),
        "damaged gzip": (images, gzip.compress(good)[:-20], "damaged gzip file"),
        "too few labels": (labels, idx(np.zeros(89, np.uint8)), "90 images, but"),
        "images of another size": (images, idx(np.zeros((90, 4, 4), np.uint8)), "16 pixels"),
    }


@pytest.mark.parametrize("case", wrong_files())
def test_damaged_mnist_files_are_refused_by_name(digits: ModuleType, tmp_path: Path, case: str) -> None:
    write_mnist(tmp_path)
    name, data, message = wrong_files()[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        digits.read_mnist(tmp_path)


def test_the_error_names_a_missing_mnist_file(digits: ModuleType, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        digits.read_mnist(tmp_path)
