"""Soak: very many random elements against the executable specification, and very many steps without a byte more.

    PYTHONPATH=tests python -m tools.soak --elements 1e9 --steps 1e6

Every rule with every storage steps random elements in chunks, with random options, on every instruction set that this
processor has (in a process of its own, since it is fixed at import). Parameters, state, scales and averages must have
the bits of the compiled reference, which small chunks compare with the executable specification itself. The compiled
reference steps each chunk once for all instruction sets, in one more process, and again where a digest differs. The
result is a table, and build/soak.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import onepass
from cases import CLASSES, NUMBERS, accepts, values_of
from onepass import _core
from onepass._reference import RULES, Reference
from onepass._reference import storage as reference_storage
from support import Array, bits, comparable, differing

from . import compiled_reference
from .compiled_reference import CompiledReference

SIZE = 1 << 19  # elements of a chunk: several streams of them are worth more than one thread
SMALL = 9000  # elements of a chunk that the specification computes too, at most
EVERY = 16  # one chunk of so many is small
STEPS = {"ordinary": (3, 8, 50), "small": (1, 8, 50), "hostile": (1, 2)}  # RAdam changes at the sixth; NaN spreads
THREADS = (1, 2, 3)
STORAGE: dict[str, tuple[Any, dict[str, Any]]] = {  # the dtype of the parameter, and options
    "float64": (np.float64, {}),
    **{
        f"{name}, {state_dtype or 'float32'} state": (dtype, {"master_bits": master_bits, "state_dtype": state_dtype})
        for name, dtype, master_bits in (
            ("float32", np.float32, 32),
            *((f"bfloat16 of {n} bits", ml_dtypes.bfloat16, n) for n in (32, 24, 16)),
        )
        for state_dtype in (None, "bfloat16", "float8")
    },
}
POOLS = 4  # of the numbers that chunks are taken from, for each kind of values
GROWTH = 1 << 20  # bytes that a process may grow by in very many steps


def drawn_options(rng: np.random.Generator, kind: str, storage: dict[str, Any]) -> dict[str, Any]:
    """Draw a value of each option until the optimizer accepts them together."""
    while True:
        options: dict[str, Any] = {**storage, "rounding": str(rng.choice(["stochastic", "nearest"]))}
        for name, values in sorted(values_of(kind).items()):
            value = values[rng.integers(len(values))]
            options |= value if isinstance(value, dict) else {name: value}
        if rng.integers(4):
            options["lr"] = float(10 ** rng.uniform(-5, 0))
        if accepts(kind, options):
            break
    flush = storage.get("state_dtype") is not None or bool(rng.integers(2))
    return {**options, "clip_norm": 1.0 if rng.integers(4) == 0 else None, "flush_denormals": flush}


@cache
def pool(values: str, dtype: Any, number: int) -> Array:
    """Draw numbers for all chunks: drawing takes longer than stepping."""
    if dtype in (np.float32, np.float64):
        numbers = NUMBERS[values](np.random.default_rng([list(NUMBERS).index(values), number]), 4 * SIZE, dtype)
    else:
        with np.errstate(all="ignore"):
            numbers = pool(values, np.float32, number).astype(dtype)
    numbers.flags.writeable = False
    return numbers


def start_anywhere(rng: np.random.Generator, state: dict[str, Any], draw: Callable[..., Array]) -> None:
    """Fill the state with any numbers; rules take roots of some, which have no sign."""
    for name, array in arrays_of(state):
        if name.endswith("_scale"):
            array[...] = 2.0 ** rng.uniform(-117, 118, array.size)
        elif array.dtype in (np.float32, np.float64):
            array[...] = draw(array.dtype)
        elif name != "param_low":
            array[...] = np.frombuffer(rng.bytes(array.nbytes), array.dtype)
        if name in reference_storage.DIVISORS or name == "max_exp_avg_sq":
            bits(array)[...] &= bits(array).dtype.type(2 ** (8 * array.itemsize - 1) - 1)


def arrays_of(state: Mapping[str, Any]) -> list[tuple[str, Array]]:
    """Return the arrays of a parameter's state, by name."""
    return [(name, value) for name, value in state.items() if isinstance(value, np.ndarray)]


def named_arrays(optimizer: Any) -> list[tuple[str, Array]]:
    """Return the parameter, its state and its average, by name."""
    average = {"ema": optimizer.ema and optimizer.ema[0]}
    return [("param", optimizer.params[0]), *arrays_of(optimizer.state[0]), *arrays_of(average)]


