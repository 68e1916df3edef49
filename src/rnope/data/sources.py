"""Inputs of a build, read as a stream: files, folders and `datasets` names into blocks of records, records into examples.

One process reads blocks, others may parse them: a block is plain data, cut at the same places whoever reads it. It knows
no tokens.
"""

import gzip
import hashlib
import importlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rnope.errors import ConfigError, check
from rnope.messages import Message, checked

Kind = Literal["text", "jsonl", "parquet", "datasets"]
KINDS: dict[str, Kind] = {".txt": "text", ".md": "text", ".rst": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
NAMED = "datasets:"
MESSAGES = "messages"
"""The field of a conversation."""
BLOCK_BYTES = 2**20
"""A block ends with the record that fills it."""
DOCUMENT_BYTES = 2**25
"""Longest document: the tokenizer takes some 100 bytes of memory for each of its bytes."""
_ROWS = 64
"""Rows of a parquet file decoded at once."""
_KNOWN = "Use .txt, .md, .rst, .jsonl (each also as .gz), .parquet, a folder of them, or datasets:NAME."


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One file, or one `datasets` name; `argument` is the number of the INPUT that named it."""

    kind: Kind
    name: str
    argument: int
    bytes: int = 0
    modified: int = 0
    """Nanoseconds: with `bytes`, how a file is known to be the one of the last time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Records of one source that follow each other."""

    source: Source
    number: int
    """Of the block in its source, from 0."""
    first: int
    """Number of its first record (a line or row), from 1."""
    records: tuple[Any, ...]
    """Raw bytes of lines, of a whole text, or rows as mappings."""
    read_bytes: int
    """How far the file was read when the block was full, as it lies on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A document; with a `prompt`, only what follows the prompt is learned.

    A conversation has `messages`, and is text only by a tokenizer's chat template: `text` is what its last message says
    then, and `prompt` what the others do.
    """

    text: str
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    where: str = ""
    """File and line of a conversation, for what its template may say of it."""

    @property
    def digest(self) -> int:
        """64 bits that follow from the text alone."""
        raw = json.dumps(self.messages, sort_keys=True).encode() if self.messages else self._raw
        return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")

    @property
    def _raw(self) -> bytes:
        return self.prompt.encode() + b"\0" + self.text.encode() if self.prompt else self.text.encode()


def find_sources(inputs: tuple[str, ...]) -> tuple[Source, ...]:
    """Every file and data set that the inputs name, in their order, those of a folder by name.

    Raises:
        ConfigError: an input does not exist, is of no known kind, is named twice, or needs a package that is missing.
    """
    found: list[Source] = []
    for number, name in enumerate(inputs):
        if name.startswith(NAMED):
            _check_named(name)
            found.append(Source(kind="datasets", name=name, argument=number))
        else:
            found += [_file(path, number) for path in _files(name)]
    for source in found:
        if source.kind in ("parquet", "datasets"):
            _package("pyarrow.parquet" if source.kind == "parquet" else "datasets", source.name)
    names = [source.name for source in found]
    double = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    check("input", double, double is None, "is given twice", "Name each file once.")
    return tuple(found)


def _files(name: str) -> list[Path]:
    path = Path(name)
    try:
        if name and path.is_dir():
            files = sorted(p for p in path.rglob("*") if _kind(p) and p.is_file())
            check("input", name, bool(files), "is a folder without a file of a known kind", _KNOWN)
            return files
        check("input", name, bool(name) and path.is_file(), "does not exist", "Give a file, a folder or datasets:NAME.")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("input", name, f"cannot be read ({error})", "Give another path.") from None
    check("input", name, _kind(path) is not None, "is of no known kind", _KNOWN)
    return [path]


def _kind(path: Path) -> Kind | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    kind = KINDS.get(suffix)
    return None if kind == "parquet" and path.suffix == ".gz" else kind


def _file(path: Path, argument: int) -> Source:
    kind = _kind(path)
    assert kind is not None
    held = path.stat()
    if kind == "text" and path.suffix != ".gz" and held.st_size > DOCUMENT_BYTES:
        raise _too_long(str(path))
    path = path.resolve()
    return Source(kind=kind, name=str(path), argument=argument, bytes=held.st_size, modified=held.st_mtime_ns)


def _too_long(where: str) -> ConfigError:
    rule = f"is one document of more than {DOCUMENT_BYTES:,} bytes"
    return ConfigError("input", where, rule, "Cut it into documents: a line of .jsonl each.")


def _package(module: str, needed_by: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError("input", needed_by, f"needs the package {package!r}", f"pip install {package}") from None


def _check_named(name: str) -> None:
    parts = name.removeprefix(NAMED).split(":")
    ok = len(parts) <= 3 and bool(parts[0])
    check("input", name, ok, "must be datasets:NAME[:CONFIG[:SPLIT]]", "Write datasets:roneneldan/TinyStories.")


def read_blocks(source: Source, skip: int = 0) -> Iterator[Block]:
    """The blocks of `source` behind its first `skip`; what is skipped is read, but not parsed.

    Raises:
        ConfigError: the file cannot be read.
    """
    first, number, size, at = 1, 0, 0, 0
    records: list[Any] = []
    for record, weight, at in _records(source):
        records.append(record)
        size += weight
        if size >= BLOCK_BYTES:
            if number >= skip:
                yield Block(source=source, number=number, first=first, records=tuple(records), read_bytes=at)
            first, number, size, records = first + len(records), number + 1, 0, []
    if records and number >= skip:
        yield Block(source=source, number=number, first=first, records=tuple(records), read_bytes=at)


def _records(source: Source) -> Iterator[tuple[Any, int, int]]:
    """Record, its bytes, and how far the file is read."""
    if source.kind == "datasets":
        yield from _rows_of_dataset(source)
        return
    try:
        if source.kind == "parquet":
            yield from _rows_of_parquet(source)
            return
        with open(source.name, "rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if source.name.endswith(".gz") else raw
            for record in _texts(source, file) if source.kind == "text" else _lines(source, file):
                yield record, len(record), raw.tell()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError("input", source.name, f"cannot be read ({error})", "Mend it, or leave it out.") from None


def _texts(source: Source, file: BinaryIO) -> Iterator[bytes]:
    text = file.read(DOCUMENT_BYTES + 1)
    if len(text) > DOCUMENT_BYTES:
        raise _too_long(source.name)
    yield text


def _lines(source: Source, file: BinaryIO) -> Iterator[bytes]:
    longest = 2 * DOCUMENT_BYTES  # JSON takes more bytes than its text
    for number, line in enumerate(iter(lambda: file.readline(longest), b""), 1):
        if len(line) == longest:
            raise _too_long(f"{source.name}:{number}")
        yield line


def _rows_of_parquet(source: Source) -> Iterator[tuple[dict[str, Any], int, int]]:
    arrow = _package("pyarrow", source.name)
    try:
        file = _package("pyarrow.parquet", source.name).ParquetFile(source.name)
        kinds = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
        names = [name for name, kind in kinds.items() if name == MESSAGES or _is_text(arrow, kind)]
        rows = file.metadata.num_rows
        done = 0
        for batch in file.iter_batches(batch_size=_ROWS, columns=names):
            for row in batch.to_pylist():
                done += 1
                yield row, _weight(row), source.bytes * done // rows
    except arrow.ArrowException as error:
        raise ConfigError("input", source.name, f"cannot be read ({error})", "Mend it, or leave it out.") from None


def _is_text(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _rows_of_dataset(source: Source) -> Iterator[tuple[dict[str, Any], int, int]]:
    name, config, split = [*source.name.removeprefix(NAMED).split(":"), "", ""][:3]
    library = _package("datasets", source.name)
    try:
        rows = library.load_dataset(name, config or None, split=split or "train", streaming=True)
        for row in rows:
            held = {k: value for k, value in row.items() if k == MESSAGES or value is None or isinstance(value, str)}
            yield held, _weight(held), 0
    except Exception as error:  # of many kinds: no network, no such name, no such split, an unsafe script
        rule = f"cannot be loaded ({type(error).__name__}: {error})"
        remedy = "Check name and network, and run the same command again; or give files."
        raise ConfigError("input", source.name, rule, remedy) from None


def _weight(row: Mapping[str, Any]) -> int:
    return sum(len(value if isinstance(value, str) else str(value)) for value in row.values() if value)


def examples(block: Block, text_field: str) -> Iterator[Example | None]:
    """The documents of `block`, None for each that holds no text (a blank line is no document).

    Raises:
        ConfigError: a record is not as it must be; it names the file and the line or row.
    """
    for number, record in enumerate(block.records, block.first):
        where = block.source.name if block.source.kind == "text" else f"{block.source.name}:{number}"
        if isinstance(record, bytes):
            text = _decoded(record, where, first=number == 1)
            if block.source.kind == "text":
                yield _example({"text": text}, "text", where)
            elif text.strip():
                yield _example(_parsed(text, where), text_field, where)
        else:
            yield _example(record, text_field, where)


def _decoded(raw: bytes, where: str, *, first: bool) -> str:
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("input", where, f"is not UTF-8 ({error})", "Convert it, or leave it out.") from None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError("input", where, f"is not JSON ({error})", 'Write {"text": "..."} per line.') from None


def _example(record: Any, text_field: str, where: str) -> Example | None:
    held = record if isinstance(record, Mapping) else {}
    if text_field not in held and held.get(MESSAGES) is not None:
        return _conversation(held[MESSAGES], where)
    fields = [text_field] if text_field in held else ["prompt", "completion"]
    values = ["" if name in held and held[name] is None else held.get(name) for name in fields]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        rule = f"has neither a string {text_field!r} nor strings 'prompt' and 'completion' nor a list 'messages'"
        names = ", ".join(sorted(map(str, held))[:10])
        remedy = f"It has: {names}. Name the one with the text by --text-field." if names else "Give it one."
        raise ConfigError("input", where, rule, remedy)
    # JSON can spell half a surrogate pair, which is no text.
    whole = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    if sum(map(len, whole)) > DOCUMENT_BYTES:
        raise _too_long(where)
    if not whole[-1].strip():
        return None
    return Example(text=whole[-1], prompt=whole[0] if len(whole) == 2 else "")


def _conversation(messages: object, where: str) -> Example | None:
    try:
        found = checked(messages)
    except ConfigError as error:
        raise ConfigError("input", where, f"{error.field} {error.rule}", error.remedy) from None
    if found[-1]["role"] != "assistant" or len(found) < 2:
        rule = "its messages do not end with an answer of the assistant to others"
        raise ConfigError("input", where, rule, "Leave out what comes behind the last answer.")
    contents = [message["content"] for message in found]
    if sum(map(len, contents)) > DOCUMENT_BYTES:
        raise _too_long(where)
    if not contents[-1].strip():
        return None
    return Example(text=contents[-1], prompt="\n".join(contents[:-1]), messages=tuple(found), where=where)
