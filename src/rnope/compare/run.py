"""The comparison from recipe to page: sweep, train, ask, judge, write. Interrupted, it goes on where it stopped."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from rnope.compare.assemble import assemble
from rnope.compare.jobs import Job
from rnope.compare.plan import TrialJobs, arm_jobs, clock_job, sweep_jobs, sweep_key
from rnope.compare.pool import Pool
from rnope.compare.shards import Shard, check_other, jobs_of, parse, take_over, trials_of
from rnope.compare.work import Place
from rnope.config import Execution, Recipe, Setting
from rnope.data.prepare import Prepared, prepare
from rnope.errors import UserError, check
from rnope.files import exclusive
from rnope.report import write_report
from rnope.results import Results


def compare(
    recipe: Recipe,
    *,
    corpus: str | None,
    out: Path,
    workers: int,
    console: Console,
    command: str,
    shards: Sequence[str] = (),
    merge: Sequence[Path] = (),
    minutes: float | None = None,
) -> Results | None:
    """Run everything that is not done yet, write ``results.json`` and the report.

    Args:
        shards: do only these (``ARM:SEED`` or ``ARM``) and what they need, and write no results.
        merge: folders of other runs, whose finished jobs are taken over first.
        minutes: begin no job after so many, and stop trainings at a checkpoint.

    Returns:
        None where something is left to do.

    Raises:
        UserError: the corpus does not serve, a shard is none of the recipe's, a folder cannot be merged, or `out` cannot
            be written, or another comparison is at work there.
    """
    started = time.time()
    wanted = parse(recipe, shards)
    check("--minutes", minutes, minutes is None or minutes > 0, "must be a number above 0", "Leave it out for no end.")
    workers = _workers(recipe.execution, workers)
    _writable(out)
    for other in merge:
        check_other(other, out)
    with _alone(out):
        least = max(stage.context_tokens for arm in recipe.arms for stage in arm.stages)
        console.print(f"[bold]{recipe.name}[/bold]: {escape(recipe.summary)}", highlight=False, soft_wrap=True)
        data = prepare(corpus, vocab_size=recipe.vocab_size, folder=out / "data", least_tokens=least)
        _enough_text(recipe, data)
        counts = ", ".join(f"{split} {count:,}" for split, count in data.tokens.items())
        console.print(f"corpus in tokens: {counts}", style="dim", highlight=False)
        for other in merge:
            console.print(
                f"{take_over(other, out, data.digest):,} finished jobs taken over from {other}", highlight=False
            )
        place = Place(out=out, data=data, execution=recipe.execution)
        deadline = None if minutes is None else started + 60 * minutes
        pool = Pool(place, workers=workers, console=console, deadline=deadline)

        trials = sweep_jobs(recipe, data.digest)
        tried = trials_of(recipe, wanted, trials)
        timing = clock_job(recipe)
        if pool.run([job for trial in tried for job in (trial.train, trial.ask)]):
            chosen = chosen_settings(recipe, tried, pool.results)
            arms = [arm for arm in arm_jobs(recipe, chosen, data.digest) if (arm.arm.name, arm.seed) in wanted]
            done = pool.run([job for arm in arms for job in jobs_of(arm)])
            # Times are taken while nothing else of the run goes on.
            if done and not shards and (timing is None or pool.run([timing])):
                results = assemble(
                    recipe, data, arms, trials, chosen, pool, timing, command=command, seconds=time.time() - started
                )
                results.save(out / "results.json")
                write_report(results, out)
                return results
        left = unfinished(recipe, trials, pool, data.digest)
        jobs = {job_id: job for shard in wanted & left.keys() for job_id, job in left[shard].items()}
        if not shards and timing is not None:
            jobs |= pool.left([timing])
        console.print(_left_over(recipe, jobs, left.keys(), workers), highlight=False, soft_wrap=True)
        return None


def unfinished(recipe: Recipe, trials: Sequence[TrialJobs], pool: Pool, data: str) -> dict[Shard, dict[str, Job]]:
    """Shard -> what is left of it, by id, where something is. A sweep that is not done is taken to choose its first."""
    done = [trial for trial in trials if not pool.left([trial.train, trial.ask])]
    chosen = chosen_settings(recipe, done, pool.results)
    found = {}
    for arm in arm_jobs(recipe, chosen, data):
        shard = (arm.arm.name, arm.seed)
        tried = [job for trial in trials_of(recipe, [shard], trials) for job in (trial.train, trial.ask)]
        if left := pool.left([*tried, *jobs_of(arm)]):
            found[shard] = left
    return found


def _left_over(recipe: Recipe, jobs: Mapping[str, Job], shards: Set[Shard], workers: int) -> str:
    """What a run that writes no results says at its end."""
    if jobs:
        minutes = sum(job.cost for job in jobs.values()) / workers / 60
        return f"Time is up: {len(jobs):,} jobs are left, about {minutes:.0f} minutes. Run the same command again to go on."
    if shards:
        missing = []
        for arm in recipe.arms:
            seeds = [seed for seed in arm.seeds if (arm.name, seed) in shards]
            missing += [arm.name] if len(seeds) == len(arm.seeds) else [f"{arm.name}:{seed}" for seed in seeds]
        names = ", ".join(missing)
        return (
            f"Done. Shards still missing here: {names}. Run them, or take them over with --merge; then run without "
            "--shard for the results."
        )
    return "Done, and no shard is missing. Run without --shard for the results."


def _enough_text(recipe: Recipe, data: Prepared) -> None:
    for length in recipe.losses.context_tokens:
        have = data.tokens["eval"]
        rule = f"is longer than the held-out text, {have:,} tokens"
        check("losses.context_tokens", length, length <= have, rule, "Use shorter windows, or a larger corpus.")


def _workers(execution: Execution, workers: int) -> int:
    """On a GPU one job at a time: each takes all of it.

    Raises:
        ConfigError: there is none.
    """
    if execution.device == "cpu":
        return workers
    rule, remedy = "PyTorch sees no GPU on this machine", "Use --set execution.device=cpu for a small trial."
    check("execution.device", execution.device, torch.cuda.is_available(), rule, remedy)
    return 1


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with exclusive(out / ".lock") as ours:
        check("--out", str(out), ours, "another comparison is at work there", "Wait for it, or name another folder.")
        yield


def _writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}). Name another folder.") from None


def chosen_settings(
    recipe: Recipe, trials: Sequence[TrialJobs], results: Mapping[str, dict[str, Any]]
) -> dict[str, Setting]:
    """Sweep key -> the setting that did best on development needles; of equals the first of the recipe."""
    chosen = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    best = dict.fromkeys(chosen, -1.0)
    for trial in trials:  # in the recipe's order
        score = results[trial.ask.id]["score"]
        if score > best[trial.subject]:
            best[trial.subject], chosen[trial.subject] = score, trial.setting
    return chosen
