"""``python -m onepass``: configuration, self-check and speed of this installation.

Compare each rule with the executable specification, bit for bit, in a separate process for every instruction set of
this machine. Then time a step of Adam in onepass and in NumPy. Paste the output into bug reports. The exit status is 1
if a bit differs or a process fails.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

import onepass
from onepass._config import thread_hint
from onepass._reference import RULES, Reference

Array = npt.NDArray[Any]

STEPS = 3
SHAPES = [(83, 101), (129,), (1,), ()]
LONG = 300_007  # elements, enough for two threads
FULL: dict[str, Any] = {"grad_scale": 0.5, "weight_decay": 0.02, "ema_decay": 0.9, "clip_value": 0.75, "maximize": True}
OWN: dict[str, dict[str, Any]] = {
    "Adam": {"amsgrad": True, "eps_mode": "hat"},
    "RAdam": {"steps": 7},  # the second moment scales those after the fifth
    "RMSprop": {"centered": True, "momentum": 0.9},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "AdEMAMix": {"alpha_warmup": 2, "beta3_warmup": 3},
}
ARRAYS = {name for rule in RULES.values() for name in rule.states}
LIMIT = 600.0  # seconds: what it takes on a slow or an emulated machine, and then some
ROUNDS = 15
CLOSED_PIPE = {errno.EPIPE, errno.EINVAL if os.name == "nt" else errno.EPIPE}
BUSY = 1.5  # spread of rounds above which the machine counts as busy
# Flags that isolate an interpreter from its environment; the child processes get the same ones.
FLAGS = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "safe_path": "-P",
    "dont_write_bytecode": "-B",
}
CHILD = "import sys; sys.path[:] = sys.argv[1:]; from onepass.__main__ import compare; compare()"


# The comparison, in a process for each instruction set.


def words(count: int, seed: int) -> npt.NDArray[np.uint64]:
    """Integers that look random and are the same with every NumPy: the generator SplitMix64."""
    z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def numbers(shape: tuple[int, ...], dtype: Any, seed: int, any_bits: bool) -> Array:
    """Numbers in [-1, 1), or of any bits: the whole range of exponents, subnormals, infinities and NaNs."""
    integers = words(int(np.prod(shape)), seed).reshape(shape)
    if any_bits:
        return integers.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    return np.asarray((integers >> np.uint64(41)).astype(dtype) / dtype(2**22) - dtype(1))


def cases() -> Iterator[tuple[str, Any, bool, bool, list[tuple[int, ...]], dict[str, Any]]]:
    """Yield each rule with and without the common options, in both dtypes and flush modes; then one long array."""
    for kind in RULES:
        for dtype in (np.float32, np.float64):
            for flush in (True, False):
                for any_bits in (False, True):
                    clip = {"clip_norm": None if any_bits else 2.0}
                    yield kind, dtype, flush, any_bits, SHAPES, {}
                    yield kind, dtype, flush, any_bits, SHAPES, {**FULL, **clip, **OWN.get(kind, {})}
    for dtype in (np.float32, np.float64):  # the first momentum is a copy, which does not flush
        yield "SGD", dtype, True, True, SHAPES, {"momentum": 0.9, "clip_value": 0.75, "steps": 1}
    yield "Adam", np.float32, True, False, [(LONG,)], {"clip_norm": 1.0}


def same(kernel: Array, reference: Array) -> npt.NDArray[np.bool_]:
    """Compare bits elementwise. NaNs count as equal: their bits are not guaranteed."""
    unsigned = f"u{kernel.dtype.itemsize}"
    equal: npt.NDArray[np.bool_] = kernel.view(unsigned) == reference.view(unsigned)
    return equal | (np.isnan(kernel) & np.isnan(reference))


def compare() -> None:
    """Take the same steps with kernel and reference, compare the results, and print a summary as JSON."""
    start, digest = time.perf_counter(), hashlib.sha256()
    count, elements, differing, first = 0, 0, 0, ""
    for kind, dtype, flush, any_bits, shapes, options in cases():
        params = [numbers(shape, dtype, seed, False) for seed, shape in enumerate(shapes)]
        scale, steps = options.pop("grad_scale", 1.0), options.pop("steps", STEPS)
        reference = Reference(kind, params, lr=0.01, flush_denormals=flush, **options)
        optimizer = getattr(onepass, kind)(params, lr=0.01, flush_denormals=flush, **options)
        for t in range(steps):
            grads = [numbers(shape, dtype, 16 * (t + 1) + seed, any_bits) for seed, shape in enumerate(shapes)]
            optimizer.step(grads, scale)
            reference.step(grads, scale)
        count += 1
        # Machines differ in what is tiny, C libraries in pow, exp and log.
        portable = not flush and kind not in ("NAdam", "AdEMAMix")
        for i, param in enumerate(params):
            pairs = {"parameter": (param, reference.params[i])}
            pairs |= {name: (a, reference.state[i][name]) for name, a in optimizer.state[i].items() if name in ARRAYS}
            if optimizer.ema is not None:
                pairs["average"] = (optimizer.ema[i], reference.ema[i])
            for name, (kernel, expected) in pairs.items():
                wrong = np.flatnonzero(~same(kernel, expected))
                elements += kernel.size
                differing += wrong.size
                if wrong.size and not first:
                    values = f"{kernel.flat[wrong[0]]!r} should be {expected.flat[wrong[0]]!r}"
                    first = f"{kind}, {np.dtype(dtype)}, {name} {kernel.shape}[{wrong[0]}]: {values} ({options})"
                if portable:
                    plain = np.where(np.isnan(kernel), kernel.dtype.type(0), kernel)
                    digest.update(plain.astype(plain.dtype.newbyteorder("<")).tobytes())
    used = onepass.config()["instruction_set"]
    found = {"instruction_set": used, "cases": count, "elements": elements, "differing": differing, "first": first}
    print(json.dumps({**found, "digest": digest.hexdigest(), "seconds": round(time.perf_counter() - start, 2)}))


def check(instruction_set: str) -> dict[str, Any]:
    """Run `compare` in a child process, because the instruction set is chosen when onepass is imported."""
    environment = {**os.environ, "ONEPASS_ISA": instruction_set}
    flags = [flag for name, flag in FLAGS.items() if getattr(sys.flags, name, False)]
    command = [sys.executable, *flags, "-c", CHILD, *sys.path]
    try:
        ran = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        why = f"its process did not end within {LIMIT:g} seconds"
    except OSError as error:
        why = f"its process could not be started: {error}"
    else:
        if ran.returncode == 0:
            for line in reversed(ran.stdout.splitlines()):  # something else may print too, as Python starts or ends
                with suppress(ValueError):
                    found = json.loads(line)
                    if isinstance(found, dict) and found.get("instruction_set") == instruction_set:
                        return found
        message = ran.stderr.strip().rpartition("\n")[2]
        why = f"its process ended with status {ran.returncode}" + (
            f": {message}" if message else " and without a result"
        )
    return {"instruction_set": instruction_set, "cases": 0, "elements": 0, "differing": 0, "first": why, "digest": ""}


# The speed.


class InPlaceNumPy:
    """Adam by NumPy as in the column of that name in the benchmarks (bench/peers.py): nothing is allocated.

    The numbers are arrays without dimensions and the outputs third arguments, which is fast for small arrays too.
    """

    def __init__(self, p: Array, g: Array) -> None:
        self.arrays = p, g, np.zeros_like(p), np.zeros_like(p), np.empty_like(p)
        self.numbers = [np.array(number, p.dtype) for number in (0.9, 1 - 0.9, 0.999, 1 - 0.999, 0.0, 0.0)]
        self.t = 0

    def step(self) -> None:
        """Take a step along the gradient."""
        multiply, add, subtract, divide, sqrt = np.multiply, np.add, np.subtract, np.divide, np.sqrt
        (p, g, m, v, s), (b1, rest1, b2, rest2, a, e) = self.arrays, self.numbers
        self.t += 1
        root = math.sqrt(1 - 0.999**self.t)
        a[...] = 1e-3 * root / (1 - 0.9**self.t)
        e[...] = 1e-8 * root
        multiply(m, b1, m)
        multiply(g, rest1, s)
        add(m, s, m)
        multiply(v, b2, v)
        multiply(g, g, s)
        multiply(s, rest2, s)
        add(v, s, v)
        sqrt(v, s)
        add(s, e, s)
        divide(m, s, s)
        multiply(s, a, s)
        subtract(p, s, p)


def seconds(run: Callable[[], None], times: int) -> float:
    """Return the mean duration of one run."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def speed(size: int) -> dict[str, Any]:
    """Time a step of onepass on one thread and of NumPy: return the medians of interleaved rounds, and their spread."""
    p, g = (numbers((size,), np.float32, seed, False) for seed in (1, 2))
    optimizer, numpy_ = onepass.Adam([p.copy()], lr=1e-3), InPlaceNumPy(p, g)
    runs: list[Callable[[], None]] = [lambda: optimizer.step([g]), numpy_.step]
    onepass.set_num_threads(1)  # as in the benchmarks
    times = [max(1, int(0.01 / seconds(run, 3))) for run in runs]
    rounds = [[seconds(run, n) for run, n in zip(runs, times)] for _ in range(ROUNDS)]
    onepass.set_num_threads(None)
    medians = [statistics.median(column) for column in zip(*rounds)]
    spread = max(spread_of(column) for column in zip(*rounds))
    return {"parameters": size, "onepass": medians[0], "numpy": medians[1], "spread": round(spread, 2)}


