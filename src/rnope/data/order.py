"""In which order rows go by, each found without those before it. Numbers only: it knows no tokens, sources or stages.

Nothing here is drawn from a generator that has a state: everything is a function of a key and a number, in whole
numbers, so that it is the same on every machine and in every version of Python and numpy.
"""

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b

_ROUNDS = 12
"""With 8, the 120 orders of five were visibly not equally likely."""


def key(*parts: str | int) -> bytes:
    """A key of 32 bytes; different parts, different key."""
    return blake2b(json.dumps(parts).encode(), digest_size=32).digest()


def _hash(key: bytes, *numbers: int) -> int:
    """64 bits."""
    data = b"".join(number.to_bytes(8, "little") for number in numbers)
    return int.from_bytes(blake2b(data, key=key, digest_size=8).digest(), "little")


def permuted(place: int, size: int, key: bytes) -> int:
    """What stands at `place` in a pseudo-random order of 0 … `size` - 1.

    A Feistel network on pairs (left, right) whose ranges are about √size each and whose product is `size` or a little
    more; what falls outside is sent through again until it falls inside, which keeps it a permutation (Black and
    Rogaway, *Ciphers with Arbitrary Finite Domains*, 2002).
    """
    assert 0 <= place < size
    lefts = math.isqrt(size - 1) + 1
    rights = -(-size // lefts)
    while True:
        left, right = divmod(place, rights)
        for turn in range(0, _ROUNDS, 2):
            left = (left + _hash(key, turn, right)) % lefts
            right = (right + _hash(key, turn + 1, left)) % rights
        place = left * rights + right
        if place < size:
            return place


class Mixture:
    """Which portion each row of a mixture comes from, and the how manieth of that portion it is.

    The first portion takes its share of the rows, spread evenly from a place that the key gives; the second takes its
    share of what is left, and so on. So among the first n rows, for any n, each portion is within one row per portion
    before it, and one, of its share: no block of rows, and no batch, is far from the weights.
    """

    def __init__(self, shares: Sequence[Fraction], key: bytes) -> None:
        assert shares and all(share > 0 for share in shares)
        scale = math.lcm(*(share.denominator for share in shares))
        weights = [int(share * scale) for share in shares]
        self.shares = tuple(Fraction(weight, sum(weights)) for weight in weights)
        rests = [sum(weights[i:]) for i in range(len(weights))]
        phases = [(_hash(key, i) * rest) >> 64 for i, rest in enumerate(rests)]
        self._splits = tuple(zip(weights, phases, rests, strict=True))

    def at(self, row: int) -> tuple[int, int]:
        """The portion of row `row`, and how many rows of that portion stand before it."""
        for portion, (weight, phase, rest) in enumerate(self._splits):
            before, here = divmod(row * weight + phase, rest)
            if here + weight >= rest:
                return portion, before
            row -= before
        raise AssertionError  # the last portion takes all that is left

    def counts(self, rows: int) -> tuple[int, ...]:
        """Of the first `rows` rows, how many come from each portion."""
        found = []
        for weight, phase, rest in self._splits:
            found.append((rows * weight + phase) // rest)
            rows -= found[-1]
        return tuple(found)
