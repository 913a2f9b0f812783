"""Training with fewer bits: the program, the rule of its verdicts, and its page."""

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

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "low-precision.md"
RESULTS = ROOT / "docs" / "images" / "low_precision.json"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    _ = [pytest.importorskip(package) for package in ("torch", "ml_dtypes", "sklearn", "matplotlib", "tqdm")]
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("low_precision.run")


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


# ---- The program ----


def test_a_quick_run_trains_every_storage_on_every_task(run: ModuleType, tmp_path: Path) -> None:
    out, page = tmp_path / "figures" / "x.png", tmp_path / "page.md"
    page.write_bytes(PAGE.read_bytes())
    assert run.main(["--quick", "--out", str(out), "--page", str(page)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and page.read_bytes() != PAGE.read_bytes()
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    memory = [round(case["bytes"], 1) for case in found["memory"]["cases"]]
    assert memory == [16, 12, 10.1, 8.1, 7.1, 6.1, 5.1]
    assert len(found["tasks"]) == 4 and "Not installed, so not compared" in run.report.explain(
        {**found, "versions": {}}
    )
    for task in found["tasks"]:
        plain = task["storages"]["float32"]
        assert plain["root"] == [1, 1] and plain["root_error"] == [0, 0]
        assert task["storages"].keys() >= set(importlib.import_module("low_precision.training").OWN)
        for name, own in task["storages"].items():
            assert own["training"] == pytest.approx(plain["training"], rel=0.05), name
            assert ("float8" in name) == (own["root_error"][0] > 0.01) or "weights" in name, name


def test_a_seed_makes_a_run_repeatable_and_bfloat16_weights_are_trained(run: ModuleType) -> None:
    narrow, task = run.storages()["bfloat16 weights, master_bits=16"], run.tasks(quick=True)[1]
    models: list[Any] = []
    task = task._replace(model=lambda rng, make=task.model: models.append(make(rng)) or models[-1])
    once, again, other = (run.train(task, narrow, 0.01, seed) for seed in (3, 3, 4))
    assert once == again != other
    assert all((array.view(np.uint32) & 0xFFFF == 0).all() for array in models[0].parameters)


@pytest.mark.parametrize("option", ["--results", "--out", "--page"])
def test_a_wrong_path_is_refused_before_the_training(run: ModuleType, tmp_path: Path, option: str) -> None:
    wrong = tmp_path / ("x.json" if option == "--out" else "missing.md")
    with pytest.raises(SystemExit, match=re.escape(str(wrong))):
        run.main(["--out", str(tmp_path / "x.png"), option, str(wrong)])
    assert not [*tmp_path.iterdir()]


# ---- Statistics ----


@pytest.mark.parametrize(("shift", "where"), [(0.09, "inside"), (-0.09, "inside"), (0.11, "above"), (-0.11, "below")])
def test_a_storage_is_judged_by_the_confidence_interval_of_float32(run: ModuleType, shift: float, where: str) -> None:
    plain = [0.9, 1.0, 1.1, 0.95, 1.05]  # mean 1, standard deviation 0.079, half of the interval 0.098
    mean, half = run.report.interval(plain)
    assert (mean, half) == (pytest.approx(1), pytest.approx(2.776 * np.std(plain, ddof=1) / math.sqrt(5), rel=1e-3))
    own = [1 + shift + deviation for deviation in (-0.4, 0.2, 0.0, 0.1, 0.1)]  # only their mean counts
    assert run.report.verdict(own, plain) == where
    storages = {"float32": {"training": plain}, "float8 state": {"training": own}}
    text = run.report.criterion({"tasks": [{"title": "Any", "storages": storages}]})
    assert f"holds on {int(where == 'inside')} of 1 tasks" in text
    assert ("does not hold" in text) == (where != "inside")


def test_a_diverging_run_is_reported_and_drawn(run: ModuleType, tmp_path: Path) -> None:
    found = results()
    storages = found["tasks"][0]["storages"]
    storages["bfloat16 state"]["training"][1] = run.number(math.inf)
    storages["float8 state"]["training"] = [100 * loss for loss in storages["float32"]["training"]]
    assert run.report.verdict(storages["bfloat16 state"]["training"], storages["float32"]["training"]) == "above"
    row = next(line for line in run.report.convergence(found).splitlines() if "| bfloat16 state  " in line)
    assert "diverged, 1 of 5 seeds" in row and "above" in row
    assert "holds on 3 of 4 tasks" in run.report.criterion(found) and "+9900.0 %" in run.report.criterion(found)
    run.draw(found, tmp_path / "x.png")


def test_one_seed_has_an_infinite_confidence_interval(run: ModuleType) -> None:
    assert run.report.interval([2.0]) == (2.0, math.inf) and run.report.loss([2.0]) == "2.00"
    assert run.report.verdict([3.0], [2.0]) == "inside" and run.report.percent(-0.04, math.inf) == "+0.0 %"


def test_a_rounding_is_called_better_only_if_all_seeds_agree(run: ModuleType) -> None:
    def better(nearest: list[float], stochastic: list[float]) -> str:
        name: str = run.report.better_rounding(*run.report.relative(nearest, stochastic))
        return name

    base = [1.0, 2.0, 3.0]
    assert better([0.9, 1.9, 2.9], base) == "nearest"
    assert better([1.1, 2.1, 3.1], base) == "stochastic"
    assert better([1.1, 1.9, 3.1], base) == "neither"


# ---- The page ----


@pytest.mark.parametrize(
    ("program", "name", "row"),
    [("run.py", "low_precision", "| bfloat16 state "), ("fine_tuning.py", "fine_tuning", "| float8 state, onepass ")],
)
def test_the_page_is_written_from_the_results_in_the_repository(
    run: ModuleType, tmp_path: Path, program: str, name: str, row: str
) -> None:
    text, page, found = PAGE.read_text(encoding="utf-8"), tmp_path / "page.md", RESULTS.with_stem(name)
    page.write_text(text.replace(row, "| overwritten "), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != text
    command = [sys.executable, EXAMPLES / "low_precision" / program, "--results", found]
    subprocess.run([*command, "--out", tmp_path / "x.png", "--page", page], cwd=tmp_path, check=True)
    assert page.read_text(encoding="utf-8") == text
    importlib.import_module("publish").write_json(json.loads(found.read_bytes()), tmp_path / "x.json")
    assert (tmp_path / "x.json").read_bytes() == found.read_bytes()


def test_memory_that_cannot_be_measured_is_reported_as_not_measured(run: ModuleType) -> None:
    found = {"parameters": 64_000_000, "cases": [{"title": "float8 state", "bytes": 10.0625, "peak": None}]}
    assert run.report.memory({"memory": found}).splitlines()[-1].split("|")[1:4] == [
        " float8 state ", " 10.06               ", " not measured                             ",
    ]  # fmt: skip
    mebibytes = importlib.import_module("low_precision.fine_tuning").mebibytes
    assert mebibytes([None, None]) == "not measured" and mebibytes([2**20, 3 * 2**20]) == "2.0 MiB"


def test_the_results_have_enough_seeds_and_all_storages() -> None:
    for task in results()["tasks"]:
        assert len(task["seeds"]) >= 5 and task["parameters"] > 10_000
        best = min(task["search"], key=lambda one: one["training"] or math.inf)["rate"]
        rates = [one["rate"] for one in task["search"]]
        assert task["rate"] == best and rates[0] < best < rates[-1]
        assert all(len(own["training"]) == len(task["seeds"]) for own in task["storages"].values())


def test_second_moments_follow_a_change_better_with_stochastic_rounding() -> None:
    found = results()["tracking"]["storages"]
    errors = {name: float(np.mean([run[-1] for run in own["error"]])) for name, own in found.items()}
    assert errors["float8, stochastic"] < 0.12 and errors["bfloat16, stochastic"] < 0.02
    assert errors["float8, nearest"] > 0.3 and errors["bfloat16, nearest"] > 0.2


def test_peak_memory_is_within_two_percent_of_the_bytes_of_the_arrays() -> None:
    memory = results()["memory"]
    assert memory["parameters"] == 64_000_000 and len(memory["cases"]) == 7
    for case in memory["cases"]:
        assert 1 <= case["peak"] / case["bytes"] <= 1.02, case["title"]
