"""Soak: very many random elements against the executable specification, and very many steps without a byte more.

    PYTHONPATH=tests python -m tools.soak --elements 1e9 --steps 100000 --large-steps 1000

Each rule's elements come in chunks that live for several steps. The reference computes each chunk once; every
instruction set that this processor has (in a process of its own, since it is fixed at import) and several numbers of
threads must then give its bits: parameters, state and averages. The result is a table, and build/soak.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import onepass
from onepass import _core
from onepass._reference import RULES, Reference
from support import differing, hostile, ordinary, small

STEPS = 4
SIZE = 1 << 19  # elements of a chunk: seven streams of it are worth more than one thread
THREADS = (1, 2, 3)
VALUES = (ordinary, hostile, small)
# Variants of each rule, so that every line of it is soaked.
COMMON: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.01, "ema_decay": 0.5},
    {"clip_value": 0.5, "maximize": True, "clip_norm": 1.0},
]
OWN: dict[str, list[dict[str, Any]]] = {
    "Adam": [{}, {"amsgrad": True, "eps_mode": "hat"}, {"bias_correction": False}],
    "AdamW": [{}, {"amsgrad": True}],
    "Adamax": [{}],
    "NAdam": [{}, {"decoupled_weight_decay": True}],
    "RAdam": [{}, {"decoupled_weight_decay": True, "betas": (0.5, 0.75)}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9}, {"momentum": 0.5}],
    "Adagrad": [{"lr_decay": 0.5}, {"initial_accumulator_value": 0.1}],
    "Adadelta": [{}],
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5}],
    "Lion": [{}],
    "AdEMAMix": [{}, {"alpha_warmup": 3, "beta3_warmup": 5}],
    "ScheduleFreeAdamW": [{}, {"warmup_steps": 3, "r": 1.0, "weight_lr_power": 0.0}],
}


def chunk(kind: str, index: int) -> tuple[dict[str, Any], list[Any], int]:
    """The options, the arrays (a parameter, then a gradient a step) and the size of a rule's chunk of that number."""
    rng = np.random.default_rng([list(RULES).index(kind), index])
    cases = list(itertools.product(OWN[kind], COMMON, (True, False), (np.float32, np.float64), VALUES))
    own, common, flush, dtype, values = cases[index % len(cases)]
    options = {"lr": float(10 ** rng.uniform(-5, 0)), **own, **common, "flush_denormals": flush}
    size = SIZE + int(rng.integers(0, 64))
    return options, [values(rng, size, dtype) for _ in range(1 + STEPS)], size


def results(optimizer: Any) -> list[Any]:
    """Return the arrays that a step changes."""
    state = optimizer.state[0]
    arrays = [optimizer.params if isinstance(optimizer.params, np.ndarray) else optimizer.params[0]]
    arrays += [value for value in state.values() if isinstance(value, np.ndarray)]
    average = optimizer.ema[0] if isinstance(optimizer, Reference) else optimizer.ema
    return arrays if average is None else [*arrays, average]


def work() -> None:
    """A process of one instruction set: reads the chunks to do, and where the reference's results are."""
    for line in sys.stdin:
        kind, index, path = json.loads(line)
        options, (param, *grads), _ = chunk(kind, index)
        expected = load(Path(path))
        wrong = 0
        for threads in THREADS:
            onepass.set_num_threads(threads)
            optimizer = getattr(onepass, kind)(param.copy(), **options)
            for grad in grads:
                optimizer.step(grad)
            wrong += sum(differing(np.asarray(a), b) for a, b in zip(results(optimizer), expected, strict=True))
        print(wrong, flush=True)


def load(path: Path) -> list[Any]:
    """Return the arrays of an ``.npz`` file."""
    with np.load(path) as file:
        return [file[name] for name in file.files]


