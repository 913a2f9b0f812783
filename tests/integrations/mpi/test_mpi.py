"""onepass.integrations.mpi under mpiexec: what ranks.py checks on 1 to 4 ranks, and ranks that are killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")
pytest.importorskip("ml_dtypes")

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RANKS = HERE / "ranks.py"
MPIEXEC = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
CHECKS = [
    name for file in sorted(HERE.glob("ranks_*.py")) for name in re.findall(r"^def check_(\w+)", file.read_text(), re.M)
]


def mpiexec(ranks: int, *command: object, seconds: float = 120, **variables: str) -> tuple[int, str]:
    """Return the exit status and the output. Kill the processes after the time limit and fail."""
    assert MPIEXEC, "no mpiexec: pip install mpich"
    # Two processors serve four ranks: one thread each.
    environment = {**os.environ, "OMP_NUM_THREADS": "", "RANKS": str(ranks), **variables}
    process = subprocess.Popen(
        [MPIEXEC, "-n", str(ranks), sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        raise AssertionError(f"hung on {ranks} ranks:\n{printed}") from None
    return process.returncode, printed


@cache
def checked(ranks: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        status, printed = mpiexec(ranks, RANKS, RANKS_FOLDER=folder)
    return printed + f"exit status {status}"


def test_running_with_a_wrong_number_of_ranks_fails() -> None:
    status, printed = mpiexec(1, RANKS, "empty_parameters_are_stepped_and_counted", RANKS="2")
    assert status != 0
    assert "there are 1 ranks, not 2" in printed


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("check", CHECKS)
def test_check_passes_on_all_ranks(check: str, ranks: int) -> None:
    # Without the end of the line: mpiexec may put the line of another rank before it.
    assert f"passed {check}" in checked(ranks), checked(ranks)


# The rank that is killed, and the file operation before which it is killed: rank 1 has 66, rank 0 has 77. Rank 0 writes
# the manifest after its share, and then deletes the older set.
DEATHS = [(1, count) for count in (1, 2, 33, 61, 62, 63, 64, 65, 66)]
DEATHS += [(0, count) for count in (2, 40, 66, 67, 68, 69, 70, 71, 73, 75, 77)]


def test_rank_killed_while_saving_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    for rank, count in DEATHS:
        status, printed = mpiexec(2, RANKS, "save_and_die", tmp_path / f"{rank}-{count}", rank, count)
        assert status != 0
        assert "dies before" in printed, printed
        print(*re.findall("rank . dies.*", printed))
    status, printed = mpiexec(2, RANKS, "load_after_death", *(tmp_path / f"{rank}-{count}" for rank, count in DEATHS))
    print(printed)
    assert status == 0
    found = re.findall(r"step (\d)", printed)
    assert len(found) == len(DEATHS) == 20
    assert found[: found.index("3")] == ["1"] * found.index("3")  # the old set, and then always the new one
    assert found[-1] == "3"


def test_rank_killed_in_a_step_ends_the_other_ranks() -> None:
    status, _ = mpiexec(3, RANKS, "step_and_die", seconds=60)
    assert status != 0


def test_the_example_is_bit_identical_on_one_rank_and_on_two() -> None:
    pytest.importorskip("sklearn")
    printed = [mpiexec(ranks, ROOT / "examples" / "mpi_digits.py", "--epochs", 2) for ranks in (1, 2)]
    assert [status for status, _ in printed] == [0, 0], printed
    one, two = (re.findall(r"weights ([0-9a-f]{64})", text) for _, text in printed)
    assert one == two
    assert len(one) == 1


def test_docstring_examples_run() -> None:
    script = "import sys, doctest, onepass.integrations.mpi as m; sys.exit(doctest.testmod(m).failed)"
    status, printed = mpiexec(1, "-c", script)
    assert status == 0, printed


@pytest.mark.parametrize("ranks", [1, 2])
def test_snippets_of_the_page_run(ranks: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    script = tmp_path / "page.py"
    script.write_text(f"import os\nos.chdir({str(tmp_path)!r})\n" + "\n".join(snippets), encoding="utf-8")
    status, printed = mpiexec(ranks, "-m", "mpi4py", script)
    assert status == 0, printed
    assert (tmp_path / "state" / "manifest.json").exists()


def test_the_benchmark_measures_times_and_bytes_on_all_ranks() -> None:
    distributed = pytest.importorskip("bench.distributed", reason="the benchmarks are missing")
    problem = distributed.Problem.of(16384, rule="AdamW", ranks=2)
    kinds = (distributed.Sharded, distributed.ShardedClip, distributed.ShardedScattered)
    point = distributed.measure_ranks(kinds, problem, distributed.Budget(iterations=3), None)
    assert [*point["timings"]] == [kind.name for kind in kinds] and point["rounds"] == 3
    assert point["bytes"]["state of a rank"] == 8 * 8192 and point["bytes"]["gradient of its share"] == 4 * 8192
    # The bytes sent are None if the system cannot create a separate network.
    least, sent = 2 * 4 * 16384, point["bytes"].get("sent in a step, all ranks")
    assert sent is None or least < sent < 1.2 * least
