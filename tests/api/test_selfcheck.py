"""``python -m onepass`` says what this copy is, and notices a bit that differs on any instruction set."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import onepass
from onepass import __main__ as main
from onepass import _core
from onepass._reference import RULES

CASES = 8 * 2 * len(RULES) + 3
# Digest of the results of the self-check, on every machine and with every NumPy.
DIGEST = "8d281cdd5a9c2c3ffbcbc48d2108fb071aa407b0211d7523ddd9a6e5dddc3a1f"


def run(*arguments: str, path: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ONEPASS_ISA"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    reading, writing = os.pipe()  # standard input is open and never receives data
    try:
        return subprocess.run(
            [sys.executable, "-m", "onepass", *arguments],
            env=environment | more,
            stdin=reading,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    finally:
        os.close(reading)
        os.close(writing)


# A site customization, which runs when Python starts. This one uses the program's input and output.
SITE = """
import atexit, os, sys
if "ONEPASS_ISA" in os.environ:
    print("{hello", sys.stdin.read())
    atexit.register(print, '{"bye": 1}')
"""


def test_json_is_complete_even_if_other_code_prints(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    ran = run("--json", path=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout)
    assert said["good"] is True
    assert said["config"]["version"] == onepass.__version__
    assert [found["instruction_set"] for found in said["checks"]] == _core.usable_instruction_sets
    for found in said["checks"]:
        assert found["cases"] == CASES
        assert found["elements"] > 1_000_000
        assert (found["differing"], found["first"], found["digest"]) == (0, "", DIGEST)
    assert [row["parameters"] for row in said["speeds"]] == [100, 10_000, 1_000_000]
    assert all(row["onepass"] > 0 and row["numpy"] > 0 and row["spread"] >= 1 for row in said["speeds"])


# Code appended to the specification: one bit of SGD is wrong on one instruction set, and another one crashes.
PLANTED = """
import os
if os.environ.get("ONEPASS_ISA") == "baseline":
    def off(k, p, g, b, right=RULES["SGD"].update):
        x, b = right(k, p, g, b)
        if x.values.size == 129:
            x.values[128] = np.nextafter(x.values[128], x.values.dtype.type(9))
        return x, b
    RULES["SGD"] = RULES["SGD"]._replace(update=off)
if os.environ.get("ONEPASS_ISA") == "avx2":
    os.abort()
"""


def test_wrong_results_and_a_crash_are_reported_with_exit_status_1(tmp_path: Path) -> None:
    package = Path(onepass.__file__).parent
    if Path(_core.__file__).parent != package:
        pytest.skip("an editable install: the compiled module is in a different folder")
    shutil.copytree(package, tmp_path / "onepass")
    if (libraries := package.with_name("onepass.libs")).exists():  # Microsoft's C++ library, in a wheel for Windows
        shutil.copytree(libraries, tmp_path / "onepass.libs")
    specification = tmp_path / "onepass" / "_reference" / "rules.py"
    specification.write_text(specification.read_text(encoding="utf-8") + PLANTED, encoding="utf-8")
    ran = run(path=tmp_path)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    rows = dict(re.findall(r"^\| (\w+) +\| (.*) \|$", ran.stdout, re.MULTILINE))
    assert re.match(rf"{CASES} +\| [\d,]+ +\| [1-9]\d* ", rows["baseline"])
    assert re.search(r"^baseline: SGD, float32, parameter \(129,\)\[128\]: .* should be ", ran.stdout, re.MULTILINE)
    assert "MISMATCH" in ran.stdout and "All results are bit-identical" not in ran.stdout
    if "avx2" in _core.usable_instruction_sets:
        assert re.match(r"0 ", rows["avx2"])
        assert re.search(r"^avx2: \S", ran.stdout, re.MULTILINE)
    if "avx512" in _core.usable_instruction_sets:
        assert re.match(rf"{CASES} +\| [\d,]+ +\| 0 ", rows["avx512"])


RESULT = {"cases": 1, "elements": 1, "differing": 0, "first": "", "digest": "d" * 64}
CHILD = f"import json, os, sys; found = {RESULT!r} | {{'instruction_set': os.environ['ONEPASS_ISA']}}; "
GOOD = CHILD + "print('a'); print(json.dumps(found)); print('b'); print([1]); print('{}')"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replace the child processes and the timing of the self-check, so that it takes no time."""
    monkeypatch.setattr(main, "CHILD", GOOD)
    for name in [name for name in os.environ if name.startswith("COVERAGE")]:
        monkeypatch.delenv(name)  # set by `make coverage` to trace child processes, which would print warnings
    monkeypatch.setattr(main, "speed", lambda size: {"parameters": size, "onepass": 1e-6, "numpy": 2e-6, "spread": 1.2})
    return monkeypatch


