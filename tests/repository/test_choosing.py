"""Comparison of six optimizers: the program, its statistics, and its page."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import onepass

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "choosing.py"
PAGE = ROOT / "docs" / "choosing.md"
RESULTS = ROOT / "docs" / "images" / "choosing.json"


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    _ = [pytest.importorskip(package) for package in ("torch", "sklearn", "matplotlib", "tqdm")]
    monkeypatch.syspath_prepend(PROGRAM.parent)
    return importlib.import_module("choosing")


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


# ---- The program ----


def test_a_quick_run_trains_every_optimizer_on_every_task(choosing: ModuleType, tmp_path: Path) -> None:
    out, page = tmp_path / "x.png", tmp_path / "page.md"
    page.write_bytes(PAGE.read_bytes())
    assert choosing.main(["--quick", "--out", str(out), "--page", str(page)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and page.read_bytes() != PAGE.read_bytes()
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert [len(task["optimizers"]) for task in found["tasks"]] == [7] * 4 and found["seeds"] == [0, 1]
    for task in found["tasks"]:
        losses = [own["held_out"] for own in task["optimizers"].values()]
        assert all(loss[0] != loss[1] for loss in losses) and len({*map(tuple, losses)}) == 7


def test_schedule_free_weights_are_evaluated_after_eval_on_each_half(choosing: ModuleType) -> None:
    optimizer, task = choosing.OPTIMIZERS["ScheduleFreeAdamW"], choosing.prepared(True)[1]
    made: list[Any] = []
    optimizer = optimizer._replace(make=lambda *args, make=optimizer.make: made.append(make(*args)) or made[-1])
    task = task._replace(model=lambda rng, make=task.model: made.append(make(rng)) or made[-1])
    losses = choosing.train(task, optimizer, 0.01, seed=0)
    model, opt = made
    opt.eval()  # changes nothing
    first, second = (
        choosing.cross_entropy(model.logits(task.data.test)[h::2], task.data.test_labels[h::2])[0] for h in (0, 1)
    )
    assert losses == pytest.approx([first, second], rel=1e-4) and first != pytest.approx(second, rel=1e-3)


def test_every_rate_falls_to_zero_but_that_of_schedule_free(choosing: ModuleType) -> None:
    task = choosing.prepared(True)[1]._replace(steps=100)
    for name, optimizer in choosing.OPTIMIZERS.items():
        opt = optimizer.make(task.model(choosing.np.random.default_rng(0)).parameters, 0.01, task)
        constant = isinstance(opt, onepass.ScheduleFreeAdamW)
        rates = [opt.lr if constant else opt.lr(step) for step in (1, 5, 6, 53, 101)]
        assert rates[-1] == (0.01 if constant else 0), name
        assert (rates[0] < 0.01 == rates[1]) == (name not in ("ScheduleFreeAdamW", "RAdam")), name
        assert opt.groups[0].weight_decay == 0


@pytest.mark.parametrize(
    ("best", "rates"),
    [(0.03, [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1]), (0.0001, [0.00003, 0.0001, 0.0003, 0.001, 0.003])],
)
def test_the_search_continues_until_the_best_rate_is_between_two_others(
    choosing: ModuleType, monkeypatch: pytest.MonkeyPatch, best: float, rates: list[float]
) -> None:
    drawn = []

    def train(task: Any, optimizer: Any, rate: float, seed: int) -> list[float | None]:
        drawn.append((rate, seed))
        searched = None if (rate, seed) == (rates[-1], 1) else abs(math.log10(rate / best))
        return [searched, 100 * rate]

    monkeypatch.setattr(choosing, "train", train)
    monkeypatch.setattr(choosing, "prepared", lambda quick: [None])
    found = choosing.compare(False, 0, "Lion", range(5))
    assert found["rate"] == best and found["held_out"] == [100 * best] * 5
    assert [one["rate"] for one in found["search"]] == rates
    assert [one["mean"] is None for one in found["search"]] == [rate == rates[-1] for rate in rates]
    assert sorted(drawn) == [(rate, seed) for rate in rates for seed in range(5 if rate == best else choosing.SEARCHED)]
    trial = choosing.compare(True, 0, "Lion", range(5))
    assert trial["rate"] == choosing.OPTIMIZERS["Lion"].rate and len(trial["search"]) == 1


# ---- The page ----


@pytest.mark.parametrize(
    ("own", "where"),
    [([0.9, 1.9, 2.85], "lower"), ([1.1, 2.1, 3.15], "higher"), ([0.9, 2.1, 3.0], "tie"), ([0.9, None, 2.7], "")],
)
def test_an_optimizer_is_compared_with_the_first_seed_by_seed(
    choosing: ModuleType, own: list[float | None], where: str
) -> None:
    each = {"AdamW": [1.0, 2.0, 3.0], "Lion": own}
    found = {name: {"schedule": "any", "rate": 0.01, "held_out": losses} for name, losses in each.items()}
    text = choosing.table({"seeds": [0, 1, 2], "tasks": [{"title": "Any", "optimizers": found}]})
    assert text.splitlines()[3].split("|")[-2].strip() == where and "3 seeds" in text
    assert ("diverged, 1 of 3 seeds" in text) == (None in own)


def test_the_page_is_written_from_the_results_in_the_repository(choosing: ModuleType, tmp_path: Path) -> None:
    text, page = PAGE.read_text(encoding="utf-8"), tmp_path / "page.md"
    page.write_text(text.replace("| RAdam ", "| overwritten "), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != text
    command = [sys.executable, PROGRAM, "--results", RESULTS, "--out", tmp_path / "x.png", "--page", page]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert page.read_text(encoding="utf-8") == text
    importlib.import_module("publish").write_json(results(), tmp_path / "x.json")
    assert (tmp_path / "x.json").read_bytes() == RESULTS.read_bytes()


def test_no_best_rate_is_at_the_end_of_its_grid() -> None:
    found = results()
    assert len(found["seeds"]) == 5 and len(found["tasks"]) == 4
    for task in found["tasks"]:
        for name, own in task["optimizers"].items():
            means = [math.inf if one["mean"] is None else one["mean"] for one in own["search"]]
            place = means.index(min(means))
            assert 0 < place < len(means) - 1 and own["rate"] == own["search"][place]["rate"], (task["title"], name)
