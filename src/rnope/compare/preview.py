"""What a recipe would do, in words: the plan that ``--dry-run`` prints, and the layer tables."""

from collections.abc import Sequence

from rnope.compare.jobs import Job
from rnope.compare.plan import TrialJobs, arm_jobs, clock_job, sweep_jobs, sweep_key
from rnope.compare.shards import jobs_of, trials_of
from rnope.config import Recipe
from rnope.hf.show import sizes
from rnope.model.accounting import parameters, training_flops
from rnope.model.spec import VARIANTS, ModelConfig


def describe(variant: str, size: str) -> str:
    """Layer table, parameters and cache of a variant at a size."""
    config = ModelConfig.variant(variant, size)
    return f"{variant}: {VARIANTS[variant].summary}\n{sizes(config)}"


def preview(recipe: Recipe) -> str:
    """Layer tables, stages, tokens, FLOPs and an estimate of the time."""
    lines = [f"{recipe.name}: {recipe.summary}", ""]
    for arm in recipe.arms:
        config = recipe.model_config(arm)
        lines += [f"{arm.name} ({arm.summary})", config.layer_table()]
        for stage in arm.stages:
            config = stage.changed(config)
            tokens = stage.steps * stage.batch_tokens
            flops = training_flops(config, stage.context_tokens) * tokens // stage.context_tokens
            layers = f"\n{config.layer_table()}" if stage.variant else ""
            to = f" to {stage.variant}" if stage.variant else ""
            theta = f", θ {stage.theta:,.10g}" if stage.theta else ""
            lengths = "+".join(f"{n:,}" for n in stage.row_lengths)
            lines.append(
                f"{'':9}{stage.name}{to}: {stage.steps:,} steps of {stage.batch_tokens:,} tokens, "
                f"rows of {lengths}{theta}; {tokens:,} tokens, at most {flops:.2g} FLOPs{layers}"
            )
        lines.append(
            f"{'':9}{parameters(config):,} parameters, seeds {', '.join(map(str, arm.seeds))}; "
            f"1× is {arm.trained_tokens:,} tokens"
        )
    settings = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    trials = sweep_jobs(recipe, "")
    sweep = _sweep(trials)
    arms = arm_jobs(recipe, settings, "")
    jobs = [job for arm in arms for job in jobs_of(arm)]
    timing = clock_job(recipe)
    jobs += [timing] if timing else []
    shards = [
        (f"{arm.arm.name}:{arm.seed}", [*_sweep(trials_of(recipe, [(arm.arm.name, arm.seed)], trials)), *jobs_of(arm)])
        for arm in arms
    ]
    where = "one core" if recipe.execution.device == "cpu" else "one GPU"
    lines += [
        "",
        f"asked at {', '.join(f'{n:,}' for n in recipe.needles.context_tokens)} tokens, "
        f"{recipe.needles.contexts} contexts of {recipe.needles.depths} needles each",
        f"sweep: {len(sweep)} jobs, {_hours(sweep)}; comparison: {_distinct(jobs)} jobs, {_hours(jobs)} of {where}",
        "shards (--shard), with what they share with others: "
        + ", ".join(f"{name} {_hours(found)}" for name, found in shards),
    ]
    return "\n".join(lines)


def _sweep(trials: Sequence[TrialJobs]) -> list[Job]:
    return [job for trial in trials for job in (trial.train, trial.ask)]


def _distinct(jobs: Sequence[Job]) -> int:
    return len({job.id for job in jobs})


def _hours(jobs: Sequence[Job]) -> str:
    seconds = sum({job.id: job.cost for job in jobs}.values())
    return f"about {seconds / 60:.0f} minutes"
