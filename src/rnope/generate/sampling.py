"""How the next token is chosen from logits: greedily, or drawn with a seed of its own per sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rnope.errors import ConfigError


class Sampling(Protocol):
    """A rule that chooses tokens."""

    def generators(self, sequences: int, device: torch.device) -> list[torch.Generator | None]:
        """A source of chance for each of `sequences` sequences."""

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
        """A token for each row of `logits` [n, vocab], with that row's generator; int64 [n]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Greedy:
    """The likeliest token; of equals the first."""

    def generators(self, sequences: int, device: torch.device) -> list[torch.Generator | None]:
        return [None] * sequences

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
        return logits.argmax(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A draw from the softmax of ``logits / temperature``, cut to `top_k` first and then to `top_p`.

    What a sequence draws depends on its seed and its logits alone, not on what else is in the batch.
    """

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int | None = None
    """Only the k likeliest tokens; equals of the last stay in."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability."""
    seed: int | tuple[int, ...] = 0
    """Of each sequence; one number gives sequence i ``seed + i``."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            rule = "must be 0 (greedy) or more"
            raise ConfigError("temperature", self.temperature, rule, "1 leaves the model's chances as they are.")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ConfigError("top_k", self.top_k, "must be a whole number, 1 or more", "Leave it out to keep all.")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", self.top_p, "must lie above 0 and not above 1", "1 keeps all tokens.")
        seeds = (self.seed,) if isinstance(self.seed, int) else self.seed
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise ConfigError("seed", seed, "must lie in 0 … 2^63 - 1", "Use 0.")

    def generators(self, sequences: int, device: torch.device) -> list[torch.Generator | None]:
        seeds = tuple(self.seed + i for i in range(sequences)) if isinstance(self.seed, int) else self.seed
        if len(seeds) != sequences:
            raise ConfigError(
                "seed", seeds, f"{len(seeds)} seeds for {sequences} sequences", "Give one seed for each, or one number."
            )
        return [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        scores = logits.double()
        scores = (
            scores - scores.amax(-1, keepdim=True)
        ) / self.temperature  # n v; 0 and below, whatever the temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[:, -1:], -torch.inf)
        chances = scores.softmax(-1)
        if self.top_p < 1:
            ordered, order = chances.sort(stable=True, dim=-1, descending=True)
            late = ordered.cumsum(-1) - ordered >= self.top_p  # The likeliest always stays.
            chances = chances.masked_fill(late.scatter(-1, order, late), 0.0)
        drawn = [torch.multinomial(row, 1, generator=g) for row, g in zip(chances, generators, strict=True)]
        return torch.cat(drawn)
