"""Benchmarks: every case can be measured, and a peer with wrong results is refused."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import (
    adapters,
    cases,
    environment,
    libraries,
    loop,
    machine,
    measure,
    narrow,
    peer,
    peers,
    plots,
    readme,
    records,
    report,
    run,
    targets,
    training,
)

import onepass


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- Cases ----


def small(problem: Any) -> Any:
    if isinstance(problem, loop.Network):
        return loop.square(8)
    return replace(problem, sizes=tuple(min(size, 20) for size in problem.sizes))


def small_target(target: Any) -> Any:
    one = {"one": small(target.one)} if isinstance(target, targets.FurtherTensor) else {}
    return replace(target, problem=small(target.problem), **one)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Measure all cases with tensors of at most 20 elements, only with onepass, NumPy and Python."""
    done = {}
    for name, case in cases.CASES.items():
        library = case.peers[0].module is not None or name == "digits"  # its sizes are the network's
        if not library and case.why_missing() is None:
            kinds = tuple(kind for kind in case.peers if kind.module is None)
            problems, aims = dict.fromkeys(map(small, case.problems)), map(small_target, case.targets)
            case = replace(case, peers=kinds, problems=tuple(problems), targets=tuple(aims))
            done[name] = run.run(replace(case, budget=measure.Budget(0.0, 1, 2)), say=lambda line: None)
    path = tmp_path_factory.mktemp("record") / "record.json"
    records.save(path, machine.describe(), done)
    return records.load(path)


def test_every_point_has_a_table_and_every_target_has_a_line(record: Any) -> None:
    assert len(record["cases"]) > 10
    for name, case in record["cases"].items():
        for point in case["points"]:
            assert point["rounds"] >= 2 and point["timings"].keys() == point["over_onepass"].keys()
            assert (report.loop_table if "step" in point else report.table)(point)
        assert len(case["targets"]) == len(cases.CASES[name].targets)
        for target in case["targets"]:
            assert report.target_line(target).startswith("not measured") == (target["measured"] is None)
    assert any(target["measured"] is None for target in record["cases"]["million-2"]["targets"])  # without torch
    assert {point["rule"] for point in record["cases"]["rules"]["points"]} == set(peer.RULES)


no_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system has no /proc")


@no_proc
def test_measured_memory_matches_the_bytes_of_each_storage(record: Any) -> None:
    expected = {"onepass": (16, 28), "onepass, bfloat16 state": (12, 20), "onepass, float8 state": (10.06, 16.12)}
    for point in record["cases"]["bits-bandwidth"]["points"]:
        assert {name: (point["held"][name], point["moved"][name]) for name in point["held"]} == {
            name: pytest.approx(sizes, rel=0.02) for name, sizes in expected.items()
        }


@no_proc
def test_state_on_disk_is_measured_under_a_memory_limit(record: Any) -> None:
    memory, disk = record["cases"]["disk"]["points"]
    assert [*memory["timings"]] == ["a step, pages in memory"]
    assert [*disk["timings"]] == ["a step, pages in memory", "a step, pages on the disk", "`save`"]
    limit = "limit on further anonymous memory"
    assert limit not in memory["bytes"] and disk["bytes"][limit] == 1 << 26
    assert memory["bytes"]["state"] == disk["bytes"]["state"] == 8 * 20


def test_pages_and_images_are_made_from_a_record(record: Any, tmp_path: Path) -> None:
    pages = {path.name: readme.rewritten(path.read_text("utf-8"), record, "a-machine") for path in readme.DOCUMENTS}
    assert all(readme.rewritten(page, record, "a-machine") == page for page in pages.values())
    assert "bench/results/a-machine.json" in pages["README.md"]
    assert "make bench CASE=digits" in pages["benchmarks.md"]  # the case that is not in this record
    pytest.importorskip("matplotlib")
    drawn = {path.name for path in plots.draw(record, tmp_path)}
    figures = {name for name in plots.FIGURES if name != "bits" or machine.process_bytes("RssAnon")}
    assert drawn == {f"{name}.{suffix}" for name in figures for suffix in ("svg", "png")}


