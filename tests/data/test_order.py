"""Orders without state: permutations, and mixtures that keep to their weights from the first row on."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.data.order import Mixture, key, permuted

shares = st.lists(st.fractions(Fraction(1, 5000), 50, max_denominator=10**9), min_size=1, max_size=6)


@pytest.mark.parametrize("size", [*range(1, 41), 99, 100, 101, 255, 257, 1023])
@pytest.mark.parametrize("seed", [0, 1])
def test_permutation_is_one(size, seed):
    order = [permuted(place, size, key(seed, "web")) for place in range(size)]
    assert sorted(order) == list(range(size))


def test_permutation_of_more_than_memory_holds():
    size, secret = 2**47 - 5, key(3)
    found = [permuted(place, size, secret) for place in (*range(200), *range(size - 200, size))]
    assert len(set(found)) == 400 and all(0 <= place < size for place in found)
    assert 0.4 < sum(found) / len(found) / size < 0.6


def test_every_order_of_five_is_as_likely():
    draws = 6000
    counts = Counter(tuple(permuted(place, 5, key(seed)) for place in range(5)) for seed in range(draws))
    expected = draws / 120
    square = sum((counts[order] - expected) ** 2 / expected for order in permutations(range(5)))
    assert 119 - 4 * 238**0.5 < square < 119 + 4 * 238**0.5


def test_neighbours_come_apart():
    size = 4001
    order = [permuted(place, size, key(5)) for place in range(size)]
    apart = [abs(a - b) / size for a, b in pairwise(order)]
    assert 0.31 < sum(apart) / len(apart) < 0.355  # a third on average
    fixed = sum(i == place for i, place in enumerate(order))
    assert fixed < 8  # one on average
    firsts = Counter(place * 10 // size for place in order[:1000])
    assert all(70 < firsts[tenth] < 130 for tenth in range(10))


def test_orders_stay_what_they_are():
    """A resumed run reads on in the same order, under any version: these figures never change."""
    assert key(7, "pretrain", 8192).hex()[:16] == "87f5bb14b0db8efe"
    assert [permuted(place, 10, key(7)) for place in range(10)] == [3, 5, 9, 7, 2, 1, 8, 0, 6, 4]
    assert permuted(123_456_789, 10**12, key(7)) == 81_423_657_585
    mixture = Mixture([Fraction(3), Fraction(1), Fraction(1, 2)], key(7))
    assert "".join(str(mixture.at(row)[0]) for row in range(18)) == "200100100200100100"


@pytest.mark.parametrize("parts", [(1, "a"), (0, "b"), (0, "a", ""), ("0", "a"), (0, "a", 0)])
def test_other_parts_other_key(parts):
    assert key(*parts) != key(0, "a")


@settings(deadline=None)
@given(shares, st.integers(0, 2**31))
def test_each_portion_counts_its_rows_without_a_gap(weights, seed):
    mixture = Mixture(weights, key(seed))
    seen = [0] * len(weights)
    for row in range(150):
        assert mixture.counts(row) == tuple(seen)
        portion, number = mixture.at(row)
        assert number == seen[portion]
        seen[portion] += 1


@settings(deadline=None)
@given(shares, st.integers(0, 2**31), st.integers(0, 2**40), st.integers(1, 4096))
def test_any_stretch_of_rows_keeps_to_the_weights(weights, seed, first, rows):
    mixture = Mixture(weights, key(seed))
    before, after = mixture.counts(first), mixture.counts(first + rows)
    assert sum(after) == first + rows
    for portion, weight in enumerate(weights):
        share = weight / sum(weights)
        assert mixture.shares[portion] == share
        assert abs(after[portion] - share * (first + rows)) < portion + 1
        assert abs(after[portion] - before[portion] - share * rows) < 2 * (portion + 1)


def test_a_rare_portion_comes_in_its_turn_and_at_no_fixed_place():
    weights = [Fraction(9999), Fraction(1)]
    firsts = []
    for seed in range(20):
        mixture = Mixture(weights, key(seed))
        assert mixture.counts(10_000) == (9999, 1)
        firsts.append(next(row for row in range(10_000) if mixture.at(row)[0] == 1))
    assert min(firsts) < 3000 and max(firsts) > 7000
