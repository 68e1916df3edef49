"""How a training run is carried out: ranks, micro-batches, checkpoints, logging; nothing of what is trained."""

from dataclasses import dataclass

from rnope.config.stage import COUNT, Stage
from rnope.errors import check
from rnope.model.spec import ModelConfig


def check_heads(config: ModelConfig, degree: int) -> None:
    """Raise the error of ranks that cannot share a full layer's heads evenly; windowed layers allow any number."""
    heads, kv = config.heads, config.kv_heads
    fits = heads % degree == 0 and (kv % degree == 0 or degree % kv == 0)
    rule = f"full layers share their {heads} query heads and {kv} key-value heads evenly among the ranks"
    full = any(spec.window is None for spec in config.layers)
    check("execution.sequence_parallel", degree, fits or not full, rule, "Use a degree that divides both.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How a run is carried out; nothing here changes what is trained, but for rounding."""

    sequence_parallel: int = 1
    """Ranks that share each row; the other factor of the number of ranks shares the rows of a batch."""
    micro_batch_tokens: int = 0
    """Tokens that a group of `sequence_parallel` ranks takes at once, at most; 0: as many as the stage's longest row has."""
    checkpoint_activations: bool = False
    """Keep only the inputs of blocks for the backward pass, and compute the rest again."""
    compile: bool = False
    """Compile every block."""
    log_steps: int = 10
    save_steps: int = 500
    keep: int = 2
    """Newest checkpoints of a stage that are kept."""
    asynchronous: bool = False
    """Write checkpoints while training goes on, from a copy of the state in memory."""
    tensorboard: bool = False
    """Write TensorBoard events as well as log.jsonl."""
    validation_steps: int = 0
    """Steps between validations; 0: at the end of each stage only."""
    validation_rows: int = 64
    """Rows of each source, of the stage's longest context."""
    skips: int = 8
    """A run ends when so many steps one after another have a loss or gradient that is not finite."""

    def __post_init__(self) -> None:
        for name in ("sequence_parallel", "log_steps", "save_steps", "keep", "validation_rows", "skips"):
            value = getattr(self, name)
            check(name, value, 1 <= value < 2**31, "must be at least 1", "Use a positive whole number.")
        for name in ("micro_batch_tokens", "validation_steps"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < COUNT, "must not be negative", "Write 0.")

    def micro_rows(self, stage: Stage, row_tokens: int, groups: int) -> int:
        """Rows of `row_tokens` that each of `groups` groups of ranks takes at once: its part of a batch in equal pieces."""
        part = stage.batch_tokens // row_tokens // groups
        most = max(1, (self.micro_batch_tokens or stage.context_tokens) // row_tokens)
        return max(count for count in range(1, min(most, part) + 1) if part % count == 0)

    def check_ranks(self, ranks: int, stages: tuple[Stage, ...], config: ModelConfig) -> int:
        """How many groups of ranks share the rows of a batch.

        Raises:
            ConfigError: the ranks, the rows or the heads do not divide.
        """
        degree = self.sequence_parallel
        divisors = ", ".join(str(n) for n in range(1, min(ranks, 4096) + 1) if ranks % n == 0)
        check("execution.sequence_parallel", degree, ranks % degree == 0, f"must divide the {ranks} ranks",
              f"Use one of {divisors}.")  # fmt: skip
        groups = ranks // degree
        check_heads(config, degree)
        for stage in stages:
            for length in stage.row_lengths:
                remedy = f"Use rows of a multiple of {degree} tokens."
                check(f"stages.{stage.name}.context_tokens", length, length % degree == 0,
                      f"each of {degree} ranks takes an equal share of a row", remedy)  # fmt: skip
                rule = f"each of {groups} groups of ranks takes as many rows of {length:,} tokens"
                remedy = f"Use a multiple of {groups * length:,}, or other ranks."
                ok = stage.batch_tokens % (groups * length) == 0
                check(f"stages.{stage.name}.batch_tokens", stage.batch_tokens, ok, rule, remedy)
        return groups
