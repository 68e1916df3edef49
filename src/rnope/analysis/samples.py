"""Texts to look at, with their segments marked: needles in a haystack, the comparison's needles, and the user's own.

A sample follows from its seed, length and index alone. It knows no model but its tokenizer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

from rnope.analysis.probe import Marks
from rnope.analysis.spans import BEGIN_TOKENS, Span, covering, offsets, segments
from rnope.data import needles
from rnope.errors import ConfigError, UserError, check
from rnope.evals.frame import Frame
from rnope.evals.niah.needle import ANSWER, SENTENCE, Needles
from rnope.evals.niah.suite import needle_place
from rnope.evals.text import Haystack
from rnope.strict import from_plain
from rnope.tokenizer import Tokenizer

_BEFORE, _, _AFTER = SENTENCE.partition(SENTENCE.strip())
_VALUE, _KEY = 1, 2
"""Offsets inside a stated fact of `rnope.data.needles`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A text to look at."""

    name: str
    context_tokens: int
    """Question and completion included, given or to be generated."""
    marks: Marks
    """Where the completion is to be generated, segment ``qc`` holds its tokens though the ids do not."""
    rows_from: int
    """Where ``qc`` begins: the rows from there on are measured."""
    new_tokens: int = 0
    """To be generated behind the ids; 0 where the completion is given."""
    notes: tuple[str, ...] = ()
    """What the reader of the measures should know, for example that a span was widened."""


class NeedleSamples:
    """The English needles of ``rnope eval niah``, one per text at half depth, and the gold completion behind the question.

    ``begin`` is the first 10 tokens, ``needle`` the sentence, ``qc`` all behind the haystack: the question, what a chat
    template has there, the answer's first words and the rest of the answer as the needle has it.

    Args:
        new_tokens: leave the completion out, for the model to generate so many tokens instead; nothing is copied then.

    Raises:
        ConfigError: the tokenizer cannot spell the needles, or the haystack holds all their facts.
    """

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, haystack: Haystack, *, seed: int, new_tokens: int = 0
    ) -> None:
        check("seed", seed, seed >= 0, "must be 0 or more", "Leave it out for 42.")
        check("new_tokens", new_tokens, new_tokens >= 0, "must be 0 or more", "Use 0 for the gold completion.")
        self._tokenizer, self._haystack, self._seed, self._new = tokenizer, haystack, seed, new_tokens
        self._needles = Needles(tokenizer, frame, haystack.texts)

    def check(self, context_tokens: int) -> None:
        """Raise a `ConfigError` unless every sample of this length fits."""
        least = len(self._needles.head) + self._needles.most_tokens + self.most_rows
        rule = f"cannot hold needle, question and completion, up to {least:,} tokens, and a haystack"
        check("lengths", context_tokens, context_tokens > least, rule, f"Use {least + 1:,} or more.")

    @property
    def most_rows(self) -> int:
        """Tokens of question and completion, at most."""
        return self._needles.most_tail + (
            self._new or self._needles.most_tokens
        )  # a completion is a part of its needle

    def sample(self, context_tokens: int, index: int) -> Sample:
        """The `index`-th text of a length."""
        self.check(context_tokens)
        rng = Random(f"analysis {self._seed} {context_tokens} {index}")
        generator = np.random.default_rng(rng.getrandbits(128))
        needle = self._needles.draw(rng)
        sentence = _BEFORE + needle.text + _AFTER
        places = offsets(self._tokenizer, sentence)
        stop = len(_BEFORE) + len(needle.text)
        marked, _ = covering(sentence, places, len(_BEFORE), stop)  # white space around a needle may draw attention too
        answer = len(ANSWER.format(town=needle.town))
        origin, _ = covering(sentence, places, len(_BEFORE) + answer, stop)
        given = [] if self._new else self._completion(needle.text, answer)

        head, tail = self._needles.head, needle.tail
        end = context_tokens - self._new
        left = end - len(head) - len(needle.ids) - len(tail) - len(given)
        text = self._haystack.compose(generator, left)
        cut = needle_place(self._haystack, text, 50.0)
        ids = [*head, *text[:cut].tolist(), *needle.ids, *text[cut:].tolist(), *tail, *given]
        at = len(head) + cut
        qc = end - len(given) - len(tail)
        found = {"begin": (0, BEGIN_TOKENS), "needle": _moved(marked, at), "qc": (qc, context_tokens)}
        return Sample(
            name=f"{context_tokens}-{index}",
            context_tokens=context_tokens,
            marks=Marks(
                ids=ids,
                spans=segments(context_tokens, found),
                copied=_copied(ids, end - len(given), _moved(origin, at)),
            ),
            rows_from=qc,
            new_tokens=self._new,
        )

    def _completion(self, text: str, answer: int) -> list[int]:
        """Tokens of what follows the first `answer` characters, as they are in the whole sentence."""
        places = offsets(self._tokenizer, text)
        (begin, end), _ = covering(text, places, answer, len(text))
        if places[begin][0] < answer:  # the prompt ends with a token of its own
            return self._tokenizer.encode(text[answer:])
        return self._tokenizer.encode(text)[begin:end]


def task_sample(
    task: needles.NeedleTask, haystack: needles.Haystack, rng: np.random.Generator, *, context_tokens: int
) -> Sample:
    """The comparison's own: one fact at half depth, and its question with its answer.

    Only the row that predicts the value copies: no other token of the question follows from the fact. It may look at the
    value itself, or at the key behind it, to which a lower layer has carried the value: both count. Where the needle stands
    among the first 10 tokens, ``begin`` ends before it.

    Raises:
        ConfigError: as `NeedleTask.context`.
    """
    context = task.context(rng, haystack, context_tokens=context_tokens, depths=[0.5])
    ((begin, end),) = context.spans
    qc = context_tokens - needles.UNIT_TOKENS
    found = {"begin": (0, min(BEGIN_TOKENS, begin)), "needle": (begin, end), "qc": (qc, context_tokens)}
    return Sample(
        name=str(context_tokens),
        context_tokens=context_tokens,
        marks=Marks(
            ids=context.ids.tolist(),
            spans=segments(context_tokens, found),
            copied={int(context.rows[0]): (begin + _VALUE, begin + _KEY)},
        ),
        rows_from=qc,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """A line of a user's file."""

    spans: dict[str, tuple[int, ...]]
    prompt: str | None = None
    ids: tuple[int, ...] | None = None
    completion: str = ""
    unit: Literal["characters", "tokens"] = "characters"
    name: str | None = None

    def __post_init__(self) -> None:
        one = (self.prompt is None) != (self.ids is None)
        check("prompt", self.prompt, one, "must be there, or ids in its place, and not both", "Give one of them.")
        known = self.prompt is not None or self.unit == "tokens"
        check("unit", self.unit, known, "needs the prompt's text", 'Add "unit": "tokens" to spans of ids.')
        for name, span in self.spans.items():
            check(f"spans.{name}", list(span), len(span) == 2, "must be two numbers", "Give [begin, end).")


