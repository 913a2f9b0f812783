"""Several processes, and state on disk: the peers and measurements of the cases "ranks" and "disk".

``python -m bench.distributed`` is the program that mpiexec runs on each rank.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import onepass

from .machine import process_bytes
from .measure import Budget, Series, point
from .peer import Arrays, Options, Peer, Problem, imported
from .peers import Onepass
from .records import ROOT, Point

BUILD = ROOT / "build"  # on a disk: /tmp may be in memory

# ---- Several ranks ----


class Sharded(Peer):
    """AdamW with its state divided among the ranks. tests/integrations/mpi compare its results with one process."""

    name = "a step"
    module = "mpi4py"
    packages = ("mpi4py", "mpich")
    rules = ("AdamW",)
    takes_steps = False  # without checks in this process, which is no rank
    flat: ClassVar[bool] = True
    keywords: ClassVar[dict[str, Any]] = {}

    def __init__(self, problem: Problem, params: Arrays, options: Options) -> None:
        comm = imported("mpi4py.MPI").COMM_WORLD
        sharded = imported("onepass.integrations.mpi").ShardedOptimizer
        self.optimizer = sharded(comm, onepass.AdamW, params, lr=options.lr, **self.keywords)

    def load(self, grads: Arrays) -> None:
        self.grads = grads

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.step(self.grads)


class ShardedClip(Sharded):
    """The same with clipping, which adds up the norm of all ranks."""

    name = "a step with `clip_norm`"
    keywords: ClassVar = {"clip_norm": 1.0}


class ShardedScattered(Sharded):
    """The same on separate arrays, which are copied through a buffer."""

    name = "a step, arrays not flat"
    flat = False


def measure_ranks(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time each peer on all ranks, and measure the bytes of memory and messages with the first peer."""
    result: Point = _on_all_ranks(problem.ranks, False, time_rank, kinds, problem, budget)
    if problem.ranks > 1 and (sent := _on_all_ranks(problem.ranks, True, bytes_sent, kinds[0], problem)):
        least = 2 * (problem.ranks - 1) * 4 * problem.elements
        result["bytes"] |= {"sent in a step, all ranks": sent, "the least possible": least}
    return result


def time_rank(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget) -> Point:
    """Return the times and bytes of the ranks with the most of each."""
    mpi = imported("mpi4py.MPI")
    comm = mpi.COMM_WORLD
    series = [Series(kind, steps=1) for kind in kinds]
    sizes: dict[str, int] = {}
    for one in series:
        before = process_bytes("RssAnon")
        peer, grads = _sharded(one.kind, problem)
        peer.run(1)
        if not sizes:
            states = peer.optimizer.optimizer._record.states
            sizes["state of a rank"] = sum(array.nbytes for state in states for array in state.values())
            sizes["gradient of its share"] = sum(array.nbytes for array in peer.optimizer._buffers.shares)
            sizes["resident, with parameters and gradients"] = process_bytes("RssAnon") - before
        for _ in range(budget.iterations):
            comm.Barrier()
            one.take(peer, grads)
            one.rounds[-1] = [comm.allreduce(one.rounds[-1][0], mpi.MAX)]
        del peer, grads
    result = point(replace(problem, threads=onepass.get_num_threads()), series)
    result["bytes"] = {name: comm.allreduce(size, mpi.MAX) for name, size in sizes.items()}
    return result


def bytes_sent(kind: type[Peer], problem: Problem) -> int:
    """Count the bytes that all ranks send in a step through the loopback interface."""
    comm = imported("mpi4py.MPI").COMM_WORLD
    peer, _ = _sharded(kind, problem)
    sent = []
    for steps in (1, 3):
        peer.run(steps)
        comm.Barrier()
        counters = Path("/proc/net/dev").read_text(encoding="ascii").partition("lo:")[2]
        sent.append(int(counters.split()[8]))
        comm.Barrier()
    return round((sent[1] - sent[0]) / 3)


