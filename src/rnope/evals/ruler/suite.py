"""RULER as a suite: which prompts, from which texts. Answers are scored in `scoring`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rnope.errors import ConfigError, check
from rnope.evals.frame import Frame
from rnope.evals.ruler.counting import Counting
from rnope.evals.ruler.documents import DocumentDrawing
from rnope.evals.ruler.draws import Prompt, Streams
from rnope.evals.ruler.lists import CodedText, CommonDrawing
from rnope.evals.ruler.needles import NeedleDrawing
from rnope.evals.ruler.sampling import Budget, Chained, Coded, Made, Searched, Source
from rnope.evals.ruler.scoring import RulerScoring
from rnope.evals.ruler.tasks import REVISION, TASKS, Task, chosen
from rnope.evals.ruler.texts import KINDS, Kind, Texts
from rnope.evals.suite import Cell, GenerationSuite, Prediction, Sample, Scoring
from rnope.strict import to_plain
from rnope.tokenizer import Tokenizer

TRIED = 8192
"""Up to this length `check` makes the first prompt: that is quick, and only short lengths are too short."""
_REMEDY = "Leave the task out, or ask longer contexts of it."


class Ruler(GenerationSuite):
    """RULER's tasks, each prompt the same text as the original makes for this seed, tokenizer, frame and these texts.

    Args:
        tasks: names of tasks, or retrieval (eight), qa (two), all (13).
        lengths: prompt and answer together, in tokens.
        samples: of each task and length.
        seed: of the prompts.
        data: a folder with RULER's texts, at any depth; None for what can be had without.

    Raises:
        ConfigError: a name or number out of range, or a text that a task needs and that is not there.
        UserError: a text that cannot be read.
    """

    name = "ruler"
    scoring: ClassVar[Scoring] = RulerScoring()

    def __init__(
        self, tokenizer: Tokenizer, frame: Frame, *, tasks: Sequence[str], lengths: Sequence[int], samples: int,
        seed: int, data: Path | None,
    ) -> None:  # fmt: skip
        check("lengths", list(lengths), len(lengths) > 0, "are none", "Give at least one.")
        check("samples", samples, samples >= 1, "must be 1 or more", "RULER's own default is 500.")
        check("seed", seed, 0 <= seed < 2**32, "must be 0 or more, and below 2^32", "Leave it out for 42.")
        self._tokenizer, self._frame = tokenizer, frame
        self._tasks, self._lengths = chosen(tasks), sorted(set(lengths))
        self._samples, self._seed = samples, seed
        self._texts = Texts(data)
        for task in self._tasks:
            for kind in _kinds(task):
                getattr(self._texts, kind)

    def settings(self) -> dict[str, Any]:
        """See `Suite`. Texts are named whether a task asks for them or not, so that tasks can be added to a folder."""
        origins = {kind: self._texts.origin(kind) for kind in KINDS}
        why = [f"{kind}: {origin.why}" for kind, origin in origins.items() if origin is not None and origin.why]
        return {
            "seed": self._seed,
            "revision": REVISION,
            "sentences": "by rule, not NLTK's Punkt",
            "frame": to_plain(self._frame),
            "texts": {
                kind: origin and {"source": list(origin.source), "sha256": origin.sha256, "original": not origin.why}
                for kind, origin in origins.items()
            },
            "comparable": not why,
            "why": "; ".join(why),
        }

    def cells(self) -> tuple[Cell, ...]:
        """By length, then by task.

        Raises:
            ConfigError: a length that cannot even hold a task's question; more samples than a task has questions.
        """
        for length in self._lengths:
            for task in self._tasks:
                self._check(task, length)
        return tuple(
            Cell(
                name=f"{task.name}-{length}",
                context_tokens=length,
                samples=self._samples,
                max_new_tokens=task.form.max_new_tokens,
                labels={"task": task.name, "group": task.group},
            )
            for length in self._lengths
            for task in self._tasks
        )

    def check(self) -> None:
        """See `Suite`: makes the first prompts of short lengths."""
        for cell in self.cells():
            if cell.context_tokens <= TRIED:
                next(self.samples(cell, {}))

    def samples(self, cell: Cell, done: Mapping[int, Prediction]) -> Iterator[Sample]:
        """See `GenerationSuite`. Facts of a sample: ``units`` of haystack (words of essays, lines, different words,
        documents); ``repeats``, how often the texts were gone through, where there are any; ``original``, whether these
        are the original's; ``tries`` and ``fit``, which the next run needs to go on; ``shortened``, units that are
        missing so that the tokenizer's special ids have room, where any are.

        Raises:
            ConfigError: the length is too short for the task.
        """
        task = TASKS[str(cell.labels["task"])]
        missing = [index for index in range(cell.samples) if index not in done]
        if not missing:
            return
        source = self._source(task, cell.context_tokens)
        source.begin(next((line.facts["fit"] for line in done.values()), None))
        for index in range(missing[-1] + 1):
            if index in done:
                source.skip(index, done[index].facts)
            else:
                made = source.make(index)
                yield Sample(
                    index=index,
                    ids=np.array([*self._frame.begin_ids, *made.ids], dtype=np.int64),
                    references=made.references,
                    facts={"units": made.units, "original": int(self._is_original(task, made)), **made.facts},
                )

    def _source(self, task: Task, length: int) -> Source:
        streams, counting, frame, seed = Streams(self._seed), Counting(self._tokenizer), self._frame, self._seed
        budget = Budget(length, task.form.max_new_tokens, len(frame.begin_ids))
        error = ConfigError("lengths", length, f"is too short for {task.name} with this tokenizer", _REMEDY)
        if task.kind == "vt":
            return Chained(frame, streams, counting, budget, error)
        if task.kind == "fwe":
            return Coded(frame, streams, counting, budget, error, seed)
        drawing: NeedleDrawing | CommonDrawing | DocumentDrawing
        if task.kind == "niah":
            drawing = NeedleDrawing(task, frame, self._texts, context_tokens=length, seed=seed)
        elif task.kind == "cwe":
            drawing = CommonDrawing(frame, self._texts, context_tokens=length, seed=seed)
        else:
            drawing = DocumentDrawing(frame, getattr(self._texts, task.dataset), seed=seed)
        return Searched(drawing, streams, counting, budget, error)

    def _check(self, task: Task, length: int) -> None:
        bare = Prompt(self._frame, task.form).text(context="", query="", type_needle_v=task.values, num_v=5)
        tokens = len(self._tokenizer.encode(bare))
        if task.kind == "fwe":
            tokens = max(tokens, CodedText.least_tokens)
        least = tokens + len(self._frame.begin_ids) + task.form.max_new_tokens
        rule = f"cannot hold {task.name}: its question and answer alone take {least:,} tokens"
        check("lengths", length, length > least, rule, _REMEDY)
        if task.kind == "qa":
            there = len(getattr(self._texts, task.dataset).questions)
            rule = f"{task.name} has {there:,} questions here"
            check("samples", self._samples, self._samples <= there, rule, "Ask for fewer, or give all of the data set.")

    def _is_original(self, task: Task, made: Made) -> bool:
        kinds = _kinds(task)
        if task.kind == "cwe" and made.facts["fit"][0] > len({word for words in self._texts.words for word in words}):
            kinds += ("english",)
        return not any(origin.why for kind in kinds if (origin := self._texts.origin(kind)))


def _kinds(task: Task) -> tuple[Kind, ...]:
    """The texts that a task cannot do without."""
    if task.kind == "qa":
        return (task.dataset,)
    if task.kind == "cwe":
        return ("words",)
    if task.kind != "niah":
        return ()
    words: tuple[Kind, ...] = ("words",) if "words" in (task.keys, task.values) else ()
    return (*words, "essays") if task.haystack == "essay" else words
