"""Options of storage in fewer bits: what they hold, what is refused, and how gradients and state look."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

import onepass
from cases import CLASSES
from onepass._reference import storage as reference
from support import Array, assert_same_bits, bits, ones, ordinary, python_memory, refused, snapshot

N = 4096  # elements: fewer keep float32 state
NARROW = ["bfloat16", "float8"]


def bfloat16(*shape: int) -> Array:
    return ones(*shape, dtype=pytest.importorskip("ml_dtypes").bfloat16)


# Options that a class refuses together with a storage, and the message.
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    *[
        (
            cls,
            {"state_dtype": "float8", "betas": (0.991, 0.999)},
            "betas[0]: expected at most 0.99 with state_dtype='float8'",
        )
        for cls in (onepass.Adam, onepass.AdamW, onepass.Adamax, onepass.NAdam, onepass.RAdam)
    ],
    (onepass.AdEMAMix, {"state_dtype": "float8", "betas": (0.995, 0.999, 0.9999)}, "betas[0]: expected at most 0.99"),
    (
        onepass.Lion,
        {"state_dtype": "float8", "betas": (0.9, 0.995)},
        "betas[1]: expected at most 0.99 with state_dtype='float8', got 0.995",
    ),
    (
        onepass.SGD,
        {"state_dtype": "float8", "momentum": 0.995},
        "momentum: expected at most 0.99 with state_dtype='float8', got 0.995 (larger",
    ),
    (
        onepass.RMSprop,
        {"state_dtype": "float8", "momentum": 1.0},
        "(larger values are too noisy: use state_dtype='bfloat16')",
    ),
    (
        onepass.Adadelta,
        {"state_dtype": "float8", "rho": 0.96},
        "rho: expected at most 0.95 with state_dtype='float8', got 0.96",
    ),
    *[
        (cls, {"state_dtype": name, option: True}, f"state_dtype={name!r} does not work with {option}=True")
        for cls, option in ((onepass.Adam, "amsgrad"), (onepass.AdamW, "amsgrad"), (onepass.RMSprop, "centered"))
        for name in NARROW
    ],
    *[
        (cls, {"state_dtype": name, "eps": eps}, f"needs an eps of at least {limit}, got {eps}: use state_dtype=None")
        for cls, eps, limit in (
            (onepass.Adam, 0.0, 1e-16),
            (onepass.Adagrad, 9e-17, 1e-16),
            (onepass.RMSprop, 1e-20, 1e-16),
            (onepass.Adadelta, 1e-33, 1e-32),
        )
        for name in NARROW
    ],
    *[
        (cls, {"state_dtype": name, "flush_denormals": False}, "needs flush_denormals=True: use state_dtype=None")
        for cls in CLASSES.values()
        for name in NARROW
    ],
    *[
        (cls, {"master_bits": n}, f"master_bits={n} needs bfloat16 parameters, got float32: use master_bits=32")
        for cls in (onepass.Adam, onepass.SGD)
        for n in (16, 24)
    ],
]
ALLOWED: list[tuple[Any, dict[str, Any]]] = [
    (onepass.Adam, {"state_dtype": "float8", "betas": (0.99, 0.9999)}),
    (onepass.Adam, {"state_dtype": "bfloat16", "betas": (0.999, 0.9999)}),
    (onepass.Lion, {"state_dtype": "float8", "betas": (0.999, 0.99)}),  # only betas[1] is the decay of its momentum
    (onepass.Lion, {"state_dtype": "float8"}),
    (onepass.AdEMAMix, {"state_dtype": "float8"}),
    (onepass.RMSprop, {"state_dtype": "float8", "alpha": 1.0, "momentum": 0.99}),
    (onepass.Adadelta, {"state_dtype": "float8", "rho": 0.95, "eps": 1e-32}),
    (onepass.Adadelta, {"state_dtype": "bfloat16", "rho": 1.0}),
    (onepass.Adam, {"state_dtype": "float8", "eps": 1e-16}),
    (onepass.Adam, {"flush_denormals": False, "amsgrad": True, "eps": 0.0}),
]


@pytest.mark.parametrize(("cls", "options", "message"), REFUSED)
def test_options_that_narrow_storage_does_not_support_are_refused(cls: Any, options: Any, message: str) -> None:
    w = ones(N)
    with refused(ValueError, message, arrays=[w]):
        cls(w, **options)
    with refused(ValueError, message, arrays=[w]):  # small arrays too: whether an option is valid depends on no size
        cls([ones(3), w], **options)
    if "flush_denormals" in options:
        return
    with refused(ValueError, message, arrays=[w]):
        cls([{"params": ones(3)}, {"params": w, **options}])
    optimizer = cls([ones(3)], **({"momentum": 0.5} if cls in (onepass.SGD, onepass.RMSprop) else {}))
    with refused(ValueError, message, optimizer, arrays=[w]):
        optimizer.add_group(w, **options)
    optimizer.step([ones(3)])


@pytest.mark.parametrize(("cls", "options"), ALLOWED)
def test_options_at_the_limits_are_allowed(cls: Any, options: Any) -> None:
    w = ones(N)
    optimizer = cls(w, **options)
    for _ in range(3):
        optimizer.step(ones(N))
    assert np.isfinite(w).all() and optimizer.step_count == 3


@pytest.mark.parametrize(("cls", "options", "message"), REFUSED)
def test_setters_refuse_what_the_constructor_refuses(cls: Any, options: Any, message: str) -> None:
    fixed = {"state_dtype", "flush_denormals", "master_bits"}
    changes = {name: value for name, value in options.items() if name not in fixed}
    if not changes:
        return
    start = {"momentum": 0.9} if "momentum" in changes else {}
    optimizer = cls(ones(N), state_dtype=options["state_dtype"], **start)
    optimizer.step(ones(N))
    for name, value in changes.items():
        with refused(ValueError, message, optimizer):
            setattr(optimizer, name, value)
        with refused(ValueError, message, optimizer):
            optimizer.groups[0][name] = value


@pytest.mark.parametrize("state_dtype", NARROW)
@pytest.mark.parametrize("cls", CLASSES.values())
def test_float64_parameters_are_refused_with_narrow_state(cls: Any, state_dtype: Any) -> None:
    message = "needs float32 or bfloat16 parameters, got float64: use state_dtype=None"
    with refused(ValueError, f"the parameter: state_dtype={state_dtype!r} {message}"):
        cls(np.ones(N), state_dtype=state_dtype)
    with refused(ValueError, f"parameter 'b': state_dtype={state_dtype!r} {message}"):
        cls({"a": ones(3), "b": np.ones(3)}, state_dtype=state_dtype)
    optimizer = cls([ones(N)], state_dtype=state_dtype)
    with refused(ValueError, f"parameter 1: state_dtype={state_dtype!r} {message}", optimizer):
        optimizer.add_group(np.ones(3))
    optimizer.add_group(np.ones(3), state_dtype=None)
    optimizer.step([ones(N), np.ones(3)])


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("state_dtype", "float16", ValueError, "state_dtype: expected None, 'bfloat16' or 'float8', got 'float16'"),
        (
            "state_dtype",
            np.float32,
            TypeError,
            "state_dtype: expected None, 'bfloat16' or 'float8', got <class 'numpy.float32'>",
        ),
        ("state_dtype", 8, TypeError, "state_dtype: expected"),
        ("master_bits", 8, ValueError, "master_bits: expected 32, 24 or 16, got 8"),
        ("master_bits", 32.0, TypeError, "master_bits: expected an integer, got 32.0"),
        ("master_bits", True, TypeError, "master_bits: expected an integer, got True"),
        ("master_bits", None, TypeError, "master_bits: expected an integer, got None"),
        ("rounding", "up", ValueError, "rounding: expected 'stochastic' or 'nearest', got 'up'"),
        ("rounding", None, TypeError, "rounding: expected 'stochastic' or 'nearest', got None"),
        ("seed", -1, ValueError, "seed: expected at least 0 and less than 2**64, got -1"),
        ("seed", 2**64, ValueError, "seed: expected at least 0 and less than 2**64"),
        ("seed", 1.0, TypeError, "seed: expected an integer, got 1.0"),
        ("seed", None, TypeError, "seed: expected an integer, got None"),
        ("seed", True, TypeError, "seed: expected an integer, got True"),
    ],
)
def test_invalid_values_of_storage_options_are_refused(
    option: str, value: Any, error: type[Exception], message: str
) -> None:
    w = ones(3)
    with refused(error, message, arrays=[w]):
        onepass.Adam(w, **{option: value})


def test_storage_options_cannot_be_set_later() -> None:
    for optimizer in (onepass.Adam([ones(N)]), onepass.Adam([bfloat16(N)], state_dtype="float8")):
        for name, value in (("state_dtype", "bfloat16"), ("master_bits", 24), ("rounding", "nearest")):
            message = f"{name} cannot be changed after construction: it determines how numbers are stored"
            with refused(AttributeError, message, optimizer):
                setattr(optimizer, name, value)
        with refused(AttributeError, "", optimizer):
            optimizer.seed = 3  # type: ignore[misc]
        with refused(TypeError, "it applies to the whole optimizer"):
            onepass.Adam([{"params": ones(3), "seed": 1}])
        optimizer.groups[0].state_dtype = optimizer.groups[0].state_dtype  # no change


def test_options_can_be_read_and_show_where_they_differ_from_the_default() -> None:
    plain = onepass.Adam([ones(3)])
    assert (plain.state_dtype, plain.master_bits, plain.rounding, plain.seed) == (None, 32, "stochastic", 0)
    assert not any(name in repr(plain) for name in ("state_dtype", "master_bits", "rounding", "seed"))
    options: dict[str, Any] = {"state_dtype": "float8", "master_bits": 24, "rounding": "nearest", "seed": np.uint64(5)}
    optimizer = onepass.Adam([bfloat16(N)], **options)
    shown = "state_dtype='float8', master_bits=24, rounding='nearest', seed=5)"
    assert repr(optimizer).endswith(shown), repr(optimizer)
    assert type(optimizer.seed) is int and optimizer.groups[0]["master_bits"] == 24
    optimizer.add_group([ones(N), bfloat16(3)], state_dtype=None, rounding="stochastic")
    assert repr(optimizer.groups[1]).endswith("ema_decay=None, master_bits=24)")


def test_add_group_takes_the_first_groups_storage_unless_it_is_given() -> None:
    with pytest.raises(ValueError, match="master_bits=16 needs bfloat16 parameters, got float32: use master_bits=32"):
        onepass.Adam([{"params": ones(N)}, {"params": ones(3)}], master_bits=16)
    optimizer = onepass.Adam([bfloat16(N)], state_dtype="float8", master_bits=16)
    optimizer.add_group(ones(N))  # master_bits applies to all bfloat16 parameters of the optimizer
    optimizer.add_group(bfloat16(N), state_dtype="bfloat16", master_bits=24)
    optimizer.step([ones(N)] * 3)
    kinds = [{name: bits(x).dtype for name, x in state.items() if np.ndim(x)} for state in optimizer.state.values()]
    float8 = {"exp_avg": "u1", "exp_avg_scale": "u4", "exp_avg_sq": "u1", "exp_avg_sq_scale": "u4"}
    assert kinds == [float8, float8, {"exp_avg": "u2", "exp_avg_sq": "u2", "param_low": "u1"}]


@pytest.mark.parametrize("state_dtype", NARROW)
def test_arrays_of_fewer_than_4096_elements_keep_float32_state(state_dtype: Any) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (4095,), (63, 65), (64, 64), (2, 2048)]
    optimizer = onepass.Adam([ones(*shape) for shape in shapes], state_dtype=state_dtype)
    optimizer.step([ones(*shape) for shape in shapes])
    for shape, state in zip(shapes, optimizer.state.values()):
        small = int(np.prod(shape)) < 4096
        assert (state["exp_avg"].dtype == np.float32) == small and ("exp_avg_scale" in state) == (
            not small and state_dtype == "float8"
        )
        assert state["exp_avg"].shape == shape


PRINT_DTYPES = """
import sys, numpy as np, onepass
def dtypes():
    made = [onepass.Adam(np.ones(4096, np.float32), state_dtype=name) for name in ("float8", "bfloat16")]
    made[0].step(np.ones(4096, np.float32))
    return [[x.dtype.name for x in opt.state[0].values() if np.ndim(x)] for opt in made], made
