"""What an evaluation will cost before it starts: samples, tokens, and hours at the speed that the model shows here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnope.errors import UserError
from rnope.evals.models.model import EvalModel
from rnope.evals.results import ModelFacts
from rnope.evals.suite import Cell

SHORT, LONG, NEW = 128, 1024, 8
"""Tokens of the prompts that are timed, and of an answer."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of reading n tokens: ``token * n + square * n²``; and of writing one."""

    token: float
    square: float
    new: float

    def seconds(self, prompt_tokens: int, new_tokens: int) -> float:
        """Of one sample."""
        return self.token * prompt_tokens + self.square * prompt_tokens**2 + self.new * new_tokens

    def cell_seconds(self, cell: Cell) -> float:
        """Of all its samples, asked one at a time and answered at full length."""
        prompt = cell.context_tokens - cell.max_new_tokens
        return cell.samples * self.seconds(prompt, cell.max_new_tokens)


def measure(model: EvalModel) -> Speed:
    """Time two prompts and an answer; some seconds for a model that suits the machine."""
    highest = min(model.tokenizer.vocab_size, 256)
    rng = np.random.default_rng(0)

    def timed(prompt_tokens: int, new_tokens: int) -> tuple[float, int]:
        ids = rng.integers(0, highest, size=prompt_tokens)
        started = time.perf_counter()
        (answer,) = model.generate([ids], new_tokens)
        if answer.error is not None:
            raise UserError(f"{model.facts.name} does not answer: {answer.error}")
        return time.perf_counter() - started, answer.tokens

    timed(SHORT, 2)  # the first pass allocates
    (short, _), (long, _), (answer, made) = timed(SHORT, 1), timed(LONG, 1), timed(SHORT, 1 + NEW)
    square = max(0.0, (long - LONG / SHORT * short) / (LONG**2 - LONG * SHORT))
    token = max(1e-9, (long - square * LONG**2) / LONG)
    # A stop token may end the answer at once; then a new token is taken to cost what a token of the prompt does.
    return Speed(token, square, max(token, (answer - short) / (made - 1)) if made > 1 else token)


def plan_table(model: ModelFacts, cells: Sequence[Cell], speed: Speed | None) -> str:
    """The plan for people, by context length; hours are left out where no speed is known."""
    lines = [f"{model.name}: {model.kind}, {model.dtype} on {model.device}"]
    lengths = sorted({cell.context_tokens for cell in cells})
    lines.append(f"{'context':>10} {'cells':>6} {'samples':>8} {'tokens':>16} {'hours':>8}")
    rows = [*([cell for cell in cells if cell.context_tokens == length] for length in lengths), list(cells)]
    for name, group in zip([*(f"{length:,}" for length in lengths), "all"], rows, strict=True):
        samples = sum(cell.samples for cell in group)
        tokens = sum(cell.samples * cell.context_tokens for cell in group)
        hours = "" if speed is None else f"{sum(map(speed.cell_seconds, group)) / 3600:.2f}"
        lines.append(f"{name:>10} {len(group):>6,} {samples:>8,} {tokens:>16,} {hours:>8}")
    if speed is not None:
        lines.append(
            f"at {1 / speed.token:,.0f} tokens/s of short prompts and {1 / speed.new:,.1f} new tokens/s, measured just now "
            f"on {SHORT} and {LONG} tokens; the hours of much longer prompts are a guess from these"
        )
    return "\n".join(lines)