def digest(optimizer: Any) -> bytes:
    """Return a digest of all bits of an optimizer with one parameter."""
    found = hashlib.sha256()
    for _, array in named_arrays(optimizer):
        found.update(bits(array).data)
    return found.digest()


def wrong(actual: Any, expected: Any) -> dict[str, int]:
    """Count the elements that differ in each array of two optimizers with one parameter."""
    found = {}
    for (name, a), (other, b) in zip(named_arrays(actual), named_arrays(expected), strict=True):
        assert name == other
        if not np.array_equal(bits(a), bits(b)) and (count := differing(comparable(a), comparable(b))):
            found[name] = count
    return found


def kernels(kind: str, param: Array, **options: Any) -> onepass.Optimizer:
    """Return the optimizer whose bits are checked."""
    return CLASSES[kind]([param], **options)


def stepped(create: Callable[..., Any], kind: str, storage: str, index: int) -> tuple[Any, int]:
    """Step a chunk. Return the optimizer, and the number of its elements times its steps."""
    rng = np.random.default_rng([list(RULES).index(kind), list(STORAGE).index(storage), index])
    dtype, of_storage = STORAGE[storage]
    size = int(rng.integers(1, SMALL)) if index % EVERY == 0 else SIZE + int(rng.integers(SMALL))
    values = str(rng.choice([*NUMBERS]))
    options = {**drawn_options(rng, kind, of_storage), "seed": int(rng.integers(2**64, dtype=np.uint64))}

    def draw(dtype: Any) -> Array:
        numbers = pool(values, dtype, index % POOLS)
        start = int(rng.integers(numbers.size - size))
        return numbers[start : start + size]

    optimizer = create(kind, draw(dtype).copy(), **options)
    if rng.integers(2):
        start_anywhere(rng, optimizer.state[0], draw)
    dtypes = [dtype, np.float16, ml_dtypes.bfloat16] if rng.integers(4) == 0 else [dtype]
    steps = int(rng.choice(STEPS[values]))
    for t in range(steps):
        optimizer.step([draw(dtypes[t % len(dtypes)])], float(rng.choice([1.0, 1.0, -0.375])))
    return optimizer, size * steps


def expect(kind: str, storage: str, index: int) -> tuple[bytes, int, dict[str, int]]:
    """Step a chunk with the oracle. Return the digest, the size, and the wrong elements of each array."""
    optimizer, count = stepped(CompiledReference, kind, storage, index)
    is_small = index % EVERY == 0
    return digest(optimizer), count, wrong(optimizer, stepped(Reference, kind, storage, index)[0]) if is_small else {}


def check(kind: str, storage: str, index: int, expected: bytes) -> dict[str, int]:
    """Step a chunk with the kernels. Count the wrong elements of each array; NaNs may differ in sign and payload."""
    onepass.set_num_threads(THREADS[index % len(THREADS)])
    optimizer, _ = stepped(kernels, kind, storage, index)
    if digest(optimizer) == expected:
        return {}
    reference, _ = stepped(CompiledReference, kind, storage, index)
    assert digest(reference) == expected
    return wrong(optimizer, reference)


def consult_oracle(kind: str, storage: str, elements: int) -> tuple[list[bytes], int, int]:
    """Return the digests of enough chunks, the number of elements, and the number of wrong ones."""
    digests: list[bytes] = []
    done = failed = 0
    while done < elements:
        expected, count, found = expect(kind, storage, len(digests))
        if found:
            print(f"oracle, {kind}, {storage}, chunk {len(digests)}: {found} differ", flush=True)
        digests.append(expected)
        done, failed = done + count, failed + sum(found.values())
    return digests, done, failed


def soak(isa: str, kind: str, storage: str, digests: list[bytes], elements: int, failed: int) -> dict[str, Any]:
    """Compare the kernels of a rule and a storage with what the oracle returned; failed: its own wrong elements."""
    assert _core.instruction_set == isa
    started, used = time.monotonic(), time.process_time()
    for index, expected in enumerate(digests):
        if found := check(kind, storage, index, expected):
            print(f"{isa}, {kind}, {storage}, chunk {index}: {found} differ", flush=True)
        failed += sum(found.values())
    used = time.process_time() - used
    rate = elements / used / 1e6
    print(
        f"{isa}, {kind}, {storage}: {failed} wrong; {rate:.0f} million per second of a processor",
        flush=True,
    )
    return {
        "rule": kind,
        "storage": storage,
        "instruction_set": isa,
        "elements": elements,
        "chunks": len(digests),
        "wrong": failed,
        "seconds": time.monotonic() - started,
        "processor_seconds": used,
    }


