"""The benchmarks run, time nobody who computes something else, and are what README and docs/benchmarks.md show."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onepass

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(ROOT)
    names = (
        "cases",
        "environment",
        "loop",
        "measure",
        "peer",
        "peers",
        "plots",
        "readme",
        "records",
        "report",
    )
    yield SimpleNamespace(**{name: importlib.import_module(f"bench.{name}") for name in names})
    onepass.set_num_threads(None)


# On one thread, as the benchmarks are: two trainings whose matrix products spin on the same cores take minutes.
ENVIRONMENT = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def test_the_benchmark_runs() -> None:
    printed = run("-m", "bench", "--case", "pure-python", "--quick")
    assert "10,000 elements, float32" in printed
    assert "at least 700x pure Python" in printed


# In a process of its own: some libraries warn when they are imported, and some start threads.
EVERY_CASE = """
import dataclasses
from bench import cases, loop, machine, records
from pathlib import Path
import sys

def small(problem):
    if isinstance(problem, loop.Network):
        return loop.square(8)
    return dataclasses.replace(problem, sizes=tuple(min(size, 20) for size in problem.sizes))

def small_bar(bar):
    changed = {"problem": small(bar.problem)}
    if isinstance(bar, cases.FurtherTensor):
        changed["one"] = small(bar.one)
    return dataclasses.replace(bar, **changed)

done = {}
for name, case in cases.CASES.items():
    if name != "digits" and case.peers[0].module is None:  # whose sizes are the network's; that need a library
        peers = tuple(kind for kind in case.peers if kind.module is None)
        problems = tuple(dict.fromkeys(map(small, case.problems)))
        case = dataclasses.replace(case, peers=peers, problems=problems, bars=tuple(map(small_bar, case.bars)))
        done[name] = cases.run(dataclasses.replace(case, effort=cases.Effort(0.0, 1, 2)), say=lambda line: None)
        assert done[name] is not None and done[name]["points"], name
        print(name, len(done[name]["points"]), len(done[name]["bars"]))
folder = Path(sys.argv[1])
records.save(folder / "record.json", machine.describe(), done)
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the cases give on tensors of 20 elements at most, measured with onepass, NumPy and Python alone."""
    folder = tmp_path_factory.mktemp("record")
    printed = run("-c", EVERY_CASE, str(folder))
    assert "gpt2" in printed
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("bench.records").load(folder / "record.json")
    finally:
        sys.path.remove(str(ROOT))


def test_every_case_gives_a_point_for_each_problem_and_a_line_for_each_bar(bench: SimpleNamespace, record: Any) -> None:
    for name, case in record["cases"].items():
        for point in case["points"]:
            assert point["rounds"] >= 2
            assert point["timings"].keys() == point["over_onepass"].keys()
            assert (bench.report.loop_table if "step" in point else bench.report.table)(point)
        assert len(case["bars"]) == len(bench.cases.CASES[name].bars)
        assert all(bench.report.bar_line(bar) for bar in case["bars"])
    assert {"Adam", "SGD", "Lion"} <= {point["rule"] for point in record["cases"]["rules"]["points"]}


TRAINING = """
from dataclasses import replace
from bench import cases, measure, peers, training

training.EPOCHS = 2

class Wrong(peers.InPlaceNumPy):
    name = "wrong"

    def run(self, steps):
        if self.t < 6:  # then it stops learning
            super().run(steps)

case = replace(cases.CASES["digits"], peers=(peers.Onepass, peers.NoOptimizer, peers.InPlaceNumPy))
case = replace(case, effort=measure.Effort(0.0))
[point] = cases.run(case)["points"]
print(*point["timings"], sep=", ")
try:
    cases.run(replace(case, peers=(peers.Onepass, Wrong)))
except measure.WrongResult as error:
    print(error)
"""


def test_a_training_is_timed_if_it_ends_where_onepass_does() -> None:
    pytest.importorskip("sklearn")
    printed = run("-c", TRAINING)
    assert "onepass, no optimizer, in-place NumPy" in printed
    assert "with wrong the last epoch's loss is" in printed


POLICY = """
from dataclasses import replace
from bench import adapters, cases, measure

class Wrong(adapters.OnepassTorch):
    name = "wrong"
    taken = 0

    def run(self, steps):
        self.taken += steps
        if self.taken != 4:  # one step is missing, after those of the check
            super().run(steps)

