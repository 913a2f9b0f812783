"""The instruction set is chosen at import, and each of them gives the same bits."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onepass
from onepass import _core

HERE = Path(__file__).parent
IN_USE = _core.instruction_set
CPUINFO = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
STORAGE_TESTS = [
    "test_storage.py::test_every_storage_matches_the_reference_bit_for_bit",
    "test_storage.py::test_narrow_storage_matches_the_reference_at_every_length",
    "test_storage.py::test_hostile_numbers_match_the_reference_bit_for_bit",
]


def python(*arguments: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ONEPASS_ISA"}
    if isa is not None:
        environment["ONEPASS_ISA"] = isa
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=HERE, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", _core.usable_instruction_sets)
def test_the_kernel_tests_pass_under_every_instruction_set(isa: str) -> None:
    """Run the kernel tests in child processes. They do not include this file, so there is no recursion."""
    if isa == IN_USE:
        return  # this run
    tests = ["test_bits.py", "test_paper.py", "test_power.py", *STORAGE_TESTS]
    result = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, isa=isa)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ passed", result.stdout)


@pytest.mark.skipif(not CPUINFO or "avx2" not in _core.built_instruction_sets, reason="needs Linux on x86-64")
def test_the_instruction_sets_are_those_of_the_processor() -> None:
    (flags,) = {frozenset(line.split()) for line in re.findall(r"^flags\s*:(.*)$", CPUINFO, re.MULTILINE)}
    needed = {"avx2": {"avx2"}, "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}}
    expected = ["baseline", *(name for name, flag in needed.items() if flag <= flags)]
    assert list(_core.usable_instruction_sets) == expected


@pytest.mark.parametrize("isa", _core.usable_instruction_sets)
def test_onepass_isa_forces_an_instruction_set(isa: str) -> None:
    result = python("-c", "import onepass; print(onepass.config()['instruction_set'])", isa=isa)
    assert result.stdout.strip() == isa, result.stderr


@pytest.mark.parametrize("isa", [None, ""])
def test_the_widest_instruction_set_is_the_default(isa: str | None) -> None:
    result = python("-c", "import onepass; print(onepass.config()['instruction_set'])", isa=isa)
    assert result.stdout.strip() == _core.usable_instruction_sets[-1], result.stderr


@pytest.mark.parametrize("isa", ["doesnotexist", "AVX2", "avx2 ", "avx"])
def test_an_unknown_instruction_set_is_refused_and_usable_ones_are_named(isa: str) -> None:
    result = python("-c", "import onepass", isa=isa)
    assert result.returncode != 0
    assert f"ImportError: ONEPASS_ISA={isa} is unknown or not supported" in result.stderr
    assert ", ".join(_core.usable_instruction_sets) in result.stderr


def test_config_reports_the_instruction_set(capsys: pytest.CaptureFixture[str]) -> None:
    config = onepass.config()
    assert config["version"] == onepass.__version__
    assert config["instruction_set"] in config["usable_instruction_sets"]
    assert set(config["usable_instruction_sets"]) <= set(config["instruction_sets"])
    assert config["instruction_sets"][0] == "baseline"
    onepass.show_config()
    printed = capsys.readouterr().out
    for name in config:
        assert f"{name}: " in printed


# Digest of a long mixed run, the same with every instruction set, compiler and operating system. The run does not flush
# subnormals, because architectures differ in when a result counts as tiny.
DIGEST = "35f745ba2ba284d2de450fa2fba996e920a937e767c3112358850c85a9ac18a0"


def test_results_are_bit_identical_on_every_machine() -> None:
    # Inputs are made from integers only, because NumPy's distributions may change.
    words = np.frombuffer(b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(4096)), "<u4")
    values = (words.astype(np.int64) - 2**31).astype(np.float64) / 2**31  # in [-1, 1), exact
    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        params, grads = values[:16384].astype(dtype), values[16384:].astype(dtype)
        for amsgrad in (False, True):
            p = params.copy()
            optimizer = onepass.AdamW(p, lr=0.01, amsgrad=amsgrad, flush_denormals=False)
            for t in range(50):
                optimizer.step(np.roll(grads, t))
            for array in (p, *list(optimizer.state[0].values())[1:]):
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == DIGEST
