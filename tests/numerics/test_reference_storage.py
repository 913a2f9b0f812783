"""Storage formats of the specification: float8, bfloat16, split weights."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from onepass._reference.storage import (
    decode_bfloat16,
    decode_float8,
    encode_bfloat16,
    encode_float8,
    join,
    join24,
    r16,
    split,
    split24,
    widen_float16,
)
from support import Array, assert_same_bits, bits, hostile, ordinary, small

LARGEST = float(np.finfo(np.float32).max)


def f32(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def patterns(*numbers: int) -> Array:
    return np.array(numbers, np.uint32).view(np.float32)


def every_upper_half() -> Array:
    """Return every bfloat16 number with lower halves next to rounding ties."""
    upper = np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7F, 0x80, 0x81, 0x7FFF, 0x8000, 0x8001, 0xFF7F, 0xFF80, 0xFFFF], np.uint32)
    return np.asarray((upper[:, None] | lower).ravel().view(np.float32))


def chunks_of_patterns() -> Any:
    """Return all patterns of float32 if the environment requests it, otherwise a sample with a stride."""
    if os.environ.get("ONEPASS_ALL_PATTERNS") == "1":
        for start in range(0, 2**32, 2**22):
            yield np.arange(start, start + 2**22, dtype=np.uint64).astype(np.uint32).view(np.float32)
    else:
        yield np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32).view(np.float32)
        yield every_upper_half()


def repeatable(count: int, slot: int = 0) -> Array:
    return r16(1, 2, 3, slot, 0, count)


def test_nearest_bfloat16_matches_the_cast_of_ml_dtypes() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    for x in chunks_of_patterns():
        with np.errstate(invalid="ignore"):
            expected = x.astype(bfloat16).view(np.uint16)
        actual = encode_bfloat16(x, None)
        assert ((actual == expected) | np.isnan(x)).all()
        assert (actual[np.isnan(x)] & 0x7FFF == 0x7FC0).all()


def test_decoded_bfloat16_matches_ml_dtypes() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    codes = np.arange(2**16, dtype=np.uint16)
    assert_same_bits([decode_bfloat16(codes)], [codes.view(bfloat16).astype(np.float32)])


@pytest.mark.parametrize("r", [0, 1, 0x8000, 0xFFFF])
def test_a_number_that_fits_bfloat16_is_stored_exactly_with_any_random_bits(r: int) -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    x = decode_bfloat16(codes)
    number = ~np.isnan(x)
    assert (encode_bfloat16(x, np.full(x.size, r, np.uint32))[number] == codes[number]).all()


def test_stochastic_bfloat16_rounds_to_one_of_the_two_neighbours() -> None:
    x = hostile(np.random.default_rng(0), 100_000, np.float32)
    rounded = encode_bfloat16(x, repeatable(x.size)).astype(np.int64)
    below = bits(x).astype(np.int64) >> 16
    finite = np.isfinite(x)
    assert np.isin((rounded - below)[finite], [0, 1]).all()
    assert (rounded[np.isinf(x)] == below[np.isinf(x)]).all()
    assert np.isnan(decode_bfloat16(rounded[np.isnan(x)].astype(np.uint16))).all()


def test_the_lower_half_of_the_bits_is_the_probability_of_rounding_up() -> None:
    r = np.arange(2**16, dtype=np.uint32)
    for pattern in (0x3F800000, 0x3F800001, 0x3F80FFFF, 0xBF801234, 0x00001234, 0x807F8000, 0x7E00ABCD):
        rounded = encode_bfloat16(np.full(2**16, patterns(pattern)), r).astype(np.int64)
        assert (rounded - (pattern >> 16)).sum() == pattern & 0xFFFF


def test_stochastic_bfloat16_never_rounds_to_infinity_but_nearest_may() -> None:
    x = patterns(0x7F7FFFFF, 0xFF7FFFFF, 0x7F7F8000)
    assert encode_bfloat16(x, np.full(3, 0xFFFF, np.uint32)).tolist() == [0x7F7F, 0xFF7F, 0x7F7F]
    assert encode_bfloat16(x, None).tolist() == [0x7F80, 0xFF80, 0x7F80]


def test_stochastic_bfloat16_is_unbiased() -> None:
    x = ordinary(np.random.default_rng(1), 2**18, np.float32)
    error = decode_bfloat16(encode_bfloat16(x, repeatable(x.size))).astype(np.float64) / x - 1
    assert abs(error).max() <= 2**-7
    assert abs(error.mean()) < 6 * 2**-7 / 2 / x.size**0.5


def test_every_decoded_float8_code_matches_ml_dtypes() -> None:
    float8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
    codes = np.arange(256, dtype=np.uint8)
    assert_same_bits([decode_float8(codes, f32(1, 1))], [codes.view(float8).astype(np.float32)])
    assert_same_bits(
        [decode_float8(codes, f32(0.5, 8))[::-1][:128]], [codes[:127:-1].view(float8).astype(np.float32) * 8]
    )


def test_float8_at_scale_one_matches_the_cast_of_ml_dtypes() -> None:
    float8 = pytest.importorskip("ml_dtypes").float8_e4m3fn
    rng = np.random.default_rng(2)
    x = np.ldexp(rng.uniform(-1, 1, (4000, 128)), rng.integers(-12, 9, (4000, 128))).astype(np.float32)
    x = np.clip(x, -448, 448)
    x[:, 5] = 448
    codes, scales = encode_float8(x.ravel(), None, False)
    assert (scales == 1).all()
    # The sum with 2**-6 rounds elements that get subnormal codes to a multiple of 2**-29, which may make a tie.
    summed = np.where(abs(x) < 2.0**-6, np.rint(x * 2.0**29) / 2.0**29, x)
    assert (codes == summed.ravel().astype(float8).view(np.uint8)).all()
    assert (codes != x.ravel().astype(float8).view(np.uint8)).sum() < 10


@pytest.mark.parametrize("divisor", [False, True])
@pytest.mark.parametrize("r", [None, 0, 0xFFFF, "random"])
def test_encoding_a_decoded_float8_group_changes_nothing(r: Any, divisor: bool) -> None:
    rng = np.random.default_rng(3)
    draws = [ordinary(rng, 200_000, np.float32), hostile(rng, 200_000, np.float32), small(rng, 200_000, np.float32)]
    draws.append(np.asarray(np.exp(rng.normal(0, 4, 200_000)), np.float32))
    codes = np.arange(1280) % 127  # every code, with the largest in each group
    draws.append(decode_float8(np.append(codes, 126).astype(np.uint8), np.repeat(np.float32(2.0**-117), 11)))
    for x in draws:
        x = abs(x) if divisor else x
        random = repeatable(x.size) if r == "random" else None if r is None else np.full(x.size, r, np.uint32)
        once = encode_float8(x, random, divisor)
        again = encode_float8(decode_float8(*once), random, divisor)
        assert (again[0] == once[0]).all() and (bits(again[1]) == bits(once[1])).all()


def float8_code(x: np.float32, inverse: np.float32, random: int | None, divisor: bool) -> int:
    """Return the code of one element by the documented formula, step by step."""
    pattern = int(x.view(np.uint32))
    mag = pattern & 0x7FFFFFFF
    if mag >= 0x7F800000:
        return 127 | pattern >> 31 << 7
    a = np.float32(0) if mag < 0x00800000 else abs(x)
    z = a * inverse
    w, offset = (z + np.float32(2.0**-6), 968) if z < 2.0**-6 else (z, 960)
    number = int(np.float32(w).view(np.uint32))
    r = 0x7FFFF + (number >> 20 & 1) if random is None else random << 4 | 8
    code = min((number + r >> 20) - offset, 126)
    return (1 if divisor and a > 0 and code < 1 else code) | pattern >> 31 << 7


@pytest.mark.parametrize("divisor", [False, True])
def test_float8_codes_match_the_formula_near_rounding_ties(divisor: bool) -> None:
    rng = np.random.default_rng(14)
    values = decode_float8(np.arange(127, dtype=np.uint8), f32(1)).astype(np.float64)
    borders = np.append((values[1:] + values[:-1]) / 2, [0, 448])
    x = np.ldexp(rng.uniform(1, 2, 150), rng.integers(-107, 119, 150))[:, None] * borders
    x = (x * (1 + rng.integers(-2, 3, x.shape) * 2.0**-24)).astype(np.float32)
    x[:50] = hostile(rng, (50, 128), np.float32)
    for r in (None, repeatable(x.size)):
        codes, scales = encode_float8(x.ravel(), r, divisor)
        for group, scale in enumerate(scales):
            finite = abs(x[group][np.isfinite(x[group])])
            assert scale == max(np.float32(finite.max() / np.float32(448)), np.float32(2.0**-117))
        inverses = np.repeat(np.float32(1) / scales, 128)
        randoms = [None] * x.size if r is None else r.tolist()
        expected = [float8_code(*each, divisor) for each in zip(x.ravel(), inverses, randoms)]
        assert codes.tolist() == expected


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 300])
def test_the_last_float8_group_may_be_shorter(length: int) -> None:
    rng = np.random.default_rng(4)
    x, random = ordinary(rng, length, np.float32), repeatable(length)
    codes, scales = encode_float8(x, random, False)
    assert codes.shape == (length,) and scales.shape == (-(-length // 128),)
    assert codes.dtype == np.uint8 and scales.dtype == np.float32
    for group, start in enumerate(range(0, length, 128)):  # each group encoded separately gives the same codes
        own = encode_float8(x[start : start + 128], random[start : start + 128], False)
        assert (own[0] == codes[start : start + 128]).all() and own[1] == scales[group]
    assert decode_float8(codes, scales).shape == (length,)


@pytest.mark.parametrize("r", [None, "random"])
def test_the_error_of_float8_is_bounded_by_the_distance_of_codes(r: Any) -> None:
    rng = np.random.default_rng(5)
    x = (ordinary(rng, 128_000, np.float32) * np.exp(rng.normal(0, 3, 128_000))).astype(np.float32)
    codes, scales = encode_float8(x, None if r is None else repeatable(x.size), False)
    error = abs(decode_float8(codes, scales).astype(np.float64) - x)
    step = np.maximum(abs(x) * 2**-3, np.repeat(scales, 128) * 2.0**-9)  # the distance of neighbouring codes
    assert (error <= step * (0.5 if r is None else 1) * (1 + 1e-6)).all()


def test_stochastic_float8_is_unbiased() -> None:
    for x in (3.1, -0.77, 0.013, 2.0**-7, 0.0071, 1e-3, 448.0):
        groups = np.full((1024, 128), x, np.float32)
        groups[:, ::2] = 448  # for a scale of one
        codes, scales = encode_float8(groups.ravel(), np.arange(2**16, dtype=np.uint32).repeat(2), False)
        assert (scales == 1).all()
        mean = decode_float8(codes, scales)[1::2].astype(np.float64).mean()
        assert abs(mean - np.float32(x)) <= max(abs(x) * 2**-3, 2**-9) * 2**-16


def test_the_largest_element_of_a_float8_group_is_kept_within_one_ulp() -> None:
    rng = np.random.default_rng(6)
    x = np.zeros((20_000, 128), np.float32)
    x[:, 7] = np.ldexp(rng.uniform(1, 2, 20_000), rng.integers(-107, 128, 20_000))
    x[0, 7], x[1, 7] = LARGEST, np.nextafter(np.float32(LARGEST), np.float32(0))
    for random in (None, np.full(x.size, 0, np.uint32), np.full(x.size, 0xFFFF, np.uint32)):
        kept = decode_float8(*encode_float8(x.ravel(), random, True)).reshape(x.shape)[:, 7]
        assert abs(bits(kept).astype(np.int64) - bits(x[:, 7])).max() <= 1


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_uniform_decay_changes_float8_scales_instead_of_codes(rounding: str) -> None:
    x = np.asarray(np.random.default_rng(7).uniform(0.01, 1, 512), np.float32)
    codes, scales = first = encode_float8(x, None, True)
    for t in range(2000):
        random = None if rounding == "nearest" else r16(0, t, 0, 1, 0, 512)
        codes, scales = encode_float8(decode_float8(codes, scales) * np.float32(0.999), random, True)
    moved = codes.astype(int) - first[0]
    assert abs(moved).max() <= (0 if rounding == "nearest" else 1) and (moved != 0).mean() < 0.3
    assert np.allclose(scales, first[1] * np.float64(np.float32(0.999)) ** 2000, rtol=2e-5)


def test_numbers_that_are_not_finite_do_not_change_their_float8_group() -> None:
    x = ordinary(np.random.default_rng(8), 384, np.float32)
    expected = encode_float8(x, repeatable(384), False)
    smallest = int(abs(x[128:256]).argmin()) + 128
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        y = x.copy()
        y[smallest] = value
        codes, scales = encode_float8(y, repeatable(384), False)
        assert codes[smallest] & 127 == 127 and (codes[smallest] >> 7 == np.signbit(y[smallest])).all()
        assert (np.delete(codes, smallest) == np.delete(expected[0], smallest)).all() and (scales == expected[1]).all()
        assert np.flatnonzero(np.isnan(decode_float8(codes, scales))).tolist() == [smallest]
    codes, scales = encode_float8(np.full(128, np.nan, np.float32), None, True)
    assert (codes == 127).all() and scales == np.float32(2.0**-117)


def test_a_huge_element_makes_small_neighbours_zero_or_the_smallest_code() -> None:
    x = np.ones(256, np.float32)
    x[200], x[210], x[211] = 1e30, 0, -0.0
    codes, _ = encode_float8(x, None, False)
    assert codes[128:].tolist() == [126 if i == 200 else 128 if i == 211 else 0 for i in range(128, 256)]
    assert (codes[:128] == 126).all()
    codes, _ = encode_float8(x, None, True)
    assert codes[128:].tolist() == [126 if i == 200 else {210: 0, 211: 128}.get(i, 1) for i in range(128, 256)]


def test_tiny_numbers_get_the_smallest_float8_scale() -> None:
    smallest, tiny = np.float32(2.0**-117), np.finfo(np.float32).tiny
    codes, scales = encode_float8(np.zeros(128, np.float32), None, True)
    assert not codes.any() and scales == smallest  # an all-zero group
    x = np.array([tiny, -tiny, tiny * 4, 1e-40, -1e-45, 0.0], np.float32)  # subnormal numbers count as zero
    for divisor in (False, True):
        codes, scales = encode_float8(x, None, divisor)
        assert codes.tolist() == [1, 129, 4, 0, 128, 0] and scales == smallest
        assert_same_bits([decode_float8(codes, scales)], [f32(tiny, -tiny, tiny * 4, 0, -0.0, 0)])
    normal = np.ldexp(np.arange(1, 127), -126).astype(np.float32)
    assert (decode_float8(*encode_float8(normal, None, False)) >= tiny).all()  # no product of a scale is subnormal


def test_the_float8_code_of_a_divisor_is_zero_only_for_zero() -> None:
    rng = np.random.default_rng(9)
    for values in (hostile, ordinary, small):
        x = abs(values(rng, 50_000, np.float32))
        for random in (None, np.zeros(x.size, np.uint32), repeatable(x.size)):
            codes, scales = encode_float8(x, random, True)
            assert ((codes == 0) == (x < np.finfo(np.float32).tiny)).all()
            v = decode_float8(codes, scales)
            assert (np.sqrt(v) > 0).sum() + np.isnan(v).sum() == (codes > 0).sum()


def test_a_gradient_spike_enlarges_the_divisors_of_its_group_temporarily() -> None:
    """After a gradient of 1e5 among ordinary ones, sqrt(v) of its group is too large, never too small, and recovers."""
    codes, scales = encode_float8(np.ones(128, np.float32), None, True)
    roots = []
    rng = np.random.default_rng(10)
    for t in range(1, 6001):
        g = np.asarray(rng.choice([-1.0, 1.0], 128), np.float32)
        g[3] = 1e5 if t == 1 else g[3]
        v = np.float32(0.999) * decode_float8(codes, scales) + np.float32(0.001) * (g * g)
        codes, scales = encode_float8(v, r16(0, t, 0, 1, 0, 128), True)
        roots.append(float(np.median(np.sqrt(decode_float8(codes, scales))[10:])))
    assert roots[0] > 5 and roots[1000] > 3 and min(roots) > 0.9
    assert 0.9 < roots[-1] < 1.1
    recovered = max(t for t, root in enumerate(roots) if root > 1.5)
    assert 2000 < recovered < 5000


def test_second_moments_follow_a_change_only_with_stochastic_rounding() -> None:
    rng = np.random.default_rng(0)
    n, beta, rest = 4096, np.float32(0.999), np.float32(1 - 0.999)
    exact = np.zeros(n, np.float32)
    float8 = {None: encode_float8(exact, None, True), 0: encode_float8(exact, None, True)}
    bfloat16 = {None: encode_bfloat16(exact, None), 0: encode_bfloat16(exact, None)}
    for t in range(1, 6001):
        if t in (1, 3001):
            sizes = np.exp(rng.normal(0, 1, n)) * np.where(rng.random(n) < 0.1, 1 / 50, 1)
        g = (sizes * rng.standard_normal(n)).astype(np.float32)
        change = rest * (g * g)
        exact = beta * exact + change
        for seed, r in ((None, None), (0, r16(0, t, 0, 0, 0, n))):
            float8[seed] = encode_float8(beta * decode_float8(*float8[seed]) + change, r, True)
            bfloat16[seed] = encode_bfloat16(beta * decode_bfloat16(bfloat16[seed]) + change, r)

    def error(v: Array) -> float:
        return float(np.median(abs(np.log(v / exact)) / 2))

    errors = {
        "float8 nearest": error(decode_float8(*float8[None])),
        "float8 stochastic": error(decode_float8(*float8[0])),
        "bfloat16 nearest": error(decode_bfloat16(bfloat16[None])),
        "bfloat16 stochastic": error(decode_bfloat16(bfloat16[0])),
    }

    assert errors["float8 stochastic"] <= 0.12 and errors["bfloat16 stochastic"] <= 0.02, errors
    assert errors["float8 nearest"] > 0.2 and errors["bfloat16 nearest"] > 0.2, errors


def test_split_loses_nothing_and_its_upper_half_is_the_nearest_bfloat16() -> None:
    for x in chunks_of_patterns():
        hi, low = split(x)
        assert hi.dtype == np.uint16 and low.dtype == np.int16
        joined, nan = join(hi, low), np.isnan(x)
        assert ((bits(joined) == bits(x)) | nan).all()
        assert (bits(joined)[nan] == 0x7FC00000).all()
        # Ties go away from zero; elsewhere the upper half is the nearest bfloat16.
        tie = bits(x) & 0xFFFF == 0x8000
        assert ((hi == encode_bfloat16(x, None)) | nan | tie).all()
        assert (hi[tie & ~nan] == (bits(x)[tie & ~nan] >> 16) + 1).all()


def test_weights_whose_upper_half_is_infinite_are_kept() -> None:
    x = patterns(0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7F8000)
    hi, low = split(x)
    assert hi.tolist() == [0x7F7F, 0x7F80, 0x7F80, 0xFF80]
    assert_same_bits([join(hi, low)], [x])


@pytest.mark.parametrize("zero", [0, 0x8000])
def test_zero_in_the_upper_half_clears_negative_lower_bits(zero: int) -> None:
    hi = np.full(2**16, zero, np.uint16)
    low = np.arange(-(2**15), 2**15).astype(np.int16)
    expected = np.uint32(zero << 16) + np.where(low < 0, 0, low).astype(np.uint32)
    assert (bits(join(hi, low)) == expected).all()
    eight = np.arange(-128, 128).astype(np.int8)
    expected = np.uint32(zero << 16) + (np.where(eight < 0, 0, eight).astype(np.uint32) << np.uint32(8))
    assert (bits(join24(hi[:256], eight)) == expected).all()


def test_no_number_is_split_into_zero_and_a_negative_lower_half() -> None:
    x = np.arange(2**17, dtype=np.uint32)
    for sign in (np.uint32(0), np.uint32(2**31)):
        for hi, low in (split((x | sign).view(np.float32)), split24((x | sign).view(np.float32), None)):
            assert (low[hi & 0x7FFF == 0] >= 0).all()


def test_old_lower_bits_move_a_written_weight_by_at_most_half_a_unit() -> None:
    rng = np.random.default_rng(11)
    low = rng.integers(-(2**15), 2**15, 10_000).astype(np.int16)
    hi = encode_bfloat16(ordinary(rng, 10_000, np.float32), None)
    written = decode_bfloat16(hi)
    assert (abs(join(hi, low).astype(np.float64) - written) <= np.ldexp(1.0, np.frexp(written)[1] - 9)).all()


@pytest.mark.parametrize("r", [None, 0, 0xFF, 0xFFFF, "random"])
def test_split24_keeps_16_bits_of_the_significand(r: Any) -> None:
    for x in [every_upper_half(), hostile(np.random.default_rng(12), 100_000, np.float32)]:
        random = repeatable(x.size) if r == "random" else None if r is None else np.full(x.size, r, np.uint32)
        hi, low8 = split24(x, random)
        assert hi.dtype == np.uint16 and low8.dtype == np.int8
        kept = join24(hi, low8)
        before, after = bits(x).astype(np.int64), bits(kept).astype(np.int64)
        finite = np.isfinite(x) & (np.isfinite(kept) | (r is not None))
        assert np.isfinite(kept)[finite].all() and (after[finite] & 0xFF == 0).all()
        moved = (after - before)[finite]
        assert (abs(moved) <= (0x80 if r is None else 0xFF)).all()
        assert (after[np.isinf(x)] == before[np.isinf(x)]).all() and np.isnan(kept[np.isnan(x)]).all()
        again = split24(kept, random)  # stored numbers are not changed by any random bits
        number = ~np.isnan(kept)
        assert (again[0] == hi)[number].all() and (again[1] == low8)[number].all()


def test_the_lowest_byte_is_the_probability_of_rounding_up_in_split24() -> None:
    r = np.arange(2**16, dtype=np.uint32)
    for pattern in (0x3F800000, 0x3F800001, 0x3F8012FF, 0xBF80FF34, 0x00001234):
        kept = join24(*split24(np.full(2**16, patterns(pattern)), r))
        assert (bits(kept).astype(np.int64) - (pattern & ~0xFF)).sum() == (pattern & 0xFF) * 2**16


def test_split24_adds_the_upper_8_random_bits_or_a_half() -> None:
    x = np.full(4, patterns(0x3F812380))
    kept = join24(*split24(x, np.array([0x00FF, 0x7FFF, 0x8000, 0xFF00], np.uint32)))
    assert bits(kept).tolist() == [0x3F812300, 0x3F812300, 0x3F812400, 0x3F812400]
    halves = patterns(0x3F81237F, 0x3F812380, 0x3F812480, 0xBF812380)  # ties go away from zero
    assert bits(join24(*split24(halves, None))).tolist() == [0x3F812300, 0x3F812400, 0x3F812500, 0xBF812400]


def test_stochastic_split24_never_rounds_to_infinity() -> None:
    hi, low8 = split24(f32(LARGEST, -LARGEST), np.full(2, 0xFFFF, np.uint32))
    assert bits(join24(hi, low8)).tolist() == [0x7F7FFF00, 0xFF7FFF00] and hi.tolist() == [0x7F80, 0xFF80]


def test_widened_float16_matches_numpy() -> None:
    codes = np.arange(2**16, dtype=np.uint16)
    assert (bits(widen_float16(codes)) == bits(codes.view(np.float16).astype(np.float32))).all()


@contextmanager
def flushing() -> Iterator[None]:
    """Set the flags of MXCSR that flush subnormal results and treat subnormal operands as zero."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        pytest.skip("no machine code for this platform")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("897c24fc0fae5424fcc3"))  # mov [rsp-4], edi; ldmxcsr [rsp-4]; ret
    load = ctypes.CFUNCTYPE(None, ctypes.c_uint32)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    load(0x1F80 | 0x8040)
    try:
        yield
    finally:
        load(0x1F80)


def test_conversions_ignore_the_processors_flush_mode() -> None:
    rng = np.random.default_rng(13)
    x = np.concatenate([f(rng, 20_000, np.float32) for f in (hostile, small, ordinary)])
    codes = np.arange(2**16, dtype=np.uint16)

    def everything() -> list[Array]:
        r = repeatable(x.size)
        results = [widen_float16(codes), decode_bfloat16(codes)]
        for random, divisor in itertools.product((None, r), (False, True)):
            encoded = encode_float8(x, random, divisor)
            results += [*encoded, decode_float8(*encoded), encode_bfloat16(x, random)]
            halves = split24(x, random)
            results += [*halves, join24(*halves)]
        halves = split(x)
        return [*results, *halves, join(*halves)]

    gradual = everything()
    with flushing():
        assert np.array([2.0**-140], np.float32) * np.float32(1) == 0
        flushed = everything()
    assert all((bits(a) == bits(b)).all() for a, b in zip(gradual, flushed))
