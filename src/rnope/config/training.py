"""What a training recipe says: the models to train, the stages they go through, on which data, and how it is run.

Stages of different arms that agree in everything up to a point are trained once (SPEC T5). Rates, tokens and data are
what a run *is*; `Execution` says how it is carried out, and two runs that differ only in it train the same model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal

from rnope.config.comparison import Plain, build_model, check_name
from rnope.errors import check, unknown
from rnope.model.spec import LayerSpec, ModelConfig

COUNT = 2**48
"""More than any count of steps or tokens that is meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW:
    """How weights move; rates are the schedules'. Norms and embeddings are never decayed."""

    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    """The gradient of all weights together is scaled down to this norm."""

    def __post_init__(self) -> None:
        ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        check("betas", self.betas, ok, "must be two numbers in 0 … 1", "Write [0.9, 0.95].")
        check("eps", self.eps, 0 < self.eps < 1, "must lie in 0 … 1", "Usual: 1e-8.")
        check("weight_decay", self.weight_decay, 0 <= self.weight_decay < 1, "must lie in 0 … 1", "Usual: 0 to 0.1.")
        check("clip_norm", self.clip_norm, 0 < self.clip_norm < 1e3, "must lie in 0 … 1000", "Usual: 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A learning rate from `peak` to `end`, over all the stages that name it, one after another."""

    peak: float
    end: float = 0.0
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    """Steps of a linear rise to `peak`, counted as part of the schedule."""

    def __post_init__(self) -> None:
        check("peak", self.peak, 0 < self.peak < 1e3, "must lie in 0 … 1000", "Usual rates are 1e-5 to 1e-2.")
        check("end", self.end, 0 <= self.end <= self.peak, "must lie in 0 … peak", "Write 0.")
        check("warmup_steps", self.warmup_steps, 0 <= self.warmup_steps < COUNT, "must not be negative", "Write 0.")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` (from 0) of `steps`; at ``step == steps`` it is `end`, where the next stage joins."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        share = 1 - done if self.shape == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
        return self.end + (self.peak - self.end) * share


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

    def layers(self, config: ModelConfig) -> tuple[LayerSpec, ...]:
        """`config`'s layers, those of the stage before, as this stage has them."""
        return tuple(
            spec.staged(theta=self.theta, window=self.window, rope_window=self.rope_window) for spec in config.layers
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One model and the stages it goes through, resolved."""

    name: str
    variant: str | None = None
    """None where the recipe starts from a folder."""
    summary: str = ""
    model: Plain = field(default_factory=dict)
    """Changes to the recipe's model that make this arm what it is."""
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        names = [stage.name for stage in self.stages]
        check("stages", names, len(set(names)) == len(names) > 0, "must be distinct", 'Write ["pretrain"].')
        for before, stage in pairwise(self.stages):
            earlier = [s.schedule for s in self.stages[: self.stages.index(before)]]
            ok = stage.schedule == before.schedule or stage.schedule not in (*earlier, before.schedule)
            rule = f"stage {stage.name!r} takes up a schedule that another one has come after"
            check("stages", stage.schedule, ok, rule, "Stages of one schedule must follow each other.")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a trained model's folder says of it to those who go on from there."""

    config: ModelConfig
    weights: str
    """Digest of all of them."""
    tokenizer: str
    """Digest of the tokenizer, which the data must be made with."""
    context_tokens: int
    """Longest context that it was trained on."""
    provenance: Plain
    """As the folder has it; empty for a model that others wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecipe:
    """Models to train, complete."""

    name: str
    summary: str
    size: str | None = None
    """None where the recipe starts from a folder."""
    start: str | None = None
    """Folder of the trained model that every arm goes on from, empty where the user must say; None: models are fresh."""
    opened: Start | None = None
    """What is in the folder `start`, once it has been looked at."""
    model: Plain = field(default_factory=dict)
    """Overrides of the size."""
    vocab_size: int | None = None
    """None: the size's own. The tokenizer of the data may have fewer tokens."""
    seed: int = 0
    """Of fresh weights and of the order of the data."""
    optimizer: AdamW = field(default_factory=AdamW)
    schedules: dict[str, Schedule]
    sources: dict[str, str] = field(default_factory=dict)
    """Name -> folder that ``rnope data build`` wrote; empty where the user must say."""
    arms: tuple[Arm, ...]
    execution: Execution = field(default_factory=Execution)
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted name of a value as the file has it -> ``paper: section``, ``assumed: why`` or ``given`` (by an override);
    empty for what an arm changes without saying why."""

    def __post_init__(self) -> None:
        check_name(self.name)
        ok = self.vocab_size is None or 2 <= self.vocab_size <= 2**24
        check("vocab_size", self.vocab_size, ok, "must lie in 2 … 2^24", "Leave it out for the size's own.")
        check("seed", self.seed, 0 <= self.seed < 2**31, "must lie in 0 … 2^31", "Use 0.")
        names = [arm.name for arm in self.arms]
        check("arms", names, len(set(names)) == len(names) > 0, "must have distinct names", "Rename one.")
        self._check_model()
        for i, arm in enumerate(self.arms):
            config = self.model_config(arm) if self.start is None or self.opened else None
            for j, stage in enumerate(arm.stages):
                where = f"arms[{i}].stages[{j}]"
                if stage.schedule not in self.schedules:
                    raise unknown(f"{where}.schedule", stage.schedule, "schedule", self.schedules)
                for key in ("mixture", "short_mixture"):
                    for k, portion in enumerate(getattr(stage, key)):
                        if portion.source not in self.sources:
                            raise unknown(f"{where}.{key}[{k}].source", portion.source, "source", self.sources)
                if config is not None:
                    _check_changes(
                        f"stages.{stage.name}" if self.opened else where, arm.variant or self.start, stage, config
                    )
                    config = config.with_layers(stage.layers(config))
            for schedule, steps in self._lengths(arm).items():
                if steps is not None:
                    self._check_warmup(arm, schedule, steps)

    def _check_model(self) -> None:
        """Whether the model is said, and once: by size and variants, or by the folder to start from."""
        said: dict[str, object] = {"size": self.size}
        said |= {f"arms[{i}].variant": arm.variant for i, arm in enumerate(self.arms)}
        if self.start is None:
            for name, value in said.items():
                remedy = 'Add it (a string), or start = "" for a trained model\'s folder.'
                check(name, value, value is not None, "is missing", remedy)
            return
        said |= {"model": self.model or None, "vocab_size": self.vocab_size}
        said |= {f"arms[{i}].model": arm.model or None for i, arm in enumerate(self.arms)}
        for name, value in said.items():
            check(name, value, value is None, "is given beside start, whose folder says it", "Leave one of them out.")

    def _lengths(self, arm: Arm) -> dict[str, int | None]:
        """Steps of each schedule in `arm`; None where a stage counts epochs."""
        found: dict[str, int | None] = {}
        for stage in arm.stages:
            before = found.get(stage.schedule, 0)
            found[stage.schedule] = None if before is None or stage.steps is None else before + stage.steps
        return found

    def _check_warmup(self, arm: Arm, schedule: str, steps: int) -> None:
        rise = self.schedules[schedule].warmup_steps
        rule = f"the stages of arm {arm.name!r} that follow it have {steps:,} steps"
        check(f"schedules.{schedule}.warmup_steps", rise, rise <= steps, rule, "Shorten it.")

    def rates(self, arm: Arm, steps: tuple[int, ...]) -> tuple["StageRates", ...]:
        """The learning rates of each stage of `arm`, whose stages have `steps` steps.

        Raises:
            ConfigError: a warm-up longer than its schedule, which stages counted in epochs show only here.
        """
        totals: dict[str, int] = {}
        for stage, count in zip(arm.stages, steps, strict=True):
            totals[stage.schedule] = totals.get(stage.schedule, 0) + count
        for schedule, total in totals.items():
            self._check_warmup(arm, schedule, total)
        starts = (0, *accumulate(steps))
        first = {stage.schedule: starts[i] for i, stage in reversed(list(enumerate(arm.stages)))}
        return tuple(
            StageRates(
                schedule=self.schedules[stage.schedule],
                offset=starts[i] - first[stage.schedule],
                total=totals[stage.schedule],
            )
            for i, stage in enumerate(arm.stages)
        )

    def folders(self, data: Mapping[str, str]) -> dict[str, str]:
        """Source -> folder: those of `data` over the recipe's own; empty where neither says.

        Raises:
            ConfigError: `data` names what is no source of the recipe.
        """
        for name in data:
            if name not in self.sources:
                raise unknown("--data", name, "source of the recipe", self.sources)
        return {name: data.get(name) or folder for name, folder in self.sources.items()}

    def arm(self, name: str) -> Arm:
        """The arm called `name`."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise unknown("arm", name, "arm", [arm.name for arm in self.arms])

    def model_config(self, arm: Arm) -> ModelConfig:
        """The model that `arm` starts from, before any stage changed theta or window.

        Raises:
            ConfigError: the recipe starts from a folder, and nobody has said which.
        """
        if self.start is not None:
            remedy = "Give the folder of a trained model with --start."
            check("start", self.start, self.opened is not None, "the model's folder is not given", remedy)
        if self.opened is not None:
            return self.opened.config
        assert arm.variant is not None and self.size is not None  # `_check_model`
        tables = (("model", self.model), (f"arms.{arm.name}.model", arm.model))
        vocabulary = {} if self.vocab_size is None else {"vocab_size": self.vocab_size}
        return build_model(arm.variant, self.size, tables, arm.name, **vocabulary)

    def stage_configs(self, arm: Arm) -> tuple[ModelConfig, ...]:
        """The model as each stage of `arm` has it: changes of theta and window add up from stage to stage."""
        config = self.model_config(arm)
        return tuple(config := config.with_layers(stage.layers(config)) for stage in arm.stages)


def _check_changes(where: str, variant: str | None, stage: Stage, config: ModelConfig) -> None:
    """Whether `config`, as the stages before left it, has what `stage` changes."""
    rope = bool(config.thetas)
    windowed = any(spec.window for spec in config.layers)
    for key, ok, lacks in (
        ("theta", rope, "RoPE layer"),
        ("rope_window", rope, "RoPE layer"),
        ("window", windowed, "window"),
    ):
        value = getattr(stage, key)
        check(f"{where}.{key}", value, value is None or ok, f"{variant!r} has no {lacks}", "Leave it out.")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRates:
    """The part of a schedule that one stage goes through."""

    schedule: Schedule
    offset: int
    """Steps of the schedule that the stages before have taken."""
    total: int
    """Steps of the whole schedule."""

    def __call__(self, step: int) -> float:
        """Learning rate of the stage's step `step`, from 0."""
        return self.schedule.rate(self.offset + step, self.total)
