"""Any folder with a causal language model that transformers can open, through transformers.

Decoding is plain greedy: of a folder's generation_config.json the stop ids count and nothing else, so that models are
compared alike.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from rnope.errors import UserError
from rnope.evals.models.answers import Writing
from rnope.evals.models.folder import folder_digest
from rnope.evals.models.model import Answer, EvalModel, Score
from rnope.evals.models.prefixes import tree
from rnope.evals.models.pretrained import (
    learned_positions,
    quiet,
    read_model,
    read_tokenizer,
    rope_types,
    telling_memory,
)
from rnope.evals.results import ModelFacts
from rnope.generate.engine import Chance, chances_of
from rnope.hf.keys import context_key
from rnope.hf.mapping import UNBOUNDED

CHUNK = 2048
"""Tokens of a prompt that are read at once: the mask of a sliding window is a table of chunk by context."""
ROWS = 512
"""Tokens of a continuation that are scored at once: their logits are a table of so many by the vocabulary."""
_KEPT = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""Caches that hold keys and values and nothing else: only these are copied and gone on from."""


class TransformersModel(EvalModel):
    """The model of `folder`.

    Prompts are read in chunks, and what they share is read once, where going on from a cache is the same as reading from
    the start. It is not for recurrent layers, nor for RoPE whose frequencies depend on the length (``dynamic``,
    ``longrope``): these models read every prompt at once and from the start.

    Args:
        name: what reports call it.
        dtype: of the weights, as stored if None.
        device: the CPU if None.

    Raises:
        UserError: transformers cannot open the folder, it has no safetensors or no tokenizer, or weights are missing.
    """

    def __init__(self, folder: Path, *, name: str, dtype: torch.dtype | None = None, device: str | None = None) -> None:
        self.tokenizer = read_tokenizer(folder)
        self.model = read_model(folder, dtype, device)
        theirs = self.model.generation_config
        stop = theirs.eos_token_id
        self.stop_ids: tuple[int, ...] = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
        # What generate() is not told it takes from here.
        self.model.generation_config = GenerationConfig(
            eos_token_id=list(self.stop_ids) or None,
            pad_token_id=theirs.pad_token_id if theirs.pad_token_id is not None else [*self.stop_ids, 0][0],
        )
        self._config: Any = self.model.config.get_text_config(decoder=True)
        self._vocab_size: int = self.model.get_input_embeddings().num_embeddings
        self._positions = learned_positions(self.model, self._config)
        self._forward = inspect.signature(self.model.forward).parameters
        self._ropes = set(rope_types(self.model.config.to_dict()))
        self._goes_on = self._can_go_on()
        windows = {
            layer.sliding_window
            for layer in DynamicCache(config=self._config).layers
            if isinstance(layer, DynamicSlidingWindowLayer)
        }
        self.facts = ModelFacts(
            name=name,
            kind="transformers",
            sha256=folder_digest(folder),
            tokenizer_sha256=self.tokenizer.digest,
            begin_ids=self.tokenizer.begin_ids,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=self.model.device.type,
            trained_tokens=getattr(self._config, context_key(self._config.to_dict()), None),
            windows=tuple(sorted(window for window in windows if window < UNBOUNDED)),
            model_type=self.model.config.model_type,
            parameters=sum(weight.numel() for weight in self.model.parameters()),
        )

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[np.ndarray], max_new_tokens: int, *,
        stop: Sequence[str] = (), progress: Callable[[int], None] = lambda tokens: None,
    ) -> list[Answer]:  # fmt: skip
        answers: dict[int, Answer] = {}
        for place, ids in enumerate(prompts):
            if (wrong := self._obstacle(ids, max_new_tokens)) is not None:
                answers[place] = Answer(text="", tokens=0, ended="error", error=wrong)
        places = [place for place in range(len(prompts)) if place not in answers]
        with quiet(), telling_memory():
            for member, begin, cache in self._walk([prompts[place] for place in places], progress):
                place = places[member]
                answers[place] = self._answer(prompts[place], begin, cache, max_new_tokens, stop, progress)
        return [answers[place] for place in range(len(prompts))]

    def scores(
        self,
        requests: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        progress: Callable[[int], None] = lambda tokens: None,
    ) -> Iterator[tuple[int, Score]]:
        for context, target in requests:
            if (wrong := self._obstacle(np.concatenate((context, target)), 0)) is not None:
                raise UserError(f"{self.facts.name} cannot score {len(context) + len(target)} tokens: {wrong}.")
        # One context, several continuations (the choices of a question): it is read once.
        same: dict[bytes, list[int]] = {}
        for place, (context, _) in enumerate(requests):
            same.setdefault(context.tobytes(), []).append(place)
        groups = list(same.values())
        contexts = [requests[places[0]][0] for places in groups]
        for member, begin, cache in self._walk(contexts, progress):
            yield from self._group_scores(requests, groups[member], begin, cache, progress)

    def _walk(
        self, prompts: Sequence[np.ndarray], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, int, DynamicCache | None]]:
        """Each prompt: its place, how many of its tokens were read, and a cache of these to go on from."""
        if not self._goes_on:
            yield from ((place, 0, None) for place in range(len(prompts)))
            return
        caches = [DynamicCache(config=self._config)]  # before each node from the root down
        for node in tree(prompts):
            del caches[node.depth + 1 :]
            cache = caches[-1]
            if node.end > node.begin:
                cache = copy.deepcopy(cache)
                self._read(prompts[node.first][node.begin : node.end], cache, progress)
            caches.append(cache)
            for member in node.members:
                yield member, node.end, copy.deepcopy(cache)

    @torch.inference_mode()
    def _read(self, ids: np.ndarray, cache: DynamicCache, progress: Callable[[int], None]) -> Tensor:
        """Read `ids` behind what `cache` has, and keep them there: the logits of what comes next, [vocab]."""
        with telling_memory():
            for begin in range(0, len(ids), CHUNK):
                chunk = ids[begin : begin + CHUNK]
                logits = self._logits(chunk, 1, cache)
                progress(len(chunk))
        return logits[-1]

    def _logits(self, ids: np.ndarray, rows: int, cache: DynamicCache | None) -> Tensor:
        """Logits behind the last `rows` of `ids`, [rows, vocab]."""
        given: dict[str, Any] = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
        if "logits_to_keep" in self._forward:
            given["logits_to_keep"] = rows
        found: Tensor = self.model(input_ids=self._tensor(ids), **given).logits[0, -rows:]
        return found

    def _answer(
        self, ids: np.ndarray, begin: int, cache: DynamicCache | None, max_new_tokens: int,
        stop: Sequence[str], progress: Callable[[int], None],
    ) -> Answer:  # fmt: skip
        given: dict[str, Any] = {}
        if cache is not None:
            last = begin + (len(ids) - begin - 1) // CHUNK * CHUNK  # generate() reads what is left: 1 … CHUNK tokens
            if last > begin:
                self._read(ids[begin:last], cache, progress)
            begin, given["past_key_values"] = last, cache
        else:
            self._forget()
        writing = _Writing(Writing(self.tokenizer, self.stop_ids, stop, 1), progress, len(ids) - begin)
        prompt = self._tensor(ids)
        self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1),
            stopping_criteria=StoppingCriteriaList([writing]),
            **given,
        )
        return writing.writing.answers()[0]

    @torch.inference_mode()
    def _group_scores(
        self, requests: Sequence[tuple[np.ndarray, np.ndarray]], places: Sequence[int], begin: int,
        cache: DynamicCache | None, progress: Callable[[int], None],
    ) -> list[tuple[int, Score]]:  # fmt: skip
        context = requests[places[0]][0]
        found = []
        with quiet(), telling_memory():
            next_logits = None if cache is None else self._read(context[begin:], cache, progress)
            for place in places:
                target = requests[place][1]
                chances = (
                    self._chances(context, target)
                    if cache is None or next_logits is None
                    else self._chances_after(copy.deepcopy(cache), next_logits, target)
                )
                progress(len(target) + (len(context) if cache is None else 0))
                found.append((place, Score.of(chances)))
        return found

    def _chances(self, context: np.ndarray, target: np.ndarray) -> list[Chance]:
        """Read from the start: for models that cannot go on from a cache."""
        self._forget()
        logits = self._logits(np.concatenate((context, target[:-1])), len(target), None)
        parts = zip(logits.split(ROWS), np.split(target, range(ROWS, len(target), ROWS)), strict=True)
        return [chance for part, wanted in parts for chance in _likely(part, wanted)]

    def _chances_after(self, cache: DynamicCache, next_logits: Tensor, target: np.ndarray) -> list[Chance]:
        found = _likely(next_logits[None], target[:1])
        for begin in range(0, len(target) - 1, ROWS):  # The last token is scored, not read.
            chunk = target[begin:-1][:ROWS]
            found += _likely(self._logits(chunk, len(chunk), cache), target[begin + 1 :][: len(chunk)])
        return found

    def _obstacle(self, ids: np.ndarray, new_tokens: int) -> str | None:
        """Why the model cannot read `ids` and write `new_tokens`, in words for people."""
        if not len(ids):
            return "the prompt is empty"
        if not 0 <= ids.min() <= ids.max() < self._vocab_size:
            return f"the prompt has token ids beyond the model's {self._vocab_size:,}"
        if self._positions is not None and len(ids) + new_tokens > self._positions:
            end = len(ids) + new_tokens
            return f"the model has learned positions for {self._positions:,} tokens, and this takes {end:,}"
        return None

    @torch.inference_mode()
    def _can_go_on(self) -> bool:
        if "past_key_values" not in self._forward or self._ropes & {"dynamic", "longrope"}:
            return False
        cache = DynamicCache(config=self._config)
        if any(type(layer) not in _KEPT for layer in cache.layers):
            return False
        with quiet():
            self._logits(np.zeros(2, dtype=np.int64), 1, cache)
        return cache.get_seq_length() == 2  # recurrent models keep what they keep elsewhere

    def _forget(self) -> None:
        """``dynamic`` RoPE remembers the longest text so far, and would read later ones by it; a short one ends that."""
        if "dynamic" in self._ropes:
            self._logits(np.zeros(1, dtype=np.int64), 1, None)

    def _tensor(self, ids: np.ndarray) -> Tensor:
        return torch.tensor(np.asarray(ids, dtype=np.int64), device=self.model.device)[None]


class _Writing(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Sees each token as it comes, and ends the answer at a stop text."""

    def __init__(self, writing: Writing, progress: Callable[[int], None], unread: int) -> None:
        self.writing = writing
        self._progress, self._unread = progress, unread

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self._progress(self._unread + 1)
        self._unread = 0
        self.writing.add(0, int(input_ids[0, -1]))
        return torch.tensor([self.writing.finished], device=input_ids.device)


def _likely(logits: Tensor, targets: np.ndarray) -> list[Chance]:
    """Chances of each of `targets` [n] under its row of `logits` [n, vocab]."""
    return chances_of(logits, torch.tensor(np.asarray(targets, dtype=np.int64), device=logits.device))
