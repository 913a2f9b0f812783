"""Several processes, and state on disk: ``python -m bench.distributed`` measures and writes docs/distributed.md.

Runs itself under mpiexec on 1, 2 and 4 ranks. The bytes on the wire are those that a network interface counts: once
more, with all messages over TCP on the loopback interface of a network of its own (Linux, as root).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import onepass

from . import machine, records, report
from .readme import MARK, table

PAGE = records.ROOT / "docs" / "distributed.md"
RESULTS = records.ROOT / "bench" / "results" / "distributed"
CHUNKS = (1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
MODEL_RANKS = (8, 32, 100, 320, 1000, 3200, 10_000)
MODEL_ELEMENTS = (124_000_000, 1_500_000_000)


# ---- What each rank measures ----


def on_ranks(elements: int, rounds: int, counted: bool) -> dict[str, Any] | None:
    """Measure, on all ranks; what rank 0 returns is the record."""
    from mpi4py import MPI

    from onepass.integrations.mpi import ShardedOptimizer

    comm = MPI.COMM_WORLD

    def timed(*functions: Callable[[], object]) -> list[float]:
        """The seconds of the slowest rank in the fastest of the rounds, of each: other programs run here too."""
        taken: list[list[float]] = [[] for _ in functions]
        for _ in range(rounds + 1):
            for function, each in zip(functions, taken):
                comm.Barrier()
                before = perf_counter()
                function()
                each.append(comm.allreduce(perf_counter() - before, MPI.MAX))
        return [min(each[1:]) for each in taken]

    def made(chunk: int, **options: Any) -> tuple[Any, Any]:
        params = onepass.flatten([np.zeros(elements, np.float32)])
        return ShardedOptimizer(comm, onepass.AdamW, params, chunk=chunk, **options), [np.ones(elements, np.float32)]

    found: dict[str, Any] = {"ranks": comm.size}
    if counted:
        sharded, grads = made(1 << 22)
        sharded.step(grads)
        comm.Barrier()
        before = _sent()
        comm.Barrier()
        for _ in range(3):
            sharded.step(grads)
        comm.Barrier()
        found["wire_bytes"] = (_sent() - before) / 3
        found["alpha"], found["beta"] = _ping_pong(comm)
        return found if comm.rank == 0 else None

    before_all = _status("RssAnon")
    sharded, grads = made(1 << 22)
    sharded.step(grads)
    state = sum(array.nbytes for each in sharded.optimizer._record.states for array in each.values())
    share = sum(array.nbytes for array in sharded._share)
    found["state_bytes"], found["share_bytes"] = comm.allreduce(state, MPI.MAX), comm.allreduce(share, MPI.MAX)
    found["resident_bytes"] = comm.allreduce(_status("RssAnon") - before_all, MPI.MAX)
    found["threads"] = onepass.get_num_threads()

    def communicate() -> None:
        """The messages of a step, and nothing else."""
        sharded._take(grads, 1.0)
        sharded._reducing, sharded._requests = 0, {}
        sharded._reduce_up_to(2)
        for k in range(len(sharded._chunks)):
            sharded._reduced(k)
            sharded._hand_out(k)
        for k in range(len(sharded._chunks)):
            sharded._handed_out(k)

    def compute() -> None:
        """A step of the share, and nothing else."""
        sharded._optimizer._step_in_parts(sharded._gradient, 1.0, sharded._parts, _Alone())

    found["both"], found["messages"], found["compute"] = timed(lambda: sharded.step(grads), communicate, compute)
    sharded = None  # its memory is wanted
    clipped, grads = made(1 << 22, clip_norm=1.0)
    (found["clipped"],) = timed(lambda: clipped.step(grads))
    clipped = None
    scattered = [np.zeros((1000, elements // 1000), np.float32), np.zeros(elements % 1000, np.float32)]
    copying: Any = ShardedOptimizer(comm, onepass.AdamW, scattered)
    parts = [np.ones_like(param) for param in scattered]
    (found["copying"],) = timed(lambda: copying.step(parts))
    copying = None
    found["chunks"] = {}
    for chunk in CHUNKS:
        cut, grads = made(chunk)
        (found["chunks"][chunk],) = timed(lambda cut=cut, grads=grads: cut.step(grads))  # type: ignore[misc]
    found["alpha"], found["beta"] = _ping_pong(comm)
    return found if comm.rank == 0 else None


class _Alone:
    """What ShardedOptimizer is to its optimizer, without other ranks."""

    def _agree(self, digest: int, whole: bool) -> None:
        pass

    def _ready(self, k: int) -> None:
        pass


def _ping_pong(comm: Any) -> tuple[float, float]:
    """The seconds that a message takes, and those of each further byte; between ranks 0 and 1."""
    if comm.size == 1:
        return 0.0, 0.0
    taken = {}
    for size, times in ((8, 2000), (1 << 22, 30)):
        buffer = np.zeros(size, np.uint8)
        each = []
        for _ in range(times if comm.rank < 2 else 0):
            before = perf_counter()
            if comm.rank == 0:
                comm.Send(buffer, 1)
                comm.Recv(buffer, 1)
            else:
                comm.Recv(buffer, 0)
                comm.Send(buffer, 0)
            each.append((perf_counter() - before) / 2)
        taken[size] = min(each) if each else 0.0
    comm.Barrier()
    return taken[8], (taken[1 << 22] - taken[8]) / (1 << 22)


def _status(name: str) -> int:
    """Bytes of this process, as /proc counts them; 0 elsewhere."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def _sent() -> int:
    """Bytes that the loopback interface has sent."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def launch(ranks: int, elements: int, rounds: int, counted: bool) -> dict[str, Any] | None:
    """What that many ranks measure; None where the network could not be had."""
    mpiexec = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec") or "mpiexec"
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "bench.distributed", "--on-ranks"]
    command += ["--elements", str(elements), "--rounds", str(rounds)]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    if counted:
        up = "import fcntl,socket,struct; fcntl.ioctl(socket.socket(),0x8914,struct.pack('16sh14x',b'lo',0x41))"
        words = " ".join([*command, "--counted"])
        command = ["unshare", "-n", "sh", "-c", f'{sys.executable} -c "{up}" && exec {words}']
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
    process = subprocess.Popen(
        command, cwd=records.ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, _ = process.communicate(timeout=600)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode and counted:
        return None
    if process.returncode:
        raise SystemExit(f"mpiexec ended with {process.returncode}")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


# ---- State on disk ----


def on_disk(where: str, folder: str, elements: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step and bytes of memory with state in memory or in files, under a limit on memory."""
    import resource

    w, g = np.zeros(elements, np.float32), np.ones(elements, np.float32)
    before = _status("VmData")
    if where == "disk":  # what state in memory would take, and half of that again is not to be had
        limit = before + 4 * elements
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with onepass.state_dir(folder):
            opt = onepass.AdamW(w)
    else:
        opt = onepass.AdamW(w)
    taken, cold = [], []
    for _ in range(rounds + 1):
        start = perf_counter()
        opt.step(g)
        taken.append(perf_counter() - start)
    found = {
        "where": where,
        "elements": elements,
        "state_bytes": 8 * elements,
        "limit": 4 * elements if where == "disk" else None,
        "warm": min(taken[1:]),
        "anonymous": _status("RssAnon"),
        "files": _status("RssFile"),
    }
    if where == "disk":
        for _ in range(3):
            _evict(opt)
            start = perf_counter()
            opt.step(g)
            cold.append(perf_counter() - start)
        found["cold"] = min(cold)
        start = perf_counter()
        opt.save(Path(folder) / "state.npz")
        found["save"] = perf_counter() - start
    return found


