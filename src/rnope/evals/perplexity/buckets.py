"""By which stretches of the context log-probabilities are summed: the one definition. Plain numbers only."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

FIRST = 16


def edges(length: int) -> list[int]:
    """Edges of the buckets of a window of `length` tokens: 0, 16, 32, 64 … and the half, three quarters and the end.

    A token belongs to the bucket that holds the number of tokens before it. The last bucket is the last quarter.
    """
    doubled = [FIRST]
    while 3 * doubled[-1] <= length:
        doubled.append(2 * doubled[-1])
    return sorted({0, *doubled[:-1], length // 2, length * 3 // 4, length})


def summed(negative_logs: Sequence[float], length: int) -> list[dict[str, Any]]:
    """Per bucket ``from``, ``to``, ``tokens`` and ``nats``, the sum of `negative_logs`.

    Args:
        negative_logs: of the last tokens of a window of `length`; those before were given to the model.
    """
    given = length - len(negative_logs)
    values = np.asarray(negative_logs, dtype=np.float64)
    found = []
    for begin, end in pairwise(edges(length)):
        part = values[max(0, begin - given) : max(0, end - given)]
        if len(part):
            found.append({"from": begin, "to": end, "tokens": len(part), "nats": float(part.sum())})
    return found
