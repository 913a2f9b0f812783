"""The reference optimizer with state in fewer bits and bfloat16 parameters keeps the promises of the design."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from cases import NUMBERS, all_set, shrinking, values_of
from onepass._reference import RULES, Reference, storage
from onepass._reference.elements import Elements
from onepass._reference.rules import SWITCHES
from onepass._reference.stages import running_average
from support import Array, assert_same_bits, bits, ordinary

NARROW = ["bfloat16", "float8"]
SLOW = {"exp_avg_slow"}  # in bfloat16 where other states are in float8
SIGNED = {"exp_avg", "exp_avg_slow", "grad_avg", "momentum_buffer"}
WEIGHTS = {"z"}
N = 4096 + 200  # elements of a tensor whose state may be narrow, with a shorter last group


def options_of(kind: str, **more: Any) -> dict[str, Any]:
    """Return options that run every line of a rule and are allowed with narrow state."""
    return {"lr": shrinking, **all_set(kind, "amsgrad", "centered"), **more}


def as_bfloat16(values: Array) -> Array:
    return values.astype(pytest.importorskip("ml_dtypes").bfloat16)


def weights(reference: Reference, index: int) -> Array:
    """Return the weights as the rule uses them: float32, with lower bits."""
    return np.asarray(reference._decoded(index)[0])


def states(reference: Reference, index: int = 0) -> dict[str, Array]:
    """Return the state arrays as they are stored."""
    return {name: value for name, value in reference.state[index].items() if isinstance(value, np.ndarray)}


def assert_same_storage(a: Reference, b: Reference, without: str = "") -> None:
    for i in range(len(a.params)):
        x, y = states(a, i), states(b, i)
        assert {*x} - {without} == {*y} - {without}
        for name in {*x} - {without}:
            if x[name].dtype.kind == "f":
                assert_same_bits([x[name]], [y[name]], name)
            else:
                assert x[name].dtype == y[name].dtype and (x[name] == y[name]).all(), name


def unquantized(reference: Reference) -> Reference:
    """Return a reference with float32 storage and the same parameters, state and counts."""
    plain = copy.deepcopy(reference)
    for i in range(len(plain.params)):
        param, *arrays = reference._decoded(i)
        plain.params[i] = param.copy("K")
        present = {name: array.copy("K") for name, array in zip(plain.rule.states, arrays) if array is not None}
        scalars = {name: value for name, value in reference.state[i].items() if not isinstance(value, np.ndarray)}
        plain.state[i] = scalars | present
    return plain


@pytest.mark.parametrize("values", NUMBERS)
@pytest.mark.parametrize("kind", RULES)
def test_bfloat16_parameters_with_32_master_bits_match_float32_training(kind: str, values: str) -> None:
    rng = np.random.default_rng(0)
    start = [as_bfloat16(ordinary(rng, 300, np.float32)), as_bfloat16(ordinary(rng, (6, 7), np.float32)).T]
    for more in ({}, {name: choices[0] for name, choices in values_of(kind).items() if isinstance(choices[0], bool)}):
        options = {"lr": shrinking, **all_set(kind), **more, "ema_decay": 0.9}
        narrow = Reference(kind, start, master_bits=32, **options)
        plain = Reference(kind, [param.astype(np.float32) for param in start], **options)
        for _ in range(20):
            grads = [NUMBERS[values](rng, param.shape, np.float32) for param in start]
            narrow.step(grads)
            plain.step(grads)
            assert_same_bits([weights(narrow, i) for i in range(2)], plain.params)
            assert_same_storage(narrow, plain, without="param_low")
            assert_same_bits(narrow.ema, plain.ema)
        for param, expected in zip(narrow.params, plain.params):
            assert param.dtype == start[0].dtype and param.strides == expected.astype(param.dtype).strides
            assert (param.view(np.uint16) == storage.split(expected)[0]).all()


@pytest.mark.parametrize("state_dtype", NARROW)
@pytest.mark.parametrize("kind", RULES)
def test_bfloat16_parameters_match_float32_parameters_with_narrow_state(kind: str, state_dtype: str) -> None:
    rng = np.random.default_rng(1)
    start = as_bfloat16(ordinary(rng, N, np.float32))
    options = options_of(kind, state_dtype=state_dtype, seed=5)
    narrow, plain = Reference(kind, start, **options), Reference(kind, start.astype(np.float32), **options)
    for _ in range(5):
        grads = [ordinary(rng, N, np.float32)]
        narrow.step(grads)
        plain.step(grads)
    assert_same_bits([weights(narrow, 0)], plain.params)
    assert_same_storage(narrow, plain, without="param_low")
    assert_same_bits(narrow.ema, plain.ema)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("state_dtype", [None, *NARROW])
@pytest.mark.parametrize("master_bits", [None, 32, 24, 16])
@pytest.mark.parametrize("kind", RULES)
def test_a_step_decodes_steps_in_float32_and_rounds(
    kind: str, master_bits: int | None, state_dtype: str | None, rounding: str
) -> None:
    rng = np.random.default_rng(2)
    start = [ordinary(rng, N, np.float32), ordinary(rng, (62, 70), np.float32).T]
    if master_bits is not None:
        start = [as_bfloat16(param) for param in start]
    storing = {"state_dtype": state_dtype, "master_bits": master_bits or 32, "rounding": rounding}
    reference = Reference(kind, start, seed=77, **options_of(kind, **storing))
    for t in (1, 2, 3):
        plain = unquantized(reference)
        grads = [ordinary(rng, param.shape, np.float32) for param in start]
        reference.step(grads)
        plain.step(grads)
        assert_same_bits(reference.ema, plain.ema)  # the average takes the unrounded weights
        for i, param in enumerate(start):
            # Row i of r: the 16 bits of slot i.
            r = [None if rounding == "nearest" else storage.r16(77, t, i, slot, 0, param.size) for slot in range(4)]
            x = plain.params[i].ravel(order="K")
            stored = reference.params[i].ravel(order="K")
            low = reference.state[i].get("param_low", np.empty(0)).ravel(order="K")
            if master_bits is None:
                assert_same_bits([stored], [x])
            elif master_bits == 16:
                assert "param_low" not in reference.state[i]
                assert (stored.view(np.uint16) == storage.encode_bfloat16(x, r[3])).all()
            else:
                hi, expected = storage.split(x) if master_bits == 32 else storage.split24(x, r[3])
                assert (stored.view(np.uint16) == hi).all() and (low == expected).all()
                assert low.dtype == expected.dtype
            for slot, (name, array) in enumerate(states(plain, i).items()):
                kept, x = reference.state[i][name].ravel(order="K"), array.ravel(order="K")
                if state_dtype is None or name in WEIGHTS:
                    assert_same_bits([kept], [x])
                elif state_dtype == "float8" and name not in SLOW:
                    codes, scales = storage.encode_float8(x, r[slot], name in storage.DIVISORS)
                    assert (kept == codes).all() and (reference.state[i][f"{name}_scale"] == scales).all()
                else:
                    assert (kept == storage.encode_bfloat16(x, r[slot])).all()


@pytest.mark.parametrize("kind", RULES)
def test_every_unsigned_narrow_state_is_stored_as_a_divisor(kind: str) -> None:
    """Every state may be negative or is a divisor; amsgrad's maximum and weights are never narrow."""
    assert {*RULES[kind].states} - SIGNED - {"max_exp_avg_sq"} - WEIGHTS <= storage.DIVISORS
    assert not {*RULES[kind].states} & SIGNED & storage.DIVISORS


