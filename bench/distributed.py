"""Several processes, and state on disk: ``python -m bench.distributed`` measures and writes docs/distributed.md.

Runs itself under mpiexec on 1, 2 and 4 ranks. The bytes on the wire are those that a network interface counts: once
more, with all messages over TCP on the loopback interface of a network of its own (Linux, as root).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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


# ---- Measurements on each rank ----


def on_ranks(elements: int, rounds: int, counted: bool) -> dict[str, Any] | None:
    """Measure on all ranks; return the record on rank 0."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    found = {"ranks": comm.size, **(_wire(comm, elements) if counted else _memory_and_time(comm, elements, rounds))}
    return found if comm.rank == 0 else None


def _wire(comm: Any, elements: int) -> dict[str, Any]:
    """Measure the bytes that all ranks send in a step."""
    opt, grads = _flat_optimizer(comm, elements)
    opt.step(grads)
    comm.Barrier()
    before = _sent()
    comm.Barrier()
    for _ in range(3):
        opt.step(grads)
    comm.Barrier()
    return {"wire_bytes": (_sent() - before) / 3}


def _memory_and_time(comm: Any, elements: int, rounds: int) -> dict[str, Any]:
    """Measure the memory of a rank and the seconds of a step, on the rank with the most of each."""
    from mpi4py import MPI

    from onepass.integrations.mpi import ShardedOptimizer

    def seconds_of(opt: Any, grads: Any) -> float:
        """Return the seconds of the fastest step: other programs run here too."""
        taken: list[float] = []
        for _ in range(rounds + 1):
            comm.Barrier()
            before = perf_counter()
            opt.step(grads)
            taken.append(comm.allreduce(perf_counter() - before, MPI.MAX))
        return min(taken[1:])

    before = _status("RssAnon")
    opt, grads = _flat_optimizer(comm, elements)
    opt.step(grads)
    state = sum(array.nbytes for each in opt.optimizer._record.states for array in each.values())
    share = sum(array.nbytes for array in opt._buffers.shares)
    sizes = {"state_bytes": state, "share_bytes": share, "resident_bytes": _status("RssAnon") - before}
    found = {name: comm.allreduce(size, MPI.MAX) for name, size in sizes.items()}
    found |= {"threads": onepass.get_num_threads(), "step": seconds_of(opt, grads)}
    opt = None  # frees its memory
    opt, grads = _flat_optimizer(comm, elements, clip_norm=1.0)
    found["clipped"] = seconds_of(opt, grads)
    opt = None
    scattered = [np.zeros((1000, elements // 1000), np.float32), np.zeros(elements % 1000, np.float32)]
    opt = ShardedOptimizer(comm, onepass.AdamW, scattered)
    found["scattered"] = seconds_of(opt, [np.ones_like(param) for param in scattered])
    return found


def _flat_optimizer(comm: Any, elements: int, **options: Any) -> tuple[Any, Any]:
    """Return an optimizer of flat parameters, and gradients."""
    from onepass.integrations.mpi import ShardedOptimizer

    params = onepass.flatten([np.zeros(elements, np.float32)])
    return ShardedOptimizer(comm, onepass.AdamW, params, **options), [np.ones(elements, np.float32)]


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
    """Return the record of that many ranks; None where no network of its own is available."""
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
    if where == "disk":  # half of the memory that the state would need
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


# ---- The tables ----


def seconds(value: float) -> str:
    return report.duration(value * 1e9)


def size(value: float) -> str:
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


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
    return table(rows) if record["counted"] else "Not measured: no network of its own is available."


def time_block(record: dict[str, Any]) -> str:
    rows = [["ranks", "threads each", "a step", "with `clip_norm`", "parameters and gradients not flat"]]
    for found in record["ranks"]:
        times = [seconds(found[name]) for name in ("step", "clipped", "scattered")]
        rows.append([str(found["ranks"]), str(found["threads"]), *times])
    return table(rows)


def memory_block(record: dict[str, Any]) -> str:
    rows = [["ranks", "state", "gradient of the share", "resident, with parameters and gradients"]]
    for found in record["ranks"]:
        cells = [size(found[name]) for name in ("state_bytes", "share_bytes", "resident_bytes")]
        rows.append([str(found["ranks"]), *cells])
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
    "time": time_block,
    "memory": memory_block,
    "disk": disk_block,
}


def rewritten(text: str, record: dict[str, Any]) -> str:
    """Return the page with new tables."""
    for what in [mark.group(1) for mark in MARK.finditer(text) if mark.group(2) == "begin"]:
        begin, end = f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{BLOCKS[what](record)}\n{end}{rest.partition(end)[2]}"
    return text


def measured(elements: int, rounds: int) -> dict[str, Any]:
    """Measure everything."""
    counted = [found for ranks in (2, 4) if (found := launch(ranks, elements, rounds, True))]
    from mpi4py import MPI

    disk = []
    for where in ("memory", "disk"):
        with tempfile.TemporaryDirectory(dir=records.ROOT / "build") as folder:
            command = [sys.executable, "-m", "bench.distributed", "--on-disk", where, folder]
            command += ["--elements", str(4 * elements), "--rounds", str(rounds)]
            printed = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, check=True).stdout
            disk.append(json.loads(printed))
    return {
        "machine": machine.describe(),
        "software": machine.software(),
        "mpi": f"{MPI.get_vendor()[0]} {'.'.join(map(str, MPI.get_vendor()[1]))}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "elements": elements,
        "rounds": rounds,
        "ranks": [launch(ranks, elements, rounds, False) for ranks in (1, 2, 4)],
        "counted": counted,
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
