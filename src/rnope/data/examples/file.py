"""A file of examples, one JSON object a line: written beside its place, line by line, and renamed when it is whole.

Each line names the settings that it was made with, so that work which was cut off is taken up where it stopped, and only
under the same settings.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rnope.data.examples.draft import Counter, Task, make
from rnope.errors import check
from rnope.strict import to_plain
from rnope.tokenizer import Tokenizer

_FORMAT = 1
"""Changes whenever the same settings give other examples."""


def write_examples(
    task: Task,
    tokenizer: Tokenizer,
    place: Path,
    *,
    lengths: Sequence[int],
    count: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Leave `count` examples at `place`, their lengths by turns those of `lengths` in tokens.

    Args:
        progress: is told how many there are, each time.

    Returns:
        How many were there already.

    Raises:
        ConfigError: the material is too short, or a length for any example.
    """
    for length in lengths:
        check("tokens", length, 1 <= length < 2**31, "must lie in 1 … 2^31", "Use 8k.")
    check("tokens", tuple(lengths), bool(lengths), "there is nothing in it", "Give at least one length.")
    check("count", count, 1 <= count < 2**48, "must be at least 1", "Write 1000.")
    settings = _digest(task, tokenizer, lengths, seed)
    if place.exists() and _kept(place, settings)[0] == count:
        progress(count)
        return count
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    kept, size = _kept(partial, settings, most=count)
    counter = Counter(tokenizer)
    with partial.open("r+b" if partial.exists() else "wb") as file:
        file.truncate(size)
        file.seek(size)
        progress(kept)
        for number in range(kept, count):
            example = make(task, counter, seed=seed, number=number, tokens=lengths[number % len(lengths)])
            line = json.dumps({**to_plain(example), "settings": settings}, ensure_ascii=False)
            file.write(line.encode() + b"\n")
            file.flush()
            progress(number + 1)
    os.replace(partial, place)
    return kept


def _digest(task: Task, tokenizer: Tokenizer, lengths: Sequence[int], seed: int) -> str:
    """Of all that example `number` follows from, beside its number."""
    told = json.dumps([_FORMAT, task.kind, task.digest, tokenizer.digest, list(lengths), seed])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _kept(path: Path, settings: str, most: int | None = None) -> tuple[int, int]:
    """Lines at the head of a file that are whole and of these settings, and their bytes."""
    lines = size = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if lines == most or not _serves(line, settings, lines):
                    break
                lines += 1
                size += len(line)
    return lines, size


def _serves(line: bytes, settings: str, number: int) -> bool:
    try:
        found = json.loads(line)
        return line.endswith(b"\n") and (found["settings"], found["number"]) == (settings, number)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