def _sharded(kind: Any, problem: Problem) -> tuple[Any, Arrays]:
    """Return a peer of zeros, and its gradients of ones: one array each if the peer is flat, else two."""
    params, grads = ([np.full(problem.elements // 2, value, np.float32) for _ in range(2)] for value in (0, 1))
    if kind.flat:
        params, grads = onepass.flatten(params), onepass.flatten(grads)
    peer = kind(problem, params, Options())
    peer.load(grads)
    return peer, grads


def _on_all_ranks(ranks: int, counted: bool, *call: Any) -> Any:
    """Call a function on each rank and return the result of rank 0.

    With `counted` all messages go over TCP on the loopback interface of a new network (Linux, as root); the result is
    None where that is not allowed.
    """
    mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec") or "mpiexec"
    words = base64.b64encode(pickle.dumps(call)).decode()
    command, environment = [mpiexec, "-n", str(ranks), sys.executable, "-m", "bench.distributed", words], {**os.environ}
    if counted:
        up = "import fcntl,socket,struct; fcntl.ioctl(socket.socket(),0x8914,struct.pack('16sh14x',b'lo',0x41))"
        command = ["unshare", "-n", "sh", "-c", f'{sys.executable} -c "{up}" && exec {" ".join(command)}']
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=600)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode and not counted:
        raise RuntimeError(f"mpiexec ended with {process.returncode}")
    return None if process.returncode else json.loads(printed.splitlines()[-1])


# ---- State on disk ----


class Resident(Onepass):
    """A step with the pages of its state in memory."""

    name = "a step, pages in memory"
    takes_steps = False  # `Onepass` is checked


class Dropped(Resident):
    """A step that reads its state from the disk: the pages are written and dropped from memory before it."""

    name = "a step, pages on the disk"

    def load(self, grads: Arrays) -> None:
        super().load(grads)
        for state in self.optimizer._record.states[0].values():
            array: Any = state
            while not isinstance(array, mmap.mmap):
                array = array.obj if isinstance(array, memoryview) else array.base
            array.flush()
            array.madvise(mmap.MADV_DONTNEED)
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if "(deleted)" in str(link.readlink()):
                    os.posix_fadvise(int(link.name), 0, 0, os.POSIX_FADV_DONTNEED)

    @classmethod
    def supports(cls, problem: Problem) -> bool:
        return super().supports(problem) and problem.on_disk


class Saved(Resident):
    """A checkpoint of the state."""

    name = "`save`"
    supports = Dropped.supports

    def run(self, steps: int) -> None:
        for _ in range(steps):
            with tempfile.TemporaryDirectory(dir=BUILD) as folder:
                self.optimizer.save(Path(folder) / "state.npz")


def why_no_disk() -> str | None:
    """Return the reason why memory cannot be measured, or None."""
    return None if Path("/proc/self/status").exists() else "the system has no /proc"


def measure_disk(kinds: Sequence[type[Peer]], problem: Problem, budget: Budget, rng: np.random.Generator) -> Point:
    """Time each peer in a separate process, and measure the bytes of memory with the first peer."""
    BUILD.mkdir(exist_ok=True)
    results = []
    for kind in kinds:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results.append(pool.submit(time_disk, kind, problem, budget).result())
    result = point(problem, [series for series, _ in results])
    result["bytes"] = results[0][1]
    return result


def time_disk(kind: Any, problem: Problem, budget: Budget) -> tuple[Series, dict[str, float]]:
    """Time steps; if the state is on disk, further memory is limited to half of the size of the state."""
    params, grads = np.zeros(problem.elements, np.float32), np.ones(problem.elements, np.float32)
    sizes: dict[str, float] = {"state": 2 * params.nbytes}
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        if problem.on_disk:
            import resource

            limit = sizes["limit on further anonymous memory"] = max(params.nbytes, 1 << 26)
            resource.setrlimit(resource.RLIMIT_DATA, (process_bytes("VmData") + limit,) * 2)
        with onepass.state_dir(folder) if problem.on_disk else nullcontext():
            peer = kind(problem, [params], Options())
    peer.load([grads])
    Onepass.run(peer, 1)
    series = Series(kind, steps=1)
    for _ in range(budget.iterations):
        series.take(peer, [grads])
    return series, sizes | {
        "resident, anonymous": process_bytes("RssAnon"),
        "resident, pages of files": process_bytes("RssFile"),
    }


if __name__ == "__main__":
    function, *arguments = pickle.loads(base64.b64decode(sys.argv[1]))
    outcome = function(*arguments)
    if imported("mpi4py.MPI").COMM_WORLD.rank == 0:
        print(json.dumps(outcome))
