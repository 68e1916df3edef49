"""Needles in a haystack (SPEC E1): the prompts, which are the same for every model, and the counting of answers.

Every context carries one needle per depth and asks for all of them at the end, with the gold answers in place; an
answer counts when the model's most likely token is the value. Contexts of different lengths share nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch

from rnope import config
from rnope.data.needles import UNIT_TOKENS, Context, Haystack, Ids, NeedleTask
from rnope.intervals import wilson
from rnope.model.decoder import Decoder
from rnope.results import Cell, NeedleRow

Row = Literal["standard", "unseen-keys", "no-needle", "needle-only"]
ROWS: tuple[Row, ...] = get_args(Row)
BATCH_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """Where prompts come from: one per (row, length, index), a function of these and the seed."""

    task: NeedleTask
    haystack: Haystack
    settings: config.Needles
    development: bool = False
    """Of the pairs that choices are made by; their haystack is the caller's to choose."""

    @property
    def depths(self) -> list[float]:
        """Evenly from 0 to 1."""
        return [i / (self.settings.depths - 1) for i in range(self.settings.depths)]

    def context(self, row: Row, context_tokens: int, index: int) -> Context:
        """The `index`-th context of a row and length."""
        rng = np.random.default_rng([self.settings.seed, ROWS.index(row), context_tokens, index])
        leave_out: dict[Row, Literal["needles", "haystack"]] = {"no-needle": "needles", "needle-only": "haystack"}
        return self.task.context(
            rng,
            self.haystack,
            context_tokens=context_tokens,
            depths=self.depths,
            development=self.development,
            unseen_keys=row == "unseen-keys",
            leave_out=leave_out.get(row),
        )


@torch.inference_mode()
def answers(
    model: Decoder, contexts: Sequence[Context], tick: Callable[[int], None] = lambda contexts: None
) -> list[list[bool]]:
    """Which needles of each context (all of one length) the model finds, by depth.

    Only the rows of the questions go through the last layer and the head.

    Args:
        tick: told the number of contexts done since it was told last.
    """
    length = len(contexts[0].ids)
    wanted = np.unique(np.concatenate([context.rows for context in contexts]))
    place = {int(row): i for i, row in enumerate(wanted)}
    batch = max(1, BATCH_TOKENS // length)
    in_order = model.embedding.weight.device.type != "cpu"
    found = []
    for start in range(0, len(contexts), batch):
        group = contexts[start : start + batch]
        best = likeliest(model, np.stack([context.ids for context in group]), wanted, in_order=in_order)  # b r
        for line, context in zip(best, group, strict=True):
            picked = np.array([line[place[int(row)]] for row in context.rows])
            found.append([bool(hit) for hit in picked == context.answers])
        tick(len(group))
    return found


def likeliest(model: Decoder, ids: Ids, rows: Ids, *, in_order: bool) -> Ids:
    """Likeliest next tokens [b, r] behind the positions `rows` [r], ascending, of `ids` [b, t].

    Args:
        in_order: put all positions from the first of `rows` on through the last layer and the head: GPUs have fused
            kernels for queries in their order only.
    """
    tokens = torch.from_numpy(ids).to(model.embedding.weight.device)
    wanted = torch.from_numpy(rows).to(tokens.device)
    if in_order:
        best = model(tokens, rows=int(ids.shape[1] - rows[0])).argmax(-1)[:, wanted - wanted[0]]
    else:
        best = model(tokens, rows=wanted).argmax(-1)
    return cast(Ids, best.cpu().numpy())


def needle_row(
    model: Decoder,
    prompts: Prompts,
    *,
    arm: str,
    seed: int,
    row: Row,
    context_tokens: int,
    tick: Callable[[int], None] = lambda contexts: None,
) -> NeedleRow:
    """Ask all contexts of one row and length; `tick` is that of `answers`."""
    started = time.monotonic()
    settings = prompts.settings
    contexts = [prompts.context(row, context_tokens, index) for index in range(settings.contexts)]
    found = answers(model, contexts, tick)
    hits, n = sum(map(sum, found)), settings.contexts * settings.depths
    low, high = wilson(hits, n)
    text = context_tokens - 1 - UNIT_TOKENS * settings.depths * (1 if row == "no-needle" else 2)
    return NeedleRow(
        arm=arm,
        seed=seed,
        row=row,
        context_tokens=1 + 2 * UNIT_TOKENS * settings.depths if row == "needle-only" else context_tokens,
        n=n,
        hits=hits,
        score=10 * hits / n,
        low=10 * low,
        high=10 * high,
        guess=10 / (len(prompts.task.values) if row == "no-needle" else settings.depths),
        haystack_repeats=0.0 if row == "needle-only" else max(1.0, text / prompts.haystack.tokens),
        cells=tuple(
            Cell(depth=depth, n=len(found), hits=sum(line[i] for line in found))
            for i, depth in enumerate(prompts.depths)
        ),
        context_hits=tuple(sum(line) for line in found),
        seconds=time.monotonic() - started,
    )
