"""What an evaluation will cost before it starts: samples, tokens, and hours at the speed that the model shows here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnope.errors import UserError
from rnope.evals.models.model import EvalModel
from rnope.evals.results import ModelFacts
from rnope.evals.suite import Cell

SHORT, NEW = 128, 8
"""Tokens of the first prompt that is timed, and of an answer."""
ENOUGH_SECONDS = 1.0
"""Once a prompt took so long, no longer one is timed."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of reading n tokens: ``token * n + square * n²``; and of writing one."""

    token: float
    square: float
    new: float
    timed: int
    """Tokens of the longest prompt that was timed."""

    def seconds(self, prompt_tokens: int, new_tokens: int) -> float:
        """Of one sample."""
        return self.token * prompt_tokens + self.square * prompt_tokens**2 + self.new * new_tokens

    def cell_seconds(self, cell: Cell) -> float:
        """Of all its samples, asked one at a time and answered at full length."""
        prompt = cell.context_tokens - cell.max_new_tokens
        return cell.samples * self.seconds(prompt, cell.max_new_tokens)


def measure(model: EvalModel, cells: Sequence[Cell], *, every_token_scored: bool) -> Speed:
    """Time an answer, and prompts each twice as long as the one before, up to the longest context of `cells`; some
    seconds for a model that suits the machine.

    Args:
        every_token_scored: time the scoring of whole prompts, no answers.

    Raises:
        UserError: the model does not answer.
    """
    highest = min(model.tokenizer.vocab_size, 256)
    rng = np.random.default_rng()  # other ids each time: servers keep what they have read

    def timed(prompt_tokens: int, new_tokens: int) -> tuple[float, int]:
        ids = rng.integers(0, highest, size=prompt_tokens)
        started = time.perf_counter()
        if every_token_scored:
            ((_, score),) = model.scores([(ids[:1], ids[1:])])
            error, made = score.error, 0
        else:
            (answer,) = model.generate([ids], new_tokens)
            error, made = answer.error, answer.tokens
        if error is not None:
            raise UserError(f"{model.facts.name} does not answer: {error}")
        return time.perf_counter() - started, made

    room = max(cell.context_tokens for cell in cells)
    length = max(2, min(SHORT, room - 1 - NEW))
    timed(length, 2)  # the first pass allocates
    before, (took, _), (written, made) = 0.0, timed(length, 1), timed(length, 1 + NEW)
    # A stop token may end the answer at once; then a new token is taken to cost what a token of the prompt does.
    new = (written - took) / (made - 1) if made > 1 else 0.0
    while took < ENOUGH_SECONDS and 2 * length < room:
        try:
            seconds, _ = timed(2 * length, 1)
        except UserError:  # more than the model can read: its answers will say so
            break
        length, before, took = 2 * length, took, seconds
    square = max(0.0, (took - 2 * before) / (length**2 / 2)) if before else 0.0
    token = max(1e-9, took / length - square * length)
    return Speed(token, square, max(token, new), length)


def plan_table(model: ModelFacts, cells: Sequence[Cell], speed: Speed | None) -> str:
    """The plan for people, by context length; hours are left out where no speed is known."""
    lines = [f"{model.name}: {model.kind}, {model.dtype} on {model.device}"]
    lengths = sorted({cell.context_tokens for cell in cells})
    lines.append(
        f"{'context':>10} {'cells':>6} {'samples':>8} {'tokens':>16}" + ("" if speed is None else f" {'hours':>8}")
    )
    rows = [*([cell for cell in cells if cell.context_tokens == length] for length in lengths), list(cells)]
    for name, group in zip([*(f"{length:,}" for length in lengths), "all"], rows, strict=True):
        samples = sum(cell.samples for cell in group)
        tokens = sum(cell.samples * cell.context_tokens for cell in group)
        line = f"{name:>10} {len(group):>6,} {samples:>8,} {tokens:>16,}"
        if speed is not None:
            hours = sum(map(speed.cell_seconds, group)) / 3600
            line += f" {hours:>8.{2 if hours >= 0.1 else 4}f}"
        lines.append(line)
    if speed is not None:
        read = speed.timed / speed.seconds(speed.timed, 0)
        lines.append(
            f"at {read:,.0f} tokens/s of a prompt of {speed.timed:,} and {1 / speed.new:,.1f} new tokens/s, measured just "
            "now; the hours of longer prompts are a guess from these"
        )
    return "\n".join(lines)