def test_problems_have_distinct_names() -> None:
    for name, case in cases.CASES.items():
        assert len({str(problem) for problem in case.problems}) == len(case.problems), name
    assert str(cases.MANY) == "148 tensors of 100 elements, float32, 1 thread"
    assert (len(cases.GPT2.sizes), cases.GPT2.elements) == (148, 124_439_808)


def test_a_case_without_its_library_reports_the_reason() -> None:
    class Absent(peers.Onepass):
        module = "no_such_library"

    printed: list[str] = []
    assert run.run(replace(cases.CASES["thinc"], peers=(Absent,)), say=printed.append) is None
    assert printed[0].startswith("not measured: no_such_library cannot be imported")


def test_a_variant_of_a_case_has_settings_in_its_name_and_no_targets() -> None:
    case = cases.find("loop-numpy OMP_WAIT_POLICY=PASSIVE affinity=0")
    assert case.settings == ("OMP_WAIT_POLICY=PASSIVE", "affinity=0")
    assert not case.targets and cases.find("loop-numpy").targets
    for name, case in cases.CASES.items():
        assert cases.find(name) is case
        assert name.split(" ")[1:] == list(case.settings)
        assert case.environment in environment.VARIABLES


def test_the_command_line_runs_a_case_with_the_variables_that_it_sets() -> None:
    command = [sys.executable, "-m", "bench", "--case", "pure-python", "--quick", "--env", "OMP_NUM_THREADS=3", "--env"]
    ran, refused = (
        subprocess.run([*command, setting], cwd=records.ROOT, capture_output=True, text=True)
        for setting in ("X=1", "X")
    )
    assert "\npure-python OMP_NUM_THREADS=3 X=1: " in ran.stdout
    assert "environment: quiet OMP_NUM_THREADS=3 X=1; onepass" in ran.stdout
    assert ran.returncode == 0 and "10,000 elements, float32" in ran.stdout
    assert refused.returncode == 2 and "expected VARIABLE=VALUE, got X" in refused.stderr


def test_only_the_quiet_environment_sets_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OPENBLAS_THREAD_TIMEOUT", "7")
    call = environment.call
    assert [call("default", (), os.getenv, name) for name in ("OMP_NUM_THREADS", "PATH")] == [None, os.environ["PATH"]]
    assert call("quiet", (), os.getenv, "OMP_NUM_THREADS") == "1"
    assert call("quiet", ("OMP_NUM_THREADS=2",), os.getenv, "OMP_NUM_THREADS") == "2"
    assert call("default", (), os.getenv, "OPENBLAS_THREAD_TIMEOUT") is None
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
def test_a_case_can_be_pinned_to_processors() -> None:
    allowed = os.sched_getaffinity(0)
    one = min(allowed)
    assert environment.call("default", (f"affinity={one}",), os.sched_getaffinity, 0) == {one}
    assert os.sched_getaffinity(0) == allowed


# ---- Peers ----


def test_a_peer_with_wrong_results_is_refused() -> None:
    class Wrong(peers.TextbookNumPy):
        name = "wrong"

        def run(self, steps: int) -> None:
            super().run(steps)
            self.p[0][-1:] += 1e-3

    problem = peer.Problem.of(1)
    measure.check(peers.TextbookNumPy, problem, generator())
    with pytest.raises(measure.WrongResult, match="wrong differs from onepass after 3 steps"):
        measure.check(Wrong, problem, generator())


LIBRARIES = {
    "torch": ["TorchFused", "TorchForeach", "TorchDefault", "TorchClipAverage", "TorchFusedBfloat16", "OnepassTorch"],
    "deepspeed": ["DeepSpeed"],
    "numba": ["Numba"],
    "optax": ["Optax"],
    "thinc": ["Thinc", "ThincOptimizer", "OnepassThinc"],
    "sklearn": ["ScikitLearn"],
    "schedulefree": ["ScheduleFree"],
    "ml_dtypes": ["OnepassBfloat16Weights", "OnepassBfloat16Weights24", "OnepassBfloat16Weights16"],
    "bitsandbytes": ["Bitsandbytes8bit"],
    "torchao": ["Torchao8bit"],
}


