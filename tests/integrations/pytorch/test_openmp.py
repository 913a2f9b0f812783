"""Steps of the PyTorch adapter on the threads of the OpenMP runtime that PyTorch has loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onepass

torch = pytest.importorskip("torch")
optim = pytest.importorskip("onepass.integrations.torch")

from integrations.pytorch.helpers import run_in_threads

LARGE = 1_000_003  # elements: enough for several threads
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the runtime is looked for on Linux")

# Steps of many sizes, along the same gradients as PyTorch's own Adam; prints the largest deviation.
STEPS = """
def steps(count, sizes=(1_000_003, 5, 300_000)):
    parameters = [[torch.nn.Parameter(torch.ones(size)) for size in sizes] for _ in range(2)]
    ours = onepass.integrations.torch.Adam(parameters[0], lr=0.1)
    theirs = torch.optim.Adam(parameters[1], lr=0.1)
    for t in range(count):
        for one, other in zip(*parameters):
            one.grad = torch.sin(torch.arange(one.numel()) * 1e-3 + t)
            other.grad = one.grad.clone()
        ours.step(), theirs.step()
    return max((one - other).abs().max().item() for one, other in zip(*parameters))
"""


@pytest.fixture(autouse=True)
def restore_thread_counts() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    onepass.set_num_threads(None)


def run(code: str, **environment: str) -> Any:
    """Run a program in its own process and return its output, which is JSON."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "ONEPASS_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def parameters_after(threads: int, team: int, steps: int = 3) -> Any:
    """Return the parameters after some steps on a team of threads, of which this number may work."""
    torch.set_num_threads(team)
    onepass.set_num_threads(threads)
    w = torch.nn.Parameter(torch.ones(LARGE))
    optimizer = optim.Adam([w], lr=0.1)
    for t in range(steps):
        w.grad = torch.sin(torch.arange(LARGE) * 1e-3 + t)
        optimizer.step()
    return w.detach().numpy()


def test_the_adapter_uses_the_openmp_runtime_of_pytorch() -> None:
    path = onepass.config()["torch_openmp"]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    assert Path(path).resolve() in {Path(line.split()[-1]).resolve() for line in maps if "gomp" in line}


def test_results_are_bit_identical_with_any_number_of_threads() -> None:
    expected = parameters_after(1, 1)
    for threads, team in ((1, 2), (2, 2), (2, 3), (3, 3), (2, 8), (8, 8)):
        np.testing.assert_array_equal(parameters_after(threads, team), expected, f"{threads} of {team}")


@pytest.mark.parametrize("team", [4, 8])
def test_pytorch_keeps_its_worker_threads(team: int) -> None:
    code = f"""
import json, os, torch, onepass.integrations.torch
torch.set_num_threads({team})
torch.ones(10_000_000).sum()
before = sorted(os.listdir("/proc/self/task"))
{STEPS}
deviation = steps(100, (1_000_003, 5, 300_000, 80_000, 1000))
torch.ones(10_000_000).sum()
print(json.dumps([before, sorted(os.listdir("/proc/self/task")), deviation]))
"""
    before, after, deviation = run(code)
    assert len(before) >= team and after == before and deviation < 1e-3


CHILD = """
import json, os, signal, warnings, numpy as np, torch
warnings.simplefilter("ignore")  # about forking a process with threads


def step():
    import onepass.integrations.torch  # the child may be the first to import it

    onepass.set_num_threads(2)
    w, gradient = (torch.from_numpy(np.ones(1_000_003, np.float32)) for _ in range(2))
    w.grad = gradient
    onepass.integrations.torch.SGD([w], lr=0.5).step()
    return bool((w.numpy() == 0.5).all()), onepass.config()["torch_openmp"]


torch.set_num_threads(2)
torch.ones(10_000_000).sum()
if PARENT_STEPS:
    assert step()[0]
child = os.fork()
if child == 0:
    signal.alarm(60)  # instead of waiting forever
    os._exit(0 if step() == (True, None) else 1)
print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@pytest.mark.parametrize("parent_steps", [True, False])
def test_child_forked_after_pytorch_used_threads_steps_without_them(parent_steps: bool) -> None:
    assert run(f"PARENT_STEPS = {parent_steps}\n{CHILD}") == 0


@pytest.mark.parametrize(
    ("first", "environment"),
    [
        ("torch", {}),
        ("onepass", {}),
        ("numba", {}),
        ("sklearn.linear_model", {}),
        ("torch", {"OMP_PROC_BIND": "true"}),
        ("onepass", {"OMP_PROC_BIND": "true"}),
        ("torch", {"OMP_DYNAMIC": "true"}),
        ("torch", {"OMP_THREAD_LIMIT": "1"}),
        ("torch", {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_steps_are_correct_with_any_import_order_and_openmp_setting(first: str, environment: dict[str, str]) -> None:
    pytest.importorskip(first)
    code = f"import {first}, json, torch, onepass.integrations.torch\n{STEPS}\n"
    code += "maps = [line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line or 'omp' in line]\n"
    code += "print(json.dumps([steps(5), onepass.config()['torch_openmp'], torch.get_num_threads(), maps]))"
    deviation, path, threads, maps = run(code, **environment)
    assert deviation < 1e-3 and threads == onepass.config()["processors"]
    # PyTorch's wheels bring the runtime along.
    assert Path(path).resolve() in {Path(each).resolve() for each in maps if "torch" in each}


def test_preloaded_runtime_is_used_if_pytorch_uses_it() -> None:
    found = subprocess.run(["g++", "-print-file-name=libgomp.so.1"], capture_output=True, text=True).stdout.strip()
    if not Path(found).exists():
        pytest.skip("there is no libgomp.so.1 of the compiler's")
    code = f"import json, torch, onepass.integrations.torch\n{STEPS}\n"
    code += "print(json.dumps([steps(5), onepass.config()['torch_openmp']]))"
    deviation, path = run(code, LD_PRELOAD=str(Path(found).resolve()))
    assert deviation < 1e-3 and path


def test_adapter_uses_pytorchs_thread_count() -> None:
    code = """
import json, os, threading, torch, onepass.integrations.torch
torch.set_num_threads(1)
w = torch.nn.Parameter(torch.ones(4_000_000)); w.grad = torch.ones_like(w)
optimizer = onepass.integrations.torch.SGD([w], lr=0.5)
before = len(os.listdir("/proc/self/task"))
optimizer.step()
print(json.dumps(len(os.listdir("/proc/self/task")) - before))
"""
    assert run(code) == 0


def test_onepass_thread_count_limits_the_adapter_until_it_is_reset() -> None:
    code = """
import json, os, torch, onepass.integrations.torch
torch.set_num_threads(2)
counts = []
for number in (1, None):
    onepass.set_num_threads(number)
    w = torch.from_numpy(__import__("numpy").ones(4_000_000, "f"))
    w.grad = w.clone()
    onepass.integrations.torch.SGD([w], lr=0.5).step()
    counts.append(onepass._core.requested_threads())
print(json.dumps(counts))
"""
    assert run(code) == [1, 0]


def test_concurrent_steps_are_bit_identical() -> None:
    expected = parameters_after(2, 2)
    results: list[Any] = []
    run_in_threads([lambda: results.append(parameters_after(2, 2))] * 4)
    assert len(results) == 4
    for result in results:
        np.testing.assert_array_equal(result, expected)