raw, made = dtypes()
assert "ml_dtypes" not in sys.modules
print(raw)
if len(sys.argv) > 1:
    import ml_dtypes
    print(dtypes()[0], float(made[0].state[0]["exp_avg"][0]), made[0].decoded_state(0)["exp_avg"].dtype)
"""


def test_state_shows_raw_bits_until_ml_dtypes_is_imported() -> None:
    def printed(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", PRINT_DTYPES, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    raw = "[['uint8', 'float32', 'uint8', 'float32'], ['uint16', 'uint16']]"
    assert printed() == [raw]
    pytest.importorskip("ml_dtypes")
    named = raw.replace("uint8", "float8_e4m3fn").replace("uint16", "bfloat16")
    assert printed("import") == [raw, f"{named} 448.0 float32"]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("state_dtype", [None, *NARROW])
def test_decoded_state_holds_float32_copies_of_the_encoded_state(state_dtype: Any, order: Any) -> None:
    rng = np.random.default_rng(0)
    w = np.array(ordinary(rng, (70, 90), np.float32), order=order)
    optimizer = onepass.RMSprop({"w": w}, momentum=0.9, state_dtype=state_dtype, ema_decay=0.5)
    optimizer.step({"w": ordinary(rng, w.shape, np.float32)})
    shown, found = optimizer.state["w"], optimizer.decoded_state("w")
    assert found.keys() == {"step", "square_avg", "momentum_buffer"} and found["step"] == 1
    for name in ("square_avg", "momentum_buffer"):
        stored = bits(shown[name]).ravel(order)
        if state_dtype == "float8":
            expected = reference.decode_float8(stored, shown[f"{name}_scale"])
        elif state_dtype == "bfloat16":
            expected = reference.decode_bfloat16(stored)
        else:
            expected = stored.view(np.float32)
        assert found[name].dtype == np.float32 and found[name].flags.f_contiguous == (order == "F")
        assert_same_bits([found[name].ravel(order)], [expected])
        found[name][...] = 7
        assert not (optimizer.decoded_state("w")[name] == 7).any()
    for missing in (optimizer.decoded_state, optimizer.state.__getitem__):
        with pytest.raises(KeyError):
            missing(0)
        with pytest.raises(TypeError, match="expected the name of a parameter, got ndarray"):
            missing(w)
    with pytest.raises(TypeError, match="expected the index of a parameter, got ndarray"):
        onepass.SGD(w).decoded_state(w)


@pytest.mark.parametrize("state_dtype", [None, *NARROW])
def test_slow_moment_of_ademamix_is_never_narrower_than_bfloat16(state_dtype: Any) -> None:
    w = ones(N)
    optimizer = onepass.AdEMAMix(w, state_dtype=state_dtype)
    optimizer.step(ones(N))
    slow = optimizer.state[0]["exp_avg_slow"]
    assert slow.itemsize == (4 if state_dtype is None else 2)
    assert optimizer.state[0]["exp_avg"].itemsize == {None: 4, "bfloat16": 2, "float8": 1}[state_dtype]
    assert "exp_avg_slow_scale" not in optimizer.state[0]
    np.testing.assert_allclose(optimizer.decoded_state(0)["exp_avg_slow"], 1e-4, rtol=1e-2)


def test_encoded_state_arrays_are_live_views() -> None:
    optimizer = onepass.Adam(ones(N), state_dtype="float8")
    optimizer.step(ones(N))
    optimizer.state[0]["exp_avg"].view(np.uint8)[:128] = 0
    optimizer.state[0]["exp_avg_scale"][1] *= 2
    decoded = optimizer.decoded_state(0)["exp_avg"]
    assert (decoded[:128] == 0).all() and decoded[128] == 2 * decoded[256]


@pytest.mark.parametrize(
    ("param", "options"),
    [
        (ones, {"state_dtype": "float8"}),
        (ones, {"state_dtype": "bfloat16"}),
        (bfloat16, {}),
        (bfloat16, {"master_bits": 24}),
        (bfloat16, {"master_bits": 16}),
    ],
)
def test_sparse_rows_are_refused_with_narrow_storage(param: Any, options: Any) -> None:
    optimizer = onepass.Adam([ones(3), param(64, 64)], **options)
    rows = onepass.SparseRows([1], ones(1, 64))
    reason = "with state_dtype=" if "state_dtype" in options else "for a bfloat16 parameter, got SparseRows"
    message = f"gradient 1: expected a dense gradient {reason}"
    with refused(ValueError, message, optimizer):
        optimizer.step([ones(3), rows])
    groups: Any = [{"params": ones(3, 2), "state_dtype": None}, {"params": ones(64, 64)}]
    mixed = onepass.Adam(groups, state_dtype="float8")
    mixed.step([onepass.SparseRows([1], ones(1, 2)), ones(64, 64)])


@pytest.mark.parametrize("master_bits", [32, 24, 16])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_written_into_bfloat16_weights_cause_no_nan(master_bits: Any, zero: float) -> None:
    rng = np.random.default_rng(1)
    w = bfloat16(N)
    optimizer = onepass.Adam(w, lr=0.01, master_bits=master_bits)
    for _ in range(3):
        optimizer.step(ordinary(rng, N, np.float32))
    w[...] = zero
    optimizer.step(np.zeros(N, np.float32))
    assert np.isfinite(w.astype(np.float32)).all() and (abs(w.astype(np.float32)) < 0.1).all()


def test_numbers_written_into_bfloat16_weights_are_not_changed_by_lower_bits() -> None:
    rng = np.random.default_rng(2)
    w = bfloat16(N)
    optimizer = onepass.SGD(w, lr=0.01)
    optimizer.step(ordinary(rng, N, np.float32))
    assert optimizer.state[0]["param_low"].any()
    w[...] = 3
    optimizer.step(np.zeros(N, np.float32))
    assert (w == 3).all()
    optimizer.state[0]["param_low"][...] = 0  # clears the lower bits
    optimizer.step(np.zeros(N, np.float32))
    assert (w == 3).all() and not optimizer.state[0]["param_low"].any()


@pytest.mark.parametrize(
    ("cls", "options", "moments"), [(onepass.Adam, {}, 2), (onepass.Lion, {}, 1), (onepass.SGD, {}, 0)]
)
def test_state_takes_the_documented_number_of_bytes(cls: Any, options: Any, moments: int) -> None:
    size = 1 << 20
    per_moment = {None: 4, "bfloat16": 2, "float8": 1 + 4 / 128}
    for state_dtype, of_moment in per_moment.items():
        for master_bits, of_low in {None: 0, 32: 2, 24: 1, 16: 0}.items():
            given = {} if master_bits is None else {"master_bits": master_bits}
            param = ones(size) if master_bits is None else bfloat16(size)
            gc.collect()
            tracemalloc.start()
            try:
                optimizer = cls(param, state_dtype=state_dtype, **given, **options)
                optimizer.step(param.copy())
                allocated = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            held = sum(x.nbytes for x in snapshot(optimizer)[0].values() if np.ndim(x))
            assert held == size * (moments * of_moment + of_low)
            assert allocated < held + 20_000


@pytest.mark.parametrize("gradient", ["bfloat16", "float16", "float32"])
def test_nothing_is_allocated_in_a_step_over_narrow_storage(gradient: str) -> None:
    params = [bfloat16(100, 50), ones(4100), bfloat16(3)]
    dtype = params[0].dtype if gradient == "bfloat16" else np.dtype(gradient)
    grads = [np.ones(param.shape, dtype) for param in params]
    optimizer = onepass.Adam(params, state_dtype="float8")
    optimizer.step(grads)
    kept, peak = python_memory(lambda: optimizer.step(grads), times=200)
    assert kept < 1000 and peak < 2000
    assert optimizer._scratch == {}, "these gradients are read where they lie"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, bool, np.complex64])
@pytest.mark.parametrize("param", [ones, bfloat16])
def test_integer_and_float8_gradients_are_refused(param: Any, dtype: Any) -> None:
    optimizer = onepass.Adam([param(N)], state_dtype="bfloat16")
    with refused(TypeError, "gradient 0: expected a real floating-point dtype", optimizer):
        optimizer.step([np.ones(N, dtype)])
    with refused(TypeError, "gradient 0: expected a real floating-point dtype, got float8_e4m3fn", optimizer):
        optimizer.step([np.ones(N, pytest.importorskip("ml_dtypes").float8_e4m3fn)])


LAYOUTS = {
    "reversed": lambda g: g[::-1].copy()[::-1],
    "strided": lambda g: np.repeat(g, 2, axis=1)[:, ::2],
    "the other order": lambda g: np.asfortranarray(g) if g.flags.c_contiguous else np.ascontiguousarray(g),
    "broadcast": lambda g: np.broadcast_to(g[:1], g.shape),
    "misaligned": lambda g: np.frombuffer(b"x" + g.tobytes(), np.uint8)[1:].view(g.dtype).reshape(g.shape),
    "read-only": lambda g: np.frombuffer(g.tobytes(), np.uint8).view(g.dtype).reshape(g.shape),
    "swapped": lambda g: g.astype(g.dtype.newbyteorder()),
    "a subclass": lambda g: g.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_any_layout_and_dtype_train_narrow_parameters(layout: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    values = ordinary(rng, (64, 70), np.float32)
    grad = values.astype(bfloat16().dtype if dtype == "bfloat16" else dtype)
    given = LAYOUTS[layout](grad)
    for param in (bfloat16(64, 70), np.asfortranarray(bfloat16(64, 70)), ones(64, 70)):
        params = [param.copy("K") for _ in range(2)]
        made = [onepass.AdamW(p, state_dtype="float8") for p in params]
        for _ in range(2):
            made[0].step(given)
            made[1].step(np.array(given, np.float32, order="C"))
        states = [[x for x in o.state[0].values() if np.ndim(x)] for o in made]
        assert_same_bits([params[0], *states[0]], [params[1], *states[1]])


def test_gradients_of_float64_parameters_may_be_narrow() -> None:
    grad = ordinary(np.random.default_rng(4), 50, np.float32)
    for narrow in (grad.astype(np.float16), grad.astype(bfloat16().dtype)):
        params = np.ones(50), np.ones(50)
        onepass.Adam(params[0]).step(narrow)
        onepass.Adam(params[1]).step(narrow.astype(np.float64))
        assert_same_bits(params[:1], params[1:])


def test_bfloat16_parameters_can_be_flattened_averaged_and_stepped() -> None:
    w, b = onepass.flatten({"w": bfloat16(70, 70), "b": bfloat16(3)}).values()
    assert w.base is b.base and w.dtype == b.dtype == bfloat16().dtype
    optimizer = onepass.Adam({"w": w, "b": b}, lr=0.5, ema_decay=0.5)
    assert optimizer.ema["w"].dtype == np.float32
    optimizer.step({"w": bfloat16(70, 70), "b": bfloat16(3)})
    assert (w == 0.5).all() and (b == 0.5).all() and (optimizer.ema["b"] == 0.75).all()
    with refused(TypeError, "param: expected dtype float32 or float64, got bfloat16 (use an optimizer", arrays=[w]):
        onepass.adam_step(w, w.copy(), w.copy(), w.copy(), 1)
    with refused(TypeError, "expected native byte order"):
        onepass.Adam(np.zeros(3, w.dtype.newbyteorder()))
    read_only = bfloat16(3)
    read_only.flags.writeable = False
    with refused(ValueError, "parameter 1: expected a writeable array"):
        onepass.Adam([bfloat16(2), read_only])
    with refused(ValueError, "parameter 1 overlaps parameter 0 in memory"):
        onepass.Adam([w.reshape(-1)[:60], w.reshape(-1)[50:100]])


def test_a_bfloat16_gradient_adjacent_to_its_parameter_is_read_in_place() -> None:
    rng = np.random.default_rng(5)
    buffer = np.zeros(3 * N, np.uint16)
    narrow, param = buffer[:N].view(bfloat16().dtype), buffer[N:].view(np.float32)
    wide = buffer[: 2 * N].view(np.float32)  # the same address, and an address in the parameter
    expected = ones(N)
    param[...], narrow[...] = 1, ordinary(rng, N, np.float32)
    optimizer, other = onepass.Adam(param), onepass.Adam(expected)
    for grad in (narrow, wide, narrow):
        other.step(grad.copy())
        optimizer.step(grad)
        assert_same_bits([param], [expected])
        assert bool(optimizer._scratch) == (grad is not narrow or optimizer.step_count > 1)
