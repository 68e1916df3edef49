"""Text in, text out: a model folder, its tokenizer and an engine, and what the answer cost.

It knows neither the command line nor how tokens are chosen; `rnope.generate` knows no text.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rnope.errors import ConfigError, UserError
from rnope.generate.engine import Engine
from rnope.generate.sampling import Sampling
from rnope.hf.configs import read_stop_ids
from rnope.hf.folder import load
from rnope.kernels import choose
from rnope.model.accounting import parameters, prefill_flops
from rnope.tokenizer import Tokenizer
from rnope.units import flops, size


@dataclass(kw_only=True, slots=True)
class Cost:
    """What one answer took. Times in seconds."""

    prompt_tokens: int
    """Read for this answer."""
    before_tokens: int = 0
    """Of the conversation, read for earlier answers."""
    new_tokens: int = 0
    first_token_seconds: float = 0.0
    """From the start of reading to the first new token."""
    decode_seconds: float = 0.0
    """From the first new token to the last, compiling not counted."""
    compile_seconds: float = 0.0


class Completer:
    """A model folder, ready to continue texts.

    Args:
        folder: a Hugging Face folder with weights and tokenizer.json.
        dtype: of the weights, as stored if None.
        device: where to; the CPU if None.
        verify: compare the weights with their digests, which reads all of them.
        options: of `Engine`.

    Raises:
        UserError: as `rnope.load`; no tokenizer, or one with more tokens than the model.
    """

    def __init__(
        self, folder: Path, *, dtype: torch.dtype | None = None, device: str | None = None, verify: bool = True,
        **options: int | bool | str,
    ) -> None:  # fmt: skip
        self.tokenizer = Tokenizer.load(folder)
        self.stop_ids = read_stop_ids(folder)
        self.engine = Engine(load(folder, dtype=dtype, device=device, verify=verify), **options)  # type: ignore[arg-type]

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt.

        Raises:
            UserError: there is no text, or none that UTF-8 could spell, or a token of it is not in the model's vocabulary.
        """
        if not text:
            raise UserError("The prompt is empty. Give some text to continue.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"The prompt is not UTF-8 text ({error}). Convert it.") from None
        return self._known(self.tokenizer.encode_prompt(text))

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model's answer begins.

        Raises:
            UserError: as `Tokenizer.encode_chat`; a token is not in the model's vocabulary.
        """
        return self._known(self.tokenizer.encode_chat(messages, add_generation_prompt=True))

    def _known(self, ids: list[int]) -> list[int]:
        if not ids:
            raise UserError("There is no token in the prompt. Give more text, or mend the chat template.")
        if max(ids) >= self.engine.config.vocab_size:
            rule = f"the tokenizer's ids reach beyond the model's {self.engine.config.vocab_size:,} tokens"
            raise ConfigError("tokenizer.json", max(ids), rule, "Use the tokenizer that the model was trained with.")
        return ids

    def stream(
        self, ids: list[int], *, max_new_tokens: int, sampling: Sampling,
        ignore_stop: bool = False, progress: Callable[[int], None] | None = None,
    ) -> tuple[Iterator[str], Cost]:  # fmt: skip
        """Text that continues `ids`, piece by piece, and its cost, which is complete when the text is.

        Raises:
            ConfigError: as `Engine.generate`, before anything is read.
        """
        cost = Cost(prompt_tokens=len(ids))
        stop = () if ignore_stop else self.stop_ids
        tokens = self.engine.stream([ids], max_new_tokens, sampling, stop_ids=stop, progress=progress)
        return self.tokenizer.stream(self.timed((token.id for token in tokens), cost)), cost

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, max_new_tokens: int, sampling: Sampling,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Iterator[str], Cost]:  # fmt: skip
        """The model's answer to `messages` (each with ``role`` and ``content``), as `stream` gives a text.

        Raises:
            UserError: as `encode_chat` and `stream`.
        """
        ids = self.encode_chat(messages)
        return self.stream(ids, max_new_tokens=max_new_tokens, sampling=sampling, progress=progress)

    def timed(self, ids: Iterator[int], cost: Cost) -> Iterator[int]:
        """`ids` as they come, what they take being written to `cost`."""
        start = time.perf_counter()
        first = start
        for token in ids:
            now = time.perf_counter()
            cost.new_tokens += 1
            if cost.new_tokens == 1:
                first, cost.first_token_seconds = now, now - start
            cost.compile_seconds = self.engine.compile_seconds or 0.0
            cost.decode_seconds = now - first - cost.compile_seconds
            yield token


def describe(engine: Engine, context_tokens: int) -> str:
    """What inference would use: layer table, attention backends, FLOPs of the prompt, cache bytes."""
    config, dtype, device = engine.config, engine.dtype, engine.device
    lines = [
        config.layer_table(),
        f"{parameters(config):,} parameters, {str(dtype).removeprefix('torch.')} on {device}",
    ]
    for kind, window in {spec.kind: spec.window for spec in config.layers}.items():
        backend = choose(
            device=device, dtype=dtype, window=window,
            head_size=config.head_size, heads=config.heads, kv_heads=config.kv_heads,
        )  # fmt: skip
        lines.append(f"attention of {kind}: {backend}")
    work = flops(prefill_flops(config, context_tokens, skip=True))
    lines.append(f"{work} to read {context_tokens:,} tokens in chunks of {engine.prefill_chunk_tokens:,}")
    return "\n".join([*lines, *cache_lines(engine, context_tokens)])


def cost_lines(cost: Cost, engine: Engine) -> list[str]:
    """What an answer took, for people."""
    rate = cost.prompt_tokens / max(cost.first_token_seconds, 1e-9)
    read = f"{cost.prompt_tokens:,} tokens read" + (f" behind {cost.before_tokens:,}" if cost.before_tokens else "")
    lines = [f"{read}; first new token after {cost.first_token_seconds:.2f} s ({rate:,.0f} tokens/s)"]
    if cost.new_tokens > 1:
        each = cost.decode_seconds / (cost.new_tokens - 1)
        lines.append(f"{cost.new_tokens:,} new tokens, {1 / max(each, 1e-9):,.1f} tokens/s ({each * 1e3:.1f} ms each)")
    if engine.compile_seconds is not None:
        lines.append(f"{engine.compile_seconds:.1f} s of compiling, not in these")
    return lines + cache_lines(engine, cost.before_tokens + cost.prompt_tokens + cost.new_tokens)


def cache_lines(engine: Engine, context_tokens: int) -> list[str]:
    """Cache of a context by layer kind, beside what full attention would hold."""
    rows = engine.cache_table(context_tokens)
    lines = [
        f"cache of {row.layers} {row.kind}: {size(row.logical_bytes)} (full attention: {size(row.full_bytes)})"
        for row in rows
    ]
    ours, full = sum(row.logical_bytes for row in rows), sum(row.full_bytes for row in rows)
    return [
        *lines,
        f"cache at {context_tokens:,} tokens: {size(ours)}, {ours / full:.1%} of full attention's {size(full)}",
    ]
