"""What a recipe asks for, as jobs that need each other. A job's id is a digest of all that its result depends on.

Arms whose stages begin alike share those stages' jobs: stages form a tree (SPEC T5).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rnope.config import Arm, Needles, Optimizer, Pair, Recipe, Setting, Stage
from rnope.data.corpus import Split
from rnope.model.accounting import prefill_flops, training_flops
from rnope.model.spec import ModelConfig
from rnope.strict import to_plain

FORMAT = 1
"""Raised when code changes what a job's result means: old results are then not found again."""
PROMPTS = 2
"""The same for the prompts alone: what was trained is kept."""
PRIMARY = (2, 16)
"""Multiples of the trained length at which pairs are judged (SPEC R): of the longer one, where two arms differ."""
DEV_SEED = 0x5EED
"""Turns the seed of the needles into that of the needles that choices are made by: none is the evaluation's."""
_SAID_LATER = ("rope_window",)
# Of one ordinary core in float32, for estimates only.
_TRAINING_FLOPS_PER_SECOND = 3e10
_STEP_SECONDS = 0.03
_READING_FLOPS_PER_SECOND = 6e10
_READING_SECONDS_PER_TOKEN = 3e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Run one stage of `arm`'s chain."""

    recipe: str
    model: ModelConfig
    """At the start of the chain, before any stage changed it."""
    variant: str
    stages: tuple[Stage, ...]
    """The chain up to the stage to run, which is the last."""
    optimizer: Optimizer
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Needles of one row at one length."""

    arm: str
    seed: int
    row: str
    context_tokens: int
    needles: Needles
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Attention mass at one length."""

    arm: str
    seed: int
    context_tokens: int
    samples: int
    needles: Needles


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One piece of work, on one thread."""

    id: str
    title: str
    needs: str | None
    """Id of the training that must come before."""
    work: Train | Ask | Look
    units: int
    """Steps, contexts or samples: what progress counts."""
    cost: float
    """Seconds it may take."""


def _stages(stages: tuple[Stage, ...]) -> list[dict[str, object]]:
    """`stages` for a digest: what a stage learned to say after runs had been made counts only where it is said."""
    plain = [to_plain(stage) for stage in stages]
    return [{k: v for k, v in stage.items() if k not in _SAID_LATER or v is not None} for stage in plain]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *map(to_plain, parts)], sort_keys=True).encode()).hexdigest()[:10]


def training_jobs(recipe: Recipe, arm: Arm, seed: int, setting: Setting, data: str) -> list[Job]:
    """The chain of stages of `arm`, one job each."""
    jobs: list[Job] = []
    model = recipe.model_config(arm, setting)
    for count, stage in enumerate(arm.stages, 1):
        work = Train(
            recipe=recipe.name,
            model=model,
            variant=arm.variant,
            stages=arm.stages[:count],
            optimizer=recipe.optimizer,
            learning_rate=setting.learning_rate,
            seed=seed,
        )
        rows = stage.batch_tokens // stage.context_tokens
        flops = training_flops(model, stage.context_tokens) * max(rows, 1)
        name = f"{stage.name}-{arm.variant}-seed{seed}"
        # The recipe's name is provenance; it changes no weight.
        identity = _digest(model, _stages(work.stages), work.optimizer, work.learning_rate, seed, data)
        jobs.append(
            Job(
                id=f"{name}-{identity}",
                title=f"train {arm.name} · {stage.name} · seed {seed}",
                needs=jobs[-1].id if jobs else None,
                work=work,
                units=stage.steps,
                cost=stage.steps * (_STEP_SECONDS * stage.accumulate + flops / _TRAINING_FLOPS_PER_SECOND),
            )
        )
    return jobs


def ask_job(
    recipe: Recipe, arm: Arm, seed: int, needs: str, row: str, context_tokens: int, *, dev: bool = False
) -> Job:
    """Needles of one row and length; with `dev`, those that choices are made by: other documents, and another seed."""
    needles = replace(recipe.needles, seed=recipe.needles.seed ^ DEV_SEED) if dev else recipe.needles
    work = Ask(
        arm=arm.name,
        seed=seed,
        row=row,
        context_tokens=context_tokens,
        needles=needles,
        split="dev" if dev else "eval",
    )
    same = (needles.depths, needles.contexts, needles.seed)
    return Job(
        id=f"{work.split}-{row}-{context_tokens}-{_digest(PROMPTS, needs, row, context_tokens, same, work.split)}",
        title=f"ask {arm.name} · {context_tokens:,} tokens · {row} · seed {seed}",
        needs=needs,
        work=work,
        units=needles.contexts,
        cost=_reading_seconds(recipe, arm, context_tokens, needles.contexts, skip=True),
    )


def look_job(recipe: Recipe, arm: Arm, seed: int, needs: str, context_tokens: int) -> Job:
    """Attention mass at one length."""
    samples = recipe.attention_samples
    work = Look(arm=arm.name, seed=seed, context_tokens=context_tokens, samples=samples, needles=recipe.needles)
    return Job(
        id=f"mass-{context_tokens}-{_digest(PROMPTS, needs, context_tokens, samples, recipe.needles.seed)}",
        title=f"look {arm.name} · {context_tokens:,} tokens · seed {seed}",
        needs=needs,
        work=work,
        units=samples,
        cost=_reading_seconds(recipe, arm, context_tokens, samples, skip=False),
    )


def _reading_seconds(recipe: Recipe, arm: Arm, context_tokens: int, contexts: int, *, skip: bool) -> float:
    flops = prefill_flops(recipe.model_config(arm), context_tokens, skip=skip)
    return 0.3 + contexts * (flops / _READING_FLOPS_PER_SECOND + context_tokens * _READING_SECONDS_PER_TOKEN)


def sweep_key(recipe: Recipe, arm: Arm) -> str:
    """Arms with the same model and the same first stage are one subject of the sweep."""
    return _digest(recipe.model_config(arm), _stages(arm.stages[:1])[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJobs:
    """One setting tried for one subject of the sweep."""

    subject: str
    """A `sweep_key`."""
    arm: Arm
    """The first arm of that subject."""
    setting: Setting
    train: Job
    ask: Job


def sweep_jobs(recipe: Recipe, data: str) -> list[TrialJobs]:
    """The first stage of every subject under every setting, and its development needles."""
    found: dict[tuple[str, Setting], TrialJobs] = {}
    if len(recipe.sweep.settings) < 2:
        return []
    for arm in recipe.arms:
        for setting in recipe.sweep.settings:
            subject = sweep_key(recipe, arm)
            if (subject, setting) not in found:
                seed, length = recipe.sweep.seed, arm.stages[0].context_tokens
                train = training_jobs(recipe, arm, seed, setting, data)[0]
                train = replace(train, title=f"{train.title} · {setting}")
                ask = ask_job(recipe, arm, seed, train.id, "standard", length, dev=True)
                ask = replace(ask, title=f"{ask.title} · {setting}")
                found[subject, setting] = TrialJobs(subject=subject, arm=arm, setting=setting, train=train, ask=ask)
    return list(found.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmJobs:
    """The jobs of one arm at one seed."""

    arm: Arm
    seed: int
    setting: Setting
    training: tuple[Job, ...]
    questions: tuple[Job, ...]


def longer(recipe: Recipe, pair: Pair) -> int:
    """1× of a pair: the longer of its two trained lengths."""
    return max(arm.trained_tokens for arm in recipe.arms if arm.name in (pair.a, pair.b))


def _endpoints(recipe: Recipe, arm: Arm) -> set[int]:
    """Lengths at which the pairs that `arm` is in are judged."""
    pairs = [pair for pair in recipe.pairs if arm.name in (pair.a, pair.b)]
    return {multiple * longer(recipe, pair) for pair in pairs for multiple in PRIMARY}


def arm_jobs(recipe: Recipe, settings: Mapping[str, Setting], data: str) -> list[ArmJobs]:
    """Every arm at every seed, with the setting that its sweep key was given."""
    found = []
    needles = recipe.needles
    for arm in recipe.arms:
        setting = settings[sweep_key(recipe, arm)]
        far = needles.far_tokens if arm.name in needles.far_arms else ()
        lengths = sorted({*needles.context_tokens, arm.trained_tokens, *_endpoints(recipe, arm), *far})
        for seed in arm.seeds:
            training = training_jobs(recipe, arm, seed, setting, data)
            last = training[-1].id
            asks = [ask_job(recipe, arm, seed, last, "standard", length) for length in lengths]
            for length in needles.control_tokens:
                asks += [ask_job(recipe, arm, seed, last, row, length) for row in ("unseen-keys", "no-needle")]
            asks.append(ask_job(recipe, arm, seed, last, "needle-only", arm.trained_tokens))
            looks = [look_job(recipe, arm, seed, last, length) for length in recipe.attention_tokens]
            found.append(
                ArmJobs(arm=arm, seed=seed, setting=setting, training=tuple(training), questions=(*asks, *looks))
            )
    return found
