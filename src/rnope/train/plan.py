"""What a training recipe comes to, in plain numbers, before anything runs: steps, rates, FLOPs, days, bytes per GPU.

It computes nothing in another way than the trainer does: rates are `StageRates`, steps the data's, FLOPs and bytes those
of `rnope.model.accounting`. `rnope.train.preview` puts it into words. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rnope.config.stage import Stage
from rnope.config.training import Arm, StageRates, TrainingRecipe
from rnope.errors import check
from rnope.model.accounting import activation_bytes, loss_bytes, parameters, state_bytes, training_flops_by_part
from rnope.model.spec import ModelConfig
from rnope.train.gpus import Gpu, gpu_named, peak_flops
from rnope.train.keys import span, stage_key
from rnope.train.values import Value, arm_values, stage_values

__all__ = ["Plan", "Rates", "RowPlan", "StagePlan", "peak_flops", "plan", "stage_key"]
_DAY = 86_400
Steps = tuple[int | None, ...]
"""Of the stages of an arm; None where a stage counts epochs and its data is not at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Learning rates of a stage, as far as they are known."""

    first: float | None
    last: float | None = None
    end: float | None = None
    """That one more step would have: where the next stage joins."""
    peak: tuple[int, float] | None = None
    """The step that ends a warm-up in this stage, counted from 1, and its rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPlan:
    """The steps of a stage whose rows have one length."""

    row_tokens: int
    share: float
    """Of the steps."""
    steps: int | None
    rows: int
    """Of a step, over all ranks."""
    rows_at_once: int
    """That one group of ranks takes."""
    micro_batches: int
    """Of a step, one after another."""
    flops: dict[str, int]
    """Of a step, by part: `training_flops_by_part`."""
    kept_bytes: int
    """Activations of a micro-batch that each GPU keeps for the backward pass."""
    checkpoint_bytes: int
    """The same where it keeps inputs of layers only."""
    loss_bytes: int
    """Of logits, and of gradients that the loss makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A stage, resolved."""

    name: str
    key: str
    arms: tuple[str, ...]
    """Arms of the recipe whose training is the same up to here: it is done once for all of them."""
    values: tuple[Value, ...]
    layer_table: str
    layers_change: bool
    """Whether the stage before had other layers."""
    steps: int | None
    batch_tokens: int
    rates: Rates
    rows: tuple[RowPlan, ...]
    step_seconds: float
    """GPU-seconds of a step, on average over the stage."""
    state_bytes: dict[str, int]
    """Of each GPU: `rnope.model.accounting.state_bytes`."""

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else self.steps * self.batch_tokens

    @property
    def flops(self) -> dict[str, int] | None:
        """Of the stage, by part."""
        if self.steps is None:
            return None
        return {part: sum((row.steps or 0) * row.flops[part] for row in self.rows) for part in self.rows[0].flops}

    @property
    def gpu_days(self) -> float | None:
        return None if self.steps is None else self.steps * self.step_seconds / _DAY


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One arm of a recipe on a number of GPUs."""

    recipe: str
    arm: str
    summary: str
    values: dict[str, tuple[Value, ...]]
    """Section of the recipe -> its values; stages have their own."""
    parameters: int
    ranks: int
    row_ranks: int
    """Ranks that share each row."""
    checkpoint_activations: bool
    gpu: str
    gpu_gib: int
    utilisation: float
    stages: tuple[StagePlan, ...]


def plan(
    recipe: TrainingRecipe,
    arm: Arm,
    *,
    ranks: int,
    data: Mapping[str, str] | None = None,
    gpu: str = "H100",
    utilisation: float = 0.4,
) -> Plan:
    """What training `arm` comes to.

    Attention is counted as if documents in a row saw each other, which is the most it can be. In fp8 the layers'
    matrices run at the fp8 peak, attention and head at that of bf16.

    Args:
        ranks: GPUs.
        data: source -> folder that ``rnope data build`` wrote, over the recipe's own. Stages that count epochs need it.
        gpu: a name of `rnope.train.gpus.GPUS`.
        utilisation: share of the peak that is reached.

    Raises:
        UserError: a mesh that does not fit the stages, a GPU without the precision, data that is not as it must be.
    """
    made, configs, degree = gpu_named(gpu), recipe.stage_configs(arm), recipe.execution.sequence_parallel
    groups = recipe.execution.check_ranks(ranks, arm.stages, recipe.model_config(arm))
    counts, digests = _resolved(recipe, arm, data or {})
    steps = counts[arm.name]
    known = tuple(count for count in steps if count is not None)
    if len(known) == len(steps):
        recipe.rates(arm, known)  # For its errors.
    stages = []
    for index, (stage, config) in enumerate(zip(arm.stages, configs, strict=True)):
        check(f"stages.{stage.name}.precision", stage.precision, stage.precision in made.peaks, f"{gpu} has no such one",
              f"Use one of {', '.join(made.peaks)}, or another --gpu.")  # fmt: skip
        rows = tuple(_row_plan(recipe, stage, config, n, steps[index], groups) for n in stage.row_lengths)
        key = stage_key(recipe, arm, index, steps, digests)
        stages.append(
            StagePlan(
                name=stage.name,
                key=key,
                arms=tuple(
                    other.name
                    for other in recipe.arms
                    if index < len(other.stages) and stage_key(recipe, other, index, counts[other.name], digests) == key
                ),
                values=stage_values(recipe, arm, stage),
                layer_table=config.layer_table(),
                layers_change=index == 0 or config.layers != configs[index - 1].layers,
                steps=steps[index],
                batch_tokens=stage.batch_tokens,
                rates=_rates(recipe, arm, index, steps),
                rows=rows,
                step_seconds=sum(row.share * _seconds(row, stage, made) for row in rows) / utilisation,
                state_bytes=state_bytes(
                    config,
                    ranks,
                    value_bytes=_value_bytes(stage),
                    checkpoint=recipe.execution.checkpoint_activations,
                ),
            )
        )
    return Plan(
        recipe=recipe.name,
        arm=arm.name,
        summary=arm.summary,
        values=arm_values(recipe, arm),
        parameters=parameters(configs[0]),
        ranks=ranks,
        row_ranks=degree,
        checkpoint_activations=recipe.execution.checkpoint_activations,
        gpu=gpu,
        gpu_gib=made.memory_gib,
        utilisation=utilisation,
        stages=tuple(stages),
    )


def _resolved(recipe: TrainingRecipe, arm: Arm, data: Mapping[str, str]) -> tuple[dict[str, Steps], dict[str, str]]:
    """Steps of every arm's stages, and a digest of each source: where its data is not at hand, its name.

    Stages of other arms that `arm` does not have are not looked at, as far as data goes.
    """
    from rnope.data.rows import StageRows
    from rnope.data.shards import Shards

    folders = recipe.folders(data)
    needed = sorted({name for stage in arm.stages for name in stage.sources if folders[name]})
    shards = {name: Shards.open(Path(folders[name])) for name in needed}
    counts: dict[Stage, int | None] = {}
    for stage in arm.stages:
        held = {name: shards[name] for name in stage.sources if name in shards}
        whole = len(held) == len(stage.sources)
        counts[stage] = StageRows(stage, held, seed=recipe.seed).steps if whole else stage.steps
    steps = {other.name: tuple(counts.get(stage, stage.steps) for stage in other.stages) for other in recipe.arms}
    return steps, {name: shards[name].digest if name in shards else name for name in recipe.sources}


def _rates(recipe: TrainingRecipe, arm: Arm, index: int, steps: Steps) -> Rates:
    (offset, total), count = span(arm, index, steps), steps[index]
    schedule = recipe.schedules[arm.stages[index].schedule]
    if offset is None or total is None or count is None:  # A schedule begins alike, however long it is.
        return Rates(first=schedule.rate(0, schedule.warmup_steps + 1) if offset == 0 else None)
    rate = StageRates(schedule=schedule, offset=offset, total=total)
    rise = schedule.warmup_steps - offset
    peak = (rise, rate(rise - 1)) if 0 < rise <= count else None
    return Rates(first=rate(0), last=rate(count - 1), end=rate(count), peak=peak)


def _row_plan(
    recipe: TrainingRecipe, stage: Stage, config: ModelConfig, row_tokens: int, steps: int | None, groups: int
) -> RowPlan:
    long = row_tokens == stage.context_tokens
    at_once, rows = recipe.execution.micro_rows(stage, row_tokens, groups), stage.batch_tokens // row_tokens
    degree, value_bytes = recipe.execution.sequence_parallel, _value_bytes(stage)
    kept, checkpoint = (
        activation_bytes(config, at_once, row_tokens, value_bytes=value_bytes, checkpoint=only_inputs, ranks=degree)
        for only_inputs in (False, True)
    )
    taken = None if steps is None else stage.long_steps(steps)
    return RowPlan(
        row_tokens=row_tokens,
        share=float(stage.long_share if long else 1 - stage.long_share),
        steps=None if steps is None or taken is None else taken if long else steps - taken,
        rows=rows,
        rows_at_once=at_once,
        micro_batches=rows // (groups * at_once),
        flops={part: rows * flops for part, flops in training_flops_by_part(config, row_tokens).items()},
        kept_bytes=kept,
        checkpoint_bytes=checkpoint,
        loss_bytes=loss_bytes(config, at_once * row_tokens // degree, value_bytes=value_bytes),
    )


def _value_bytes(stage: Stage) -> int:
    return 4 if stage.precision == "fp32" else 2


def _seconds(row: RowPlan, stage: Stage, gpu: Gpu) -> float:
    """Of one GPU for a step at its peaks."""
    layers, rest = stage.precision, "bf16" if stage.precision == "fp8" else stage.precision
    return sum(flops / gpu.peaks[layers if part == "layers" else rest] for part, flops in row.flops.items())
