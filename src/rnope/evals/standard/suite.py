"""The standard benchmarks as a suite: the harness's tasks, prompts and metrics, asked in groups that survive a kill."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rnope.errors import UserError, check
from rnope.evals.models.model import EvalModel
from rnope.evals.standard.requests import Responder, Response, new_tokens
from rnope.evals.standard.sandbox import check_walls
from rnope.evals.standard.scoring import TITLES, StandardScoring
from rnope.evals.standard.tasks import Benchmark, expand, kept_metrics, load
from rnope.evals.suite import Cell, Prediction, Suite, prompt_digest
from rnope.tokenizer import Tokenizer

GROUP = 32
"""Documents whose continuations are scored together, and kept together."""
_LOOKED_AT = 8
"""Documents of each task whose length is measured for the plan."""
MBPP_IS_OFF = (
    "mbpp is left out: it runs code that the model writes (give --run-code to allow it, in a process behind walls)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    place: int
    """Within its task."""
    task: Any
    name: str
    document: Any
    requests: list[Any]
    """The harness's instances."""


class Standard(Suite):
    """Tasks of lm-evaluation-harness.

    Args:
        tasks: ``paper``, ``longbench``, ``scrolls``, or the harness's own names.
        data: a folder with local files of the benchmarks; None has the harness download them.
        limit: only the first so many documents of each task; figures are then marked as not comparable.
        shots: examples before each question; each task's own number if None.
        context_tokens: what the model may read and write in all, beyond its trained length or below it; its trained length
            if None. Longer prompts lose their beginning.
        run_code: let MBPP run what the model writes.
        seed: of the choice of examples, where a task draws them.

    Attributes:
        notes: what the user should know before it starts, for example that a benchmark is left out.

    Raises:
        ConfigError: nothing is left to ask.
        UserError: the harness is not installed; code is to run and there is no safe way.
    """

    name = "standard"
    scoring = StandardScoring()

    def __init__(
        self, tokenizer: Tokenizer, *, tasks: Sequence[str], data: Path | None, limit: int | None, shots: int | None,
        context_tokens: int | None, run_code: bool, seed: int,
    ) -> None:  # fmt: skip
        self._tokenizer, self._data, self._limit, self._shots, self._seed = tokenizer, data, limit, shots, seed
        self._context_tokens = context_tokens
        names = expand(tasks)
        self.notes: tuple[str, ...] = ()
        if "mbpp" in names and run_code:
            check_walls()
        elif "mbpp" in names:
            self.notes = (MBPP_IS_OFF,)
            names = tuple(name for name in names if name != "mbpp")
        check("--tasks", list(tasks), bool(names), "leaves nothing to ask", "Name tasks; mbpp needs --run-code.")
        self._names = names

    def settings(self) -> dict[str, Any]:
        """The harness's version decides prompts and metrics, so that one folder holds answers under one version."""
        return {
            "lm_eval": version("lm_eval"),
            "shots": self._shots,
            "context_tokens": self._context_tokens,
            "seed": self._seed,
            "local": self._data is not None,
        }

    def cells(self) -> tuple[Cell, ...]:
        """One for each benchmark; loads its documents.

        A cell's context is the mean over the first documents of its tasks, for the plan: prompts may be longer.
        """
        return tuple(self._cell(benchmark) for benchmark in self._benchmarks.values())

    @functools.cached_property
    def _benchmarks(self) -> dict[str, Benchmark]:
        return {each.name: each for each in load(self._names, data=self._data, shots=self._shots)}

    def _cell(self, benchmark: Benchmark) -> Cell:
        sizes = [len(task.eval_docs) for task in benchmark.tasks]
        lengths, most = [], 0
        for task in benchmark.tasks:
            for document in self._prepared(benchmark, task, _LOOKED_AT):
                texts = [request.args[0] for request in document.requests]
                new = max(_room(request) for request in document.requests)
                lengths.append(len(self._tokenizer.encode(max(texts, key=len))) + new)
                most = max(most, new)
        return Cell(
            name=benchmark.name,
            context_tokens=math.ceil(sum(lengths) / len(lengths)),
            samples=sum(size if self._limit is None else min(size, self._limit) for size in sizes),
            max_new_tokens=most,
            labels={
                "benchmark": TITLES.get(benchmark.name, benchmark.name),
                "shots": benchmark.shots,
                "documents": sum(sizes),
                "comparable": not benchmark.altered,
                "altered": benchmark.altered,
                "source": benchmark.source,
            },
        )

    def ask(
        self, model: EvalModel, cell: Cell, done: Mapping[int, Prediction], *,
        batch: int, progress: Callable[[int], None],
    ) -> Iterator[list[Prediction]]:  # fmt: skip
        """See `Suite`: a group of documents is asked together, of one task, so that they share its examples."""
        responder = Responder(model, max_tokens=self._context_tokens, batch=batch)
        benchmark = self._benchmarks[cell.name]
        indices = _indices([len(task.eval_docs) for task in benchmark.tasks])
        for task, index in zip(benchmark.tasks, indices, strict=True):
            # An answer that is written takes long, so that each batch is kept; scores come in larger groups.
            size = batch if task.OUTPUT_TYPE == "generate_until" else GROUP
            documents = self._prepared(benchmark, task, self._limit)
            while group := list(itertools.islice(documents, size)):
                left = [each for each in group if index[each.place] not in done]
                if left:
                    yield self._asked(responder, cell, left, index, progress)

    def _prepared(self, benchmark: Benchmark, task: Any, limit: int | None) -> Iterator[_Document]:
        """Documents and their requests in order: examples are drawn one document after the other."""
        task.set_fewshot_seed(seed=self._seed)
        shots = task.config.num_fewshot or 0
        for place, document in task.doc_iterator(rank=0, limit=limit, world_size=1):
            try:
                context = task.fewshot_context(document, num_fewshot=shots, gen_prefix=task.doc_to_prefix(document))
                metadata = (task.config.task, place, 1)
                made = task.construct_requests(doc=document, ctx=context, metadata=metadata)
            except Exception as error:  # templates and functions of the harness's hundreds of authors
                with_examples = f" with {shots} examples" if shots else ""
                raise UserError(
                    f"{benchmark.name}: the harness makes no prompt of document {place}{with_examples} "
                    f"({type(error).__name__}: {error}). Leave it out of --tasks, or change --shots."
                ) from None
            yield _Document(
                place=place,
                task=task,
                name=f"{task.config.task}/{place}",
                document=document,
                requests=made if isinstance(made, list) else [made],
            )

    def _asked(
        self, responder: Responder, cell: Cell, group: Sequence[_Document], index: Sequence[int],
        progress: Callable[[int], None],
    ) -> list[Prediction]:  # fmt: skip
        kinds: dict[str, tuple[Callable[..., Iterator[tuple[int, Response]]], Callable[[Any], Any]]]
        kinds = {
            "loglikelihood": (responder.log_likelihoods, lambda request: request.args),
            "loglikelihood_rolling": (responder.rolling, lambda request: request.args[0]),
            "generate_until": (responder.generate, lambda request: request.args),
        }
        responses: dict[int, Response] = {}
        for kind, (ask, given) in kinds.items():
            asked = [each for document in group for each in document.requests if each.request_type == kind]
            for place, response in ask([given(request) for request in asked], progress):
                responses[id(asked[place])] = response
        several = len(self._benchmarks[cell.name].tasks) > 1
        return [
            _prediction(cell.name, index[each.place], each, [responses[id(one)] for one in each.requests], several)
            for each in group
        ]


