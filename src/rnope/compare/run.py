"""The comparison from recipe to page: sweep, train, ask, judge, write. Interrupted, it goes on where it stopped."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import rnope
from rnope.compare.plan import ArmJobs, TrialJobs, arm_jobs, sweep_jobs, sweep_key
from rnope.compare.pool import Pool
from rnope.compare.verdicts import differences, judge
from rnope.compare.work import Place, chain_config
from rnope.config import Recipe, Setting
from rnope.data.prepare import Prepared, prepare
from rnope.errors import UserError
from rnope.files import beside
from rnope.hf.mapping import model_type
from rnope.model.accounting import cache_bytes, parameters, prefill_flops
from rnope.report import write_report
from rnope.results import MassRow, Model, NeedleRow, Point, Results, StageRun, Trial
from rnope.strict import from_plain, to_plain

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def compare(recipe: Recipe, *, corpus: str | None, out: Path, workers: int, console: Console, command: str) -> Results:
    """Run everything that is not done yet, write ``results.json`` and the report.

    Raises:
        UserError: the corpus does not serve, or `out` cannot be written.
    """
    started = time.time()
    _writable(out)
    least = max(stage.context_tokens for arm in recipe.arms for stage in arm.stages)
    console.print(f"[bold]{recipe.name}[/bold]: {escape(recipe.summary)}", highlight=False, soft_wrap=True)
    data = prepare(corpus, vocab_size=recipe.vocab_size, folder=out / "data", least_tokens=least)
    counts = ", ".join(f"{split} {count:,}" for split, count in data.tokens.items())
    console.print(f"corpus in tokens: {counts}", style="dim", highlight=False)
    pool = Pool(Place(out=out, data=data), workers=workers, console=console)

    trials = sweep_jobs(recipe, data.digest)
    pool.run([job for trial in trials for job in (trial.train, trial.ask)])
    chosen = chosen_settings(recipe, trials, pool.results)
    arms = arm_jobs(recipe, chosen, data.digest)
    pool.run([job for arm in arms for job in (*arm.training, *arm.questions)])

    results = assemble(recipe, data, arms, trials, chosen, pool, command=command, seconds=time.time() - started)
    results.save(out / "results.json")
    write_report(results, out)
    return results


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


def assemble(
    recipe: Recipe,
    data: Prepared,
    arms: list[ArmJobs],
    trials: Sequence[TrialJobs],
    chosen: Mapping[str, Setting],
    pool: Pool,
    *,
    command: str,
    seconds: float,
) -> Results:
    """One results file of all jobs' results; each arm's model folder is put in its place."""
    models, learning, needles, attention = [], [], [], []
    for arm in arms:
        models.append(_model(recipe, arm, pool))
        learning += _learning(arm, pool)
        whose = {"arm": arm.arm.name, "seed": arm.seed}  # jobs may be shared between arms
        for job in arm.questions:
            found = pool.results[job.id]
            if "rows" in found:
                attention += [from_plain(MassRow, {**row, **whose}) for row in found["rows"]]
            else:
                needles.append(from_plain(NeedleRow, {**found, **whose}))
    facts: dict[str, Any] = {
        "recipe": to_plain(recipe),
        "scale": dict(recipe.scale),
        "provenance": {
            "command": command,
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "seconds of this call": round(seconds, 1),
            "seconds of training and asking, one thread each, in all calls": round(_busy_seconds(pool.place.out), 1),
            "workers": pool.workers,
            "python": sys.version.split()[0],
            "rnope": rnope.__version__,
            **{name: version(name) for name in PACKAGES},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor()}",
            "corpus": data.digest,
            "corpus tokens": data.tokens,
        },
        "arms": {arm.name: arm.summary for arm in recipe.arms},
    }
    results = Results(
        **facts,
        models=tuple(models),
        learning=tuple(learning),
        needles=tuple(needles),
        attention=tuple(attention),
        trials=_trials(trials, chosen, pool),
        differences=differences(recipe, needles),
        verdicts=(),
        notes=_notes(recipe),
    )
    return replace(results, verdicts=judge(recipe, results))


def _processor() -> str:
    """The processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


def _busy_seconds(out: Path) -> float:
    """Seconds of all jobs in ``run.jsonl``; a last line that a kill tore is left out."""
    seconds = 0.0
    for line in (out / "run.jsonl").read_text(encoding="utf-8").splitlines() if (out / "run.jsonl").exists() else []:
        with suppress(ValueError):
            seconds += json.loads(line)["seconds"]
    return seconds


