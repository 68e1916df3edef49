"""Quantities as people write them."""

import pytest

from rnope.errors import ConfigError
from rnope.units import flops, size, token_counts


def test_lengths_are_binary_behind_powers_of_two_and_decimal_else():
    assert token_counts("2k, 8192,1m") == (2048, 8192, 2**20)
    assert token_counts("132k,990k,1_000") == (132_000, 990_000, 1000)
    assert token_counts("none") == token_counts("") == ()


@pytest.mark.parametrize("text", ["8q", "k", "-1", "1.5k", "8k8", "²"])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(ConfigError, match=r"^tokens = .* no number of tokens"):
        token_counts(text, "tokens")


def test_prefixes():
    assert size(1536) == "1.5 KiB" and flops(2_500_000) == "2.5 MFLOP"