class Diverges(Wrong):
    name = "divergent"

    def run(self, steps):
        super().run(steps)
        if self.taken > 3:
            self.weights[0].data.fill_(float("nan"))

case = replace(cases.CASES["torch-training"], effort=measure.Effort(0.0, iterations=5))
[point] = cases.run(case)["points"]
print(*point["timings"], sep=", ")
print(*cases.run(replace(case, peers=(adapters.TorchNoOptimizer,)))["points"][0]["timings"])
for peer in (Wrong, Diverges):
    try:
        cases.run(replace(case, peers=(adapters.OnepassTorch, peer)), say=lambda line: None)
    except measure.WrongResult as error:
        print(error)
"""


def test_iterations_of_pytorchs_are_timed_if_they_end_where_onepass_does() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    printed = run("-c", POLICY)
    assert "onepass for torch, no optimizer, torch fused, torch foreach, torch default" in printed
    assert "\nno optimizer\n" in printed
    wrong, divergent = printed.splitlines()[-2:]
    assert "after 5 iterations the losses are" in wrong and "'wrong'" in wrong
    assert "(nan, 'divergent')" in divergent


def test_a_case_whose_adapter_cannot_be_imported_says_so(bench: SimpleNamespace) -> None:
    class Absent(bench.peers.Onepass):  # type: ignore[misc, name-defined]
        module = "no_such_library"

    said: list[str] = []
    assert bench.cases.run(replace(bench.cases.CASES["thinc"], peers=(Absent,)), say=said.append) is None
    assert said[0].startswith("not measured: no_such_library cannot be imported")


def test_a_bar_that_could_not_be_measured_says_so(bench: SimpleNamespace, record: Any) -> None:
    bars = record["cases"]["million-2"]["bars"] + record["cases"]["many"]["bars"]
    assert [bar["bar"] for bar in bars if bar["measured"] is None and "torch fused" in bar["bar"]]
    assert all(bench.report.bar_line(bar).startswith("not measured") for bar in bars if bar["measured"] is None)


def test_tables_and_images_are_made_from_a_record(bench: SimpleNamespace, record: Any, tmp_path: Path) -> None:
    for document in bench.readme.DOCUMENTS:
        new = bench.readme.rewritten(document.read_text(encoding="utf-8"), record, "a-machine")
        assert "bench/results/a-machine.json" in new
        assert bench.readme.rewritten(new, record, "a-machine") == new
    assert "make bench CASE=digits" in new  # the case that is not in this record
    pytest.importorskip("matplotlib")
    drawn = {path.name for path in bench.plots.draw(record, tmp_path)}
    assert drawn == {f"{name}.{suffix}" for name in bench.readme.FIGURES for suffix in ("svg", "png")}


@pytest.mark.parametrize("text", ["", "<!-- bars: begin -->", "<!-- bars: end --><!-- bars: begin -->"])
def test_a_document_without_a_whole_block_is_refused(bench: SimpleNamespace, record: Any, text: str) -> None:
    with pytest.raises(ValueError, match="must follow each other"):
        bench.readme.rewritten(text, record, "a-machine")


def test_a_block_of_an_unknown_name_is_refused(bench: SimpleNamespace, record: Any) -> None:
    with pytest.raises(ValueError, match="no block is named 'x'"):
        bench.readme.rewritten("<!-- x: begin -->\n<!-- x: end -->", record, "a-machine")


def test_what_readme_and_docs_show_is_what_the_results_file_holds(bench: SimpleNamespace) -> None:
    texts = {document: document.read_text(encoding="utf-8") for document in bench.readme.DOCUMENTS}
    cited = {bench.readme.cited(text) for text in texts.values()}
    assert len(cited) == 1
    (name,) = cited
    record = bench.records.load(bench.records.path_of(name))
    for document, text in texts.items():
        assert bench.readme.rewritten(text, record, name) == text, document.name


def test_the_fastest_is_bold_whoever_it_is(bench: SimpleNamespace) -> None:
    medians = {"onepass": 2e3, "stream limit": 1e3, "Numba": 1.5e3, "thinc": 3e3}
    point: Any = {
        "timings": {name: {"median_ns": median} for name, median in medians.items()},
        "over_onepass": {name: {"of_medians": median / 2e3} for name, median in medians.items()},
    }
    among = [*medians, "absent"]
    cells = {name: bench.readme.cell(point, name, among) for name in among}
    assert (cells["onepass"], cells["Numba"]) == ("2.00 µs", "**1.50 µs** (0.75×)")
    assert (cells["stream limit"], cells["thinc"], cells["absent"]) == ("1.00 µs (0.50×)", "3.00 µs (1.50×)", "")
    assert bench.readme.ranking(point, among) == ["Numba", "onepass", "thinc"]
    assert bench.readme.cell(point, "onepass", ["onepass", "thinc"]) == "**2.00 µs**"


def test_the_image_of_readme_is_described_by_the_figures_that_it_shows(bench: SimpleNamespace) -> None:
    name = bench.readme.cited(bench.readme.DOCUMENTS[0].read_text(encoding="utf-8"))
    record = bench.records.load(bench.records.path_of(name))
    text = bench.readme.speed_figure(record, name)
    for place in (0, -1):
        point = record["cases"]["sizes"]["points"][place]
        names = sorted(set(point["timings"]) - {"stream limit"}, key=lambda name: point["timings"][name]["median_ns"])
        assert len(names) > 5
        assert f"t {bench.report.count(point['elements'])} parameters, the fastest first: {', '.join(names)}" in text


def test_every_results_file_can_be_read(bench: SimpleNamespace) -> None:
    page = bench.readme.DOCUMENTS[1].read_text(encoding="utf-8")
    for path in bench.records.RESULTS.glob("*.json"):
        record = bench.records.load(path)
        assert bench.readme.rewritten(page, record, path.stem)
        assert not any(case["quick"] for case in record["cases"].values()), path.name


def test_the_page_shows_every_case(bench: SimpleNamespace) -> None:
    page = bench.readme.DOCUMENTS[1].read_text(encoding="utf-8")
    shown = {what.removeprefix("case ") for what, _ in bench.readme.MARK.findall(page)}
    assert set(bench.cases.CASES) <= shown


def test_problems_are_named_so_that_they_can_be_told_apart(bench: SimpleNamespace) -> None:
    for name, case in bench.cases.CASES.items():
        assert len({str(problem) for problem in case.problems}) == len(case.problems), name
    assert str(bench.cases.MANY) == "148 tensors of 100 elements, float32, 1 thread"
    assert len(bench.cases.GPT2.sizes) == 148
    assert bench.cases.GPT2.elements == 124_439_808


# ---- Peers ----


def test_the_benchmark_refuses_to_time_a_peer_that_computes_something_else(bench: SimpleNamespace) -> None:
    class Wrong(bench.peers.TextbookNumPy):  # type: ignore[misc, name-defined]
        name = "wrong"

        def run(self, steps: int) -> None:
            super().run(steps)
            self.p[0][-1:] += 1e-3

    rng, problem = np.random.default_rng(0), bench.peer.Problem.of(1)
    bench.measure.check(bench.peers.TextbookNumPy, problem, rng)
    with pytest.raises(bench.measure.WrongResult, match="wrong is not where onepass is"):
        bench.measure.check(Wrong, problem, rng)


CHECK = """
import sys
import numpy as np
from bench import adapters, cases, libraries, measure
from bench.peer import RULES, Problem

