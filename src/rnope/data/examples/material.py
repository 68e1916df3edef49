"""What examples are made of: documents and pairs of the training split alone, and running text in pieces.

The split is that of `rnope.data.corpus`, by the text itself: no haystack of an evaluation can stand in a prompt.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from rnope.data.corpus import Document, read_corpus
from rnope.errors import ConfigError

T = TypeVar("T")
_PIECE = re.compile(r"\s*(?:\S[^\n]{0,240}?(?:[.!?](?=\s)|(?=\n)|\Z)|\S[^\n]{0,239}\S*)")


def training_documents(corpus: str | None) -> tuple[Document, ...]:
    """The corpus without what is kept to choose and to judge by.

    Raises:
        ConfigError: as `read_corpus`, or nothing is left.
    """
    documents = read_corpus(corpus)
    kept = tuple(document for document in documents if document.split == "train")
    return _any(kept, "corpus", corpus, len(documents))


def training_pairs(path: Path, keys: Sequence[str], by: str) -> tuple[dict[str, str], ...]:
    """The objects of a ``.jsonl`` or ``.jsonl.gz`` file, with the text of `keys` each, whose field `by` is of the split.

    Raises:
        ConfigError: no such file, a line without these fields, or nothing is left.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError("pairs", str(path), f"cannot be read ({reason})", "Give a UTF-8 .jsonl file.") from None
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            pair = {key: found[key] for key in keys}
        except (ValueError, KeyError, TypeError, RecursionError):
            pair = {}
        if not pair or not all(isinstance(value, str) and value.strip() for value in pair.values()):
            wanted = ", ".join(f'"{key}": "..."' for key in keys)
            raise ConfigError("pairs", f"{path}:{number}", "lacks one of its texts", f"Write {{{wanted}}} per line.")
        # JSON can spell half a surrogate pair, which is no text.
        pairs.append({k: v.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for k, v in pair.items()})
    kept = tuple(pair for pair in pairs if Document(source="", text=pair[by]).split == "train")
    return _any(kept, "pairs", str(path), len(pairs))


def _any(kept: tuple[T, ...], field: str, value: object, count: int) -> tuple[T, ...]:
    if not kept:
        rule = f"none of its {count} documents is of the training split, which a digest of the text decides"
        raise ConfigError(field, value, rule, "Use more of them.")
    return kept


def digest_of(texts: Iterable[str]) -> str:
    """A digest of texts in order."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()[:16]


def pieces(text: str) -> list[str]:
    """Sentences, lines, or some 240 characters, each with the white space before it: joined, the text less its end."""
    return _PIECE.findall(text.rstrip())


def running_text(rng: Random, documents: Sequence[Document]) -> Iterator[str]:
    """Pieces of all documents in a random order, the first begun somewhere inside, a blank line before each document.

    The head of the first document comes last: everything comes, and comes once.
    """
    first: list[str] = []
    for rank, index in enumerate(rng.sample(range(len(documents)), len(documents))):
        parts = pieces(documents[index].text)
        start = rng.randrange(len(parts)) if rank == 0 else 0
        first = parts[:start] if rank == 0 else first
        yield from _document(parts[start:])
    yield from _document(first)


def _document(parts: list[str]) -> Iterator[str]:
    for rank, part in enumerate(parts):
        yield part if rank else f"\n\n{part.lstrip()}"
