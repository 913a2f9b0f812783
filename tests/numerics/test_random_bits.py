"""Random bits of the specification: the hash, its uniformity and independence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from onepass._reference import storage
from onepass._reference.storage import (
    mix,
    r16,
    random_bits,
)
from support import Array


def test_mix_is_the_output_step_of_splitmix64() -> None:
    # The first outputs of the authors' splitmix64.c for the state 1234567.
    state, outputs = 1234567, []
    for _ in range(5):
        outputs.append(mix(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_random_bits_match_the_documented_formula() -> None:
    seed, t, param, q, i = 2**64 - 3, 5_000_000_007, 11, 1, 3 * 2**32 + 12_345
    k = mix(mix(mix(mix(seed) ^ t) ^ (param << 8 | q)) ^ (i >> 32))
    k0, k1 = k % 2**32, k >> 32
    x = ((i % 2**32) * 0x9E3779B1 + k0) % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= k1
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    x ^= x >> 16
    assert random_bits(seed, t, param, q, i, 1).tolist() == [x]
    assert r16(seed, t, param, 2, i, 1).tolist() == [x & 0xFFFF]
    assert r16(seed, t, param, 3, i, 1).tolist() == [x >> 16]


def test_random_bits_do_not_depend_on_how_a_range_is_divided() -> None:
    first, count = 2**33 - 700, 1500
    whole = random_bits(1, 2, 3, 0, first, count)
    assert whole.size == count and random_bits(1, 2, 3, 0, first, 0).size == 0
    for cut in (1, 699, 700, 701, 1499):
        parts = [random_bits(1, 2, 3, 0, first, cut), random_bits(1, 2, 3, 0, first + cut, count - cut)]
        assert (np.concatenate(parts) == whole).all()


def test_random_bits_do_not_repeat_after_two_to_the_32_elements() -> None:
    assert abs(correlation(random_bits(1, 2, 3, 0, 0, 4096), random_bits(1, 2, 3, 0, 2**32, 4096))) < 0.1


Hash = Callable[[int, int, int, int, int, int], Array]  # random_bits, or a broken one


def correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def imbalance(a: Array, b: Array) -> float:
    """Return how far the probability that a bit of a and b differs is from a half, for the worst of 32 bits."""
    differ = np.unpackbits((a ^ b).view(np.uint8).reshape(-1, 4), axis=1)
    return float(abs(differ.mean(axis=0) - 0.5).max())


def weaknesses(random: Hash, n: int = 2**14) -> set[str]:
    """Return the names of the statistical tests that a source of random bits fails, at six standard deviations."""
    base = random(5, 7, 3, 0, 0, n)
    found = set()
    for byte in base.view(np.uint8).reshape(n, 4).T:
        chi_square = np.sum((np.bincount(byte, minlength=256) - n / 256) ** 2) / (n / 256)
        if abs(chi_square - 255) > 6 * 510**0.5:
            found.add("uniformity")
    others = {
        "seed": [random(5 ^ 1 << bit, 7, 3, 0, 0, n) for bit in range(64)],
        "step": [random(5, 7 ^ 1 << bit, 3, 0, 0, n) for bit in range(48)],
        "parameter": [random(5, 7, 3 ^ 1 << bit, 0, 0, n) for bit in range(24)],
        "pair of slots": [random(5, 7, 3, 1, 0, n)],
        "element": [random(5, 7, 3, 0, 1 << bit, n) for bit in range(44)],
        "neighbour": [random(5, 7, 3, 0, distance, n) for distance in (3, 127, 129, 1000)],
    }
    for name, streams in others.items():
        for other in streams:
            if imbalance(base, other) > 6 * 0.5 / n**0.5 or abs(correlation(base, other)) > 6 / n**0.5:
                found.add(name)
    low, high = base & np.uint32(0xFFFF), base >> np.uint32(16)
    if abs(correlation(low, high)) > 6 / n**0.5:
        found.add("slots of a pair")
    steps = np.stack([random(5, t, 3, 0, 0, 64) for t in range(1, 1001)])  # the mean of an element over time is a half
    if abs(steps.mean(axis=0) / 2**32 - 0.5).max() > 6 / (12 * 1000) ** 0.5:
        found.add("steps")
    for other in (random(5, t, 3, 0, first, n) for t, first in [(8, 0), (9, 0), (7, 2**32), (8, n)]):
        if np.intersect1d(base, other).size > 5:  # in any order; 0.06 are expected
            found.add("numbers that come again")
    return found


BROKEN: dict[str, tuple[Hash, set[str]]] = {
    "without the seed": (lambda s, t, p, q, i, n: random_bits(0, t, p, q, i, n), {"seed"}),
    "without the step": (lambda s, t, p, q, i, n: random_bits(s, 0, p, q, i, n), {"step", "steps"}),
    "without the parameter": (lambda s, t, p, q, i, n: random_bits(s, t, 0, q, i, n), {"parameter"}),
    "without the slot": (lambda s, t, p, q, i, n: random_bits(s, t, p, 0, i, n), {"pair of slots"}),
    "elements modulo 2**32": (lambda s, t, p, q, i, n: random_bits(s, t, p, q, i % 2**32, n), {"element"}),
    "elements modulo 128": (
        lambda s, t, p, q, i, n: random_bits(s, t, p, q, 0, 128)[np.arange(i, i + n) % 128],
        {"uniformity", "element", "neighbour"},
    ),
    "a step that continues the one before": (
        lambda s, t, p, q, i, n: random_bits(s, t >> 8, p, q, i + t % 256, n),
        {"numbers that come again"},
    ),
    "the index without a hash": (
        lambda s, t, p, q, i, n: np.arange(i, i + n, dtype=np.uint64).astype(np.uint32) * np.uint32(0x9E3779B1),
        {"element", "step", "neighbour"},
    ),
    "halves that are equal": (
        lambda s, t, p, q, i, n: r16(s, t, p, 2 * q, i, n) * np.uint32(0x10001),
        {"slots of a pair"},
    ),
}


def test_random_bits_pass_the_statistical_tests() -> None:
    assert weaknesses(random_bits) == set()


@pytest.mark.parametrize("name", BROKEN)
def test_a_source_that_reuses_bits_fails_the_statistical_tests(name: str) -> None:
    random, expected = BROKEN[name]
    assert expected <= weaknesses(random)


def test_the_random_numbers_depend_on_both_halves_of_the_key() -> None:
    """With one half, two steps whose keys differ by a small multiple of the factor would share most numbers."""
    i, n = np.arange(2**16), 2**16
    k0, k1, factor = 0x12345678, 0x9ABCDEF0, 0x9E3779B1
    shifted = (k0 + 1000 * factor) % 2**32
    same_half = np.intersect1d(storage.hashed(i, k1 << 32 | k0), storage.hashed(i, k1 << 32 | shifted))
    assert same_half.size == n - 1000
    other_half = np.intersect1d(storage.hashed(i, k1 << 32 | k0), storage.hashed(i, k1 + 1 << 32 | shifted))
    assert other_half.size < 10
