"""Write the golden files of the core's tests: the results of `onepass._reference` (`make golden`).

One file for each rule of the core, and one each for powers, sums of squares and narrow storage. A file is a list of
little-endian numbers: doubles, and the elements of arrays in their own dtype, in the order in which `test_golden.cpp`
reads them. The files hold no inputs: `draw` in `support.hpp` and `draw` below make the same numbers from the same
words.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onepass import _core, _storage, optimizers
from onepass.__main__ import words
from onepass._reference import RULES, Reference, defaults, storage
from onepass._reference.elements import Array, power
from onepass._reference.optimizer import keeps_subnormals
from onepass._reference.rules import SWITCHES
from onepass._reference.stages import is_usable, sum_of_squares

FOLDER = Path(__file__).parent / "golden"
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]  # in the order of the core's DType
SIZE = 25  # vectors and a tail on every instruction set; eight elements of each kind or more
DECAYS = [0.0, 0.5, 0.9, 0.99, 0.999, 1 - 2.0**-53]
CHOICES: dict[str, list[Any]] = {  # of each option; flags and decays are not listed
    "lr": [0.0, 1e-3, 0.1, 1.0, 1e6, 1e30],
    "eps": [0.0, 1e-8, 1e-6, 0.1, 1e-40, 1e-310],
    "eps_mode": ["paper", "hat"],
    "weight_decay": [0.0, 0.0, 0.01, 0.5, 1e-42, 1e3],
    "clip_value": [None, None, 0.5, 1e-39, 1e-3, 1e30],
    "lr_decay": [0.0, 0.1, 3.0],
    "alpha_warmup": [None, 2, 1000, 1 << 40],
    "beta3_warmup": [None, 2, 1000, 1 << 40],
    "momentum_decay": [0.0, 0.004, 0.1, 3.0],
    "warmup_steps": [0, 3, 1000],
    "r": [0.0, 1.0, 2.0],
    "weight_lr_power": [0.0, 1.0, 2.0],
}
BARE: dict[str, Any] = {"weight_decay": 0.0, "clip_value": None, "maximize": False, "ema_decay": None}
# The cases of each rule, dtype and treatment of subnormal numbers: the number of steps, and options that are not drawn.
# One step shows copies of subnormal numbers, which the next step flushes.
CASES: list[tuple[int, dict[str, Any]]] = [(3, BARE), (1, {**BARE, "clip_value": 0.5}), (1, {}), *[(3, {})] * 4]
COUNTS = [0, 0, 1, 10, 1000, 123456789, 1 << 40]
LENGTHS = [*range(34), 127, 1000, 4095, 4096]
POWERS = 2000
NARROW_SIZE = 300  # three groups that share a scale, the last one shorter


def draw(kind: Any, choice: Array, bits: Array, dtype: Any) -> Array:
    """Return ordinary (kind 0), hostile (1) or small (2) numbers, each from two words."""
    digits, largest = (23, 255) if dtype == np.float32 else (52, 2047)
    mask, special = (1 << digits) - 1, np.where(kind == 1, choice % np.uint64(50), np.uint64(50))
    fraction = np.where(special == 5, np.uint64(1 << digits - 1), bits & np.uint64(mask))
    fraction = np.where(special < 5, np.uint64(0), np.where(special == 8, np.uint64(mask), fraction))
    exponents = np.array([0, 0, 0, 0, largest, largest, 0, 0, largest - 1], np.uint64)
    small = np.array([0, 0, 1, 2, 3, 6, largest // 4, largest // 4 + 1], np.uint64)[choice % np.uint64(8)]
    exponent = np.where(kind == 2, small, (choice >> np.uint64(32)) % np.uint64(largest))
    exponent = np.where(special < 9, exponents[np.minimum(special, 8)], exponent)
    sign = bits >> np.uint64(63) << np.uint64(8 * dtype.itemsize - 1)
    pattern = (sign | exponent << np.uint64(digits) | fraction).astype(f"u{dtype.itemsize}")
    ordinary = (bits >> np.uint64(11)) * 2.0**-51 - 2  # exact
    return np.where(kind == 0, ordinary.astype(dtype), pattern.view(dtype))


def arrays(count: int, size: int, kind: Any, dtype: Any, seed: int) -> Array:
    """Return arrays of this size, one for each row."""
    pairs = words(2 * count * size, seed).reshape(count, size, 2)
    return draw(kind, pairs[..., 0], pairs[..., 1], dtype)


def rules() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the class of each rule of the core, and the options that choose the rule."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind in RULES:
        switches = [name for name in SWITCHES.values() if name in defaults(kind)]
        for values in itertools.product([0, 1], repeat=len(switches)):
            options = dict(zip(switches, values))
            found.setdefault(getattr(optimizers, kind)._spec.rule_name(options), (kind, options))
    return found


def case(
    kind: str, switches: dict[str, Any], dtype: Any, flush: bool, seed: int, number: int, fixed: dict[str, Any]
) -> Iterator[Any]:
    """Yield the initial arrays of an optimizer, the options of each step, and the results of all steps."""
    spec, rule = getattr(optimizers, kind)._spec, RULES[kind]
    choice = iter((words(500, seed) >> np.uint64(32)).tolist())

    def pick(choices: list[Any]) -> Any:
        return choices[next(choice) % len(choices)]

    computed: list[Any] = []  # the coefficients of each step

    def coefficients(*arguments: Any) -> Any:
        computed.append(rule.coefficients(*arguments))
        return computed[-1]

    states = _core.rules[spec.rule_name(switches)][1]
    param, average, *rest = arrays(2 + len(states) + number, SIZE, np.arange(SIZE) % 3, dtype, seed)
    averaged = "ema_decay" not in fixed and pick([False, True])
    count = 0 if number == 1 else pick(COUNTS)
    scalars = {name: pick([0.25, 0.37, 0.9]) if count else initial for name, initial in rule.scalars.items()}
    reference = Reference(kind, param, flush_denormals=flush, ema_decay=0.0 if averaged else None, **switches)
    reference.rule = rule._replace(coefficients=coefficients)
    reference.ema[0] = average if averaged else None
    reference.state[0] |= {"step": count, **scalars, **dict(zip(states, map(abs, rest)))}
    yield from [DTYPES.index(dtype), seed, flush, averaged, number, count, *scalars.values()]
    for grad in rest[len(states) :]:
        options = {}
        for name, default in defaults(kind).items():
            if name in _storage.OPTIONS:
                continue
            if name == "betas":
                options[name] = pick([*itertools.product(DECAYS, repeat=len(default))])
                continue
            options[name] = pick(CHOICES.get(name, [False, True] if isinstance(default, bool) else DECAYS))
        options |= {name: on and pick(DECAYS) if name == "momentum" else on for name, on in switches.items()}
        options |= {"ema_decay": options["ema_decay"] if averaged else None, **fixed}
        scale = 1.0 if fixed else pick([1.0, 1.0, -0.125, 3e-3])
        next_one = copy.deepcopy(reference)
        next_one.groups[0].update(options)
        next_one.step([grad], scale)
        fits = all(math.isfinite(x) for x in vars(computed[-1]).values() if x is not None)
        reference = next_one if fits else reference  # a step whose coefficients overflow changes nothing
        clip_value = math.inf if options["clip_value"] is None else options["clip_value"]
        weight_decay = 0.0 if rule.decays else options["weight_decay"]
        yield from [options["lr"], weight_decay, clip_value, options["ema_decay"] or 0]
        yield from [options["decoupled_weight_decay"], options["maximize"], keeps_subnormals(rule, options), scale]
        yield from [*spec.numbers(options), fits, is_usable(grad, scale, rule.squares)]
    yield from [reference.params[0], *([reference.ema[0]] if averaged else [])]
    yield from (reference.state[0][name] for name in [*states, *scalars])


def steps(kind: str, switches: dict[str, Any]) -> Iterator[Any]:
    """Yield all cases of one rule."""
    for seed, (dtype, flush, own) in enumerate(itertools.product(DTYPES, [False, True], CASES), 1):
        yield from case(kind, switches, dtype, flush, seed, *own)


def squares() -> Iterator[Any]:
    """Yield sums of squares of arrays whose elements are of one kind; numbers that are not finite are replaced by 1."""
    for dtype, kind, length in itertools.product(DTYPES, range(3), LENGTHS):
        array = arrays(1, length, kind, dtype, length)[0]
        finite = np.where(np.isfinite(array), array, 1).astype(np.float64)
        yield from [DTYPES.index(dtype), kind, length, sum_of_squares(finite) if length else 0]


def narrow() -> Iterator[Any]:
    """Yield narrow storage of gradients: two states and a bfloat16 parameter, and the states decoded again."""
    states, grads, masters = [np.uint16, np.uint8], ["<f4", "bfloat16", "<f2"], [32, 24, 16]
    for case, (state, grad, master, stochastic) in enumerate(itertools.product(states, grads, masters, [True, False])):
        seed, t, first = case + 1, 3 * case + 1, [0, 640, 2**32 - 128][case % 3]
        yield from [states.index(state), grads.index(grad), master, stochastic, seed, t, case, first]
        if grad == "<f4":
            x = arrays(1, NARROW_SIZE, np.arange(NARROW_SIZE) % 3, DTYPES[0], seed)[0]
        else:
            bits = (words(NARROW_SIZE, seed) & np.uint64(0xFFFF)).astype(np.uint16)
            x = storage.decode_bfloat16(bits) if grad == "bfloat16" else storage.widen_float16(bits)
        random = [storage.r16(seed, t, case, slot, first, x.size) if stochastic else None for slot in range(4)]
        for r, divisor in zip(random, [False, True]):
            if state is np.uint8:
                codes, scales = storage.encode_float8(x, r, divisor)
                yield from [codes, scales]
                decoded = storage.decode_float8(codes, scales)
            else:
                codes = storage.encode_bfloat16(x, r)
                yield codes
                decoded = storage.decode_bfloat16(codes)
            if master == 16:  # enough of them, and they are the largest arrays
                yield decoded
        if master == 16:
            yield storage.encode_bfloat16(x, random[3])
        else:
            yield from storage.split(x) if master == 32 else storage.split24(x, random[3])


def powers() -> Iterator[Any]:
    """Yield powers of any numbers below 1 with small exponents, and of numbers close to 1 with large ones.

    The core's powers are 0 below the smallest normal number.
    """
    for number, bits in words(2 * POWERS, 0).reshape(-1, 2).tolist():
        base = (number >> 11) * 2.0**-53
        large = number & 1
        exact = power(1 - base * 2.0**-20 if large else base, bits >> (24 + bits % 40 if large else 54 + bits % 10))
        yield exact if exact >= 2.0**-1022 else 0


def contents() -> dict[str, bytes]:
    """Return the name and the contents of each golden file."""

    def packed(parts: Iterable[Any]) -> bytes:
        with np.errstate(all="ignore"):
            return b"".join(little_endian(part if isinstance(part, np.ndarray) else np.float64(part)) for part in parts)

    def little_endian(array: Any) -> bytes:
        if array.dtype.kind == "f":  # processors differ in the bits of NaNs
            array = np.where(np.isnan(array), array.dtype.type("nan"), array)
        return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())

    found = {f"{rule}.bin": packed(steps(*own)) for rule, own in rules().items()}
    return found | {f"{name}.bin": packed(parts()) for name, parts in OTHERS.items()}


OTHERS = {"squares": squares, "powers": powers, "narrow": narrow}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, data in contents().items():
        (FOLDER / name).write_bytes(data)