@pytest.mark.parametrize("state_dtype", NARROW)
@pytest.mark.parametrize("kind", RULES)
def test_stored_arrays_have_the_documented_names_dtypes_and_layout(kind: str, state_dtype: str) -> None:
    param = np.zeros((64, 67), np.float32).T
    reference = Reference(kind, param, **options_of(kind, state_dtype=state_dtype))
    names = [name for name in RULES[kind].states if name not in SWITCHES or SWITCHES[name] == "momentum"]
    scales = [f"{name}_scale" for name in names if state_dtype == "float8" and name not in SLOW | WEIGHTS]
    assert {*states(reference)} == {*names, *scales}
    for name in names:
        array = reference.state[0][name]
        dtype = np.float32 if name in WEIGHTS else np.uint8 if f"{name}_scale" in scales else np.uint16
        assert array.dtype == dtype and array.shape == param.shape and array.flags.f_contiguous
    for name in scales:
        assert reference.state[0][name].dtype == np.float32
        assert reference.state[0][name].shape == (34,)  # 33.5 groups
    assert reference.ema[0].dtype == np.float32


@pytest.mark.parametrize("state_dtype", NARROW)
def test_tensors_of_fewer_than_4096_elements_keep_float32_state(state_dtype: str) -> None:
    rng = np.random.default_rng(3)
    params = [ordinary(rng, n, np.float32) for n in (4095, 4096, 0, 1)]
    reference, plain = Reference("Adam", params, state_dtype=state_dtype), Reference("Adam", params)
    for _ in range(3):
        grads = [ordinary(rng, param.size, np.float32) for param in params]
        reference.step(grads)
        plain.step(grads)
    for i in (0, 2, 3):
        assert_same_bits(states(reference, i).values(), states(plain, i).values())
        assert_same_bits([reference.params[i]], [plain.params[i]])
    assert reference.state[1]["exp_avg"].dtype == (np.uint8 if state_dtype == "float8" else np.uint16)


