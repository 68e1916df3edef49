"""A build under way: the documents since the last shard, duplicates dropped, and ``progress.json`` to go on from.

Whenever a part of the input is written, as a shard of each split that got documents, the state says behind which block of
which source to go on. What a kill leaves beyond that is written again, the same.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rnope.data.encode import Encoded
from rnope.data.shards import SPLITS, Index, ShardEntry, SourceCounts, Split, Vocabulary, shard_path, write_shard
from rnope.files import beside, write_text
from rnope.strict import to_plain

PROGRESS, SEEN = "progress.json", "seen"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """``progress.json``: what is written, and behind which block to go on."""

    build: dict[str, Any]
    vocabulary: Vocabulary | None = None
    source: int = 0
    blocks: int = 0
    """Of `source`."""
    parts: int = 0
    """Files of digests of documents, against duplicates."""
    train: tuple[ShardEntry, ...] = ()
    validation: tuple[ShardEntry, ...] = ()
    sources: tuple[SourceCounts, ...] = ()
    """One for each INPUT."""

    def index(self) -> Index:
        assert self.vocabulary is not None
        return Index(
            vocabulary=self.vocabulary, train=self.train, validation=self.validation, sources=self.sources,
            build=self.build,
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        write_text(folder / PROGRESS, json.dumps(to_plain(self)))


def is_validation(digest: Any, share: float) -> Any:
    """By a digest of the text alone, so that documents that are added move none."""
    return digest < int(share * 2**64)


class Work:
    """The documents since the last shard, and what stands on the disk."""

    def __init__(self, state: State, out: Path, inputs: tuple[str, ...], validation: float) -> None:
        self.state, self.out, self.validation = state, out, validation
        self.counts = list(state.sources or (SourceCounts(name=name) for name in inputs))
        self.seen: set[int] = set()
        for part in range(state.parts):
            self.seen.update(np.load(self._seen(part), allow_pickle=False).tolist())
        self._start_part()

    def _seen(self, part: int) -> Path:
        return self.out / SEEN / f"part-{part:05d}.npy"

    def _start_part(self) -> None:
        self.part_tokens = 0
        self.held: dict[Split, list[Encoded]] = {split: [] for split in SPLITS}

    @property
    def tokens(self) -> int:
        """All so far."""
        return sum(counts.tokens for counts in self.counts)

    def add(self, argument: int, documents: Encoded) -> None:
        """Take the documents that are new into the splits they belong to."""
        fresh = []
        for digest in documents.digests.tolist():
            fresh.append(digest not in self.seen)
            self.seen.add(digest)
        new = np.array(fresh, dtype=bool)
        validation = is_validation(documents.digests, self.validation)
        for split in SPLITS:
            mask = new & (validation if split == "validation" else ~validation)
            if mask.any():
                self.held[split].append(documents if mask.all() else documents.only(mask))
        tokens = int(documents.lengths[new].sum())
        self.part_tokens += tokens
        counts = self.counts[argument]
        self.counts[argument] = replace(
            counts,
            documents=counts.documents + int(new.sum()),
            tokens=counts.tokens + tokens,
            empty=counts.empty + documents.empty,
            duplicates=counts.duplicates + int((~new).sum()),
        )

    def commit(self, source: int, blocks: int) -> None:
        """Write the documents since the last time as a shard of each split that got some."""
        assert self.state.vocabulary is not None
        entries = {split: getattr(self.state, split) for split in SPLITS}
        for split, held in self.held.items():
            if held:
                entry = write_shard(
                    shard_path(self.out, split, len(entries[split])),
                    [documents.ids for documents in held],
                    np.concatenate([documents.lengths for documents in held]),
                    np.concatenate([documents.completions for documents in held]),
                    vocab_size=self.state.vocabulary.vocab_size,
                )
                entries[split] = (*entries[split], entry)
        digests = [documents.digests for held in self.held.values() for documents in held]
        with beside(self._seen(self.state.parts)) as place, place.open("wb") as file:
            np.save(file, np.concatenate([np.zeros(0, dtype=np.uint64), *digests]))
        self.state = replace(
            self.state, source=source, blocks=blocks, parts=self.state.parts + 1, sources=tuple(self.counts), **entries
        )
        self.state.write(self.out)
        self._start_part()
