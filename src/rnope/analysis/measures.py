"""Measures of attention: functions over rows, by name in `MEASURES`, and what is made of a reading's distribution.

A measure looks at the rows of one key-value head's group and gives each row a value; it knows no model and no layer.
Rows may fill hundreds of megabytes, so a measure makes no copy of them: it goes through keys in blocks.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rnope.analysis.probe import Layer, Marks, Measure
from rnope.analysis.rows import Rows
from rnope.analysis.spans import BEGIN_TOKENS

SPAN_SHARE = 0.9
"""Of a row's mass over keys that lies in its effective span."""
SMOOTHED_TOKENS, SMOOTHED_FROM = 100, 8000
"""Width of the paper's moving average (appendix B), and the shortest of its lengths."""
END_SHARE = 0.03
"""Of the text, whose last tokens are left out of a smoothed distribution (appendix B)."""
_BLOCK = 1024
"""Keys that are looked at together."""


def mass(rows: Rows, marks: Marks) -> Tensor:
    """Attention that each segment gets, [h, r, segments] in the order of ``marks.spans`` (paper 2.2.2, SPEC A1).

    A row's segments sum to 1, less what its learned sink takes.
    """
    totals = []
    for stretches in marks.spans.values():
        total = torch.zeros_like(rows.sink)
        for span in stretches:
            total = total + rows.probabilities[..., rows.columns(span)].sum(-1)
        totals.append(total)
    return torch.stack(totals, -1)


def row_entropy(rows: Rows, marks: Marks) -> Tensor:
    """Entropy of each row in bits, [h, r] (SPEC A2): 0 where one key has all, log2(keys) where all have the same.

    Of the row over keys alone: where a learned sink takes a share, the rest is scaled to sum to 1. NaN where it takes
    all.
    """
    total = torch.zeros_like(rows.sink, dtype=torch.float64)
    weighted = torch.zeros_like(total)
    for block in _blocks(rows.probabilities):
        total += block.sum(-1)
        weighted += block.clamp(min=torch.finfo(block.dtype).tiny).log_().mul_(block).sum(-1)  # 0 log 0 is 0
    # Of p / S: the sum of -p log p over S, plus log S.
    return torch.where(total > 0, total.log() - weighted / total, torch.nan) / math.log(2)


def retrieval(rows: Rows, marks: Marks) -> Tensor:
    """1.0 where the key with the most attention is the token that the row copies, 0.0 where another is, [h, r].

    NaN for rows that copy nothing. Its mean over rows is a retrieval score as in Wu et al. (2024, "Retrieval Head
    Mechanistically Explains Long-Context Factuality"). Theirs looks at the steps in which a model decodes an answer of
    its own; this one at the gold answer, so that every model and sample is asked for the same tokens.
    """
    found = torch.full_like(rows.sink, torch.nan)
    for row, position in enumerate(rows.positions.tolist()):
        places = marks.copied.get(position)
        if places is not None:
            top = rows.probabilities[:, row].argmax(-1) + rows.first_key  # h
            found[:, row] = torch.isin(top, torch.tensor(places, device=top.device)).to(found)
    return found


def sink(rows: Rows, marks: Marks) -> Tensor:
    """What the text's first token and a learned sink get together, [h, r]."""
    return rows.probabilities[..., rows.columns((0, 1))].sum(-1) + rows.sink


def effective_span(rows: Rows, marks: Marks) -> Tensor:
    """Smallest number of tokens, counted back from the query (its own included), with 90 % of the row's mass over keys.

    [h, r]. NaN where a learned sink takes all.
    """
    shares = rows.probabilities  # h r k
    sums = torch.stack([block.sum(-1) for block in _blocks(shares)], -1).double()  # h r blocks
    behind = sums.flip(-1).cumsum(-1).flip(-1)  # of each block and all after it
    wanted = SPAN_SHARE * behind[..., :1]
    # The span begins in the last block behind whose beginning there is enough: the blocks after it are taken whole.
    block = (behind >= wanted).sum(-1, keepdim=True) - 1
    after = (behind - sums).gather(-1, block)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=shares.device)  # h r b
    inside = columns < shares.shape[-1]
    part = shares.gather(-1, columns.clamp(max=shares.shape[-1] - 1)).double() * inside
    enough = part.flip(-1).cumsum(-1).flip(-1) + after >= wanted
    first = block[..., 0] * _BLOCK + (enough & inside).sum(-1).clamp(min=1) - 1 + rows.first_key
    spans = (rows.positions.to(first.device) - first + 1).double()
    return torch.where(behind[..., 0] > 0, spans, torch.nan)


MEASURES: dict[str, Measure] = {
    "mass": mass,
    "row_entropy": row_entropy,
    "retrieval": retrieval,
    "sink": sink,
    "effective_span": effective_span,
}


def reach(layer: Layer, marks: Marks, rows_from: int) -> frozenset[str]:
    """Segments of which some row from `rows_from` on sees some key.

    A segment that a window cannot reach has a mass of 0 in the values, and is blank in tables (SPEC A1); where it is
    the needle, the retrieval score is too.
    """
    oldest = 0 if layer.window is None else rows_from - (layer.window - 1)
    return frozenset(name for name, stretches in marks.spans.items() if any(end > oldest for _, end in stretches))


def mean_entropy(distribution: Tensor) -> float:
    """Entropy in bits of a layer's `Reading.distribution` [t], scaled to sum to 1; NaN where it is 0 everywhere.

    The second way of aggregating (SPEC A2): of the mean over rows and heads, where `row_entropy` is of each row.
    """
    total = distribution.double().sum()
    shares = distribution.double() / total
    return float(torch.special.entr(shares).sum()) / math.log(2)


def smoothed(distribution: Tensor, *, context_tokens: int) -> tuple[Tensor, Tensor, int]:
    """A distribution over positions [t] as the paper draws it (appendix B, SPEC A3).

    The first 10 tokens and the last 3 % are left out, and of the rest a moving average is taken: of 100 tokens at the
    paper's lengths, of proportionally fewer at `context_tokens` below 8,000.

    Returns:
        the middle of each window, a place in the text; the means; and the window's width in tokens.
    """
    width = max(1, round(SMOOTHED_TOKENS * min(1.0, context_tokens / SMOOTHED_FROM)))
    kept = distribution[BEGIN_TOKENS : len(distribution) - round(END_SHARE * len(distribution))].double()
    if len(kept) < width:
        return kept[:0], kept[:0], width
    values = kept.unfold(0, width, 1).mean(-1)
    return torch.arange(len(values), dtype=torch.float64) + BEGIN_TOKENS + (width - 1) / 2, values, width


def _blocks(probabilities: Tensor) -> Iterator[Tensor]:
    """[h, r, b] at a time, without a copy."""
    return iter(probabilities.split(_BLOCK, -1))