def test_small_bfloat16_parameters_have_lower_bits_too() -> None:
    for master_bits, dtype in ((32, np.int16), (24, np.int8)):
        reference = Reference("Adam", as_bfloat16(np.ones(3, np.float32)), master_bits=master_bits)
        assert reference.state[0]["param_low"].dtype == dtype and not reference.state[0]["param_low"].any()
    assert [*states(Reference("SGD", as_bfloat16(np.ones(3, np.float32)), master_bits=16))] == []


def trained(params: Any, steps: int = 4, none: Any = (), **options: Any) -> Reference:
    """Return an Adam after some steps with gradients that depend only on the parameter and its own count."""
    reference = Reference("Adam", params, **options)
    counts = [0] * len(reference.params)
    for t in range(steps):
        grads: list[Any] = []
        for i, param in enumerate(reference.params):
            if (t, i) in none:
                grads.append(None)
                continue
            grads.append(ordinary(np.random.default_rng((i, counts[i])), param.size, np.float32).reshape(param.shape))
            counts[i] += 1
        reference.step(grads)
    return reference


@pytest.mark.parametrize("state_dtype", NARROW)
def test_random_bits_depend_on_the_parameter_index_and_not_on_groups(state_dtype: str) -> None:
    rng = np.random.default_rng(4)
    params = [ordinary(rng, N, np.float32) for _ in range(3)]
    one = trained(params, state_dtype=state_dtype, seed=3)
    groups = [{"params": params[:1]}, {"params": params[1:], "state_dtype": state_dtype}]
    several = trained(groups, state_dtype=state_dtype, seed=3)
    assert_same_bits(one.params, several.params)
    assert_same_storage(one, several)
    same = [np.zeros(N, np.float32)] * 2
    reference = Reference("Adam", same, state_dtype=state_dtype)
    reference.step([ordinary(rng, N, np.float32)] * 2)
    assert (reference.state[0]["exp_avg"] != reference.state[1]["exp_avg"]).any()


@pytest.mark.parametrize("state_dtype", NARROW)
def test_random_bits_depend_on_the_parameters_own_step_count(state_dtype: str) -> None:
    rng = np.random.default_rng(5)
    params = [ordinary(rng, N, np.float32) for _ in range(2)]
    whole = trained(params, 3, state_dtype=state_dtype)
    paused = trained(params, 5, none={(0, 1), (2, 1)}, state_dtype=state_dtype)  # three gradients in five steps
    assert_same_bits([whole.params[1]], [paused.params[1]])
    for name, array in states(whole, 1).items():
        assert (array == paused.state[1][name]).all()


@pytest.mark.parametrize("state_dtype", NARROW)
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_run(state_dtype: str) -> None:
    rng = np.random.default_rng(6)
    param = as_bfloat16(ordinary(rng, N, np.float32))
    options = {"state_dtype": state_dtype, "master_bits": 24, "seed": 2**64 - 1}
    reference = Reference("AdamW", param, **options)
    for t in range(4):
        reference.step([ordinary(np.random.default_rng(t), N, np.float32)])
        if t == 1:
            saved = copy.deepcopy((reference.params, reference.state, reference.step_count))
    again = Reference("AdamW", param, **options)
    again.params, again.state, again.step_count = saved
    for t in (2, 3):
        again.step([ordinary(np.random.default_rng(t), N, np.float32)])
    assert (again.params[0].view(np.uint16) == reference.params[0].view(np.uint16)).all()
    assert_same_storage(again, reference)


@pytest.mark.parametrize("state_dtype", NARROW)
def test_the_seed_matters_only_for_stochastic_rounding(state_dtype: str) -> None:
    param = ordinary(np.random.default_rng(7), N, np.float32)
    for rounding, differ in (("stochastic", True), ("nearest", False)):
        a, b, c = (trained(param, 2, state_dtype=state_dtype, rounding=rounding, seed=seed) for seed in (0, 1, 0))
        assert (a.state[0]["exp_avg"] != b.state[0]["exp_avg"]).any() == differ
        assert (a.state[0]["exp_avg_sq"] != b.state[0]["exp_avg_sq"]).any() == differ
        assert_same_storage(a, c)


