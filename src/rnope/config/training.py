"""What a training recipe says: the models to train, the stages they go through, on which data, and at what rates.

Stages of different arms that agree in everything up to a point are trained once (SPEC T5). Rates, tokens and data are
what a run *is*; `Execution` says how it is carried out, and two runs that differ only in it train the same model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

from rnope.config.comparison import Plain, build_model, check_name
from rnope.config.execution import Execution
from rnope.config.stage import COUNT, Stage
from rnope.errors import check, unknown
from rnope.model.spec import ModelConfig


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
                    config = stage.changed(config)
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
        return tuple(config := stage.changed(config) for stage in arm.stages)


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
