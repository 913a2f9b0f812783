"""Executable specification of storage in fewer bits: random bits, bfloat16, float8 and split bfloat16 parameters.

Each function is one formula, on arrays of any shape, or on 1-D arrays if it works in groups. The functions examine bits
as integers, so no result depends on whether the processor flushes subnormal numbers. An array ``r`` holds 16 random
bits for each element; ``None`` means rounding to nearest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

DIVISORS = frozenset(
    {"exp_avg_sq", "exp_inf", "square_avg", "sum", "acc_delta"}
)  # rules divide by these states or take their roots
WEIGHTS = frozenset({"z"})  # these states start as copies of the parameter and are never narrow
AT_LEAST_BFLOAT16 = frozenset({"exp_avg_slow"})  # float8's noise is too large for these states
GROUP = 128  # consecutive elements that share a float8 scale
SMALLEST_NARROW = 4096  # smaller tensors keep float32 state
WEIGHT_SLOT = 3  # states take slots 0, 1, 2

SIGN, MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
SMALLEST_NORMAL, LARGEST, INFINITY, NAN = (np.uint32(x) for x in (0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000))
MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def bits_of(x: Array) -> Array:
    """Return the bits of float32 numbers as uint32."""
    return np.asarray(x, np.float32).view(np.uint32)


def floats_of(bits: Array) -> Array:
    """Return the float32 numbers with the given bits."""
    return np.asarray(bits, np.uint32).view(np.float32)


# Random bits: a hash of seed, step, parameter, slot and element.


def mix(x: int) -> int:
    """Return splitmix64's output for the state ``x``."""
    x = (x + 0x9E3779B97F4A7C15) & MASK64
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK64
    return x ^ x >> 31


def random_bits(seed: int, t: int, param: int, q: int, first: int, count: int) -> Array:
    """Return 32 random bits for each of the elements ``first`` … ``first + count - 1`` of a whole tensor."""
    key = mix(mix(mix(seed) ^ t) ^ (param << 8 | q))
    parts, end = [np.empty(0, np.uint32)], first + count
    while first < end:  # each key serves 2**32 elements
        stop = min(end, ((first >> 32) + 1) << 32)
        k = mix(key ^ first >> 32)
        parts.append(hashed(np.arange(first & MASK32, (first & MASK32) + stop - first, dtype=np.uint64), k))
        first = stop
    return np.concatenate(parts)


def hashed(i: Array, k: int) -> Array:
    """Return 32 bits for each index, modulo 2**32, under a key of 64 bits."""
    k0, k1 = np.uint32(k & MASK32), np.uint32(k >> 32)
    x: Array = i.astype(np.uint32) * np.uint32(0x9E3779B1) + k0
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= k1
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


def r16(seed: int, t: int, param: int, slot: int, first: int, count: int) -> Array:
    """Return 16 random bits for each element, as uint32: two slots share a hash."""
    bits = random_bits(seed, t, param, slot >> 1, first, count)
    return bits >> np.uint32(16) if slot & 1 else bits & np.uint32(0xFFFF)


# bfloat16.


def rounded_magnitude(x: Array, r: Array | None, nearest: Array) -> Array:
    """Return the bits of ``x`` after adding ``r`` or ``nearest`` to the magnitude; the caller drops the lower bits."""
    bits = bits_of(x)
    mag = bits & MAGNITUDE
    rounded = mag + nearest if r is None else np.minimum(mag + r, LARGEST)
    finite = mag < INFINITY
    return np.asarray(np.where(finite, rounded, np.where(mag == INFINITY, INFINITY, NAN)) | (bits & SIGN))


def encode_bfloat16(x: Array, r: Array | None) -> Array:
    """Return bfloat16 numbers as uint16. Nearest takes ties to even; stochastic rounding never gives infinity."""
    nearest = np.uint32(0x7FFF) + ((bits_of(x) >> np.uint32(16)) & np.uint32(1))
    return (rounded_magnitude(x, r, nearest) >> np.uint32(16)).astype(np.uint16)