def spread_of(times: Iterable[float]) -> float:
    """Return the slowest time divided by the fastest, without the two outermost times on either side."""
    middle = sorted(times)[2:-2]
    return middle[-1] / middle[0]


# Output.


def machine() -> dict[str, Any]:
    """Return a description of the machine."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    system = {"python": python, "numpy": np.__version__, "platform": platform.platform()}
    return {**onepass.config(), **system}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns that line up, in Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    rule = [width * "-" for width in widths]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def microseconds(value: float) -> str:
    """Seconds, as microseconds with about three digits."""
    return f"{value * 1e6:,.{0 if value > 1e-4 else 2}f}"


def show(text: str) -> None:
    """Print and flush a text; exit quietly if the reader has closed the pipe."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno not in CLOSED_PIPE:
            raise
        # Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Check, measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m onepass", description="A self-check of onepass on this machine.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    as_json = parser.parse_args(arguments).json
    config = machine()
    if not as_json:
        for name, value in config.items():
            show(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
        show("" if (hint := thread_hint()) is None else f"\n{hint}\n")

    checks = [check(name) for name in config["usable_instruction_sets"]]
    digests = {found["digest"] for found in checks}
    good = len(digests) == 1 and all(found["cases"] and not found["differing"] for found in checks)
    if not as_json:
        keys = ["cases", "elements", "differing"]
        rows = [[c["instruction_set"], *(f"{c[key]:,}" for key in keys), c["digest"][:16]] for c in checks]
        show(table(["instruction set", "cases", "elements", "differing", "digest"], rows))
        for found in checks:
            if found["first"]:
                show(f"\n{found['instruction_set']}: {found['first']}")
        show("\nAll results are bit-identical to the reference." if good else "\nMISMATCH: please report this output.")

    speeds = [speed(size) for size in (100, 10_000, 1_000_000)]
    if as_json:
        show(json.dumps({"config": config, "good": good, "checks": checks, "speeds": speeds}, indent=2))
    else:
        rows = []
        for s in speeds:
            mine, its = s["onepass"], s["numpy"]
            rows.append([f"{s['parameters']:,}", microseconds(mine), microseconds(its), f"{its / mine:.1f}"])
        show("\nA step of Adam, float32, on one thread, in microseconds:\n")
        show(table(["parameters", "onepass", "in-place NumPy", "speed-up"], rows))
        if (spread := max(s["spread"] for s in speeds)) > BUSY:
            show(f"\nThe machine was busy: rounds differed by a factor of {spread:.1f}. Run again on an idle machine.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
