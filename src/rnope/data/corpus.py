"""Text to fill contexts with: the user's files, or the English that every CPython carries. It knows no tokens.

A corpus is a tuple of documents. Which split a document belongs to follows from its own text, so that adding
documents moves none from training to evaluation.
"""

import ast
import gzip
import hashlib
import json
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rnope.errors import ConfigError

Split = Literal["train", "dev", "eval"]
_TEXT_SUFFIXES = {".txt", ".md", ".rst"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A piece of text and where it came from."""

    source: str
    text: str

    @property
    def split(self) -> Split:
        """By a digest of the text alone: about half to train on, a tenth to choose by, the rest to be judged by.

        Evaluation gets that much because a haystack of 262,144 tokens should repeat itself as little as it can.
        """
        share = int(hashlib.sha256(self.text.encode()).hexdigest()[:8], 16) % 100
        return "train" if share < 45 else "dev" if share < 55 else "eval"


def read_corpus(path: str | None) -> tuple[Document, ...]:
    """Documents of a file or folder (``.txt .md .rst .jsonl .jsonl.gz .txt.gz``); of the standard library without one.

    A ``.jsonl`` line is an object with a ``text`` field. Repeated documents are dropped: a copy may not stand in two
    splits.

    Raises:
        ConfigError: no such path, no text in it, or a line that is not such an object.
    """
    if path == "":  # which would be the current folder
        raise ConfigError("corpus", path, "is empty", "Give a file or a folder, or none for the built-in text.")
    found = builtin_documents() if path is None else _from_path(Path(path))
    documents = tuple({d.text: d for d in found if d.text.strip()}.values())
    if not documents:
        raise ConfigError(
            "corpus", path, "holds no text", "Give files or folders of .txt, .md, .rst, .jsonl or .jsonl.gz."
        )
    return documents


def digest(documents: Iterable[Document]) -> str:
    """A digest of the corpus, for provenance."""
    total = hashlib.sha256()
    for document in documents:
        total.update(hashlib.sha256(document.text.encode()).digest())
    return total.hexdigest()[:16]


def builtin_documents() -> Iterator[Document]:
    """The language reference of `pydoc_data.topics`, and the docstrings of each module of the standard library.

    Sources are parsed, never imported.
    """
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(source=f"topics/{name}", text=topics[name])
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests", "pydoc_data", "lib2to3"} & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # fixtures that are meant not to parse
        nodes = (n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        text = "\n\n".join(doc for node in nodes if (doc := ast.get_docstring(node)))
        if text:
            yield Document(source="/".join(parts), text=text)


def _from_path(path: Path) -> Iterator[Document]:
    try:
        files = _files(path)
    except OSError as error:
        raise ConfigError("corpus", str(path), f"cannot be read ({error.strerror})", "Give another path.") from None
    for file in files:
        yield from _from_file(file)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) is not None)
    if not path.is_file():
        raise ConfigError(
            "corpus", str(path), "does not exist", "Give a file or a folder, or none for the built-in text."
        )
    if _kind(path) is None:
        raise ConfigError("corpus", str(path), "is of no known kind", "Use .txt, .md, .rst, .jsonl or .jsonl.gz.")
    return [path]


def _kind(path: Path) -> Literal["text", "jsonl"] | None:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return "jsonl" if suffix == ".jsonl" else "text" if suffix in _TEXT_SUFFIXES else None


def _from_file(path: Path) -> Iterator[Document]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(
            "corpus", str(path), f"cannot be read ({error})", "Give UTF-8 text, or leave it out."
        ) from None
    if _kind(path) == "text":
        yield Document(source=path.name, text=text)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            document = None
        if not isinstance(document, str):
            raise ConfigError(
                "corpus",
                f"{path}:{number}",
                "is no JSON object with a string `text`",
                'Write {"text": "..."} per line.',
            )
        # JSON can spell half a surrogate pair, which is no text.
        whole = document.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield Document(source=f"{path.name}:{number}", text=whole)
