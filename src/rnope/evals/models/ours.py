"""A model folder of rnope's kinds, through the engine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from rnope.errors import ConfigError
from rnope.evals.models.answers import Writing
from rnope.evals.models.folder import folder_digest
from rnope.evals.models.model import Answer, EvalModel, Score
from rnope.evals.models.prefixes import tree
from rnope.evals.results import ModelFacts
from rnope.generate.cache import State
from rnope.generate.engine import Engine
from rnope.hf.configs import read_context_tokens, read_stop_ids
from rnope.hf.folder import load
from rnope.hf.mapping import model_type
from rnope.model.accounting import parameters
from rnope.tokenizer import Tokenizer


class EngineModel(EvalModel):
    """The model of `folder`.

    Args:
        name: what reports call it.
        dtype: of the weights, as stored if None.
        device: the CPU if None.
        chunk: prompts are read in chunks of so many tokens.

    Raises:
        UserError: as `rnope.load`; no tokenizer, or one with more tokens than the model.
    """

    def __init__(
        self, folder: Path, *, name: str, dtype: torch.dtype | None = None, device: str | None = None, chunk: int = 2048
    ) -> None:
        self.tokenizer = Tokenizer.load(folder)
        self.engine = Engine(load(folder, dtype=dtype, device=device), prefill_chunk_tokens=chunk)
        config = self.engine.config
        if self.tokenizer.vocab_size > config.vocab_size:
            rule = f"has more tokens than the model's {config.vocab_size:,}"
            raise ConfigError(
                "tokenizer.json", self.tokenizer.vocab_size, rule, "Use the tokenizer that the model was trained with."
            )
        self.stop_ids = read_stop_ids(folder)
        self.facts = ModelFacts(
            name=name,
            kind="rnope",
            sha256=folder_digest(folder),
            tokenizer_sha256=self.tokenizer.digest,
            begin_ids=self.tokenizer.begin_ids,
            dtype=str(self.engine.dtype).removeprefix("torch."),
            device=self.engine.device.type,
            trained_tokens=read_context_tokens(folder),
            windows=tuple(sorted({spec.window for spec in config.layers if spec.window is not None})),
            model_type=model_type(config),
            parameters=parameters(config),
        )

    def generate(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, *,
        stop: Sequence[str] = (), progress: Callable[[int], None] = lambda tokens: None,
    ) -> list[Answer]:  # fmt: skip
        answers: dict[int, Answer] = {}
        for members, rests, state in self._walk(prompts, progress):
            made = Writing(self.tokenizer, self.stop_ids, stop, len(members))
            reading = _Steps(progress)
            for token in self.engine.stream(
                rests, max_new_tokens, stop_ids=self.stop_ids, after=state, progress=reading
            ):
                made.add(token.sequence, token.id)
                progress(1)
                if made.finished:  # by stop texts, which the engine knows nothing of
                    break
            answers |= zip(members, made.answers(), strict=True)
        return [answers[i] for i in range(len(prompts))]

    def scores(
        self,
        requests: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[tuple[int, Score]]:
        contexts = [context for context, _ in requests]
        for members, rests, state in self._walk(contexts, progress):
            same: dict[bytes, list[int]] = {}  # one context, several continuations: the choices of a question
            for place, rest in enumerate(rests):
                same.setdefault(rest.tobytes(), []).append(place)
            for places in same.values():
                rest = rests[places[0]]
                before = self.engine.prefill(rest, after=None if state is None else state.fork())
                progress(len(rest))
                targets = [requests[members[place]][1] for place in places]
                for place, chances in zip(places, self.engine.chances(before, targets), strict=True):
                    progress(len(chances))
                    yield members[place], Score.of(chances)

    def _walk(
        self, prompts: Sequence[np.ndarray], progress: Callable[[int], None]
    ) -> Iterator[tuple[tuple[int, ...], list[np.ndarray], State | None]]:
        """Prompts to be continued together: their places, what is left to read of each, and the state before that."""
        states: list[State | None] = [None]  # before each node from the root down
        for node in tree(prompts):
            del states[node.depth + 1 :]
            state = states[-1]
            if node.end > node.begin:
                shared = prompts[node.first][node.begin : node.end]
                state = self.engine.prefill(shared, after=None if state is None else state.fork())
                progress(len(shared))
            states.append(state)
            if node.members:
                yield node.members, [prompts[i][node.end :] for i in node.members], state


class _Steps:
    """The engine tells how much was read in all; progress wants how much more."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress, self._done = progress, 0

    def __call__(self, done: int) -> None:
        self._progress(done - self._done)
        self._done = done
