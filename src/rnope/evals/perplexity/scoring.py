"""Perplexity from kept sums: by context length and by position in the context. No model and no text is needed."""

import math
from collections.abc import Sequence

from rnope.evals.results import CellResult, Figure
from rnope.evals.suite import Prediction, Scoring


class PerplexityScoring(Scoring):
    """Metrics of a window: ``nats`` per token, ``nats FROM-TO`` per token of a bucket, ``bits_per_byte``.

    All windows of a cell have as many tokens in each bucket, so that the mean over windows is the mean over tokens.
    """

    def score(self, prediction: Prediction) -> dict[str, float]:
        """Of one window."""
        buckets, size = prediction.facts["buckets"], prediction.facts["bytes"]
        nats, tokens = (sum(bucket[key] for bucket in buckets) for key in ("nats", "tokens"))
        found = {"nats": nats / tokens}
        for bucket in buckets:
            found[f"nats {bucket['from']}-{bucket['to']}"] = bucket["nats"] / bucket["tokens"]
        if size:
            found["bits_per_byte"] = nats / math.log(2) / size
        return found

    def summary(self, cells: Sequence[CellResult]) -> tuple[Figure, ...]:
        """``nats`` and ``perplexity``, its exponential, by ``context_tokens``, and with ``from`` and ``to`` by position
        in the context (the last bucket is the last quarter); ``bits_per_byte`` by ``context_tokens``."""
        return tuple(figure for cell in cells for part in cell.figures for figure in _labelled(cell, part))


def _labelled(cell: CellResult, part: Figure) -> list[Figure]:
    name, _, place = part.name.partition(" ")
    labels = {"context_tokens": cell.context_tokens}
    if place:
        begin, end = place.split("-")
        labels |= {"from": int(begin), "to": int(end)}
    found = [Figure(name=name, value=part.value, low=part.low, high=part.high, n=part.n, labels=labels)]
    if name == "nats":
        # The exponential keeps order, so that of an interval's ends is an interval.
        low, high = (None if end is None else _exp(end) for end in (part.low, part.high))
        found.append(Figure(name="perplexity", value=_exp(part.value), low=low, high=high, n=part.n, labels=labels))
    return found


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
