"""Documents of one source laid out in rows of one length, each row found without the others. It knows no order or stage.

The documents of a shard stand end to end, each behind its BOS: a stream. Rows are stretches of it that begin with a BOS.

Split: row k is the `row_tokens` places from ``k * (row_tokens - 1)``. Its first place stands in the row before it too;
here it is a BOS, so that a document which goes on has one in front. With rows of 5 tokens::

    stream   B a a a a B b b B c c c c c
    row 0    B a a a a                        the last token still has its target, in row 1 if the document goes on
    row 1            B b b _ _                moved up by one, or it would begin with two BOS; a BOS alone at the end waits
    row 2                    B c c c c
    row 3                            B c _ _ _

So every token stands once in the rows of a shard, and is a target once: a BOS in the middle of a document predicts
nothing, since what follows it was the target of the row before. A row's place is arithmetic: nothing is kept per row.

Whole: documents in order, as many as fit, the rest of the row is padding; those that no row can hold are left out.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnope.errors import check

if TYPE_CHECKING:
    from rnope.data.shards import Shard, Shards

Ids = NDArray[np.int64]
IGNORED = -100
"""Target of a position that predicts nothing."""
_OPEN = 2048
"""Shards that a packing holds open: each takes up to three of the 65,530 memory maps that Linux gives a process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """What is kept of how a shard is packed."""

    rows: int
    documents: int
    tokens: int
    """Of the documents in the rows, without BOS."""
    kept: Ids | None = None
    """[documents] their numbers in the shard; None: all of it."""
    kept_ends: Ids | None = None
    """[documents] tokens of those kept up to the end of each."""
    cuts: Ids | None = None
    """[rows + 1] places where rows of whole documents begin; None: documents are split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stream:
    """The documents of a shard that are packed, end to end, each behind its BOS. A place is an index into that."""

    layout: _Layout
    row_tokens: int
    ids: NDArray[Any]
    """Tokens of the whole shard, without BOS."""
    shard_ends: Ids
    """[documents of the shard] where each ends in `ids`."""
    completions: Ids | None
    """[documents of the shard]; None where they do not matter."""
    ends: Ids
    """[documents] tokens up to the end of each, those left out not counted."""

    @property
    def places(self) -> int:
        return self.layout.tokens + self.layout.documents

    def begin(self, document: int) -> int:
        """Place of the BOS of a document; for the number of documents, where the stream ends."""
        return (int(self.ends[document - 1]) if document else 0) + document

    def begins(self, first: int, stop: int) -> Ids:
        """Places of the BOS of documents `first` … `stop` - 1."""
        found = np.arange(first, stop)
        found[1:] += self.ends[first : stop - 1]
        found[:1] = self.begin(first)
        return found

    def find(self, place: int, first: int = 0) -> int:
        """The document, `first` or a later one, that holds a place."""
        return bisect_right(range(self.layout.documents), place, lo=first, key=self.begin) - 1

    def span(self, row: int) -> tuple[int, int, int, int]:
        """First place of a row and the one behind its last; first document and the one behind the last."""
        if self.layout.cuts is not None:
            place, stop = (int(cut) for cut in self.layout.cuts[row : row + 2])
        else:
            place = row * (self.row_tokens - 1)
            stop = min(place + self.row_tokens, self.places)
        first = self.find(place)
        if place + 1 == self.begin(first + 1):  # its last token, which stands in the row before
            place, first = place + 1, first + 1
        last = self.find(stop - 1, first)
        if self.begin(last) == stop - 1:  # a BOS alone
            stop, last = stop - 1, last - 1
        return place, stop, first, last + 1

    def padding(self) -> int:
        """Places of all rows that hold nothing. Reads the ends of all documents."""
        if self.layout.cuts is not None or not self.layout.documents:
            return self.layout.rows * self.row_tokens - self.places
        stride = self.row_tokens - 1
        # A later document's BOS stands alone at the end of a row (0), or is what a row is moved up to (1).
        lost = np.count_nonzero(self.begins(1, self.layout.documents) % stride <= 1)
        return int(lost) + self.layout.rows * stride + 1 - self.places

    def numbers(self, first: int, stop: int) -> slice | Ids:
        """Index of documents `first` … `stop` - 1 in the shard."""
        return slice(first, stop) if self.layout.kept is None else self.layout.kept[first:stop]

    def token_begins(self, first: int, stop: int) -> Ids:
        """[documents] where each begins in `ids`."""
        if self.layout.kept is None:
            return self.begins(first, stop) - np.arange(first, stop)
        before = self.layout.kept[first:stop] - 1
        return np.where(before < 0, 0, self.shard_ends[before])


class Packing:
    """The rows of `row_tokens` tokens that the documents of a source fill; shards do not mix.

    Made from the documents' ends alone. Without `longer_than` and `whole` not even those are read, and nothing is held.

    Args:
        longer_than: only documents of more tokens than this, EOS counted, BOS not.
        whole: documents are never cut.
        completions_only: only completions are targets.
    """

    def __init__(
        self,
        shards: "Shards",
        row_tokens: int,
        *,
        longer_than: int = 0,
        whole: bool = False,
        completions_only: bool = False,
    ) -> None:
        check("row_tokens", row_tokens, row_tokens >= 3, "a row has its BOS and a pair to learn from", "Use 3 or more.")
        self.row_tokens, self.completions_only = row_tokens, completions_only
        self._shards = shards.shards
        self._bos, self._pad = shards.bos_id, shards.pad_id
        self.left_out_documents = 0
        """Longer than a row, where documents stay whole."""
        self._layouts = tuple(self._lay_out(shard, longer_than, whole) for shard in self._shards)
        self._stops = tuple(accumulate(layout.rows for layout in self._layouts))
        self.rows = self._stops[-1] if self._stops else 0
        self.documents = sum(layout.documents for layout in self._layouts)
        """In the rows."""
        self.tokens = sum(layout.tokens for layout in self._layouts)
        """Of the documents in the rows, each once, without BOS."""
        self._opened = lru_cache(_OPEN)(self._open)

    def _lay_out(self, shard: "Shard", longer_than: int, whole: bool) -> _Layout:
        if not longer_than and not whole:
            rows = _split_rows(shard.tokens, shard.documents, self.row_tokens)
            return _Layout(rows=rows, documents=shard.documents, tokens=shard.tokens)
        lengths = np.diff(shard.ends, prepend=0)
        wanted = lengths > longer_than
        fits = wanted & (lengths < self.row_tokens) if whole else wanted
        self.left_out_documents += int(np.count_nonzero(wanted) - np.count_nonzero(fits))
        kept = None if fits.all() else np.flatnonzero(fits)
        ends = np.cumsum(lengths[fits])
        documents, tokens = len(ends), int(ends[-1]) if len(ends) else 0
        cuts = _whole_cuts(ends, self.row_tokens) if whole else None
        return _Layout(
            rows=_split_rows(tokens, documents, self.row_tokens) if cuts is None else len(cuts) - 1,
            documents=documents,
            tokens=tokens,
            kept=kept,
            kept_ends=None if kept is None else ends,
            cuts=cuts,
        )

    def _open(self, number: int) -> _Stream:
        shard, layout = self._shards[number], self._layouts[number]
        shard_ends = np.asarray(shard.ends)
        return _Stream(
            layout=layout,
            row_tokens=self.row_tokens,
            ids=np.asarray(shard.ids),
            shard_ends=shard_ends,
            completions=np.asarray(shard.completions) if self.completions_only else None,
            ends=shard_ends if layout.kept_ends is None else layout.kept_ends,
        )

    def padding(self) -> int:
        """Places of all rows that hold nothing. Reads the ends of all documents."""
        return sum(self._open(number).padding() for number in range(len(self._shards)))

    def write(self, row: int, ids: Ids, targets: Ids, starts: Ids | None = None) -> None:
        """Write one row into arrays [row_tokens].

        Args:
            row: from 0, below `rows`.
            ids: tokens, a BOS first and before each document; padding last.
            targets: the next token of the same document, also of the last position; else `IGNORED`.
            starts: index of the BOS of the document that each position belongs to. Padding is a document of its own.
        """
        assert 0 <= row < self.rows and len(ids) == self.row_tokens
        shard = bisect_right(self._stops, row)
        stream = self._opened(shard)
        place, stop, first, last = stream.span(row - (self._stops[shard - 1] if shard else 0))
        tokens = stop - place
        begins, token_begins = stream.begins(first, last), stream.token_begins(first, last)
        bos = np.maximum(begins - place, 0)
        lengths = np.diff(bos, append=tokens)
        # Where each place's token stands in the shard; a BOS' is the one before, overwritten.
        at = np.arange(place, stop) + np.repeat(token_begins - begins - 1, lengths)
        ids[:tokens] = stream.ids[at]
        ids[bos] = self._bos
        ids[tokens:] = self._pad
        targets[: tokens - 1] = ids[1:tokens]
        targets[bos[1:] - 1] = IGNORED
        targets[tokens - 1 :] = IGNORED
        if stop < stream.begin(last):
            targets[tokens - 1] = stream.ids[at[-1] + 1]
        if place > begins[0]:
            targets[0] = IGNORED
        if stream.completions is not None:
            prompts = token_begins + stream.completions[stream.numbers(first, last)]
            targets[:tokens][at + 1 < np.repeat(prompts, lengths)] = IGNORED
        if starts is not None:
            starts[:tokens] = np.repeat(bos, lengths)
            starts[tokens:] = tokens


def _split_rows(tokens: int, documents: int, row_tokens: int) -> int:
    return -(-(tokens + documents - 1) // (row_tokens - 1)) if documents else 0


def _whole_cuts(ends: Ids, row_tokens: int) -> Ids:
    """[rows + 1] places where rows of whole documents begin: each takes all that fit."""
    begins = np.concatenate(([0], ends + np.arange(1, len(ends) + 1)))
    following = (np.searchsorted(begins, begins[:-1] + row_tokens, side="right") - 1).data
    cuts = [0]
    while cuts[-1] < len(ends):
        cuts.append(following[cuts[-1]])
    return begins[cuts]