for name in sys.argv[1:]:
    kind = getattr(libraries, name, None) or getattr(adapters, name)
    if reason := kind.why_missing():
        sys.exit(f"missing: {reason}")
    base = cases.OnepassClipAverage if kind is libraries.TorchClipAverage else cases.Onepass
    for dtype in ("float32", "float64"):
        for rule in RULES:
            for threads in {1, cases.cores()}:
                problem = Problem.of(100, dtype=dtype, threads=threads, rule=rule)
                if kind.supports(problem):
                    measure.check(kind, problem, np.random.default_rng(), base)
                    print(name, problem)
"""
LIBRARIES = {
    "torch": ["TorchFused", "TorchForeach", "TorchDefault", "TorchClipAverage", "OnepassTorch"],
    "deepspeed": ["DeepSpeed"],
    "numba": ["Numba"],
    "optax": ["Optax"],
    "thinc": ["Thinc", "ThincOptimizer", "OnepassThinc"],
    "sklearn": ["ScikitLearn"],
}


@pytest.mark.parametrize("module", LIBRARIES)
def test_another_library_that_is_installed_ends_where_onepass_ends(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    command = [sys.executable, "-c", CHECK, *LIBRARIES[module]]
    finished = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if "missing: " in finished.stderr:
        pytest.skip(finished.stderr.strip())
    assert finished.returncode == 0, finished.stderr
    assert {line.split()[0] for line in finished.stdout.splitlines()} >= set(LIBRARIES[module])


def test_every_peer_of_another_library_is_tested(bench: SimpleNamespace) -> None:
    peers = {kind for case in bench.cases.CASES.values() for kind in case.peers}
    kinds = {kind for kind in peers if kind.module is not None and kind.takes_steps}
    assert {kind.__name__ for kind in kinds} == {name for names in LIBRARIES.values() for name in names}


def test_a_peer_that_is_not_installed_says_so(bench: SimpleNamespace) -> None:
    class Absent(bench.peers.TextbookNumPy):  # type: ignore[misc, name-defined]
        module = "no_such_library"

    assert "no_such_library cannot be imported" in Absent.why_missing()


def test_decayed_state_is_subnormal_and_stays_so(bench: SimpleNamespace) -> None:
    problem, rng = bench.peer.Problem.of(50), np.random.default_rng(0)
    peer = bench.peers.InPlaceNumPy(problem, bench.measure.random_arrays(problem, rng), bench.peer.Options())
    grads = bench.measure.decay([peer], bench.measure.random_arrays(problem, rng))
    assert not grads[0].any()
    for _ in range(2):
        for state in (peer.m[0], peer.v[0]):
            assert np.all(state != 0)
            assert np.all(np.abs(state) < np.finfo(np.float32).tiny)
        peer.load(grads)
        peer.run(1000)


def test_every_rule_is_known_with_the_arrays_that_it_moves(bench: SimpleNamespace) -> None:
    arrays = {rule: bench.measure.streams(rule) for rule in bench.peer.RULES}
    assert arrays["Adam"] == arrays["NAdam"] == arrays["Adadelta"] == 7
    assert arrays["SGD"] == arrays["Lion"] == arrays["Adagrad"] == arrays["RMSprop"] == 5
    family = {name for name in onepass.__all__ if isinstance(getattr(onepass, name), type)}
    assert set(bench.peer.RULES) == {n for n in family if issubclass(getattr(onepass, n), onepass.Optimizer)} - {
        "Optimizer"
    }


# ---- Training loops and environments ----


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_gradients_of_the_loop_in_numpy_are_those_of_its_loss(bench: SimpleNamespace, activation: str) -> None:
    problem = bench.loop.network((5, 7, 6, 3), "", activation=activation)
    data = bench.loop.Data.of(problem, np.random.default_rng(0))
    grads = training_of(bench, problem, data).peer.grads
    for i, (gradient, shape) in enumerate(zip(grads, problem.shapes, strict=True)):
        change = np.float32(1e-2) * gradient.reshape(shape) / np.linalg.norm(gradient)
        ends = []
        for sign in (-1, 1):
            start = [p + sign * change if j == i else p for j, p in enumerate(data.start)]
            ends.append(training_of(bench, problem, replace(data, start=start)).loss)
        assert (ends[1] - ends[0]) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=1e-2), i


def training_of(bench: SimpleNamespace, problem: Any, data: Any) -> Any:
    training = bench.loop.NumPyTraining(bench.peers.Onepass, problem, data)
    training.loss = training.backward()
    return training


@pytest.mark.parametrize("missing", [1, 4])
def test_a_loop_is_timed_only_if_its_losses_are_those_of_the_others(bench: SimpleNamespace, missing: int) -> None:
    class LeavesOneOut(bench.peers.Onepass):  # type: ignore[misc, name-defined]
        name = "leaves one out"
        taken = 0

        def run(self, steps: int) -> None:
            self.taken += steps
            if self.taken != missing:
                super().run(steps)

    kinds, effort = (bench.peers.Onepass, bench.peers.NoOptimizer), bench.measure.Effort(0.0, iterations=5)
    bench.loop.measure(kinds, bench.loop.square(8), effort, np.random.default_rng(0))
    with pytest.raises(bench.measure.WrongResult, match=r"after 5 iterations the losses are .*'leaves one out'"):
        bench.loop.measure((*kinds, LeavesOneOut), bench.loop.square(8), effort, np.random.default_rng(0))


def test_a_turn_has_enough_iterations_and_lasts_long_enough(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = bench.loop.square(8)
    data = bench.loop.Data.of(problem, np.random.default_rng(0))
    for ns, least, most in ((0, 6, 6), (5_000_000, 7, 10**6)):
        monkeypatch.setattr(bench.loop, "NS_PER_ITERATION", ns)
        steps, iterations, _ = bench.loop.train(bench.peers.Onepass, problem, data, 6)
        assert least <= len(steps) == len(iterations) <= most
        assert sum(iterations) >= 6 * ns * 0.5
        assert all(0 < step < iteration for step, iteration in zip(steps, iterations, strict=True))


def test_each_peer_of_onepass_has_its_own_number_of_threads(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {}

    def run(self: Any, steps: int) -> None:
        seen.setdefault(self.name, set()).add(onepass.get_num_threads())

    kinds = (bench.peers.Onepass, bench.peers.OnepassOneThread, bench.peers.OnepassAllThreads)
    for kind in kinds:
        monkeypatch.setattr(kind, "takes_steps", False)
        monkeypatch.setattr(kind, "run", run)
    monkeypatch.setattr(bench.peers.OnepassAllThreads, "own_threads", 5)
    rng, effort = np.random.default_rng(0), bench.measure.Effort(0.0, sittings=1, iterations=2)
    bench.loop.measure(kinds, bench.loop.square(8), effort, rng)
    onepass.set_num_threads(None)
    default = onepass.get_num_threads()
    assert seen == {"onepass": {default}, "onepass, one thread": {1}, "onepass, all threads": {5}}
    seen.clear()
    monkeypatch.setattr(bench.measure, "SAMPLE_NS", 0)
    monkeypatch.setattr(bench.measure, "WARM_NS", 0)
    bench.measure.measure(kinds, bench.peer.Problem.of(8, threads=2), effort, rng)
    assert seen == {"onepass": {2}, "onepass, one thread": {1}, "onepass, all threads": {5}}


def test_the_statistics_of_a_series_show_its_stalls(bench: SimpleNamespace) -> None:
    usual, stalling = (bench.measure.Series(kind, steps=1) for kind in (bench.peers.Onepass, bench.peers.NoOptimizer))
    usual.rounds, stalling.rounds = [[10.0] * 4] * 5, [[10.0, 10.0, 10.0, 50.0]] * 5
    compared = bench.measure.comparison([usual, stalling])
    assert compared["timings"]["no optimizer"] == {
        **{"median_ns": 10, "q1_ns": 10, "q3_ns": 20, "mean_ns": 20, "p90_ns": 50},
        "steps_per_sample": 1,
    }
    assert compared["over_onepass"]["no optimizer"] == {"of_medians": 1, "median_of_rounds": 1}
    ratios = [bench.report.ratio(compared, "no optimizer", statistic) for statistic in bench.report.STATISTICS]
    assert ratios == [1, 2, 5]


def loop_point(elements: int, step: dict[str, float], iteration: dict[str, float]) -> Any:
    """A point whose means are twice its medians."""

    def compared(medians: dict[str, float]) -> Any:
        ratios = {name: {"of_medians": 0, "median_of_rounds": 1.2} for name in medians}
        timings = {
            n: {"median_ns": m, "mean_ns": 2 * m + (n != "onepass"), "p90_ns": 3 * m} for n, m in medians.items()
        }
        return {"timings": timings, "over_onepass": ratios}

    return {"problem": "a network", "elements": elements, "rounds": 2, "step": compared(step), **compared(iteration)}


def test_a_bar_is_judged_by_its_part_of_the_loop_and_its_statistic(bench: SimpleNamespace) -> None:
    problem, one = bench.loop.square(8), bench.peers.OnepassOneThread
    points = {problem: loop_point(8, {"onepass": 10, one.name: 15}, {"onepass": 100, one.name: 99.5})}
    judged = {
        (part, statistic): bench.cases.Bar(problem, (one,), 1, part, statistic).judge(points)
        for part in ("step", "iteration")
        for statistic in ("median_ns", "mean_ns")
    }
    measured = {key: (bar["measured"], bar["by_rounds"], bar["holds"]) for key, bar in judged.items()}
    assert measured == {
        ("step", "median_ns"): (1.5, 1.2, True),
        ("step", "mean_ns"): (1.55, None, True),
        ("iteration", "median_ns"): (0.995, 1.2, False),
        ("iteration", "mean_ns"): (1.0, None, True),
    }
    assert judged["iteration", "mean_ns"]["bar"] == "iteration, mean: at least 1x onepass, one thread"
    assert bench.plots.bar_label(judged["step", "median_ns"]) == f"{problem}, step: onepass, one thread"


def test_the_table_of_loops_has_both_libraries_next_to_each_other(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench.records, "RESULTS", tmp_path)  # no other machine's results
    torch = loop_point(
        1_050_624, {"onepass for torch": 1e6, "torch fused": 1.3e6}, {"onepass for torch": 5e6, "torch fused": 5.5e6}
    )
    numpy = [
        loop_point(n, {"onepass": 1e6, "textbook NumPy": 2e6}, {"onepass": 8e6, "textbook NumPy": 8e6})
        for n in (66_048, 1_050_624)
    ]
    cases = {"loop-torch": {"points": [torch]}, "loop-numpy": {"points": numpy}}
    machine = {"cpu": "A CPU", "cores": 2, "caches": {}, "memory_gib": 8, "system": "", "architecture": ""}
    record = {"machine": machine, "cases": cases}
    lines = bench.readme.block("loop", record, "a-machine").splitlines()
    assert lines[2] == "| 0.07 million |  |  |  |  | 2.00 ms | 1.00 ms | 2.00× | 1.00× |"
    assert lines[3] == "| 1.05 million | 1.30 ms | 1.00 ms | 1.30× | 1.10× | 2.00 ms | 1.00 ms | 2.00× | 1.00× |"
    del cases["loop-torch"]
    assert bench.readme.block("loop", record, "a-machine").count("PyTorch") == 0
    other = {
        "machine": {**machine, "cpu": "Another CPU"},
        "cases": {"loop-torch": {"points": [torch]}},
    }
    (tmp_path / "another.json").write_text(json.dumps(other))
    assert "Another CPU" in bench.readme.block("loop", record, "a-machine")
    (tmp_path / "another.json").unlink()
    assert "make bench CASE=loop-torch" in bench.readme.block("loop", {"cases": {}}, "a-machine")


def test_a_case_that_is_not_measured_names_its_command_with_its_settings(bench: SimpleNamespace) -> None:
    text = bench.readme.block("case loop-numpy A=1 B=2", {"cases": {}}, "a-machine")
    assert text == 'Not measured on this machine yet: `make bench CASE=loop-numpy ARGS="--env A=1 --env B=2"`.'


def test_a_default_environment_steers_no_threads_and_a_quiet_one_does(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "7")
    call = bench.environment.call
    assert [call("default", (), os.getenv, name) for name in ("OMP_NUM_THREADS", "PATH")] == [None, os.environ["PATH"]]
    assert call("quiet", (), os.getenv, "OMP_NUM_THREADS") == "1"
    assert call("quiet", ("OMP_NUM_THREADS=2",), os.getenv, "OMP_NUM_THREADS") == "2"
    assert call("default", (), os.getenv, "OPENBLAS_THREAD_TIMEOUT") is None
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_a_case_may_be_kept_to_some_processors(bench: SimpleNamespace) -> None:
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    assert bench.environment.call("default", (f"affinity={one}",), os.sched_getaffinity, 0) == {one}
    assert os.sched_getaffinity(0) == allowed


def test_a_variant_of_a_case_has_its_settings_in_its_name_and_no_bars(bench: SimpleNamespace) -> None:
    case = bench.cases.find("loop-numpy OMP_WAIT_POLICY=PASSIVE affinity=0")
    assert case.settings == ("OMP_WAIT_POLICY=PASSIVE", "affinity=0")
    assert not case.bars and bench.cases.find("loop-numpy").bars
    for name, case in bench.cases.CASES.items():
        assert bench.cases.find(name) is case
        assert name.split(" ")[1:] == list(case.settings)
        assert case.environment in bench.environment.VARIABLES


def test_the_command_line_sets_variables_and_says_so() -> None:
    printed = run("-m", "bench", "--case", "pure-python", "--quick", "--env", "OMP_NUM_THREADS=3", "--env", "X=1")
    assert "\npure-python OMP_NUM_THREADS=3 X=1: " in printed
    assert "environment: quiet OMP_NUM_THREADS=3 X=1; onepass" in printed
    command = [sys.executable, "-m", "bench", "--case", "pure-python", "--quick", "--env", "X"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (refused.returncode, "expected VARIABLE=VALUE, got X" in refused.stderr) == (2, True)


# ---- Several processes ----


def test_the_page_of_several_processes_is_what_its_results_file_holds() -> None:
    run("-m", "bench.distributed", "--check")
