"""beta^t is the double nearest to the exact power."""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest

from onepass import _core


def exact(base: float, exponent: int) -> float:
    context = Context(prec=80, Emin=-(10**17), Emax=10**17)
    return float(context.power(Decimal(base), exponent))


@pytest.mark.parametrize("base", [0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 0.5, 0.75, 0.1, 1e-3])
def test_powers_with_small_exponents_are_correctly_rounded(base: float) -> None:
    for t in range(1, 300):
        power = Fraction(base) ** t
        if power >= Fraction(2) ** -1022:
            assert _core.power(base, t) == float(power)


def test_powers_of_random_bases_and_exponents_are_correctly_rounded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        base = float(1 - 2 ** rng.uniform(-40, -0.01))
        exponent = int(2 ** rng.uniform(0, 45))
        nearest = exact(base, exponent)
        assert _core.power(base, exponent) == (nearest if nearest >= 2.0**-1022 else 0), (base, exponent)


def test_powers_halfway_between_two_doubles_round_to_even() -> None:
    rng = np.random.default_rng(1)
    for odd in rng.integers(round(2**17.7), 2**18, 200) | 1:  # the cube has 54 bits, the last of them set
        base = float(odd) / 2**18
        assert 2**53 < int(odd) ** 3 < 2**54
        assert _core.power(base, 3) == float(Fraction(base) ** 3)


def test_powers_are_correct_at_the_ends_of_the_range() -> None:
    assert _core.power(0.0, 1) == 0
    assert _core.power(0.3, 0) == 1
    assert _core.power(0.5, 1022) == 2.0**-1022
    assert _core.power(0.5, 1023) == 0
    assert _core.power(5e-324, 1) == 0
    assert _core.power(0.5, 2**63 - 1) == 0
    assert _core.power(1e-300, 2**62) == 0
    below_one = float(np.nextafter(1, 0))
    assert _core.power(below_one, 1) == below_one
    assert _core.power(below_one, 2**53) == exact(below_one, 2**53)
    assert 0 < _core.power(below_one, 2**62) < 1e-200
