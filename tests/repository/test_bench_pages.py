"""Tables and pages of the benchmarks: README and docs show the contents of the results files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench import cases, loop, measure, peers, plots, readme, records, report, targets


def test_mean_and_90th_percentile_reveal_stalls() -> None:
    usual, stalling = (measure.Series(kind, steps=1) for kind in (peers.Onepass, peers.NoOptimizer))
    usual.rounds, stalling.rounds = [[10.0] * 4] * 5, [[9.0, 10.0, 10.0, 51.0]] * 5
    compared = measure.comparison([usual, stalling])
    expected = {"median_ns": 10, "q1_ns": 9.75, "q3_ns": 20.25, "mean_ns": 20, "p90_ns": 51, "fastest_ns": 9}
    assert compared["timings"]["no optimizer"] == {**expected, "steps_per_sample": 1}
    assert compared["over_onepass"]["no optimizer"] == {"of_medians": 1, "median_of_rounds": 1}
    assert [report.ratio(compared, "no optimizer", each) for each in report.STATISTICS] == [1, 2, 5.1]


def point_of(medians: dict[str, float], **more: Any) -> Any:
    """Return a point whose means are twice its medians."""
    timings = {
        n: {"median_ns": m, "mean_ns": 2 * m + (n != "onepass"), "fastest_ns": m / 2} for n, m in medians.items()
    }
    ratios = {name: {"of_medians": 0, "median_of_rounds": 1.2} for name in medians}
    shared = {"problem": "a network", "elements": 8, "streams": 7, "rounds": 2}
    return {**shared, "timings": timings, "over_onepass": ratios, **more}


def record_of(**points: list[Any]) -> Any:
    software = {"onepass": "1", "compiler": "", "instruction_set": "", "python": "", "numpy": "", "peers": {}}
    machine = {"cpu": "A CPU", "cores": 2, "caches": {}, "memory_gib": 8, "system": "", "architecture": ""}
    case = {"date": "", "environment": "quiet", "software": software}
    return {"machine": machine, "cases": {name.replace("_", "-"): {**case, "points": p} for name, p in points.items()}}


def test_a_target_is_judged_by_its_loop_part_and_its_statistic() -> None:
    problem, one = loop.square(8), peers.OnepassOneThread
    points = {problem: point_of({"onepass": 100, one.name: 99.5}, step=point_of({"onepass": 10, one.name: 15}))}
    judged = {
        (part, statistic): targets.Target(problem, (one,), 1, part, statistic).judge(points)
        for part in ("step", "iteration")
        for statistic in ("median_ns", "mean_ns")
    }
    measured = {key: (target["measured"], target["by_rounds"], target["met"]) for key, target in judged.items()}
    assert measured == {
        ("step", "median_ns"): (1.5, 1.2, True),
        ("step", "mean_ns"): (1.55, None, True),
        ("iteration", "median_ns"): (0.995, 1.2, False),
        ("iteration", "mean_ns"): (1.0, None, True),
    }
    assert judged["iteration", "mean_ns"]["target"] == "iteration, mean: at least 1× onepass, one thread"
    assert plots.target_label(judged["step", "median_ns"]) == f"{problem}, step: onepass, one thread"


def test_a_target_relative_to_the_stream_baseline_is_a_percentage() -> None:
    points = {cases.MILLION: point_of({"onepass": 10, "stream baseline": 8})}
    line = report.target_line(targets.Target(cases.MILLION, (peers.StreamBaseline,), 0.85).judge(points))
    assert line.startswith("missed") and ": at least 85 % of the stream baseline: 80 % (" in line


def test_the_fastest_time_is_bold() -> None:
    point = point_of({"onepass": 2e3, "stream baseline": 1e3, "Numba": 1.5e3, "thinc": 3e3})
    among = [*point["timings"], "absent"]
    cells = {name: readme.cell(point, name, among) for name in among}
    assert (cells["onepass"], cells["Numba"]) == ("2.00 µs", "**1.50 µs** (0.75×)")
    assert (cells["stream baseline"], cells["thinc"], cells["absent"]) == ("1.00 µs (0.50×)", "3.00 µs (1.50×)", "")
    assert readme.ranking(point, among) == ["Numba", "onepass", "thinc"]
    assert readme.cell(point, "onepass", ["onepass", "thinc"]) == "**2.00 µs**"


def test_the_alt_text_of_readmes_image_ranks_peers_at_both_ends() -> None:
    small, large = {"onepass": 1e3, "Numba": 2e3}, {"onepass": 2e6, "Numba": 1e6, "stream baseline": 1e5}
    sizes = [point_of(medians, elements=elements) for medians, elements in ((small, 100), (large, 10**6))]
    text = readme.speed_figure(record_of(sizes=sizes), "a-machine")
    assert ". At 100 parameters, the fastest first: onepass, Numba; at 1 million parameters, the" in text
    assert "parameters, the fastest first: Numba, onepass.](" in text


def test_readmes_figure_has_at_most_six_curves_and_names_only_these() -> None:
    assert len(plots.SPEED_PEERS) <= 6
    medians = dict.fromkeys([*plots.SPEED_PEERS, "optax under jit"], 1e3)
    assert "optax" not in readme.speed_figure(record_of(sizes=[point_of(medians, elements=100)]), "a-machine")


def test_the_headline_gives_the_smallest_and_largest_ratio() -> None:
    sizes = [
        point_of({"onepass": 1e3, "in-place NumPy": numpy, "torch fused": 9e3}, elements=elements)
        for numpy, elements in ((14e3, 100), (4e3, 10**4), (5e3, 10**6))
    ]
    text = readme.headline(record_of(sizes=sizes), "a-machine")
    assert text.startswith("From 100 to 1 million parameters, a step is 4.00 to 14.0 times as fast as in-place NumPy. ")
    assert text.endswith("On 100 parameters it takes 1.00 µs, PyTorch's fused Adam 9.00 µs.")


def test_readmes_table_of_steps_omits_sizes_between_the_listed_ones() -> None:
    sizes = [point_of({"onepass": 1e3, "pure Python": 1e6}, elements=10**n) for n in range(2, 8)]
    rows = readme.speed_table(record_of(sizes=sizes), "a-machine").splitlines()
    assert rows[0] == "| float32 parameters | onepass |"
    assert [row.split(" | ")[0] for row in rows[2:-2]] == ["| 100", "| 10,000", "| 1 million", "| 10 million"]
    assert rows[-1] == "Measured with onepass 1."


def test_gains_are_computed_from_iterations_not_optimizer_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)  # no results of other machines

    def of(elements: int, ratio: float) -> Any:
        medians = {"onepass for torch": 1e6, "torch fused": 1e6 * ratio}
        return point_of(medians, elements=elements, step=point_of({"onepass for torch": 1.0, "torch fused": 50.0}))

    rows = readme.block("gains", record_of(loop_torch=[of(16_640, 1.3), of(2**24, 1.1)]), "a-machine").splitlines()
    assert rows[2:-2] == [
        "| PyTorch, four square layers, 16,640 to 16.8 million parameters | torch fused | 1.10× to 1.30× |"
    ]
    assert rows[-1] == "Measured with onepass 1."
    rows = readme.block("gains", record_of(torch_training=[of(4996, 1.5)]), "a-machine").splitlines()
    assert rows[2:-2] == ["| PyTorch, a policy network, 4,996 parameters | torch fused | 1.50× |"]
    assert "make bench CASE=torch-training" in readme.block("gains", record_of(), "a-machine")


def test_a_block_in_a_list_keeps_its_indentation() -> None:
    sizes = [point_of({"onepass": 1e3, "in-place NumPy": 2e3}, elements=100)]
    page = "- Fast\n  <!-- headline: begin -->\n  old\n  <!-- headline: end -->\n- Next\n"
    new = readme.rewritten(page, record_of(sizes=sizes), "a-machine")
    assert [line[:6] for line in new.splitlines()] == ["- Fast", "  <!--", "  From", "  <!--", "- Next"]
    assert readme.rewritten(new, record_of(sizes=sizes), "a-machine") == new
    with pytest.raises(ValueError, match=r"expected its own line, got '- Fast "):
        readme.rewritten(page.replace("Fast\n ", "Fast"), record_of(sizes=sizes), "a-machine")


def test_a_case_has_a_table_of_times_and_a_table_of_speeds() -> None:
    names = ("10 elements, float32, 1 thread", "20 elements, float32, 1 thread")
    medians = {"onepass": 2e3, "stream baseline": 1e3}
    text = readme.tables(record_of(small=[point_of(medians, problem=name, streams=5) for name in names]), "small")
    times, shares, _ = text.split("\n\n")
    assert times.splitlines()[0] == "| float32, 1 thread | 10 elements | 20 elements |"
    assert times.splitlines()[2] == "| onepass | **2.00 µs** | **2.00 µs** |"
    assert shares.splitlines()[2:] == ["| onepass | 36 % | 36 % |"]


def test_narrow_storage_is_reported_with_its_bytes_per_parameter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)  # no results of other machines
    medians, bits = {"onepass": 2e3, "stream baseline": 1e3, "onepass, float8 state": 3e3}, "onepass, float8 state"
    bytes_of = {"held": {"onepass": 16, bits: 10.06}, "moved": {"onepass": 28, bits: 14}}
    point = point_of(medians, problem="64 million elements, float32, 1 thread", **bytes_of)
    record = record_of(bits_bandwidth=[point])
    times, shares, _ = readme.tables(record, "bits-bandwidth").split("\n\n")
    assert times.splitlines()[0].endswith("| bytes held per parameter |")
    assert times.splitlines()[3:] == [
        "| stream baseline | 1.00 µs (0.50×) |  |",
        f"| {bits} | 3.00 µs (1.50×) | 10.1 |",
    ]
    assert shares.splitlines()[2:] == [
        "| onepass | 50 % |",
        f"| {bits} | 17 % |",
    ]  # half of the bytes, 3 times the time
    rows = readme.block("fewer bits", record, "a-machine").splitlines()
    assert rows[2:4] == ["| float32 | 16.0 | 1.00× |", "| float8 state | 10.1 | 1.50× |"]
    assert "make bench CASE=bits-bandwidth" in readme.block("fewer bits", record_of(), "a-machine")


def test_an_image_uses_the_results_of_any_machine_that_measured_its_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert readme.block("figure threads", record_of(), "a-machine").startswith("Not measured")
    (tmp_path / "another.json").write_text(json.dumps(record_of(threads=[point_of({"onepass": 1}, threads=1)])))
    assert "(images/threads.png)" in readme.block("figure threads", record_of(), "a-machine")
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(plots.FIGURES, "targets", plots.Figure("no-case", "", plots.targets))
    assert {path.name for path in plots.draw(record_of(), tmp_path)} == {"threads.svg", "threads.png"}


def test_the_table_lists_sizes_below_the_fastest_times() -> None:
    points = [point_of({"a step": 2e6}, bytes={"state": 64e6}), point_of({"a step": 4e6}, bytes={"sent": 128.2e6})]
    text = readme.tables(record_of(ranks=points), "ranks")
    assert text.splitlines()[2:5] == [
        "| a step | 1.00 ms | 2.00 ms |",
        "| state | 64 MB |  |",
        "| sent |  | 128.2 MB |",
    ]
    assert ", the fastest of 2 rounds on A CPU" in text


def test_the_loop_table_has_pytorch_and_numpy_in_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)  # no results of other machines

    def of(elements: int, own: str, peer: str, steps: float, iterations: float) -> Any:
        step = point_of({own: 1e6, peer: 1e6 * steps})
        return point_of({own: 5e6, peer: 5e6 * iterations}, step=step, elements=elements)

    torch = of(1_050_624, "onepass for torch", "torch fused", 1.3, 1.1)
    numpy = [of(n, "onepass", "textbook NumPy", 2, 1) for n in (66_048, 1_050_624)]
    lines = readme.block("loop", record_of(loop_torch=[torch], loop_numpy=numpy), "a-machine").splitlines()
    assert lines[2] == "| 0.07 million |  |  |  |  | 2.00 ms | 1.00 ms | 2.00× | 1.00× |"
    assert lines[3] == "| 1.05 million | 1.30 ms | 1.00 ms | 1.30× | 1.10× | 2.00 ms | 1.00 ms | 2.00× | 1.00× |"
    assert "PyTorch" not in readme.block("loop", record_of(loop_numpy=numpy), "a-machine")
    assert "make bench CASE=loop-torch" in readme.block("loop", record_of(), "a-machine")
    another = record_of(loop_torch=[torch])
    another["machine"]["cpu"] = "Another CPU"
    (tmp_path / "another.json").write_text(json.dumps(another))
    text = readme.block("loop", record_of(loop_numpy=numpy), "a-machine")
    assert "PyTorch" in text and "Measured on Another CPU, 2 cores, 8 GiB; A CPU, 2 cores" in text


def test_an_unmeasured_case_names_the_command_that_measures_it() -> None:
    text = readme.block("case loop-numpy A=1 B=2", {"cases": {}}, "a-machine")
    assert text == 'Not measured on this machine yet: `make bench CASE=loop-numpy ARGS="--env A=1 --env B=2"`.'


@pytest.mark.parametrize("text", ["", "<!-- rules: begin -->", "<!-- rules: end --><!-- rules: begin -->"])
def test_a_page_with_an_incomplete_or_unknown_block_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must follow each other"):
        readme.rewritten(text, record_of(), "a-machine")
    with pytest.raises(ValueError, match="no block is named 'x'"):
        readme.rewritten("<!-- x: begin -->\n<!-- x: end -->", record_of(), "a-machine")


def test_the_pages_show_every_case_of_the_cited_results_file() -> None:
    pages = {path.name: path.read_text(encoding="utf-8") for path in readme.DOCUMENTS}
    names = {page: readme.cited(text) for page, text in pages.items()}
    assert {*names.values()} - {None} <= {path.stem for path in records.RESULTS.glob("*.json")}
    for path in records.RESULTS.glob("*.json"):
        record = records.load(path)
        assert not any(case["quick"] for case in record["cases"].values()), path.name
        for page, text in pages.items():
            if (names[page] or names["README.md"]) == path.stem:
                assert readme.rewritten(text, record, path.stem) == text, page
    shown = {key.removeprefix("case ") for text in pages.values() for key, _ in readme.MARK.findall(text)}
    assert set(cases.CASES) <= shown