class Worker:
    """A process of one instruction set."""

    def __init__(self, isa: str) -> None:
        self.isa = isa
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.soak", "--worker"],
            env={**os.environ, "ONEPASS_ISA": isa},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, kind: str, index: int, path: Path) -> None:
        """Send a chunk to the process."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, index, str(path)]) + "\n")
        self.process.stdin.flush()

    def wrong(self) -> int:
        """Return the number of differing elements of the last chunk."""
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def soak_rules(elements: int, folder: Path, kinds: list[str]) -> list[dict[str, Any]]:
    """Step many elements of each rule on every instruction set; return a row for each rule."""
    workers = [Worker(isa) for isa in _core.usable_instruction_sets]
    path = folder / "soak-expected.npz"
    found, begun, total = [], time.monotonic(), elements * len(kinds)
    done = 0
    for kind in kinds:
        wrong, own, index, started = dict.fromkeys(_core.usable_instruction_sets, 0), 0, 0, time.monotonic()
        said = 0.0
        while own < elements:
            options, (param, *grads), size = chunk(kind, index)
            reference = Reference(kind, param, **options)
            for grad in grads:
                reference.step([grad])
            np.savez(path, *results(reference))
            for worker in workers:  # one after the other: each wants all processors
                worker.start(kind, index, path)
                wrong[worker.isa] += worker.wrong()
            own, index, done = own + size * STEPS, index + 1, done + size * STEPS
            if time.monotonic() - said > 30:
                said = time.monotonic()
                left = (said - begun) / done * (total - done)
                print(f"  {kind}: {own:.3g} of {elements:.3g}, wrong {wrong}; {left / 60:.0f} minutes left", flush=True)
        found.append({"rule": kind, "elements": own, "wrong": wrong, "seconds": time.monotonic() - started})
    for worker in workers:
        worker.process.stdin.close()  # type: ignore[union-attr]
        worker.process.wait()
    path.unlink()
    return found


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak_memory(name: str, shapes: list[tuple[int, ...]], steps: int) -> dict[str, Any]:
    """Steps of one model: converted, sparse and missing gradients too. The resident memory must stay what it was."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    grads: list[Any] = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    optimizer = onepass.AdamW(params, lr=onepass.schedules.cosine(1e-3, 10**6), clip_norm=1.0, ema_decay=0.99)
    wide = np.asarray(grads[0], np.float64).T.copy().T
    rows = onepass.SparseRows(np.arange(0, shapes[-1][0], 2), grads[-1][::2])
    warm, started = max(steps // 10, 1), time.monotonic()
    before = peak = 0
    for t in range(steps):
        given = list(grads)
        if t % 5 == 1:
            given[0] = wide
        elif t % 5 == 2:
            given[-1] = rows
        elif t % 5 == 3:
            given[0] = None
        optimizer.step(given)
        if t == warm:
            before = peak = resident()
        elif t > warm and t % max(steps // 100, 1) == 0:
            peak = max(peak, resident())
    grown = peak - before
    return {"model": name, "steps": steps, "grown_bytes": grown, "seconds": time.monotonic() - started}


def main() -> int:
    """Run the soak test; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=float, default=1e9, help="of each rule, counted once a step")
    parser.add_argument("--steps", type=float, default=100_000, help="of a small model")
    parser.add_argument("--large-steps", type=float, default=1000, help="of a model of 10 million parameters")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    folder = Path("build")
    folder.mkdir(exist_ok=True)
    found = soak_rules(int(options.elements), folder, options.rules)
    sets = " | ".join(f"wrong, {isa}" for isa in _core.usable_instruction_sets)
    print(f"| rule | elements × steps | {sets} | minutes |")
    print(f"| --- | --: | {'--: | ' * len(_core.usable_instruction_sets)}--: |")
    for row in found:
        counts = " | ".join(str(count) for count in row["wrong"].values())
        print(f"| {row['rule']} | {row['elements']:,} | {counts} | {row['seconds'] / 60:.1f} |")
    memory = []
    if Path("/proc/self/statm").exists():
        memory = [
            soak_memory("small", [(8, 64), (64,), (64, 4)], int(options.steps)),
            soak_memory("large", [(3000, 3000), (1000,), (1000, 1000)], int(options.large_steps)),
        ]
    for row in memory:
        print(f"{row['model']} model: {row['steps']:,} steps, memory grew by {row['grown_bytes'] / 1e6:.2f} MB")
    record = {"rules": found, "memory": memory, "threads": THREADS, "config": onepass.config()}
    (folder / "soak.json").write_text(json.dumps(record, indent=1) + "\n")
    failed = any(count for row in found for count in row["wrong"].values())
    return int(failed or any(row["grown_bytes"] > 1 << 20 for row in memory))


if __name__ == "__main__":
    sys.exit(main())
