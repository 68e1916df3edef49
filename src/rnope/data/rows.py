"""The rows of every step of a stage, and of its validation: a function of (seed, stage, step), whoever reads which part.

It knows the stage and its sources, and no model, rank or device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from rnope.config.stage import Portion, Stage
from rnope.data.order import Mixture, key, permuted
from rnope.data.packing import Ids, Packing
from rnope.errors import ConfigError, unknown

if TYPE_CHECKING:
    from rnope.data.shards import Shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of one length, as `Packing.write` gives them."""

    ids: Ids
    """[n, t], a BOS first and before each document."""
    targets: Ids
    """[n, t], `packing.IGNORED` where nothing is predicted."""
    starts: Ids | None
    """[n, t] index of the first position of each position's document; None where attention crosses documents."""

    def one(self, index: int) -> "Rows":
        """Row `index` alone, n = 1."""
        row = slice(index, index + 1)
        starts = None if self.starts is None else self.starts[row]
        return Rows(ids=self.ids[row], targets=self.targets[row], starts=starts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Length:
    """The rows of one length in their order."""

    portions: tuple[Portion, ...]
    packings: tuple[Packing, ...]
    keys: tuple[bytes, ...]
    mixture: Mixture

    def find(self, number: int) -> tuple[Packing, int]:
        """Row `number` of this length, from 0 without end: each portion goes through its rows in a new order each time."""
        portion, count = self.mixture.at(number)
        packing = self.packings[portion]
        epoch, place = divmod(count, packing.rows)
        return packing, permuted(place, packing.rows, key(self.keys[portion].hex(), epoch))

    @property
    def row_mean_tokens(self) -> Fraction:
        """Tokens of documents in a row, on average over the mixture."""
        pairs = zip(self.mixture.shares, self.packings, strict=True)
        return sum((share * Fraction(packing.tokens, packing.rows) for share, packing in pairs), Fraction())


class StageRows:
    """The rows of a stage.

    Step `step` has `rows_in(step)` rows of `row_tokens(step)` tokens. Long and short rows have each their own order, in
    which portions of the mixture alternate by their weights, and each portion goes through its rows at random, every row
    once before any comes again. Weights are shares of the rows, of the tokens in them, or of the documents: a portion's
    share of the rows is in proportion to weight, weight x rows / tokens, or weight x rows / documents.

    Args:
        sources: what the stage's mixtures name.
        seed: of the order.

    Raises:
        ConfigError: a portion without a row, or completions asked for where no document has one marked.
    """

    def __init__(self, stage: Stage, sources: "Mapping[str, Shards]", *, seed: int) -> None:
        self.stage = stage
        for source in stage.sources:
            if source not in sources:
                raise unknown(f"stages.{stage.name}.mixture.source", source, "source", sources)
        self._lengths = {row_tokens: self._length(row_tokens, sources, seed) for row_tokens in stage.row_lengths}
        marked = (shard.completions.any() for source in stage.sources for shard in sources[source].shards)
        if stage.completions_only and not any(marked):
            rule = f"no document of {', '.join(stage.sources)} has a completion marked"
            remedy = "Build the data from prompts and completions, or leave it out."
            raise ConfigError(f"stages.{stage.name}.completions_only", True, rule, remedy)

    def _length(self, row_tokens: int, sources: "Mapping[str, Shards]", seed: int) -> _Length:
        stage, portions = self.stage, self.stage.portions(row_tokens)
        packings, shares, keys = [], [], []
        for index, portion in enumerate(portions):
            packing = Packing(
                sources[portion.source],
                row_tokens,
                longer_than=portion.longer_than,
                whole=stage.whole_documents,
                completions_only=stage.completions_only,
            )
            if not packing.rows:
                raise self._empty(portion, packing, sources[portion.source].documents)
            per = {"rows": packing.rows, "tokens": packing.tokens, "documents": packing.documents}[stage.mixture_unit]
            packings.append(packing)
            shares.append(Fraction(portion.weight) * packing.rows / per)
            keys.append(key(seed, stage.name, row_tokens, index, portion.source, portion.longer_than))
        return _Length(
            portions=portions,
            packings=tuple(packings),
            keys=tuple(keys),
            mixture=Mixture(shares, key(seed, stage.name, row_tokens)),
        )

    def _empty(self, portion: Portion, packing: Packing, documents: int) -> ConfigError:
        place = f"stages.{self.stage.name}.mixture"
        if packing.left_out_documents:
            rule = f"none of its {packing.left_out_documents:,} documents fits whole into {packing.row_tokens:,} tokens"
            return ConfigError(place, portion.source, rule, "Use longer rows, or leave whole_documents out.")
        if documents:
            rule = f"none of its {documents:,} documents has more than {portion.longer_than:,} tokens"
            return ConfigError(place, portion.source, rule, "Lower longer_than, or leave the portion out.")
        return ConfigError(place, portion.source, "the source is empty", "Build it anew, or leave the portion out.")

    def row_tokens(self, step: int) -> int:
        """Length of the rows of a step."""
        return self.stage.row_tokens(step)

    def rows_in(self, step: int) -> int:
        """How many rows a step has, over all ranks and micro-batches."""
        return self.stage.batch_tokens // self.row_tokens(step)

    def batch(self, step: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows `start` … `stop` - 1 of a step; all of them without."""
        count = self.rows_in(step)
        stop = count if stop is None else stop
        assert 0 <= start <= stop <= count
        row_tokens = self.row_tokens(step)
        long = self.stage.long_steps(step)
        steps_before = long if row_tokens == self.stage.context_tokens else step - long
        length = self._lengths[row_tokens]
        found = [length.find(steps_before * count + row) for row in range(start, stop)]
        return _read(found, row_tokens, across_documents=self.stage.across_documents)

    def _epoch(self) -> Fraction:
        tokens: dict[str, int] = {}
        for length in self._lengths.values():
            for portion, packing in zip(length.portions, length.packings, strict=True):
                tokens[portion.source] = max(packing.tokens, tokens.get(portion.source, 0))
        stage, mean = self.stage, Fraction()
        for row_tokens, length in self._lengths.items():
            share = stage.long_share if row_tokens == stage.context_tokens else 1 - stage.long_share
            mean += share * (stage.batch_tokens // row_tokens) * length.row_mean_tokens
        return sum(tokens.values()) / mean

    def epoch_steps(self) -> int:
        """Steps in which as many tokens of documents go by as the sources have.

        Each source counts once, with the tokens of the portion that takes in most of it: documents that no row holds
        are no part of a pass. By the weights of the mixture, some sources may go by more often than others.
        """
        return math.ceil(self._epoch())

    @property
    def steps(self) -> int:
        """Steps of the stage; where it counts epochs, as many as complete them."""
        if self.stage.epochs is None:
            assert self.stage.steps is not None
            return self.stage.steps
        return math.ceil(Fraction(str(self.stage.epochs)) * self._epoch())

    def described(self) -> list[dict[str, str | int | float]]:
        """For every row length and portion what it holds and how much of it the stage takes. Reads all documents' ends."""
        lines: list[dict[str, str | int | float]] = []
        long = self.stage.long_steps(self.steps)
        for row_tokens, length in self._lengths.items():
            steps = long if row_tokens == self.stage.context_tokens else self.steps - long
            taken = length.mixture.counts(steps * (self.stage.batch_tokens // row_tokens))
            for i, (portion, packing) in enumerate(zip(length.portions, length.packings, strict=True)):
                lines.append({
                    "row_tokens": row_tokens,
                    "source": portion.source,
                    "longer_than": portion.longer_than,
                    "rows": packing.rows,
                    "documents": packing.documents,
                    "tokens": packing.tokens,
                    "padding_tokens": packing.padding(),
                    "left_out_documents": packing.left_out_documents,
                    "row_share": float(length.mixture.shares[i]),
                    "epochs": taken[i] / packing.rows,
                })  # fmt: skip
        return lines


def validation_rows(shards: "Shards", row_tokens: int, rows: int, *, completions_only: bool = False) -> Rows:
    """`rows` rows of a validation split, evenly spaced over it, always the same; all of them where there are fewer.

    Documents are split over rows and do not see each other; every token is a target, or those of completions are.
    """
    packing = Packing(shards, row_tokens, completions_only=completions_only)
    count = min(rows, packing.rows)
    found = [(packing, i * packing.rows // count) for i in range(count)]
    return _read(found, row_tokens, across_documents=False)


def _read(found: list[tuple[Packing, int]], row_tokens: int, *, across_documents: bool) -> Rows:
    ids = np.empty((len(found), row_tokens), dtype=np.int64)
    targets = np.empty_like(ids)
    starts = None if across_documents else np.empty_like(ids)
    for i, (packing, row) in enumerate(found):
        packing.write(row, ids[i], targets[i], None if starts is None else starts[i])
    return Rows(ids=ids, targets=targets, starts=starts)