def check_library(module: str) -> list[str] | str:
    """Return the peers that were checked, or the reason why one is missing."""
    checked = []
    for name in LIBRARIES[module]:
        kind = next(getattr(module, name) for module in (libraries, adapters, narrow) if hasattr(module, name))
        if reason := kind.why_missing():
            return str(reason)
        base = peers.OnepassClipAverage if kind is libraries.TorchClipAverage else peers.Onepass
        for dtype, rule, threads in product(("float32", "float64"), peer.RULES, {1, machine.cores()}):
            problem = peer.Problem.of(100, dtype=dtype, threads=threads, rule=rule)
            if kind.supports(problem):
                measure.check(kind, problem, generator(), base)
                checked.append(name)
    return checked


@pytest.mark.parametrize("module", LIBRARIES)
def test_installed_libraries_compute_the_same_results_as_onepass(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    checked = environment.call("quiet", (), check_library, module)  # some libraries warn, and some start threads
    if isinstance(checked, str):
        pytest.skip(checked)
    assert set(checked) == set(LIBRARIES[module])


def test_every_peer_of_a_library_is_checked() -> None:
    kinds = {kind for case in cases.CASES.values() for kind in case.peers if kind.module and kind.takes_steps}
    assert {kind.__name__ for kind in kinds} == {name for names in LIBRARIES.values() for name in names}


def test_decayed_state_is_and_remains_subnormal() -> None:
    problem = peer.Problem.of(50)
    numpy = peers.InPlaceNumPy(problem, measure.random_arrays(problem, generator()), peer.Options())
    grads = measure.decay([numpy], measure.random_arrays(problem, generator()))
    assert not grads[0].any()
    for _ in range(2):
        for state in (numpy.m[0], numpy.v[0]):
            assert np.all(state != 0)
            assert np.all(np.abs(state) < np.finfo(np.float32).tiny)
        numpy.load(grads)
        numpy.run(1000)


def test_the_stream_baseline_uses_the_number_of_arrays_of_each_rule() -> None:
    arrays = {rule: measure.streams(rule) for rule in peer.RULES}
    assert {arrays[rule] for rule in ("Adam", "NAdam", "RAdam", "Adadelta", "ScheduleFreeAdamW")} == {7}
    assert arrays["SGD"] == arrays["Lion"] == arrays["Adagrad"] == arrays["RMSprop"] == 5
    assert arrays["AdEMAMix"] == 9
    exported = [getattr(onepass, name) for name in onepass.__all__]
    family = {each for each in exported if isinstance(each, type) and issubclass(each, onepass.Optimizer)}
    assert {getattr(onepass, rule) for rule in peer.RULES} == family - {onepass.Optimizer}


# ---- Training runs ----


def train_on_digits() -> tuple[list[str], str]:
    """Return the peers that were timed, and the error about a peer that stops learning."""

    class Wrong(peers.InPlaceNumPy):
        name = "wrong"

        def run(self, steps: int) -> None:
            if self.t < 6:
                super().run(steps)

    training.EPOCHS = 2
    case = replace(cases.CASES["digits"], budget=measure.Budget(0.0))
    timed = run.run(replace(case, peers=(peers.Onepass, peers.NoOptimizer, peers.InPlaceNumPy)))
    with pytest.raises(measure.WrongResult) as error:
        run.run(replace(case, peers=(peers.Onepass, Wrong)))
    return [*timed["points"][0]["timings"]], str(error.value)


def test_training_on_digits_is_timed_only_if_its_loss_matches_onepass() -> None:
    pytest.importorskip("sklearn")
    timed, error = environment.call("quiet", (), train_on_digits)
    assert timed == ["onepass", "no optimizer", "in-place NumPy"]
    assert error.startswith("with wrong the last epoch's loss is")


def train_a_policy() -> tuple[list[str], str]:
    """Return the peers that were timed, and the error about a peer whose weights become NaN."""

    class Diverges(adapters.OnepassTorch):
        name = "divergent"
        taken = 0

        def run(self, steps: int) -> None:
            super().run(steps)
            self.taken += steps
            if self.taken > 3:  # after the steps of the check
                self.weights[0].data.fill_(float("nan"))

    case = replace(cases.CASES["torch-training"], budget=measure.Budget(0.0, iterations=5))
    timed = run.run(case)
    with pytest.raises(measure.WrongResult) as error:
        run.run(replace(case, peers=(adapters.OnepassTorch, Diverges)))
    return [*timed["points"][0]["timings"]], str(error.value)


def test_pytorch_iterations_are_timed_only_if_their_losses_match_onepass() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    timed, error = environment.call("quiet", (), train_a_policy)
    assert timed == ["onepass for torch", "no optimizer", "torch fused", "torch foreach", "torch default"]
    assert error.startswith("after 5 iterations the losses are") and "(nan, 'divergent')" in error


@pytest.mark.parametrize("missing", [1, 4])
def test_a_numpy_loop_is_timed_only_if_its_losses_match_onepass(missing: int) -> None:
    class LeavesOneOut(peers.Onepass):
        name = "leaves one out"
        taken = 0

        def run(self, steps: int) -> None:
            self.taken += steps
            if self.taken != missing:
                super().run(steps)

    kinds, budget = (peers.Onepass, peers.NoOptimizer), measure.Budget(0.0, iterations=5)
    loop.measure(kinds, loop.square(8), budget, generator())
    loop.measure(kinds[1:], loop.square(8), budget, generator())  # without losses
    with pytest.raises(measure.WrongResult, match=r"after 5 iterations the losses are .*'leaves one out'"):
        loop.measure((*kinds, LeavesOneOut), loop.square(8), budget, generator())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_numpy_loop_computes_the_gradients_of_its_loss(activation: str) -> None:
    problem = loop.network((5, 7, 6, 3), "", activation=activation)
    data = loop.Data.of(problem, generator())
    training = loop.NumPyTraining(peers.Onepass, problem, data)
    training.backward()
    for i, (gradient, shape) in enumerate(zip(training.peer.grads, problem.shapes, strict=True)):
        change = np.float32(1e-2) * gradient.reshape(shape) / np.linalg.norm(gradient)
        losses = []
        for sign in (-1, 1):
            start = [p + sign * change if j == i else p for j, p in enumerate(data.start)]
            losses.append(loop.NumPyTraining(peers.Onepass, problem, replace(data, start=start)).backward())
        assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=1e-2), i


