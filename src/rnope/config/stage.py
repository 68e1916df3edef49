"""One stretch of training: rows, batch, mixture of sources, and what changes of the model. SPEC T5 and the paper's 2.1.

It knows no learning rates, which are the recipe's schedules, and not how a run is carried out.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rnope.config.comparison import check_name
from rnope.errors import check
from rnope.model.spec import ModelConfig

COUNT = 2**48
"""More than any count of steps or tokens that is meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Portion:
    """A part of a mixture."""

    source: str
    """Name of one of the recipe's sources."""
    weight: float = 1.0
    """Share of the rows, in the stage's `mixture_unit`, relative to the other portions."""
    longer_than: int = 0
    """Only documents of more tokens than this: naming a source twice, once so, up-samples its long documents."""

    def __post_init__(self) -> None:
        check("weight", self.weight, 0 < self.weight < 1e9, "must be positive", "Leave the portion out, or write 1.")
        check(
            "longer_than", self.longer_than, 0 <= self.longer_than < COUNT, "must not be negative", "Write 0 for all."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stretch of training. What it does not change carries over from the stage before (SPEC T5)."""

    name: str
    steps: int | None = None
    epochs: float | None = None
    """In place of `steps`: passes over the tokens of the stage's sources."""
    batch_tokens: int
    """Tokens of one optimizer step, over all ranks and micro-batches."""
    context_tokens: int
    """Length of the long rows."""
    short_context_tokens: int | None = None
    """Length of the short rows that are interleaved with the long ones; None: all rows are long."""
    short_to_long: int = 3
    """Short for each long, in `interleave_unit` (the paper's 3:1). A step has rows of one length."""
    interleave_unit: Literal["tokens", "rows"] = "tokens"
    """The paper does not say of what it is 3:1. Steps have equally many tokens, so that of tokens it is 3:1 of steps."""
    schedule: str
    """Name of a schedule; successive stages with one name share its length."""
    mixture: tuple[Portion, ...]
    short_mixture: tuple[Portion, ...] = ()
    """Of the short rows; empty: `mixture`."""
    mixture_unit: Literal["tokens", "rows", "documents"] = "tokens"
    """What the weights of a mixture are shares of."""
    across_documents: bool = False
    """Whether attention crosses the bounds of the documents in a row."""
    whole_documents: bool = False
    """Documents are never cut: rows are padded instead, and documents longer than a row left out, and counted."""
    completions_only: bool = False
    """Loss on what the data marks as completions only."""
    theta: float | None = None
    """New rotary base of every RoPE layer."""
    window: int | None = None
    """New window of every windowed layer."""
    rope_window: int | None = None
    """Window of every RoPE layer from here on, also of those that had none (paper 2.2.3: RNoPE-10k-swa)."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    """Of the products; weights and optimizer state are float32. fp8 needs torchao, and a GPU that has it."""
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        given = (self.steps, self.epochs)
        check("steps", given, (self.steps is None) != (self.epochs is None), "a stage has steps or epochs", "Give one.")
        check("steps", self.steps, self.steps is None or 1 <= self.steps < COUNT, "must be at least 1", "Write 1000.")
        ok = self.epochs is None or 0 < self.epochs < 1e6
        check("epochs", self.epochs, ok, "must be positive", "Write 2.")
        check("short_to_long", self.short_to_long, 1 <= self.short_to_long < 2**20, "must be at least 1", "Write 3.")
        short = self.short_context_tokens
        ok = short is None or 1 <= short < self.context_tokens
        check("short_context_tokens", short, ok, "must be below context_tokens", "Use the pretraining length.")
        check("short_mixture", self.short_mixture, short is not None or not self.short_mixture, "there are no short rows",
              "Give short_context_tokens, or leave it out.")  # fmt: skip
        check("mixture", self.mixture, bool(self.mixture), "has no portion", 'Write [{ source = "web" }].')
        for length in self.row_lengths:
            name = "short_context_tokens" if length == short else "context_tokens"
            check(name, length, 2 <= length < 2**31, "must lie in 2 … 2^31", "Use 8192.")
            ok = 1 <= self.batch_tokens < COUNT and self.batch_tokens % length == 0
            rule = f"must be whole rows of {length:,} tokens"
            check("batch_tokens", self.batch_tokens, ok, rule, f"Use a multiple of {length:,}.")
        ok = self.theta is None or 1 < self.theta < 1e30
        check("theta", self.theta, ok, "the rotary base must exceed 1", "The paper uses 10000 and more.")
        for name in ("window", "rope_window"):
            value = getattr(self, name)
            ok = value is None or 1 <= value < 2**31
            check(name, value, ok, "counts the current token: at least 1, below 2^31", "Use 1 or more.")
        ok = self.window is None or self.rope_window is None
        check("rope_window", self.rope_window, ok, "is given beside window", "Give one of them.")

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Every row length of the stage, ascending."""
        return tuple(sorted({self.context_tokens, self.short_context_tokens or self.context_tokens}))

    @property
    def long_share(self) -> Fraction:
        """Share of the steps whose rows are long."""
        if self.short_context_tokens is None:
            return Fraction(1)
        short = Fraction(self.short_to_long)
        if self.interleave_unit == "rows":
            short *= Fraction(self.short_context_tokens, self.context_tokens)
        return 1 / (1 + short)

    def long_steps(self, step: int) -> int:
        """How many of the steps before `step` have long rows: spread evenly, short ones first."""
        return int(step * self.long_share)

    def row_tokens(self, step: int) -> int:
        """Row length of step `step`."""
        if self.short_context_tokens and self.long_steps(step + 1) == self.long_steps(step):
            return self.short_context_tokens
        return self.context_tokens

    def portions(self, row_tokens: int) -> tuple[Portion, ...]:
        """The mixture of the rows of one length."""
        short = row_tokens == self.short_context_tokens
        return self.short_mixture if short and self.short_mixture else self.mixture

    @property
    def sources(self) -> tuple[str, ...]:
        """Every source of the stage, by name."""
        return tuple(sorted({portion.source for portion in (*self.mixture, *self.short_mixture)}))

    def changed(self, config: ModelConfig) -> ModelConfig:
        """`config`, the model of the stage before, as this stage has it."""
        return config.staged(theta=self.theta, window=self.window, rope_window=self.rope_window)
