"""The texts that RULER's prompts are made of, from a folder of the user's, the `wonderwords` package, or Python itself;
and whether they are the original's. It knows no task.
"""

import functools
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from rnope.data.corpus import read_corpus
from rnope.errors import UserError, check

Kind = Literal["words", "essays", "english", "squad", "hotpotqa"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Read = TypeVar("Read")
_LISTS = ("nounlist.txt", "adjectivelist.txt", "verblist.txt")
_FILES: dict[Kind, tuple[str, ...]] = {
    "words": tuple(f"wonderwords_{name}" for name in _LISTS),
    "essays": ("PaulGrahamEssays.json", "paul_graham_essays.jsonl", "paul_graham_essays.jsonl.gz"),
    "english": ("english_words.json", "english_words*.txt", "english_words*.txt.gz"),
    "squad": ("squad.json", "squad_v2*.json", "squad_v2*.json.gz"),
    "hotpotqa": ("hotpotqa.json", "hotpotqa*.json", "hotpotqa*.json.gz", "hotpotqa*.jsonl", "hotpotqa*.jsonl.gz"),
}
"""Names of files. All lists of words; of the others one file, and the first pattern, the original's own name, before
all others."""
_DISTRACTORS = ("squad*contexts.jsonl", "squad*contexts.jsonl.gz")
_NEEDED: dict[Kind, str] = {
    "words": "Install rnope[eval], which brings wonderwords, or put wonderwords_{nounlist,adjectivelist,verblist}.txt into "
    "the folder of --data.",
    "english": "Put RULER's english_words.json, or english_words*.txt(.gz) with a word to a line, into the folder of --data.",
    "squad": "Put squad.json (SQuAD's dev-v2.0.json) or squad_v2*.json(.gz) into the folder of --data.",
    "hotpotqa": "Put hotpotqa.json (hotpot_dev_distractor_v1.json) or hotpotqa*.jsonl(.gz) into the folder of --data.",
}
_WONDERWORDS = "ae9357e4c6aa3d0fd45817e756ec0d5a710d538d3ae980f3ddb019e4a437d100"
"""SHA-256 of the three lists of wonderwords 3.0.1, one after the other; the original names no version."""
_ENGLISH = "affcd6d45fdf3cc843d585c99c97ad615094e760e6c4756b654bab6c73bc2eca"
"""SHA-256 that the original's Git LFS pointer names."""
_ESSAYS = 217
_SQUAD, _HOTPOTQA = 5928, 7405
"""Questions with an answer in SQuAD 2.0 dev; questions in HotpotQA dev (distractor)."""


class Question(NamedTuple):
    """A question and the documents that belong to it, as indices."""

    query: str
    answers: tuple[str, ...]
    gold: list[int]
    near: list[int]
    """Other documents of the same article."""


class Questions(NamedTuple):
    """A data set of questions about documents."""

    questions: list[Question]
    documents: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a text came from."""

    source: tuple[str, ...]
    """Names of files; no paths, since a folder may move."""
    sha256: str
    """Of what the files hold, unpacked, one after the other."""
    why: str = ""
    """What is not as the original has it; empty: nothing."""


class Texts:
    """What is in `data`, at any depth; each text is read when it is first asked for.

    Raises (everything here):
        ConfigError: no such folder, two files that could both be meant, or a text that is needed and not there.
        UserError: a file that is not of the form its name promises.
    """

    def __init__(self, data: Path | None) -> None:
        check("data", str(data), data is None or data.is_dir(), "is no folder", "Give the folder with RULER's texts.")
        files = [] if data is None else sorted(path for path in data.rglob("*") if path.is_file())
        self._files = {kind: _pick(kind, files) for kind in KINDS}
        own = any(path.name == "squad.json" for path in self._files["squad"])
        self._distractors = [] if own else [path for path in files if any(map(path.match, _DISTRACTORS))]
        self._origins: dict[Kind, Origin | None] = {}

    def origin(self, kind: Kind) -> Origin | None:
        """None: there is no such text."""
        if kind not in self._origins:
            self._origins[kind] = self._found(kind)
        return self._origins[kind]

    def _found(self, kind: Kind) -> Origin | None:
        if kind == "essays":
            return self._essays[1]
        if not self._paths(kind):
            return None
        if kind in ("squad", "hotpotqa"):
            found, whole = len(getattr(self, kind).questions), _SQUAD if kind == "squad" else _HOTPOTQA
            return _origin(
                self._paths(kind), "" if found == whole else f"{found:,} of the original's {whole:,} questions"
            )
        plain = _origin(self._paths(kind), "another list of words than the original's")
        return _origin(self._paths(kind)) if plain.sha256 in (_WONDERWORDS, _ENGLISH) else plain

    @functools.cached_property
    def words(self) -> tuple[list[str], list[str], list[str]]:
        """Nouns, adjectives and verbs."""
        nouns, adjectives, verbs = (
            [line.rstrip() for line in _text(path).removesuffix("\n").split("\n")] for path in self._needed("words")
        )
        return nouns, adjectives, verbs

    @functools.cached_property
    def english(self) -> list[str]:
        """A long list of English words."""
        (path,) = self._needed("english")
        if path.suffix == ".json":
            return _parsed(path, lambda text: [str(word) for word in json.loads(text).values()])
        return _text(path).split()

    @property
    def essays(self) -> str:
        """All essays one after the other."""
        return self._essays[0]

    @functools.cached_property
    def squad(self) -> Questions:
        """Those questions that have an answer, and all paragraphs."""
        path, *distractors = self._needed("squad")
        more = [row["context"] for file in distractors for row in _parsed(file, _rows)]
        return _parsed(path, lambda text: _squad(json.loads(text)["data"], more))

    @functools.cached_property
    def hotpotqa(self) -> Questions:
        """All questions, and all paragraphs under their titles."""
        (path,) = self._needed("hotpotqa")
        lines = ".jsonl" in path.name
        return _parsed(path, lambda text: _hotpotqa(_rows(text) if lines else json.loads(text)))

    def _paths(self, kind: Kind) -> list[Path]:
        if kind == "words" and not self._files[kind]:
            spec = importlib.util.find_spec("wonderwords")  # found, not run
            places = (spec and spec.submodule_search_locations) or []
            return [Path(place, "assets", name) for place in places[:1] for name in _LISTS]
        return [*self._files[kind], *(self._distractors if kind == "squad" and self._files[kind] else [])]

    def _needed(self, kind: Kind) -> list[Path]:
        paths = self._paths(kind)
        check("data", kind, bool(paths), "is needed by these tasks and is not there", _NEEDED.get(kind, ""))
        return paths

    @functools.cached_property
    def _essays(self) -> tuple[str, Origin]:
        if not self._files["essays"]:
            text = "\n\n".join(document.text for document in read_corpus(None) if document.split == "eval")
            why = "the haystack is text that Python itself carries, not RULER's essays of Paul Graham"
            return text, Origin(source=("built in",), sha256=hashlib.sha256(text.encode()).hexdigest(), why=why)
        (path,) = self._files["essays"]
        if (
            path.suffix == ".json"
        ):  # what the original's own script wrote: gathered from the web, it has no fixed digest
            text, why = _parsed(path, lambda content: str(json.loads(content)["text"])), ""
        else:
            rows = _parsed(path, lambda content: [str(row["text"]) for row in _rows(content)])
            text, why = "".join(rows), f"{len(rows)} of the original's {_ESSAYS} essays"
        check("data", path.name, bool(text.strip()), "holds no text", "Give RULER's essays, or take the file away.")
        return text, _origin([path], why)


def _pick(kind: Kind, files: Sequence[Path]) -> list[Path]:
    """The files that `kind` is read from."""
    first, *others = _FILES[kind]
    found = [[path for path in files if path.match(pattern)] for pattern in (first, *others)]
    if kind == "words":
        groups, rule = found, "must be there once each, or none of them"
        fits = all(len(group) == 1 for group in groups) or not any(groups)
    else:
        groups = [found[0] or list(dict.fromkeys(path for group in found[1:] for path in group))]
        groups = [[path for path in group if not any(map(path.match, _DISTRACTORS))] for group in groups]
        fits, rule = len(groups[0]) <= 1, "are several files that could be meant"
    picked = [path for group in groups for path in group]
    check("data", [path.name for path in picked], fits, rule, f"Leave the one to be used for {kind}.")
    return picked


def _squad(articles: Sequence[Any], more: Sequence[str]) -> Questions:
    paragraphs = [[paragraph["context"] for paragraph in article["paragraphs"]] for article in articles]
    documents = sorted({*more, *(context for article in paragraphs for context in article)})
    index = {context: i for i, context in enumerate(documents)}
    questions = []
    for article, contexts in zip(articles, paragraphs, strict=True):
        for paragraph in article["paragraphs"]:
            gold = index[paragraph["context"]]
            near = [i for context in contexts if (i := index[context]) != gold]
            questions += [
                Question(question["question"], tuple(answer["text"] for answer in question["answers"]), [gold], near)
                for question in paragraph["qas"]
                if not question["is_impossible"]
            ]
    return Questions(questions, documents)


def _hotpotqa(rows: Sequence[Any]) -> Questions:
    contexts = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
    documents = sorted({document for context in contexts for document in context})
    index = {document: i for i, document in enumerate(documents)}
    questions = [
        Question(row["question"], (row["answer"],), [index[document] for document in context], [])
        for row, context in zip(rows, contexts, strict=True)
    ]
    return Questions(questions, documents)


def _origin(paths: Sequence[Path], why: str = "") -> Origin:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_content(path))
    return Origin(source=tuple(path.name for path in paths), sha256=digest.hexdigest(), why=why)


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Mend it, or take it away.") from None


def _text(path: Path) -> str:
    try:
        return _content(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error}). Mend it, or take it away.") from None


def _parsed(path: Path, read: Callable[[str], Read]) -> Read:
    text = _text(path)
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{path}: is only a pointer of Git LFS. Fetch the file itself (git lfs pull).")
    try:
        return read(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "See docs/evaluation.md for the form that files of this name have."
        raise UserError(f"{path}: is not as its name says ({error!r}). {remedy}") from None


def _rows(text: str) -> list[Any]:
    """Of JSON lines; characters that end a line elsewhere may stand inside one."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]