def decode_bfloat16(bits: Array) -> Array:
    """Return bfloat16 numbers, given as uint16, in float32."""
    return floats_of(bits.astype(np.uint32) << np.uint32(16))


# float8_e4m3fn with a scale for each group.


def grouped(x: Array) -> Array:
    """Return the elements as rows of one group each, padded with zeros."""
    return np.pad(x, (0, -x.size % GROUP)).reshape(-1, GROUP)


def encode_float8(x: Array, r: Array | None, divisor: bool) -> tuple[Array, Array]:
    """Return the codes of a 1-D array and the scale of each group.

    A divisor's code is 0 only for zeros and subnormal numbers.
    """
    bits = grouped(bits_of(x))
    mag = bits & MAGNITUDE
    a = floats_of(np.where((mag < SMALLEST_NORMAL) | (mag >= INFINITY), np.uint32(0), mag))
    s = np.maximum(a.max(axis=1, keepdims=True) / np.float32(448), np.float32(2.0**-117))
    z = a * (np.float32(1) / s)
    low = z < np.float32(2.0**-6)
    w = bits_of(np.where(low, z + np.float32(2.0**-6), z))
    nearest = np.uint32(0x7FFFF) + ((w >> np.uint32(20)) & np.uint32(1))
    up = nearest if r is None else (grouped(r) << np.uint32(4)) | np.uint32(8)
    code = ((w + up) >> np.uint32(20)) - np.where(low, np.uint32(968), np.uint32(960))
    code = np.minimum(code, np.uint32(126))
    if divisor:
        code = np.where((a.view(np.uint32) > 0) & (code < 1), np.uint32(1), code)
    code = np.where(mag >= INFINITY, np.uint32(127), code) | ((bits >> np.uint32(24)) & np.uint32(128))
    return code.astype(np.uint8).ravel()[: x.size], s.ravel()


def decode_float8(codes: Array, scales: Array) -> Array:
    """Return the float32 numbers of a 1-D array of codes."""
    c = codes.astype(np.uint32) & np.uint32(127)
    low, nan = c < 8, c == 127
    exponent = np.where(low, np.uint32(968), np.uint32(960))
    value = floats_of((np.where(nan, np.uint32(0), c) + exponent) << np.uint32(20))
    value = (value - np.where(low, np.float32(2.0**-6), np.float32(0))) * np.repeat(scales, GROUP)[: codes.size]
    sign = (codes.astype(np.uint32) & np.uint32(128)) << np.uint32(24)
    return floats_of(np.where(nan, NAN, bits_of(value)) | sign)


# bfloat16 parameters with lower bits in the state.


def split(x: Array) -> tuple[Array, Array]:
    """Return the nearest bfloat16 (ties away from zero) as uint16, and the lower half as int16."""
    bits = bits_of(x)
    bits = np.where((bits & MAGNITUDE) > INFINITY, NAN, bits)
    hi = (bits + np.uint32(0x8000)) >> np.uint32(16)
    return hi.astype(np.uint16), bits.astype(np.uint16).view(np.int16)


def join(hi: Array, low: Array) -> Array:
    """Return the float32 numbers from both halves. A negative lower half of a zero, written by a user, counts as 0."""
    low = np.where(((hi & np.uint16(0x7FFF)) == 0) & (low < 0), np.int32(0), low.astype(np.int32))
    return floats_of((hi.astype(np.uint32) << np.uint32(16)) + low.view(np.uint32))


def split24(x: Array, r: Array | None) -> tuple[Array, Array]:
    """Return a bfloat16 as uint16 and the next 8 bits as int8."""
    r8 = None if r is None else r >> np.uint32(8)
    bits = rounded_magnitude(x, r8, np.full((), 0x80, np.uint32)) & np.uint32(0xFFFFFF00)
    hi = (bits + np.uint32(0x8000)) >> np.uint32(16)
    return hi.astype(np.uint16), (bits >> np.uint32(8)).astype(np.uint8).view(np.int8)


