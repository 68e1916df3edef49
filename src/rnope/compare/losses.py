"""Loss on held-out text by position in the context (SPEC T6): the same windows for every model."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from rnope.data.needles import Ids
from rnope.evals.perplexity.buckets import edges
from rnope.intervals import student
from rnope.model.decoder import Decoder
from rnope.results import LossBin, LossRow

_LOGIT_ROWS = 2048
"""Rows put through the head at once: all of a long window's logits would not fit."""


def windows(text: Ids, *, bos: int, context_tokens: int, count: int) -> list[Ids]:
    """`count` windows of BOS and `context_tokens` - 1 tokens, evenly spaced over `text`; they overlap where it is short."""
    tokens = context_tokens - 1
    starts = np.linspace(0, len(text) - tokens, count).astype(int)
    return [np.concatenate(([bos], text[start : start + tokens])) for start in starts]


@torch.inference_mode()
def losses(model: Decoder, ids: Ids) -> list[float]:
    """Negative log-probability, nats, of every token of `ids` [t] but the first."""
    tokens = torch.from_numpy(ids).to(model.embedding.weight.device)
    states = model.hidden(tokens[None])[0, :-1]
    parts = zip(states.split(_LOGIT_ROWS), tokens[1:].split(_LOGIT_ROWS), strict=True)
    found: list[float] = []
    for rows, targets in parts:
        found += F.cross_entropy(model.logits(rows).float(), targets, reduction="none").tolist()
    return found


def loss_row(
    model: Decoder,
    text: Ids,
    *,
    bos: int,
    arm: str,
    seed: int,
    context_tokens: int,
    count: int,
    tick: Callable[[int], None] = lambda windows: None,
) -> LossRow:
    """Loss by position in the stretches of `rnope eval perplexity`: a token belongs where the number of tokens before it is.

    Args:
        text: held out, at least as long as a window.
        tick: told the number of windows done since it was told last.
    """
    found = []
    for ids in windows(text, bos=bos, context_tokens=context_tokens, count=count):
        found.append([np.nan, *losses(model, ids)])  # BOS is given
        tick(1)
    places = np.array(found)  # windows t
    bins = []
    for begin, end in pairwise(edges(context_tokens)):
        each = np.nanmean(places[:, begin:end], axis=1).tolist()
        bounds = student(each)
        assert bounds is not None
        bins.append(LossBin(begin=begin, end=end, loss=float(np.mean(each)), low=bounds[0], high=bounds[1]))
    return LossRow(arm=arm, seed=seed, context_tokens=context_tokens, n=count, bins=tuple(bins))
