"""State and parameters in fewer bits: the optimizers give the bits of the executable specification.

`test_instruction_sets.py` runs part of this file once more for every other instruction set of the machine.
"""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import onepass
from cases import NUMBERS, all_set, shrinking
from onepass._params import Part, parts_of_params
from onepass._reference import RULES, Reference
from onepass._storage import state_part
from support import (
    BFLOAT16,
    Array,
    assert_is_reference,
    assert_same_bits,
    comparable,
    ordinary,
    skip_unspecified_flushing,
    snapshot,
)

needs_bfloat16 = pytest.mark.skipif(BFLOAT16 is None, reason="needs ml_dtypes")
# Dtypes of gradients; float64 is converted before the pass.
GRADIENTS: list[Any] = [np.float32, np.float16, np.float64, *([BFLOAT16] if BFLOAT16 else [])]
# Storage options of parameters: {} is float32.
PARAMETERS: list[dict[str, Any]] = [{}, *([{"master_bits": n} for n in (32, 24, 16)] if BFLOAT16 else [])]
STATES: list[str | None] = [None, "bfloat16", "float8"]
# Borders of groups of scales, of chunks and of narrow state, and tails.
SIZES = [1, 127, 128, 129, 511, 513, 4095, 4096, 4097, 4223, 4225, 4607, 4608, 4609, 5000]


def drawn(rng: np.random.Generator, shape: Any, dtype: Any, values: Any = ordinary) -> Array:
    """Draw float32 numbers and convert them, huge ones to infinity."""
    with np.errstate(all="ignore"):
        return np.asarray(np.asarray(values(rng, shape, np.float32)).astype(dtype))


def options_of(kind: str, state_dtype: str | None, **more: Any) -> dict[str, Any]:
    """Return options that run every line of a rule and are allowed with this storage of state."""
    without = [] if state_dtype is None else ["amsgrad", "centered"]
    return {"lr": shrinking, **all_set(kind, *without), "state_dtype": state_dtype, **more}


def gradients(rng: np.random.Generator, params: list[Array], t: int, values: Any = ordinary) -> list[Array]:
    """Return gradients of alternating dtypes, in the memory order of their parameter or in another order."""
    grads = [drawn(rng, param.shape, GRADIENTS[(i + t) % len(GRADIENTS)], values) for i, param in enumerate(params)]
    return [np.asarray(grad, order="F" if i % 3 else "C") for i, grad in enumerate(grads)]


class Pair:
    """Optimizer and its reference, which take the same steps."""

    def __init__(self, kind: str, params: list[Array], **options: Any) -> None:
        self.kind, self.options = kind, options
        self.reference = Reference(kind, params, **options)
        self.params = [param.copy("K") for param in params]
        self.optimizer = getattr(onepass, kind)(self.params, **options)

    def step(self, grads: list[Any], scale: float = 1.0) -> None:
        self.optimizer.step(grads, scale)
        self.reference.step(grads, scale)
        assert_is_reference(self.optimizer, self.reference, (self.kind, self.options))

    def resume(self) -> None:
        """Replace the optimizer by another one that continues from its state dict."""
        saved = self.optimizer.state_dict()
        self.optimizer = getattr(onepass, self.kind)(self.params, **{**self.options, "seed": 1})
        self.optimizer.load_state_dict(saved, lr=shrinking)
        self.reference.grad_norm = None


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("kind", RULES)
def test_every_storage_matches_the_reference_bit_for_bit(kind: str, state_dtype: str | None) -> None:
    rng = np.random.default_rng(0)
    wholes: Iterator[dict[str, Any]] = itertools.cycle([{}, {"clip_norm": 1.0}, {"nonfinite": "skip"}])
    for storage, rounding in itertools.product(PARAMETERS, ["stochastic", "nearest"]):
        dtype = BFLOAT16 if storage else np.float32
        params = [drawn(rng, size, dtype) for size in rng.choice(SIZES, 2, replace=False)]
        params += [drawn(rng, (62, 70), dtype).T, drawn(rng, (3, 11, 125), dtype)]
        whole = {**next(wholes), "seed": int(rng.integers(2**63)) * 2 + 1}
        pair = Pair(kind, params, rounding=rounding, **storage, **whole, **options_of(kind, state_dtype))
        for t in range(3):
            grads: list[Any] = gradients(rng, params, t)
            if t == 1:
                grads[t] = None
            pair.step(grads, 0.5 if t == 2 else 1.0)
            if t == 1 and rounding == "stochastic":
                pair.resume()


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("storage", PARAMETERS)
def test_radam_matches_the_reference_bit_for_bit_after_step_5(storage: dict[str, Any], state_dtype: str | None) -> None:
    rng = np.random.default_rng(6)
    params = [drawn(rng, 4225, BFLOAT16 if storage else np.float32)]
    pair = Pair("RAdam", params, lr=0.1, state_dtype=state_dtype, **storage)
    for t in range(8):
        pair.step(gradients(rng, params, t))


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("storage", PARAMETERS)
def test_narrow_storage_matches_the_reference_at_every_length(storage: dict[str, Any], state_dtype: str | None) -> None:
    """Include short parameters, which keep float32 state and may be bfloat16."""
    rng = np.random.default_rng(1)
    around = [n + d for n in (128, 256, 512, 1024, 4096, 4224, 4608, 8192) for d in (-1, 0, 1)]
    lengths = [*range(35), 63, 64, 65, *around]
    params = [drawn(rng, length, BFLOAT16 if storage else np.float32) for length in lengths]
    pair = Pair("AdamW", params, lr=0.1, state_dtype=state_dtype, **storage)
    for t in range(2):
        pair.step(gradients(rng, params, t))