def _room(request: Any) -> int:
    """Tokens that an answer to a request may have."""
    return new_tokens(request.args[1]) if request.request_type == "generate_until" else 0


def _indices(sizes: Sequence[int]) -> list[list[int]]:
    """Task -> document -> index in the cell: first documents first, so that a higher limit only adds at the end."""
    order = sorted((place, number) for number, size in enumerate(sizes) for place in range(size))
    indices = [[0] * size for size in sizes]
    for index, (place, number) in enumerate(order):
        indices[number][place] = index
    return indices


def _prediction(cell: str, index: int, document: _Document, responses: Sequence[Response], several: bool) -> Prediction:
    error = next((each.error for each in responses if each.error is not None), None)
    facts: dict[str, Any] = {"document": document.name, "cut": int(any(each.cut_tokens for each in responses))}
    if several:
        facts["subject"] = document.name.partition("/")[0].removeprefix(f"{cell}_")
    answer, references = "", tuple[str, ...]()
    if error is None:
        metrics, parts = dict[str, float](), dict[str, float]()
        task = document.task
        for request, response in zip(document.requests, responses, strict=True):
            request.resps = [response.value]
        for each in task._filters:
            each.apply(document.requests)
            values = task.process_results(
                document.document, [request.filtered_resps[each.name] for request in document.requests]
            )
            kept, some = kept_metrics(task, values, each.name)
            metrics |= kept
            parts |= some
        facts |= {"metrics": metrics, **parts}
        answer = _answer(document.requests, responses)
        scores = [each.value for each in responses if not isinstance(each.value, str)]
        if scores:
            facts["log_likelihoods"] = [each[0] if isinstance(each, tuple) else each for each in scores]
        references = (str(task.doc_to_target(document.document)),)
    return Prediction(
        cell=cell,
        index=index,
        prompt_sha256=prompt_digest(np.concatenate([each.ids for each in responses])),
        prompt_tokens=max(each.context_tokens for each in responses),
        answer=answer,
        new_tokens=sum(each.new_tokens for each in responses),
        ended="error" if error is not None else "length" if any(r.ended == "length" for r in responses) else "stop",
        error=error,
        references=references,
        facts=facts,
    )


def _answer(requests: Sequence[Any], responses: Sequence[Response]) -> str:
    """What the model wrote, or the likeliest of the choices: its text, or its number where the texts are alike."""
    if isinstance(responses[0].value, str):
        return responses[0].value
    if len(requests) == 1:
        return ""
    best = int(np.argmax([response.value[0] for response in responses]))
    texts = [request.args[1].strip() for request in requests]
    return texts[best] if len(set(texts)) == len(texts) else str(best)