def _evict(opt: onepass.Optimizer) -> None:
    """Have the system write the state's pages and forget them."""
    import mmap

    array: Any = opt._record.states[0]["exp_avg"]
    while not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else array.base
    array.flush()
    array.madvise(mmap.MADV_DONTNEED)
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "(deleted)" in str(link.readlink()):
                os.posix_fadvise(int(link.name), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- The model ----


def predicted(ranks: int, elements: int, alpha: float, beta: float, tau: float, chunk: int = 1 << 22) -> dict[str, Any]:
    """A step's seconds by the latency-bandwidth model: ``alpha`` a message, ``beta`` a byte, ``tau`` an element's step.

    A chunk's reduce-scatter is n - 1 messages of a share each, and so is its allgather; each chunk has at least two
    blocks of the norm for each rank. The agreement before the step takes 2 log2(n) messages.
    """
    chunk = max(chunk, 2 * ranks * 4096)
    chunks = max(1, elements // chunk)
    latency = 2 * chunks * (ranks - 1) * alpha + 2 * math.ceil(math.log2(ranks)) * alpha
    bandwidth = 2 * 4 * elements * (ranks - 1) / ranks * beta
    messages, compute = latency + bandwidth, elements / ranks * tau
    # All is hidden but the longer of the two, and the first chunk's arrival and the last one's departure.
    hidden = min(messages, compute) * (1 - 1 / chunks)
    return {
        "chunks": chunks,
        "latency": latency,
        "bandwidth": bandwidth,
        "compute": compute,
        "hidden": hidden / messages,
        "step": messages + compute - hidden,
        "replicated": messages + elements * tau,
        "state_bytes": 8 * elements / ranks,
    }


# ---- The tables ----


def seconds(value: float) -> str:
    return report.duration(value * 1e9)


def size(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def roughly(value: float, write: Callable[[float], str]) -> str:
    """Write a number with two digits, which is more than a model knows."""
    rounded = float(f"{value:.1e}")
    found = re.fullmatch(r"([0-9.,]+)(.*)", write(rounded))
    assert found
    return f"{float(found[1].replace(',', '')):g}{found[2]}"


def machine_block(record: dict[str, Any]) -> str:
    software = record["software"]
    return (
        f"{report.machine_line(record['machine'])}; {record['date']}, onepass {software['onepass']} "
        f"({software['instruction_set']}), {record['mpi']}, {size(4 * record['elements'])} of float32 parameters "
        f"({record['elements']:,}), AdamW; the fastest of {record['rounds']} steps."
    )


def wire_block(record: dict[str, Any]) -> str:
    rows = [["ranks", "bytes sent in a step, all ranks", "the least possible", "ratio"]]
    for found in record["counted"]:
        least = 2 * (found["ranks"] - 1) * 4 * record["elements"]
        rows.append([str(found["ranks"]), size(found["wire_bytes"]), size(least), f"{found['wire_bytes'] / least:.3f}"])
    return table(rows) if record["counted"] else "Not measured: no network of its own could be had."


def overlap_block(record: dict[str, Any]) -> str:
    head = ["ranks", "threads each", "step of the share alone", "messages alone", "both", "hidden", "with `clip_norm`"]
    rows = [[*head, "parameters and gradients not flat"]]
    for found in record["ranks"]:
        alone = found["messages"] + found["compute"]
        hidden = f"{(alone - found['both']) / min(found['messages'], found['compute']):.0%}"
        cells = [seconds(found[name]) for name in ("compute", "messages", "both")]
        others = found["clipped"], found["copying"]
        rows.append(
            [str(found["ranks"]), str(found["threads"]), *cells, hidden * (found["ranks"] > 1), *map(seconds, others)]
        )
    return table(rows)


def chunk_block(record: dict[str, Any]) -> str:
    ranks = [found["ranks"] for found in record["ranks"]]
    rows = [["elements in a chunk", *(f"{n} rank{'s' * (n > 1)}" for n in ranks)]]
    for chunk in CHUNKS:
        rows.append([f"{chunk:,}", *(seconds(found["chunks"][str(chunk)]) for found in record["ranks"])])
    return table(rows)


def memory_block(record: dict[str, Any]) -> str:
    rows = [["ranks", "state", "gradient of the share", "resident, with parameters and gradients"]]
    for found in record["ranks"]:
        cells = [size(found[name]) for name in ("state_bytes", "share_bytes", "resident_bytes")]
        rows.append([str(found["ranks"]), *cells])
    return table(rows)


def constants(record: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The measured latency and seconds a byte of each way."""
    ways = {"shared memory": record["ranks"][1]}
    if record["counted"]:
        ways["TCP on the loopback interface"] = record["counted"][0]
    return {name: (found["alpha"], found["beta"]) for name, found in ways.items()}


def constants_block(record: dict[str, Any]) -> str:
    rows = [["constant", "measured"]]
    for name, (alpha, beta) in constants(record).items():
        rows += [[f"latency of a message, {name}", seconds(alpha)], [f"bandwidth, {name}", f"{size(1 / beta)}/s"]]
    return table([*rows, ["a step of AdamW, one thread", f"{record['tau'] * 1e9:.3g} ns an element"]], left=1)


def model_block(record: dict[str, Any]) -> str:
    texts = []
    for name, (alpha, beta) in constants(record).items():
        for elements in MODEL_ELEMENTS:
            head = ["ranks", "state a rank", "chunks", "latency", "bandwidth", "share's step", "hidden", "step"]
            rows = [[*head, "state not divided"]]
            for ranks in MODEL_RANKS:
                found = predicted(ranks, elements, alpha, beta, record["tau"])
                cells = [roughly(found[name], seconds) for name in ("latency", "bandwidth", "compute")]
                ends = [f"{found['hidden']:.0%}", *(roughly(found[name], seconds) for name in ("step", "replicated"))]
                rows.append([f"{ranks:,}", size(found["state_bytes"]), f"{found['chunks']:,}", *cells, *ends])
            texts.append(f"{elements / 1e6:,.0f} million parameters, {name}:\n\n{table(rows)}")
    return "\n\n".join(texts)


def check_block(record: dict[str, Any]) -> str:
    rows = [["ranks", "messages, predicted", "measured", "the share's step, predicted", "measured"]]
    alpha, beta = constants(record)["shared memory"]
    for found in record["ranks"][1:]:
        model = predicted(found["ranks"], record["elements"], alpha, beta, record["tau"] / found["threads"])
        messages = model["latency"] + model["bandwidth"]
        pairs = messages, found["messages"], model["compute"], found["compute"]
        rows.append([str(found["ranks"]), *map(seconds, pairs)])
    return table(rows)


def disk_block(record: dict[str, Any]) -> str:
    memory, disk = record["disk"]
    rows = [["state", "in memory", "on disk"]]
    rows.append(["size of the state", size(memory["state_bytes"]), size(disk["state_bytes"])])
    rows.append(["limit on further anonymous memory", "none", size(disk["limit"])])
    rows.append(["resident, anonymous", size(memory["anonymous"]), size(disk["anonymous"])])
    rows.append(["resident, pages of files", size(memory["files"]), size(disk["files"])])
    rows.append(["a step, its pages in memory", seconds(memory["warm"]), seconds(disk["warm"])])
    rows.append(["a step, its pages on the disk", "", seconds(disk["cold"])])
    rows.append(["`save`", "", seconds(disk["save"])])
    return table(rows, left=1)


BLOCKS = {
    "machine": machine_block,
    "wire": wire_block,
    "overlap": overlap_block,
    "chunks": chunk_block,
    "memory": memory_block,
    "constants": constants_block,
    "check": check_block,
    "model": model_block,
    "disk": disk_block,
}


def rewritten(text: str, record: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    for what in [mark.group(1) for mark in MARK.finditer(text) if mark.group(2) == "begin"]:
        begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{BLOCKS[what](record)}\n{end}{rest.partition(end)[2]}"
    return text


def measured(elements: int, rounds: int) -> dict[str, Any]:
    """Run everything."""
    counted = [found for ranks in (2, 4) if (found := launch(ranks, elements, rounds, True))]
    from mpi4py import MPI

    disk = []
    for where in ("memory", "disk"):
        with tempfile.TemporaryDirectory(dir=records.ROOT / "build") as folder:
            command = [sys.executable, "-m", "bench.distributed", "--on-disk", where, folder]
            command += ["--elements", str(4 * elements), "--rounds", str(rounds)]
            printed = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=True).stdout
            disk.append(json.loads(printed))
    onepass.set_num_threads(1)
    w, g = np.zeros(elements, np.float32), np.ones(elements, np.float32)
    opt, taken = onepass.AdamW(w), []
    for _ in range(rounds + 1):
        before = perf_counter()
        opt.step(g)
        taken.append(perf_counter() - before)
    return {
        "machine": machine.describe(),
        "software": machine.software(),
        "mpi": f"{MPI.get_vendor()[0]} {'.'.join(map(str, MPI.get_vendor()[1]))}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "elements": elements,
        "rounds": rounds,
        "ranks": [launch(ranks, elements, rounds, False) for ranks in (1, 2, 4)],
        "counted": counted,
        "tau": min(taken[1:]) / elements,
        "disk": disk,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=16_000_000, help="float32 parameters")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--check", action="store_true", help="say only whether the page is what its results file gives")
    parser.add_argument("--tables", action="store_true", help="measure nothing: write the tables from the results file")
    parser.add_argument("--on-ranks", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--on-disk", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.on_ranks:
        if found := on_ranks(options.elements, options.rounds, options.counted):
            print(json.dumps(found))
        return
    if options.on_disk:
        where, folder = options.on_disk
        print(json.dumps(on_disk(where, folder, options.elements, options.rounds)))
        return
    text = PAGE.read_text(encoding="utf-8")
    cited = records.ROOT / "docs" / text.partition("(../bench/results/")[2].partition(")")[0]
    path = RESULTS / f"{machine.slug(machine.describe(), machine.software())}.json"
    if options.check or options.tables:
        path = RESULTS / cited.name
        current = rewritten(text, json.loads(path.read_text(encoding="utf-8")))
        if options.check and current != text:
            raise SystemExit(f"{PAGE.name} is not what its results file gives")
        PAGE.write_text(current, encoding="utf-8")
        return
    record = measured(options.elements, options.rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = text.replace(f"distributed/{cited.name}", f"distributed/{path.name}")
    PAGE.write_text(rewritten(text, json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