@pytest.mark.parametrize("values", ["hostile", "small"])
@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("kind", RULES)
def test_hostile_numbers_match_the_reference_bit_for_bit(kind: str, state_dtype: str | None, values: str) -> None:
    skip_unspecified_flushing(True, values)
    rng = np.random.default_rng(2)
    for storage, rounding in zip(PARAMETERS, itertools.cycle(["stochastic", "nearest"])):
        dtype = BFLOAT16 if storage else np.float32
        params = [drawn(rng, 4200, dtype, NUMBERS[values]), drawn(rng, (7, 30), dtype, NUMBERS[values])]
        options = {"nonfinite": "skip" if storage == {} else "propagate", "rounding": rounding, **storage}
        pair = Pair(kind, params, **options, **options_of(kind, state_dtype))
        for t in range(3):
            pair.step(gradients(rng, params, t, NUMBERS[values]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e-40])
@pytest.mark.parametrize("state_dtype", STATES)
def test_a_hostile_gradient_does_not_change_its_neighbours(state_dtype: str | None, bad: float) -> None:
    rng = np.random.default_rng(3)
    size, where = 4300, [0, 127, 128, 700, 4299]
    for storage in PARAMETERS:
        start = drawn(rng, size, BFLOAT16 if storage else np.float32)
        params = [start.copy(), start.copy()]
        made = [onepass.Adam(param, lr=0.1, state_dtype=state_dtype, **storage) for param in params]
        for t in range(4):
            grads = [ordinary(rng, size, np.float32)] * 2
            grads[1] = grads[0].copy()
            grads[0][where] = 0
            grads[1][where] = bad if t == 1 else 0
            for optimizer, grad in zip(made, grads):
                optimizer.step(grad)
        others = np.delete(np.arange(size), where)
        states = [[p, *(s for s in o.state[0].values() if np.ndim(s))] for p, o in zip(params, made)]
        for a, b in zip(*states, strict=True):
            which = others if a.shape == (size,) else slice(None)  # all scales too
            assert_same_bits([comparable(b[which])], [comparable(a[which])])


@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("kind", RULES)
@needs_bfloat16
def test_bfloat16_weights_with_32_master_bits_match_float32_bit_for_bit(kind: str, state_dtype: str | None) -> None:
    rng = np.random.default_rng(4)
    steps, size = 1000, 4200 if state_dtype else 300
    start = drawn(rng, size, BFLOAT16)
    options = {**options_of(kind, state_dtype), "clip_norm": 60.0, "seed": 7, "lr": 1e-3}
    narrow, plain = start.copy(), start.astype(np.float32)
    made = [getattr(onepass, kind)(param, **options) for param in (narrow, plain)]
    grads = ordinary(rng, (50, size), np.float32)
    for t in range(steps):
        for optimizer in made:
            optimizer.step(grads[t % 50])
    low = made[0].state[0]["param_low"]
    joined = (narrow.view(np.uint16).astype(np.uint32) << 16) + low.astype(np.int32).view(np.uint32)
    assert_same_bits([joined.view(np.float32), made[0].ema], [plain, made[1].ema])
    assert (plain != start.astype(np.float32)).any() and low.any()
    for name, value in made[1].state[0].items():
        if np.ndim(value):
            assert_same_bits([comparable(made[0].state[0][name])], [comparable(value)], name)


