"""Helpers of several tests: test numbers, bitwise comparison, and errors that change nothing."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import onepass
from onepass._reference import storage as reference_storage

try:
    import ml_dtypes
except ImportError:  # a test that needs it calls pytest.importorskip
    BFLOAT16: Any = None
else:
    BFLOAT16 = ml_dtypes.bfloat16

Array = npt.NDArray[Any]
DTYPES = [np.float32, np.float64]
# AddressSanitizer must be the first preloaded library, and reserves more memory than a limit allows.
unsanitized = pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="not under AddressSanitizer")


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def bits(array: Array) -> Array:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)


def differing(a: Array, b: Array) -> int:
    """Count the elements that differ in any bit. NaNs count as equal, whatever their sign and payload."""
    assert a.dtype == b.dtype and a.shape == b.shape
    return int(np.sum((bits(a) != bits(b)) & ~(np.isnan(a) & np.isnan(b))))


def assert_same_bits(actual: Iterable[Array], expected: Iterable[Array], context: object = "") -> None:
    for which, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if count := differing(a, b):
            first = np.flatnonzero((bits(a) != bits(b)) & ~(np.isnan(a) & np.isnan(b)))[0]
            raise AssertionError(
                f"array {which}: {count} of {a.size} elements differ, the first at {first}: "
                f"{a.flat[first]!r} should be {b.flat[first]!r} ({context})"
            )


def comparable(array: Array) -> Array:
    """Return narrow numbers as float32, other arrays unchanged. Only patterns of NaN become equal."""
    if array.dtype.itemsize == 2 and array.dtype != np.int16:
        numbers = reference_storage.decode_bfloat16(bits(array).ravel())
    elif array.dtype.itemsize == 1 and array.dtype != np.int8:
        codes = bits(array).ravel()
        numbers = reference_storage.decode_float8(codes, np.ones(-(-codes.size // 128), np.float32))
    else:
        return array
    return numbers.reshape(array.shape)


def assert_is_reference(optimizer: onepass.Optimizer, reference: Any, context: object = "") -> None:
    """Compare parameters, state, averages and counts of an optimizer with those of a `Reference`, to the bit."""
    params = [param for group in optimizer.groups for param in group.params]
    assert_same_bits(map(comparable, params), map(comparable, reference.params), f"parameters, {context}")
    states = zip(snapshot(optimizer), reference.state, reference.ema, strict=True)
    for index, (own, expected, average) in enumerate(states):
        expected = expected if average is None else {**expected, "ema": average}
        assert own.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, np.ndarray):
                assert own[name].flags.f_contiguous == value.flags.f_contiguous
                assert_same_bits([comparable(own[name])], [comparable(value)], f"{name} of {index}, {context}")
            else:
                assert own[name] == value, name
    assert (optimizer.step_count, optimizer.skipped) == (reference.step_count, reference.skipped)
    assert repr(optimizer.grad_norm) == repr(reference.grad_norm)


def ordinary(rng: np.random.Generator, size: Any, dtype: Any) -> Array:
    """Draw numbers as they occur in training."""
    return np.asarray(rng.standard_normal(size), dtype)


def hostile(rng: np.random.Generator, size: Any, dtype: Any) -> Array:
    """Draw numbers over the whole exponent range, with subnormals, zeros of both signs, infinities and NaNs."""
    info = np.finfo(dtype)
    exponents = rng.integers(info.minexp - info.nmant - 2, info.maxexp, size)
    values = np.ldexp(rng.uniform(1, 2, size) * rng.choice([-1.0, 1.0], size), exponents)
    kind = rng.integers(0, 50, size)
    values = np.where(kind < 4, 0.0, values)
    values = np.where(kind == 4, -0.0, values)
    values = np.where(kind == 5, np.inf, values)
    values = np.where(kind == 6, -np.inf, values)
    values = np.where(kind == 7, np.nan, values)
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def small(rng: np.random.Generator, size: Any, dtype: Any) -> Array:
    """Draw numbers whose squares and small multiples straddle the smallest normal number."""
    info = np.finfo(dtype)
    exponents = rng.choice([info.minexp - 2, info.minexp - 1, info.minexp, info.minexp + 4, info.minexp // 2], size)
    return np.asarray(np.ldexp(rng.uniform(1, 2, size) * rng.choice([-1.0, 1.0], size), exponents), dtype)


def skip_unspecified_flushing(flush: bool, values: str) -> None:
    """Skip the test on Arm if it flushes small numbers: Arm detects subnormal results before it rounds them."""
    if flush and values == "small" and platform.machine() in ("aarch64", "arm64", "ARM64"):
        pytest.skip("the specification detects subnormal results after rounding, as x86 does")


def offset(array: Array, elements: int) -> Array:
    """Return a copy that starts this many elements after the start of a cache line."""
    item = array.dtype.itemsize
    buffer = np.empty(array.size + 64 // item + elements, array.dtype)
    start = (-buffer.ctypes.data // item) % (64 // item) + elements
    view = buffer[start : start + array.size]
    view[...] = array
    return view


def make_targets(root: Path) -> set[str]:
    """Return the targets of the makefiles."""
    makefiles = (root / "Makefile", root / "tests" / "cpp" / "core.mk")
    texts = [makefile.read_text(encoding="utf-8") for makefile in makefiles]
    return {name for text in texts for name in re.findall(r"^([a-z-]+):", text, re.MULTILINE)}


@contextmanager
def refused(
    error: type[BaseException], message: str, *optimizers: onepass.Optimizer, arrays: Iterable[Array] = ()
) -> Iterator[Any]:
    """Assert that the block raises this error and changes no array and no optimizer (with state, counts, options)."""

    def everything() -> list[Any]:
        found: list[Any] = [bits(a).tolist() for a in arrays]
        for optimizer in optimizers:
            found.append([bits(np.asarray(p)).tolist() for group in optimizer.groups for p in group.params])
            found.append([{name: bits(np.asarray(x)).tolist() for name, x in s.items()} for s in snapshot(optimizer)])
            # The representation of the norm, because a NaN differs from itself.
            found.append((optimizer.step_count, optimizer.skipped, repr(optimizer.grad_norm)))
            found.append((repr(optimizer), repr(optimizer.groups), list(optimizer.state)))
        return found

    before = everything()
    with pytest.raises(error, match=re.escape(message) or None) as caught:
        yield caught
    assert caught.type is error
    assert everything() == before


def snapshot(optimizer: onepass.Optimizer) -> list[dict[str, Any]]:
    """Return each parameter's state, with its average if there is one."""
    averages = optimizer.ema
    if isinstance(averages, np.ndarray):
        averages = [averages]
    elif isinstance(averages, dict):
        averages = averages.values()
    states = list(optimizer.state.values())
    return [s | {"ema": e} for s, e in zip(states, averages)] if averages is not None else states


