"""Token shards on disk: what ``rnope data build`` leaves and training reads. It knows arrays and counts, no text.

A folder holds ``index.json``, the tokenizer's files, and for each split numbered shards of three arrays::

    train/shard-00000.ids.npy          uint16 or uint32 [tokens]   documents one after another, without BOS, each with EOS
    train/shard-00000.ends.npy         int64 [documents]           exclusive end of each document
    train/shard-00000.completions.npy  int64 [documents]           where its completion begins inside it; 0: all of it

A folder without ``index.json`` is not finished. Arrays are memory-mapped and never unpickled.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from rnope.errors import ConfigError, UserError, unknown
from rnope.files import beside, write_text
from rnope.strict import from_plain, to_plain
from rnope.tokenizer import Tokenizer

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
ARRAYS = ("ids", "ends", "completions")
INDEX = "index.json"
FORMAT = 1
_AGAIN = "Run `rnope data build` again, into an empty folder."


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """What a file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEntry:
    """A shard as the index has it; its name follows from its place in the list."""

    tokens: int
    documents: int
    ids: FileEntry
    ends: FileEntry
    completions: FileEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceCounts:
    """What one input gave."""

    name: str
    documents: int = 0
    tokens: int = 0
    """EOS included."""
    empty: int = 0
    """Documents without text, dropped."""
    duplicates: int = 0
    """Documents with the text of an earlier one, dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokenizer that made the ids."""

    digest: str
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """``index.json``."""

    format: int = FORMAT
    vocabulary: Vocabulary
    train: tuple[ShardEntry, ...] = ()
    validation: tuple[ShardEntry, ...] = ()
    sources: tuple[SourceCounts, ...] = ()
    build: dict[str, Any] = field(default_factory=dict)
    """What the build was asked for: the same again finds itself, another one is refused."""

    def write(self, folder: Path) -> None:
        write_text(folder / INDEX, json.dumps(to_plain(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """The index of a finished folder.

        Raises:
            UserError: there is none, or it is not of this format.
        """
        path = folder / INDEX
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            remedy = (
                f"Give a folder that `rnope data build` has finished; if this one was interrupted, {_resume(folder)}"
            )
            raise UserError(f"{path}: does not exist. {remedy}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}). {_AGAIN}") from None
        held = raw.get("format") if isinstance(raw, dict) else None
        if held != FORMAT:
            raise UserError(f"{path}: is of format {held}; this rnope reads format {FORMAT}. {_AGAIN}")
        try:
            return from_plain(cls, raw)
        except ConfigError as error:
            raise UserError(f"{path}: {error} {_AGAIN}") from None


def _resume(folder: Path) -> str:
    return f"run `rnope data build` with --out {folder} again."


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Some documents of a split. Each property opens its file anew: hold what it gives."""

    path: Path
    """Without the ending: ``train/shard-00003``."""
    tokens: int
    documents: int

    @property
    def ids(self) -> NDArray[Any]:
        """Token ids, memory-mapped: uint16 or uint32 [tokens]."""
        return self._open("ids")

    @property
    def ends(self) -> NDArray[np.int64]:
        """Exclusive end of each document in `ids`, ascending, memory-mapped: [documents]."""
        return self._open("ends")

    @property
    def completions(self) -> NDArray[np.int64]:
        """Offset inside the document of the first token of its completion, memory-mapped: [documents]; 0: all of it."""
        return self._open("completions")

    def _open(self, name: str) -> NDArray[Any]:
        return np.load(array_path(self.path, name), mmap_mode="r", allow_pickle=False)


class Shards:
    """A split of a built folder."""

    def __init__(self, folder: Path, split: Split, index: Index) -> None:
        self.folder, self.split, self.index = folder, split, index
        self.entries: tuple[ShardEntry, ...] = getattr(index, split)
        self.shards = tuple(
            Shard(path=shard_path(folder, split, number), tokens=entry.tokens, documents=entry.documents)
            for number, entry in enumerate(self.entries)
        )
        self.tokens = sum(entry.tokens for entry in self.entries)
        self.documents = sum(entry.documents for entry in self.entries)
        vocabulary = index.vocabulary
        self.tokenizer_digest, self.vocab_size = vocabulary.digest, vocabulary.vocab_size
        self.bos_id, self.eos_id, self.pad_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id

    @classmethod
    def open(cls, folder: str | os.PathLike[str], split: Split = "train") -> "Shards":
        """The shards of `split`, the size of every file checked.

        Raises:
            UserError: the folder is not finished, a file is missing or was cut short, or the split holds no document.
        """
        if split not in SPLITS:
            raise unknown("split", split, "split", SPLITS)
        found = cls(Path(folder), split, Index.read(Path(folder)))
        if not found.documents:
            remedy = "Build it from more text" + (", or with a larger --validation." if split == "validation" else ".")
            raise UserError(f"{folder}: its {split!r} split holds no document. {remedy}")
        found.check_sizes()
        return found

    @property
    def digest(self) -> str:
        """Of the contents: which tokens, by which tokenizer."""
        parts = [self.tokenizer_digest, self.split]
        parts += [getattr(entry, name).sha256 for entry in self.entries for name in ARRAYS]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def check_sizes(self) -> None:
        """Compare the size of every file with the index.

        Raises:
            UserError: a file is missing or of another size.
        """
        for path, entry in self._files():
            try:
                held = path.stat().st_size
            except FileNotFoundError:
                raise UserError(f"{path}: is missing. {_AGAIN}") from None
            if held != entry.bytes:
                cut = "was cut short" if held < entry.bytes else "was changed"
                raise UserError(f"{path}: {cut}: it has {held:,} bytes and not {entry.bytes:,}. {_AGAIN}")

    def verify(self) -> None:
        """Compare the SHA-256 of every file with the index, reading all of it.

        Raises:
            UserError: a file is missing or not what was written.
        """
        self.check_sizes()
        for path, entry in self._files():
            with path.open("rb") as file:
                held = hashlib.file_digest(file, "sha256").hexdigest()
            if held != entry.sha256:
                raise UserError(
                    f"{path}: was changed: its SHA-256 is {held[:16]}… and not {entry.sha256[:16]}…. {_AGAIN}"
                )

    def _files(self) -> Iterable[tuple[Path, FileEntry]]:
        for shard, entry in zip(self.shards, self.entries, strict=True):
            for name in ARRAYS:
                yield array_path(shard.path, name), getattr(entry, name)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer.load(self.folder)

    def first_documents(self, count: int) -> Iterator[tuple[NDArray[Any], int]]:
        """Ids and completion offset of the first `count` documents."""
        for shard in self.shards:
            bounds = zip((0, *shard.ends[:count]), shard.ends[:count], shard.completions[:count], strict=False)
            for start, end, completion in bounds:
                yield shard.ids[start:end], int(completion)
            count -= min(count, shard.documents)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, EOS included: [documents]."""
        lengths = [np.diff(shard.ends, prepend=0) for shard in self.shards]
        return np.concatenate([np.zeros(0, dtype=np.int64), *lengths])


def shard_path(folder: Path, split: Split, number: int) -> Path:
    """Path of a shard, without the ending."""
    return folder / split / f"shard-{number:05d}"


def array_path(shard: Path, name: str) -> Path:
    """Path of one array of a shard."""
    return shard.with_name(f"{shard.name}.{name}.npy")


def write_shard(
    path: Path,
    ids: Sequence[NDArray[Any]],
    lengths: NDArray[np.int64],
    completions: NDArray[np.int64],
    *,
    vocab_size: int,
) -> ShardEntry:
    """Write a shard.

    Args:
        path: without the ending.
        ids: token ids in pieces, which are written one after another and never joined in memory.
        lengths: tokens of each document, EOS included: [documents].
        completions: where the completion begins inside each document: [documents].
        vocab_size: up to 65,536, ids take two bytes each; else four.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    tokens = int(ends[-1])
    assert sum(map(len, ids)) == tokens and len(completions) == len(lengths)
    assert (lengths > 0).all() and (completions < lengths).all()
    return ShardEntry(
        tokens=tokens,
        documents=len(lengths),
        ids=_write_array(array_path(path, "ids"), ids, np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)),
        ends=_write_array(array_path(path, "ends"), [ends], np.dtype(np.int64)),
        completions=_write_array(array_path(path, "completions"), [completions], np.dtype(np.int64)),
    )


def _write_array(path: Path, pieces: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> FileEntry:
    """One array in .npy format, of `pieces` one after another."""
    dtype = dtype.newbyteorder("<")
    header = {"descr": dtype.str, "fortran_order": False, "shape": (sum(map(len, pieces)),)}
    with beside(path) as place, place.open("wb") as file:
        digest = hashlib.sha256()
        hashing = _Hashing(file, digest)
        np.lib.format.write_array_header_1_0(hashing, header)
        for piece in pieces:
            hashing.write(np.ascontiguousarray(piece, dtype=dtype).data)
        size = file.tell()
    return FileEntry(bytes=size, sha256=digest.hexdigest())


class _Hashing:
    """A file that digests what is written."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.file, self.digest = file, digest

    def write(self, data: bytes | memoryview) -> int:
        self.digest.update(data)
        return self.file.write(data)