def read_samples(path: Path, tokenizer: Tokenizer, *, new_tokens: int = 0) -> list[Sample]:
    """The samples of a JSON Lines file, in its order.

    A line has ``prompt`` (text) or ``ids`` (tokens, used as they are), and ``spans``: name -> [begin, end) in the
    prompt's characters, or with ``"unit": "tokens"`` in its tokens, special ones not counted where there is a text.
    ``completion`` (text) is put behind it. Span ``qc``, the question, must go to the prompt's end; the completion is
    joined to it, and is all of it where there is none. ``begin`` is the first 10 tokens, or up to the first span, unless
    it is given. A completion's tokens are taken to be copied from those tokens of ``needle`` that are the same in the
    same order. ``name`` is for the reader.

    Args:
        new_tokens: leave completions out, for the model to generate so many tokens instead.

    Raises:
        UserError: the file cannot be read or holds nothing.
        ConfigError: a line breaks a rule; its number is named.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Give a file of JSON Lines in UTF-8.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                entry = from_plain(_Line, _parsed(line))
                found.append(_sample(entry, tokenizer, f"line-{number}", new_tokens))
            except ConfigError as error:
                raise error.inside(where) from None
    if not found:
        raise UserError(f'{path}: holds no sample. Give lines such as {{"prompt": "...", "spans": {{"qc": [0, 3]}}}}.')
    return found


def _parsed(line: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            check(name, name, names.count(name) == 1, "is given twice", "Leave one of them out.")
        return dict(pairs)

    try:
        found = json.loads(line, object_pairs_hook=once)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError("line", line, f"is no JSON ({error})", "Write one object per line.") from None
    check("line", found, isinstance(found, dict), "must be an object", 'Write {"prompt": ..., "spans": {...}}.')
    return found


def _sample(line: _Line, tokenizer: Tokenizer, name: str, new_tokens: int) -> Sample:
    ids, spans, notes = _prompt(line, tokenizer)
    end = len(ids)
    completion = [] if new_tokens else tokenizer.encode(line.completion)
    total = end + new_tokens + len(completion)
    if "qc" in spans:
        spans["qc"] = (spans["qc"][0], total)
    else:
        remedy = 'Add "qc": [begin, end] to its spans, or a "completion".'
        check("spans", list(spans), len(completion) > 0, "name no question, and there is no completion", remedy)
        spans["qc"] = (end, total)
    if "begin" not in spans and (first := min(begin for begin, _ in spans.values())) > 0:
        spans["begin"] = (0, min(BEGIN_TOKENS, first))
        if first < BEGIN_TOKENS:
            notes.append(f"begin is {first} tokens, not {BEGIN_TOKENS}: another span begins there")
    ids += completion
    try:
        marked = segments(total, spans)
    except ConfigError as error:  # maybe because one was widened
        raise ConfigError(error.field, error.value, "; ".join((error.rule, *notes)), error.remedy) from None
    copied = _copied(ids, end, spans["needle"]) if "needle" in spans else {}
    return Sample(
        name=line.name or name,
        context_tokens=total,
        marks=Marks(ids=ids, spans=marked, copied=copied),
        rows_from=spans["qc"][0],
        new_tokens=new_tokens,
        notes=tuple(notes),
    )


def _prompt(line: _Line, tokenizer: Tokenizer) -> tuple[list[int], dict[str, Span], list[str]]:
    """Token ids with the special ones before them, spans in these tokens, and notes."""
    notes: list[str] = []
    given = {name: (begin, end) for name, (begin, end) in line.spans.items()}
    if line.ids is not None:
        for token in line.ids:
            check("ids", token, 0 <= token < tokenizer.vocab_size, "is no token of this tokenizer", "Mend it.")
        ids, special, text = list(line.ids), 0, ""
    else:
        text, special = line.prompt or "", len(tokenizer.begin_ids)
        ids = [*tokenizer.begin_ids, *tokenizer.encode(text)]
    whole = len(text) if line.unit == "characters" else len(ids) - special
    segments(whole, given, unit=line.unit)  # what is wrong is said in the user's own numbers
    if line.unit == "characters":
        places = offsets(tokenizer, text)
        for name, (begin, end) in given.items():
            try:
                given[name], widened = covering(text, places, begin, end)
            except ConfigError as error:
                raise ConfigError(f"spans.{name}", error.value, error.rule, error.remedy) from None
            if widened:
                first, last = places[given[name][0]][0], places[given[name][1] - 1][1]
                notes.append(f"{name} is widened to whole tokens: characters {first} to {last} for {begin} to {end}")
    spans = {name: _moved(span, special) for name, span in given.items()}
    if "qc" in spans:
        rule = f"must go to the end of the prompt, {whole:,} {line.unit}"
        last_too = spans["qc"][1] == len(ids)
        check("spans.qc", line.spans["qc"], last_too, rule, "The question and all behind it are one segment.")
    return ids, spans, notes


def _copied(ids: Sequence[int], begin: int, origin: Span) -> Mapping[int, tuple[int, ...]]:
    """For `Marks.copied`: tokens from `begin` on, aligned with those of `origin`; what differs is left out."""
    blocks = SequenceMatcher(None, ids[origin[0] : origin[1]], ids[begin:], autojunk=False).get_matching_blocks()
    return {begin + to + i - 1: (origin[0] + at + i,) for at, to, size in blocks for i in range(size)}


def _moved(span: Span, by: int) -> Span:
    return span[0] + by, span[1] + by