@pytest.mark.parametrize("master_bits", [32, 24, 16])
@pytest.mark.parametrize("state_dtype", NARROW)
def test_elements_are_numbered_in_memory_order(state_dtype: str, master_bits: int) -> None:
    rng = np.random.default_rng(8)
    flat = as_bfloat16(ordinary(rng, 4 * 30 * 41, np.float32))
    cube = flat.reshape(30, 4, 41).transpose(1, 2, 0)  # in memory as flat
    options = {"state_dtype": state_dtype, "master_bits": master_bits, "ema_decay": 0.5}
    one, other = Reference("Adam", flat, **options), Reference("Adam", cube, **options)
    for _ in range(3):
        grad = ordinary(rng, flat.size, np.float32)
        one.step([grad])
        other.step([np.ascontiguousarray(grad.reshape(30, 4, 41).transpose(1, 2, 0))])
    pairs = [(one.params[0], other.params[0]), (one.ema[0], other.ema[0])]
    pairs += [(array, other.state[0][name]) for name, array in states(one).items()]
    for a, b in pairs:
        arranged = b if a.shape == b.shape else b.transpose(2, 0, 1).ravel()
        assert (bits(a) == bits(arranged)).all()


@pytest.mark.parametrize("param_dtype", [np.float32, np.float64, "bfloat16"])
@pytest.mark.parametrize("grad_dtype", [np.float16, "bfloat16"])
def test_gradients_of_16_bits_are_widened_exactly(grad_dtype: Any, param_dtype: Any) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    codes = np.arange(2**16, dtype=np.uint16)
    grad = codes.view(bfloat16 if grad_dtype == "bfloat16" else grad_dtype)
    wide = storage.decode_bfloat16(codes) if grad_dtype == "bfloat16" else grad.astype(np.float32)
    start = np.ones(2**16, bfloat16 if param_dtype == "bfloat16" else param_dtype)
    for flush in (True, False):
        a, b, c = (Reference("Adam", start, flush_denormals=flush) for _ in range(3))
        a.step([grad])
        b.step([wide])
        c.step([(codes, grad)])  # as rows
        for other in (b, c):
            assert_same_bits([weights(a, 0)], [weights(other, 0)])
            assert_same_storage(a, other)


def test_subnormal_gradients_are_flushed_after_widening() -> None:
    pytest.importorskip("ml_dtypes")
    grads = {
        "float16": np.array([2**-24], np.float16),  # a normal number of float32
        "bfloat16": as_bfloat16(np.array([2.0**-130], np.float32)),
    }
    for name, grad in grads.items():
        for flush in (True, False):
            reference = Reference("SGD", np.zeros(1, np.float32), lr=1.0, flush_denormals=flush)
            reference.step([grad])
            assert (reference.params[0][0] != 0) == (name == "float16" or not flush)


@pytest.mark.parametrize("kind", RULES)
def test_sparse_rows_of_bfloat16_parameters_match_float32_training(kind: str) -> None:
    rng = np.random.default_rng(9)
    start = as_bfloat16(ordinary(rng, (40, 3), np.float32))
    options = {"lr": shrinking, **all_set(kind)}
    narrow, plain = Reference(kind, start, **options), Reference(kind, start.astype(np.float32), **options)
    for _ in range(5):
        pair = rng.integers(0, 40, 25), ordinary(rng, (25, 3), np.float32)
        narrow.step([pair])
        plain.step([pair])
    assert_same_bits([weights(narrow, 0)], plain.params)
    assert_same_storage(narrow, plain, without="param_low")


def test_zeros_written_into_the_weights_stay_zero() -> None:
    start = as_bfloat16(np.ones(200, np.float32))
    for master_bits in (32, 24, 16):
        reference = Reference("SGD", start, lr=0.01, master_bits=master_bits)
        reference.step([ordinary(np.random.default_rng(10), 200, np.float32)])
        reference.params[0][...] = 0
        reference.step([np.zeros(200, np.float32)])
        assert (abs(weights(reference, 0)) < 1e-37).all()


def test_the_average_of_bfloat16_parameters_is_of_the_joined_float32_weights() -> None:
    start = as_bfloat16(ordinary(np.random.default_rng(11), N, np.float32))
    reference = Reference("SGD", start, lr=1e-4, master_bits=32, ema_decay=0.9)
    before = reference.ema[0].copy()
    assert (before == start.astype(np.float32)).all() and before.dtype == np.float32
    reference.step([ordinary(np.random.default_rng(12), N, np.float32)])
    elements = running_average(0.9, Elements(before, True), Elements(weights(reference, 0), True))
    assert_same_bits(reference.ema, [elements.values])
    assert not (reference.ema[0] == before).all()