THREADED: list[dict[str, Any]] = [
    {"master_bits": 32, "state_dtype": "bfloat16"},
    {"master_bits": 24, "state_dtype": "float8"},
    {"master_bits": 16},
    {"state_dtype": "float8"},
]


@pytest.mark.parametrize("kind", RULES)
def test_results_are_bit_identical_with_any_number_of_threads(kind: str) -> None:
    """The sizes suffice for 16 threads: see pool_bytes_per_thread in executor.cpp."""
    rng = np.random.default_rng(5)
    sizes = [1_000_003, 5, 0, 300_001, 4097, *[100] * 9]
    values = [ordinary(rng, size, np.float32) for size in sizes]
    for i, storage in enumerate(THREADED if BFLOAT16 else THREADED[-1:]):
        dtype = BFLOAT16 if "master_bits" in storage else np.float32
        start, grads = [v.astype(dtype) for v in values], [v.astype(GRADIENTS[i % 2]) for v in values]
        options = {**options_of(kind, storage.get("state_dtype")), **storage, "clip_norm": 1.0 if i % 2 else None}
        results = []
        for number in (1, 2, 3, 16):
            onepass.set_num_threads(number)
            params = [param.copy() for param in start]
            optimizer = getattr(onepass, kind)(params, **options)
            optimizer.step(grads)
            optimizer.step(grads)
            states = [s for state in optimizer.state.values() for s in state.values() if np.ndim(s)]
            results.append([*map(comparable, params), *map(comparable, states), *optimizer.ema])
        for number, result in zip((2, 3, 16), results[1:]):
            assert_same_bits(result, results[0], (number, storage))


@needs_bfloat16
def test_long_arrays_and_many_threads_match_the_reference_bit_for_bit() -> None:
    rng = np.random.default_rng(6)
    for number, state_dtype in ((3, "float8"), (16, "bfloat16")):
        onepass.set_num_threads(number)
        params = [drawn(rng, 1_200_003, BFLOAT16), drawn(rng, (300, 1001), BFLOAT16).T]
        pair = Pair("Adam", params, lr=0.1, state_dtype=state_dtype, master_bits=24, clip_norm=1.0)
        pair.step(gradients(rng, params, 0))


@needs_bfloat16
def test_a_gradient_may_be_the_parameter_or_the_stored_state_itself() -> None:
    rng = np.random.default_rng(7)
    for state_dtype in ("bfloat16", None):
        param = drawn(rng, 4500, BFLOAT16)
        pair = Pair("Adam", [param], lr=0.1, state_dtype=state_dtype)
        pair.step([ordinary(rng, 4500, np.float32)])
        for own in (pair.params[0], pair.optimizer.state[0]["exp_avg"], pair.optimizer.state[0]["param_low"]):
            grad = own.view(BFLOAT16) if own.dtype == np.int16 else own
            expected = grad.copy()
            pair.optimizer.step([grad])
            pair.reference.step([expected])
            assert_is_reference(pair.optimizer, pair.reference)


@needs_bfloat16
def test_every_group_has_its_own_storage() -> None:
    rng = np.random.default_rng(8)
    arrays = [drawn(rng, 4200, np.float32), drawn(rng, 5000, BFLOAT16), drawn(rng, 4300, np.float32)]
    added: dict[str, Any] = {"state_dtype": "bfloat16", "rounding": "nearest"}
    groups = [{"params": arrays[:1]}, {"params": arrays[1:2], "state_dtype": "float8", "master_bits": 16}]
    reference = Reference("Adam", [*groups, {"params": arrays[2:], **added}], lr=0.1, seed=2**64 - 1)
    params = [array.copy() for array in arrays]
    optimizer = onepass.Adam(
        [{"params": params[:1]}, {"params": params[1:2], "state_dtype": "float8", "master_bits": 16}],
        lr=0.1,
        seed=2**64 - 1,
    )
    optimizer.add_group(params[2:], **added)
    for t in range(3):
        grads = gradients(rng, params, t)
        optimizer.step(grads)
        reference.step(grads)
        assert_is_reference(optimizer, reference)