def test_a_timed_series_has_enough_iterations_and_lasts_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = loop.square(8)
    data = loop.Data.of(problem, generator())
    for ns, least, most in ((0, 6, 6), (50_000_000, 7, 10**6)):
        monkeypatch.setattr(loop, "NS_PER_ITERATION", ns)
        steps, iterations, _ = loop.train(peers.Onepass, problem, data, 6)
        assert least <= len(steps) == len(iterations) <= most
        assert sum(iterations) >= 6 * ns * 0.5
        assert all(0 < step < iteration for step, iteration in zip(steps, iterations, strict=True))


def test_each_variant_of_onepass_runs_with_its_own_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def run(self: Any, steps: int) -> None:
        seen.setdefault(self.name, set()).add(onepass.get_num_threads())

    kinds = (peers.Onepass, peers.OnepassOneThread, peers.OnepassAllThreads)
    for kind in kinds:
        monkeypatch.setattr(kind, "takes_steps", False)
        monkeypatch.setattr(kind, "run", run)
    monkeypatch.setattr(peers.OnepassAllThreads, "own_threads", 5)
    budget = measure.Budget(0.0, sessions=1, iterations=2)
    loop.measure(kinds, loop.square(8), budget, generator())
    onepass.set_num_threads(None)
    default = onepass.get_num_threads()
    assert seen == {"onepass": {default}, "onepass, one thread": {1}, "onepass, all threads": {5}}
    seen.clear()
    monkeypatch.setattr(measure, "SAMPLE_NS", 0)
    monkeypatch.setattr(measure, "WARM_NS", 0)
    measure.measure(kinds, peer.Problem.of(8, threads=2), budget, generator())
    assert seen == {"onepass": {2}, "onepass, one thread": {1}, "onepass, all threads": {5}}