def join24(hi: Array, low8: Array) -> Array:
    """Return the float32 numbers from a bfloat16 and the next 8 bits."""
    return join(hi, low8.astype(np.int16) << np.int16(8))


# float16 gradients.


def widen_float16(bits: Array) -> Array:
    """Return float16 numbers, given as uint16, in float32, exactly; a subnormal float16 is a normal float32."""
    h = bits.astype(np.uint32)
    mag = h & np.uint32(0x7FFF)
    subnormal = bits_of((mag & np.uint32(0x3FF)).astype(np.float32) * np.float32(2.0**-24))
    normal = (mag << np.uint32(13)) + np.where(mag < 0x7C00, np.uint32(112 << 23), np.uint32(224 << 23))
    return floats_of(np.where(mag < 0x400, subnormal, normal) | ((h & np.uint32(0x8000)) << np.uint32(16)))


def widened(grad: Any) -> Array:
    """Return a 16-bit gradient in float32, or any other gradient as an array."""
    grad = np.asarray(grad)
    grad = grad if grad.dtype.isnative else grad.astype(grad.dtype.newbyteorder("="))
    if is_bfloat16(grad):
        return decode_bfloat16(grad.view(np.uint16))
    return widen_float16(grad.view(np.uint16)) if grad.dtype == np.float16 else grad


# Whole arrays, dense and of any layout. A companion holds the scales of float8 codes or the lower bits of a parameter.


def is_bfloat16(array: Array) -> bool:
    """Return True for an array of dtype ml_dtypes.bfloat16."""
    return array.dtype.name == "bfloat16"


def is_narrow(stored: Array) -> bool:
    """Return True for an array of any dtype except float32 and float64."""
    return stored.dtype not in (np.float32, np.float64)


def in_memory(array: Array) -> Array:
    """Return a view of the elements of a dense array in memory order."""
    bits = array.view(np.uint16) if is_bfloat16(array) else array
    return np.lib.stride_tricks.as_strided(bits, (bits.size,), (bits.itemsize,))


def decode(stored: Array, companion: Array | None) -> Array:
    """Return the float32 numbers in narrow storage, or any other array unchanged."""
    if not is_narrow(stored):
        return stored
    bits, numbers = in_memory(stored), np.empty_like(stored, np.float32)
    if companion is None:
        in_memory(numbers)[...] = decode_bfloat16(bits)
    elif stored.dtype == np.uint8:
        in_memory(numbers)[...] = decode_float8(bits, companion)
    else:
        in_memory(numbers)[...] = (join if companion.dtype == np.int16 else join24)(bits, in_memory(companion))
    return numbers


def encode(numbers: Array, stored: Array, companion: Array | None, r: Array | None, divisor: bool = False) -> None:
    """Write float32 numbers into narrow storage."""
    x, bits = in_memory(numbers), in_memory(stored)
    if companion is None:
        bits[...] = encode_bfloat16(x, r)
    elif stored.dtype == np.uint8:
        bits[...], companion[...] = encode_float8(x, r, divisor)
    else:
        bits[...], in_memory(companion)[...] = split(x) if companion.dtype == np.int16 else split24(x, r)


def stored_state(name: str, numbers: Array, state_dtype: str | None) -> dict[str, Array]:
    """Return, by name, the arrays that store a state rounded to nearest."""
    if state_dtype is None or numbers.size < SMALLEST_NARROW:
        return {name: numbers}
    is_float8 = state_dtype == "float8" and name not in AT_LEAST_BFLOAT16
    arrays = {name: np.empty_like(numbers, np.uint8 if is_float8 else np.uint16)}
    if is_float8:
        arrays[f"{name}_scale"] = np.empty(-(-numbers.size // GROUP), np.float32)
    encode(numbers, arrays[name], arrays.get(f"{name}_scale"), None, name in DIVISORS)
    return arrays
