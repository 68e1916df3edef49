"""What a recipe asks for, as jobs that need each other. A job's id is a digest of all that its result depends on.

Arms whose stages begin alike share those stages' jobs: stages form a tree (SPEC T5).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rnope.compare.chain import chain_config, chain_variant
from rnope.compare.jobs import Ask, Clock, Job, Layout, Look, Predict, Solve, Train
from rnope.config import TASKS, Arm, Execution, Pair, Recipe, Setting, Stage
from rnope.model.accounting import prefill_flops, training_flops
from rnope.model.spec import ModelConfig
from rnope.strict import to_plain

FORMAT = 1
"""Raised when code changes what a job's result means: old results are then not found again."""
PROMPTS = 2
"""The same for the prompts alone: what was trained is kept."""
LOOKS, SOLVES, PREDICTS, CLOCKS = 2, 1, 1, 1
"""The same for one kind of job."""
DEV_SEED = 0x5EED
"""Turns the seed of the needles into that of the needles that choices are made by: none is the evaluation's."""
_SAID_LATER = ("rope_window", "variant")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speed:
    """Of a kind of device, for estimates only."""

    training_flops: float
    """In a second."""
    step_seconds: float
    """Of a step, besides its FLOPs."""
    reading_flops: float
    token_seconds: float
    """Of a token read, besides its FLOPs."""
    start_seconds: float
    """Of a job."""


_SPEEDS = {
    # One ordinary core in float32.
    "cpu": _Speed(training_flops=3e10, step_seconds=0.03, reading_flops=6e10, token_seconds=3e-5, start_seconds=0.3),
    # An H200 in bf16, not measured: a quarter of its 989 TFLOP/s in training, and 30 % in reading.
    "cuda": _Speed(training_flops=2.5e14, step_seconds=0.05, reading_flops=3e14, token_seconds=1e-6, start_seconds=3.0),
}


def _stages(stages: tuple[Stage, ...]) -> list[dict[str, object]]:
    """`stages` for a digest: what a stage learned to say after runs had been made counts only where it is said."""
    plain = [to_plain(stage) for stage in stages]
    return [{k: v for k, v in stage.items() if k not in _SAID_LATER or v is not None} for stage in plain]


def _execution(execution: Execution) -> list[str]:
    """The same for what jobs run on: the CPU in float32 unless a recipe says otherwise."""
    said: list[str] = [execution.device, execution.precision]
    return [] if said == ["cpu", "fp32"] else said


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *map(to_plain, parts)], sort_keys=True).encode()).hexdigest()[:10]