def soak_all(combinations: list[tuple[str, str]], elements: int) -> list[dict[str, Any]]:
    """Soak rules with their storages on each instruction set, all at the same time; return a row for each."""
    own_process = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        oracle, *others = [ProcessPoolExecutor(1, own_process) for _ in ("oracle", *_core.usable_instruction_sets)]
        for process in (oracle, *others):
            stack.callback(process.shutdown, cancel_futures=True)
        expected = [oracle.submit(consult_oracle, *combination, elements) for combination in combinations]
        rows = []
        for (kind, storage), future in zip(combinations, expected, strict=True):
            for isa, process in zip(_core.usable_instruction_sets, others, strict=True):
                os.environ["ONEPASS_ISA"] = isa  # the process starts with its first task
                rows.append(process.submit(soak, isa, kind, storage, *future.result()))
        return [row.result() for row in rows]


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak_memory(name: str, shapes: list[tuple[int, ...]], steps: int, **options: Any) -> dict[str, Any]:
    """Step one model, with converted, missing and sparse gradients too. The resident memory must stay what it was."""
    rng = np.random.default_rng(0)
    is_narrow = "state_dtype" in options  # then there are no sparse gradients
    params: list[Any] = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    grads: list[Any] = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if is_narrow:
        params = [param.astype(ml_dtypes.bfloat16) for param in params]
    schedule = onepass.schedules.cosine(1e-3, 10**6)
    optimizer = onepass.AdamW(params, lr=schedule, clip_norm=1.0, ema_decay=0.99, **options)
    wide = np.asarray(grads[0], np.float64).T.copy().T
    rows = onepass.SparseRows(np.arange(0, shapes[-1][0], 2), grads[-1][::2])
    given = [grads, [wide, *grads[1:]], grads if is_narrow else [*grads[:-1], rows], [None, *grads[1:]], grads]
    warm, started = max(steps // 10, 1), time.monotonic()
    before = peak = 0
    for t in range(steps):
        optimizer.step(given[t % len(given)])
        if t == warm:
            before = peak = resident()
        elif t > warm and t % max(steps // 100, 1) == 0:
            peak = max(peak, resident())
    grown = peak - before
    return {"model": name, "steps": steps, "grown_bytes": grown, "seconds": time.monotonic() - started}


def main() -> int:
    """Run the soak test; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=float, default=1e9, help="of each rule, storage and instruction set")
    parser.add_argument("--steps", type=float, default=1e6, help="of a small model")
    parser.add_argument("--large-steps", type=float, default=1000, help="of a model of 10 million parameters")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    options = parser.parse_args()
    compiled_reference.build()
    found = soak_all(list(product(options.rules, STORAGE)), int(options.elements))
    sets = _core.usable_instruction_sets
    print(f"| rule | {' | '.join(f'elements × steps, {isa} | wrong' for isa in sets)} |")
    print(f"| --- |{' --: |' * 2 * len(sets)}")
    for kind in options.rules:
        rows = [[row for row in found if (row["rule"], row["instruction_set"]) == (kind, isa)] for isa in sets]
        sums = [f"{sum(row[name] for row in own):,}" for own in rows for name in ("elements", "wrong")]
        print(f"| {kind} | {' | '.join(sums)} |")
    memory = []
    if Path("/proc/self/statm").exists():
        small, large = [(80, 64), (64,), (64, 4)], [(3000, 3000), (1000,), (1000, 1000)]
        narrow = {"state_dtype": "float8", "master_bits": 24}
        memory = [
            soak_memory("small", small, int(options.steps)),
            soak_memory("small, narrow", small, int(options.steps), **narrow),
            soak_memory("large", large, int(options.large_steps)),
            soak_memory("large, narrow", large, int(options.large_steps), **narrow),
        ]
    for row in memory:
        print(f"{row['model']} model: {row['steps']:,} steps, memory grew by {row['grown_bytes'] / 1e6:.2f} MB")
    record = {"rules": found, "memory": memory, "threads": THREADS, "config": onepass.config()}
    Path("build", "soak.json").write_text(json.dumps(record, indent=1) + "\n")
    failed = any(row["wrong"] for row in found)
    return int(failed or any(row["grown_bytes"] > GROWTH for row in memory))


if __name__ == "__main__":
    sys.exit(main())
