"""``python -m onepass`` says what this copy is, and notices a bit that differs on any instruction set."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onepass
from onepass import _core

# What the cases of the self-check leave, on every machine and with every NumPy.
DIGEST = "2f9a41e66d55ddb94dab1d067581a5f6b2c41dcb3d9b4f45a10d006a7fb1c05e"


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ONEPASS_ISA"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-m", "onepass", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_every_instruction_set_is_compared_bit_for_bit() -> None:
    ran = run("--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout)
    assert said["good"] is True
    assert said["config"]["version"] == onepass.__version__
    assert [found["instruction_set"] for found in said["checks"]] == _core.usable_instruction_sets
    for found in said["checks"]:
        assert found["cases"] == 8 * 2 * 9 + 3
        assert found["elements"] > 1_000_000
        assert (found["differing"], found["first"], found["digest"]) == (0, "", DIGEST)
    assert [row["parameters"] for row in said["speeds"]] == [100, 10_000, 1_000_000]
    assert all(row["onepass"] > 0 and row["numpy"] > 0 for row in said["speeds"])


# Appended to the specification: wrong in one bit of one element of SGD, on one instruction set; another one crashes.
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


def test_a_planted_difference_and_a_crash_are_reported_and_the_exit_status_is_1(tmp_path: Path) -> None:
    package = Path(onepass.__file__).parent
    if Path(_core.__file__).parent != package:
        pytest.skip("an editable install: the compiled module is not beside the others")
    shutil.copytree(package, tmp_path / "onepass")
    if (libraries := package.with_name("onepass.libs")).exists():  # Microsoft's C++ library, in a wheel for Windows
        shutil.copytree(libraries, tmp_path / "onepass.libs")
    specification = tmp_path / "onepass" / "_reference.py"
    specification.write_text(specification.read_text(encoding="utf-8") + PLANTED, encoding="utf-8")
    ran = run(path=tmp_path)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    rows = dict(re.findall(r"^\| (\w+) +\| (.*) \|$", ran.stdout, re.MULTILINE))
    assert re.match(r"147 +\| [\d,]+ +\| [1-9]\d* ", rows["baseline"])
    assert re.search(r"^baseline: SGD, float32, parameter \(129,\)\[128\]: .* should be ", ran.stdout, re.MULTILINE)
    assert "SOMETHING DIFFERS" in ran.stdout and "Every bit is as it should be" not in ran.stdout
    if "avx2" in _core.usable_instruction_sets:
        assert re.match(r"0 ", rows["avx2"])
        assert re.search(r"^avx2: \S", ran.stdout, re.MULTILINE)
    if "avx512" in _core.usable_instruction_sets:
        assert re.match(r"147 +\| [\d,]+ +\| 0 ", rows["avx512"])