def mode_reader() -> Callable[[], int]:
    """Return a function that reads the control bits of MXCSR; 0 where there is no machine code for it."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return lambda: 0
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0fae5c24fc8b4424fcc3"))  # stmxcsr [rsp-4]; mov eax, [rsp-4]; ret
    function = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return lambda code=code: function() & 0xFFC0  # type: ignore[misc]  # which holds the code


mode = mode_reader()
MODE = mode()


class Subclass(np.ndarray):
    """Array type of another library."""


def layouts(grad: Array) -> dict[str, Array]:
    """Return copies of a two-dimensional gradient in other layouts and dtypes."""
    misaligned = np.empty(grad.nbytes + 1, np.uint8)[1:].view(grad.dtype).reshape(grad.shape)
    misaligned[...] = grad
    readonly = grad.copy()
    readonly.flags.writeable = False
    every_other = np.zeros((grad.shape[0] * 2, grad.shape[1] * 3), grad.dtype)[::2, ::3]
    every_other[...] = grad
    return {
        "C": np.ascontiguousarray(grad),
        "Fortran": np.asfortranarray(grad),
        "strided": every_other,
        "reversed": grad[::-1].copy()[::-1],
        "misaligned": misaligned,
        "read-only": readonly,
        "other byte order": grad.astype(grad.dtype.newbyteorder()),
        "longdouble": grad.astype(np.longdouble),
        "subclass": grad.view(Subclass),
        "unpickled dtype": np.frombuffer(grad.tobytes(), grad.dtype).reshape(grad.shape),
    }


def python_memory(call: Callable[[], object], times: int) -> tuple[int, int]:
    """Call a function repeatedly; return the bytes that stay allocated by Python, and their peak."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(times):
            call()
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size - before, peak - before


@contextmanager
def busy(*functions: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Call these functions repeatedly, each in its own thread, switching as often as possible; collect their errors."""
    stop, errors = threading.Event(), []

    def loop(function: Callable[[], None]) -> None:
        try:
            while not stop.is_set():
                function()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=loop, args=(function,)) for function in functions]
    try:
        for thread in threads:
            thread.start()
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
