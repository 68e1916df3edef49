"""Which texts a model is to be shown: needles in a haystack at some lengths, or a user's file, grouped by length."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rnope.analysis.samples import NeedleSamples, Sample, read_samples
from rnope.errors import check
from rnope.evals.frame import Frame
from rnope.evals.text import Haystack
from rnope.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Texts by length and index."""

    counts: dict[int, int]
    """Length -> how many."""
    rows: dict[int, int]
    """Length -> how many queries a text of it is looked at from, at most."""
    sample: Callable[[int, int], Sample]
    """The text of a length and an index."""
    settings: dict[str, Any]
    """All that they follow from beside tokenizer and frame; not how many there are."""
    notes: dict[int, tuple[str, ...]]
    """Length -> what is true of all its texts."""
    remarks: tuple[str, ...] = ()
    """Notes of single texts that are known beforehand."""


def needles(
    tokenizer: Tokenizer, frame: Frame, *, lengths: Sequence[int], samples: int, seed: int, haystack: str | None,
    new_tokens: int,
) -> Texts:  # fmt: skip
    """`samples` needles in a haystack of each length.

    Raises:
        ConfigError: as `NeedleSamples` and its `check`, `Haystack`.
    """
    text = Haystack(tokenizer, haystack)
    source = NeedleSamples(tokenizer, frame, text, seed=seed, new_tokens=new_tokens)
    for length in lengths:
        source.check(length)
    repeats = {length: text.repeats(length) for length in lengths}
    rule = f"the haystack of {text.tokens:,} tokens is gone through {{:.1f}} times"
    return Texts(
        counts=dict.fromkeys(lengths, samples),
        rows=dict.fromkeys(lengths, source.most_rows),
        sample=source.sample,
        settings={
            "texts": "needles",
            "seed": seed,
            "new_tokens": new_tokens,
            "haystack": "built-in" if haystack is None else Path(haystack).name,
            "digest": text.digest,
            "chat": frame.chat,
        },
        notes={length: (rule.format(times),) if times > 1 else () for length, times in repeats.items()},
    )


def file_texts(path: Path, tokenizer: Tokenizer, *, new_tokens: int) -> Texts:
    """The samples of a user's file. Those whose lengths are nearest the same power of two count together, for the length of
    the longest of them.

    Raises:
        UserError: as `read_samples`; a sample too short to have rows.
    """
    groups: dict[int, list[Sample]] = {}
    for sample in read_samples(path, tokenizer, new_tokens=new_tokens):
        known = sample.rows_from < len(sample.marks.ids)
        check(f"{path.name}: {sample.name}", "qc", known, "there is no question to go on from", 'Add span "qc".')
        groups.setdefault(round(math.log2(sample.context_tokens)), []).append(sample)
    found = {max(each.context_tokens for each in group): group for _, group in sorted(groups.items())}
    return Texts(
        counts={length: len(group) for length, group in found.items()},
        rows={length: max(map(_rows, group)) for length, group in found.items()},
        sample=lambda length, index: found[length][index],
        settings={
            "texts": path.name,
            "new_tokens": new_tokens,
            "digest": sha256(path.read_bytes()).hexdigest(),
            "chat": False,
        },
        notes=dict.fromkeys(found, ()),
        remarks=tuple(
            f"{sample.name}: {note}" for group in found.values() for sample in group for note in sample.notes
        ),
    )


def _rows(sample: Sample) -> int:
    return sample.context_tokens - sample.rows_from