def training_jobs(recipe: Recipe, arm: Arm, seed: int, setting: Setting, data: str) -> list[Job]:
    """The chain of stages of `arm`, one job each."""
    jobs: list[Job] = []
    model = recipe.model_config(arm, setting)
    for count, stage in enumerate(arm.stages, 1):
        stages = arm.stages[:count]
        work = Train(
            recipe=recipe.name,
            model=model,
            variant=chain_variant(arm.variant, stages),
            stages=stages,
            optimizer=recipe.optimizer,
            learning_rate=setting.learning_rate,
            seed=seed,
        )
        name = f"{stage.name}-{work.variant}-seed{seed}"
        # The recipe's name is provenance; it changes no weight.
        identity = _digest(
            model, _stages(stages), work.optimizer, work.learning_rate, seed, data, *_execution(recipe.execution)
        )
        jobs.append(
            Job(
                id=f"{name}-{identity}",
                title=f"train {arm.name} · {stage.name} · seed {seed}",
                needs=jobs[-1].id if jobs else None,
                work=work,
                units=max(1, stage.steps),
                cost=_training_seconds(recipe, chain_config(model, stages), stage),
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
    """Attention at one length."""
    samples, draws = recipe.attention_samples, recipe.needles.seed
    return Job(
        id=f"look-{context_tokens}-{_digest(LOOKS, PROMPTS, needs, context_tokens, samples, draws)}",
        title=f"look {arm.name} · {context_tokens:,} tokens · seed {seed}",
        needs=needs,
        work=Look(arm=arm.name, seed=seed, context_tokens=context_tokens, samples=samples, needles_seed=draws),
        units=samples,
        cost=_reading_seconds(recipe, arm, context_tokens, samples, skip=True),
    )


def solve_job(recipe: Recipe, arm: Arm, seed: int, needs: str, context_tokens: int, answers: int) -> Job:
    """RULER's tasks at one length."""
    names, draws = recipe.tasks.names, recipe.needles.seed
    contexts = sum(TASKS[name].contexts(answers) for name in names)
    return Job(
        id=f"tasks-{context_tokens}-{_digest(SOLVES, PROMPTS, needs, context_tokens, names, answers, draws)}",
        title=f"solve {arm.name} · {context_tokens:,} tokens · seed {seed}",
        needs=needs,
        work=Solve(
            arm=arm.name, seed=seed, context_tokens=context_tokens, names=names, answers=answers, needles_seed=draws
        ),
        units=contexts,
        cost=_reading_seconds(recipe, arm, context_tokens, contexts, skip=True),
    )


def predict_job(recipe: Recipe, arm: Arm, seed: int, needs: str, context_tokens: int) -> Job:
    """Loss by position in windows of one length."""
    windows = recipe.losses.windows
    return Job(
        id=f"loss-{context_tokens}-{_digest(PREDICTS, needs, context_tokens, windows)}",
        title=f"predict {arm.name} · {context_tokens:,} tokens · seed {seed}",
        needs=needs,
        work=Predict(arm=arm.name, seed=seed, context_tokens=context_tokens, windows=windows),
        units=windows,
        cost=_reading_seconds(recipe, arm, context_tokens, windows, skip=False),
    )


def clock_job(recipe: Recipe) -> Job | None:
    """Times of every layout, done alone; None where the recipe asks for none. They depend on no weights."""
    costs = recipe.costs
    if not costs.context_tokens:
        return None
    layouts: dict[str, Layout] = {}
    reading = 0.0
    for arm in recipe.arms:
        model = chain_config(recipe.model_config(arm), arm.stages)
        # A rotary base takes no time.
        model = model.with_layers(tuple(replace(spec, theta=spec.theta and 1e4) for spec in model.layers))
        key = _digest(model, _stages(arm.stages[:1]))
        if key in layouts:
            layouts[key] = replace(layouts[key], arms=(*layouts[key].arms, arm.name))
        else:
            layouts[key] = Layout(arms=(arm.name,), model=model, stage=arm.stages[0])
            reading += sum(_reading_seconds(recipe, arm, n, 1, skip=True) for n in costs.context_tokens)
    work = Clock(
        layouts=tuple(layouts.values()),
        context_tokens=costs.context_tokens,
        rounds=costs.rounds,
        optimizer=recipe.optimizer,
    )
    identity = _digest(CLOCKS, list(layouts), costs, recipe.optimizer, *_execution(recipe.execution))
    return Job(
        id=f"costs-{identity}",
        title=f"time {len(layouts)} layouts, one after the other",
        needs=None,
        work=work,
        units=costs.rounds * len(layouts),
        cost=costs.rounds * reading,
    )


def _training_seconds(recipe: Recipe, model: ModelConfig, stage: Stage) -> float:
    """Of a curriculum as if its rows were long ones."""
    speed, lengths = _SPEEDS[recipe.execution.device], [stage.context_tokens]
    if stage.short_context_tokens:
        lengths += [stage.short_context_tokens] * stage.short_batches
    flops = stage.batch_tokens * sum(training_flops(model, length) / length for length in lengths) / len(lengths)
    return stage.steps * (speed.step_seconds * stage.accumulate + flops / speed.training_flops)


def _reading_seconds(recipe: Recipe, arm: Arm, context_tokens: int, contexts: int, *, skip: bool) -> float:
    speed = _SPEEDS[recipe.execution.device]
    flops = prefill_flops(chain_config(recipe.model_config(arm), arm.stages), context_tokens, skip=skip)
    return speed.start_seconds + contexts * (flops / speed.reading_flops + context_tokens * speed.token_seconds)


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
    return {multiple * longer(recipe, pair) for pair in pairs for multiple in pair.multiples}


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
            tasks = recipe.tasks
            solves = [
                solve_job(recipe, arm, seed, last, length, answers)
                for lengths_, answers in ((tasks.context_tokens, tasks.answers), (tasks.far_tokens, tasks.far_answers))
                for length in lengths_
                if arm.name in (tasks.arms or [arm.name])
            ]
            predicts = [predict_job(recipe, arm, seed, last, length) for length in recipe.losses.context_tokens]
            questions = (*asks, *looks, *solves, *predicts)
            found.append(ArmJobs(arm=arm, seed=seed, setting=setting, training=tuple(training), questions=questions))
    return found