@pytest.mark.parametrize(
    "copied",
    [lambda x: x, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["itself", "deep copy", "pickle"],
)
@pytest.mark.parametrize("state_dtype", STATES)
@pytest.mark.parametrize("storage", PARAMETERS)
def test_parts_of_parameters_match_complete_parameters_bit_for_bit(
    storage: dict[str, Any], state_dtype: str | None, copied: Callable[[Any], onepass.Adam]
) -> None:
    rng = np.random.default_rng(5)
    dtype = BFLOAT16 if storage else np.float32
    options = options_of("Adam", state_dtype, seed=3, **storage)
    wholes = [drawn(rng, size, dtype) for size in (300, 5000, 4224)]
    optimizer = onepass.Adam([whole.copy() for whole in wholes], **options)
    cuts = [(2, 128, 4224), (1, 4992, 5000), (0, 128, 300), (1, 0, 0), (1, 0, 4992)]
    parts = [wholes[parameter][start:stop].copy() for parameter, start, stop in cuts]
    declared = [Part(wholes[parameter].size, start, parameter) for parameter, start, _ in cuts]
    with parts_of_params([*zip(parts, declared)]):
        of_parts = copied(onepass.Adam(parts, **options))
    for _ in range(3):
        grads = [drawn(rng, whole.size, np.float32) for whole in wholes]
        optimizer.step(grads)
        of_parts.step([grads[parameter][start:stop] for parameter, start, stop in cuts])
    for part, own, (parameter, start, stop) in zip(of_parts.params, snapshot(of_parts), cuts):
        whole, state = optimizer.params[parameter], snapshot(optimizer)[parameter]
        assert own.keys() == state.keys()
        names = [name for name, value in state.items() if isinstance(value, np.ndarray)]
        slices = [state[name][state_part(name, start, stop)] for name in names]
        assert_same_bits([comparable(part)], [comparable(whole[start:stop])])
        assert_same_bits([comparable(own[name]) for name in names], map(comparable, slices), names)


def test_a_gradient_spike_shortens_only_the_steps_of_its_float8_group() -> None:
    """The largest of 128 elements sets the scale, a documented limit of float8."""
    size = 4096
    params = [np.zeros(size, np.float32) for _ in range(2)]
    narrow, plain = onepass.Adam(params[0], lr=1e-3, state_dtype="float8"), onepass.Adam(params[1], lr=1e-3)
    grad = np.ones(size, np.float32)
    for t in range(30):
        grad[200] = 1e5 if t == 10 else 1.0
        narrow.step(grad)
        plain.step(grad)
    roots = [np.sqrt(np.asarray(o.decoded_state(0)["exp_avg_sq"])) for o in (narrow, plain)]
    group = np.r_[128:200, 201:256]
    assert (roots[0][group] > 2 * roots[1][group]).all()
    assert abs(roots[0][200] / roots[1][200] - 1) < 1e-2
    others = np.r_[0:128, 256:size]
    assert (abs(roots[0][others] / roots[1][others] - 1) < 0.1).all()


@needs_bfloat16
@pytest.mark.parametrize("master_bits", [32, 24, 16])
def test_stochastic_rounding_makes_no_infinity_and_written_zeros_stay_zero(master_bits: int) -> None:
    largest = np.full(4300, np.inf, BFLOAT16).view(np.uint16) - np.uint16(1)
    pair = Pair("SGD", [largest.view(BFLOAT16)], lr=1.0, momentum=0.5, state_dtype="bfloat16", master_bits=master_bits)
    pair.step([np.full(4300, -1e36, np.float32)])  # beyond the largest bfloat16
    assert np.isfinite(pair.params[0].astype(np.float32)).all() == (master_bits == 16)  # else the upper half shows Inf
    pair.step([np.full(4300, 3.402e38, np.float32)])
    assert np.isfinite(pair.optimizer.decoded_state(0)["momentum_buffer"]).all()
    for array in (pair.params[0], pair.reference.params[0]):
        array[...] = 0
    pair.step([np.zeros(4300, np.float32)])
