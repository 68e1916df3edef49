"""The name of what a stage trains: a digest of all that its weights follow from. Stages that arms share have one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rnope.config.training import Arm, TrainingRecipe
from rnope.strict import to_plain

FORMAT = 1
"""Raised when code changes what a stage trains: old ones are then not found again."""


def stage_key(
    recipe: TrainingRecipe, arm: Arm, index: int, steps: Sequence[int | None], data_digests: Mapping[str, str]
) -> str:
    """A digest of all that the weights after stage `index` of `arm` follow from: this stage and those before it.

    That is the fresh model, or the weights that it starts from, the seed, the optimizer, and each stage with its part
    of its schedule and its data. It is not how the run is carried out, nor the names of recipe, arm and schedules. Names
    of stages and sources are in it, since they seed the order of the data.

    Args:
        steps: of every stage of `arm`; None, in plans alone, where that is not known yet.
        data_digests: source -> digest of what it holds.
    """
    stages = []
    for i, stage in enumerate(arm.stages[: index + 1]):
        # Epochs have become steps; the schedule's name says nothing.
        resolved = stage if steps[i] is None else replace(stage, steps=steps[i], epochs=None)
        schedule = to_plain(recipe.schedules[stage.schedule])
        data = {name: data_digests[name] for name in stage.sources}
        stages.append([to_plain(replace(resolved, schedule="")), schedule, *span(arm, i, steps), data])
    whole = [FORMAT, to_plain(recipe.model_config(arm)), recipe.seed, to_plain(recipe.optimizer), stages]
    if recipe.opened is not None:
        whole.append(recipe.opened.weights)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]


def span(arm: Arm, index: int, steps: Sequence[int | None]) -> tuple[int | None, int | None]:
    """Steps that the schedule of stage `index` takes before it, and in all; None where they are not known."""
    counts = [
        (i, count)
        for i, (stage, count) in enumerate(zip(arm.stages, steps, strict=True))
        if stage.schedule == arm.stages[index].schedule
    ]
    return _sum([count for i, count in counts if i < index]), _sum([count for _, count in counts])


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