@pytest.mark.parametrize(
    ("child", "said"),
    [
        (GOOD, ""),
        ("print('{')", "its process ended with status 0 and without a result"),
        ("", "its process ended with status 0 and without a result"),
        ("raise SystemExit(3)", "its process ended with status 3 and without a result"),
        ("import sys; sys.exit('x\\nno room')", "its process ended with status 1: no room"),
        ("import time; time.sleep(60)", "its process did not end within 2 seconds"),
        (GOOD.replace("os.environ['ONEPASS_ISA']", "'other'"), "its process ended with status 0 and without a result"),
    ],
)
def test_every_failure_of_a_check_process_is_reported_in_json(
    child: str, said: str, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick.setattr(main, "CHILD", child)
    quick.setattr(main, "LIMIT", 2.0 if "2 seconds" in said else 60.0)
    quick.setattr(main, "machine", lambda: {"usable_instruction_sets": ["baseline"]})
    assert main.main(["--json"]) == (1 if said else 0)
    found = json.loads(capsys.readouterr().out)
    assert found["good"] == (not said)
    assert [each["first"] for each in found["checks"]] == [said]


def test_a_check_process_that_cannot_be_started_is_reported(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick.setattr(main, "sys", SimpleNamespace(flags=sys.flags, executable=str(tmp_path / "none"), path=sys.path))
    assert main.check("baseline")["first"].startswith("its process could not be started: ")


def test_a_check_process_inherits_the_isolation_flags_of_python(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(main, "CHILD", GOOD.replace("print('a')", "found['first'] = [sys.flags.isolated, sys.flags.no_site]"))
    assert main.check("baseline")["first"] == [sys.flags.isolated, sys.flags.no_site]
    flags = SimpleNamespace(isolated=1, no_site=1)
    quick.setattr(main, "sys", SimpleNamespace(flags=flags, executable=sys.executable, path=sys.path))
    assert main.check("baseline")["first"] == [1, 1]


def test_closing_the_output_pipe_early_prints_no_traceback() -> None:
    program = f"from onepass import __main__ as m; import sys; m.CHILD = {GOOD!r}; m.speed = None; sys.exit(m.main())"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("version: ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_an_error_of_the_system_that_is_not_from_printing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(errno.EPIPE, "not the output")

    monkeypatch.setattr(onepass, "config", broken)
    monkeypatch.setattr(sys, "argv", ["onepass"])
    with pytest.raises(OSError, match="not the output"):
        runpy.run_path(str(main.__file__), run_name="__main__")


def test_an_unknown_instruction_set_is_reported_without_a_traceback() -> None:
    ran = run(ONEPASS_ISA="bogus")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert len(ran.stderr.splitlines()) == 1
    assert "ONEPASS_ISA=bogus is unknown or not supported by this processor; these would work: " in ran.stderr


@pytest.mark.parametrize("spread", [1.4, 2.0])
def test_a_busy_machine_is_reported(
    spread: float, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds: Any = {100: 1.1, 10_000: spread, 1_000_000: 1.2}
    quick.setattr(
        main, "speed", lambda size: {"parameters": size, "onepass": 1e-6, "numpy": 2e-6, "spread": speeds[size]}
    )
    assert main.main([]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\| 10,000 +\| 1\.00 +\| 2\.00 +\| 2\.0 +\|$", printed, re.MULTILINE)
    assert ("The machine was busy: rounds differed by a factor of 2.0. Run again" in printed) == (spread > 1.5)


def test_the_spread_of_rounds_ignores_outliers() -> None:
    assert main.spread_of([9, 1.0, 1.1, 1.2, 1.0, 0.1, 8, 0.2]) == pytest.approx(1.2)


def test_numpys_step_is_the_same_as_in_the_benchmarks() -> None:
    peers = Path(__file__).parents[2] / "bench" / "peers.py"
    if not peers.exists():
        pytest.skip("the benchmarks are not next to the tests")
    calls = re.compile(r"^ +((?:multiply|add|subtract|divide|sqrt)\(.*\))$", re.MULTILINE)
    theirs, ours = (calls.findall(Path(file).read_text(encoding="utf-8")) for file in (peers, main.__file__))
    assert len(ours) == 12 and ours == theirs
    p, g = (main.numbers((129,), main.np.float32, seed, False) for seed in (1, 2))
    optimizer, numpy = onepass.Adam([p.copy()], lr=1e-3), main.InPlaceNumPy(p, g)
    for _ in range(20):
        optimizer.step([g])
        numpy.step()
    assert abs(optimizer.params[0] - p).max() < 1e-6