def _model(recipe: Recipe, arm: ArmJobs, pool: Pool) -> Model:
    last = arm.training[-1]
    work: Any = last.work
    config = chain_config(work)
    lengths = sorted({*recipe.needles.context_tokens, *recipe.needles.far_tokens, arm.arm.trained_tokens})
    source = pool.place.stage(last.id) / "model"
    target = pool.place.out / arm.arm.name / f"seed-{arm.seed}" / "model"
    with beside(target) as place:
        shutil.copytree(source, place)
    return Model(
        arm=arm.arm.name,
        variant=arm.arm.variant,
        seed=arm.seed,
        layers=tuple(str(layer) for layer in config.layers),
        parameters=parameters(config),
        trained_tokens=arm.arm.trained_tokens,
        cache_bytes={str(n): cache_bytes(config, n) for n in lengths},
        prefill_flops={str(n): prefill_flops(config, n) for n in lengths},
        stages=tuple(from_plain(StageRun, pool.results[job.id]["run"]) for job in arm.training),
        setting=str(arm.setting),
        folder=str(target.relative_to(pool.place.out)),
        model_type=model_type(config),
    )


def _learning(arm: ArmJobs, pool: Pool) -> list[Point]:
    points, before = [], 0
    for job in arm.training:
        work: Any = job.work
        stage = work.stages[-1]
        for entry in pool.results[job.id]["history"]:
            points.append(
                Point(
                    arm=arm.arm.name,
                    seed=arm.seed,
                    stage=stage.name,
                    step=int(entry["step"]),
                    tokens=before + int(entry["step"]) * stage.batch_tokens,
                    context_tokens=int(entry["context_tokens"]),
                    loss=entry["loss"],
                    accuracy=entry["accuracy"],
                )
            )
        before += stage.steps * stage.batch_tokens
    return points


def _trials(trials: Sequence[TrialJobs], chosen: Mapping[str, Setting], pool: Pool) -> tuple[Trial, ...]:
    found = []
    for trial in trials:
        run, asked = pool.results[trial.train.id]["run"], pool.results[trial.ask.id]
        stage = trial.arm.stages[0]
        found.append(
            Trial(
                arm=trial.arm.name,
                seed=asked["seed"],
                setting=str(trial.setting),
                score=asked["score"],
                accuracy=run["accuracy"],
                steps_to_full_context=run["promotions"].get(str(stage.context_tokens)) if stage.curriculum else 0,
                chosen=chosen[trial.subject] == trial.setting,
            )
        )
    return tuple(found)


def _notes(recipe: Recipe) -> tuple[str, ...]:
    """What every variant was given alike, and what the numbers are not."""
    first = recipe.arms[0].stages[0]
    notes = [
        "Answers are teacher-forced: an answer counts when the model's most likely next token is the value, with the gold "
        "answers of earlier questions in place.",
        "One BOS stands at the start of every row and prompt; needles and questions are planted in token space.",
        "Every model is fresh, tiny and trained in a minute or so on one core; scores are of this synthetic task alone.",
    ]
    if first.curriculum:
        lengths = ", ".join(map(str, first.curriculum))
        notes.append(
            f"Help given to every arm alike: rows of {lengths} tokens come first, each length left when the running "
            f"accuracy exceeds {first.promote_accuracy}; the number of steps and tokens is the same for all."
        )
    if first.warmup_window:
        notes.append(
            f"Help given to every arm alike: in the first row length, every layer but the last sees {first.warmup_window} "
            "tokens at most. Layers of full span need it more than windowed ones: their attention is flat at the start."
        )
    if recipe.model_config(recipe.arms[0]).init.tie_query_key:
        but = ", unless its sweep chose otherwise" if len(recipe.sweep.settings) > 1 else ""
        notes.append(f"Help given to every arm alike: the last layer's keys start out equal to its queries{but}.")
    if recipe.optimizer.name == "muon":
        notes.append("Every arm is trained with Muon for its matrices and AdamW for embedding and norms.")
    if len(recipe.sweep.settings) > 1:
        notes.append(
            "Learning rate and initialisation were chosen per variant from the same list, by development needles at the "
            "trained length alone; every trial is below."
        )
    else:
        notes.append("No arm was tuned here: the optimizer's rates are the recipe's, the same for all.")
    return tuple(notes)
