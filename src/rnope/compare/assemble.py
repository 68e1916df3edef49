"""One results file of all that a comparison's jobs found."""

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
from typing import Any, TypeVar

import torch

import rnope
from rnope.compare.chain import chain_config
from rnope.compare.jobs import Ask, Job
from rnope.compare.notes import notes
from rnope.compare.plan import ArmJobs, TrialJobs
from rnope.compare.pool import Pool
from rnope.compare.verdicts import differences, judge
from rnope.config import Recipe, Setting
from rnope.data.prepare import Prepared
from rnope.files import beside
from rnope.hf.mapping import model_type
from rnope.model.accounting import cache_bytes, parameters, prefill_flops
from rnope.results import (
    CostRow,
    LossRow,
    MassRow,
    Model,
    NeedleRow,
    Point,
    Results,
    SpreadRow,
    StageRun,
    TaskRow,
    Trial,
)
from rnope.strict import from_plain, to_plain

_ROWS: dict[str, type[Any]] = {"attention": MassRow, "spreads": SpreadRow, "tasks": TaskRow, "losses": LossRow}
"""Field of `Results` -> what its rows are, of what jobs measure beside needles."""
POINTS = 24
"""Of the learning curve of a stage, at most."""
T = TypeVar("T")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def assemble(
    recipe: Recipe,
    data: Prepared,
    arms: list[ArmJobs],
    trials: Sequence[TrialJobs],
    chosen: Mapping[str, Setting],
    pool: Pool,
    timing: Job | None,
    *,
    command: str,
    seconds: float,
) -> Results:
    """One results file of all jobs' results; each arm's model folder is put in its place."""
    models, learning, needles = [], [], []
    rows: dict[str, list[Any]] = {field: [] for field in _ROWS}
    for arm in arms:
        models.append(_model(recipe, arm, pool))
        learning += _learning(arm, pool)
        whose = {"arm": arm.arm.name, "seed": arm.seed}  # jobs may be shared between arms
        for job in arm.questions:
            found = pool.results[job.id]
            if isinstance(job.work, Ask):
                needles.append(_row(NeedleRow, {**found, **whose}))
            else:
                for field, each in found.items():
                    if field != "spreads" or arm.seed == arm.arm.seeds[0]:  # a figure of one seed is enough
                        rows[field] += [_row(_ROWS[field], {**row, **whose}) for row in each]
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
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_processor(recipe)}",
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
        attention=tuple(rows["attention"]),
        spreads=tuple(rows["spreads"]),
        tasks=tuple(rows["tasks"]),
        losses=tuple(rows["losses"]),
        costs=_costs(recipe, timing, pool),
        trials=_trials(trials, chosen, pool),
        differences=differences(recipe, needles),
        verdicts=(),
        notes=notes(recipe),
    )
    return replace(results, verdicts=judge(recipe, results))


def _row(cls: type[T], plain: Mapping[str, Any]) -> T:
    """A row of results: its numbers have five significant digits."""
    return from_plain(cls, _rounded(plain))


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _costs(recipe: Recipe, timing: Job | None, pool: Pool) -> tuple[CostRow, ...]:
    """A row per arm and length, in the recipe's order; arms of one layout share its times."""
    if timing is None:
        return ()
    work: Any = timing.work
    found = pool.results[timing.id]
    places = {arm: place for place, layout in enumerate(work.layouts) for arm in layout.arms}
    return tuple(
        CostRow(
            arm=arm.name,
            context_tokens=length,
            n=work.rounds,
            prefill_seconds=found["prefill"][str(length)][places[arm.name]],
            step_seconds=found["step"][str(length)][places[arm.name]],
            training_step_seconds=found["training"][places[arm.name]],
        )
        for arm in recipe.arms
        for length in work.context_tokens
    )


def _processor(recipe: Recipe) -> str:
    """What computed, as the system names it."""
    if recipe.execution.device == "cuda":
        return torch.cuda.get_device_name()
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
    config = chain_config(work.model, work.stages)
    lengths = sorted({*recipe.needles.context_tokens, *recipe.needles.far_tokens, arm.arm.trained_tokens})
    source = pool.place.stage(last.id) / "model"
    target = pool.place.out / arm.arm.name / f"seed-{arm.seed}" / "model"
    with beside(target) as place:
        shutil.copytree(source, place)
    return Model(
        arm=arm.arm.name,
        variant=work.variant,
        seed=arm.seed,
        layers=tuple(str(layer) for layer in config.layers),
        parameters=parameters(config),
        trained_tokens=arm.arm.trained_tokens,
        cache_bytes={str(n): cache_bytes(config, n) for n in lengths},
        prefill_flops={str(n): prefill_flops(config, n) for n in lengths},
        stages=tuple(_row(StageRun, pool.results[job.id]["run"]) for job in arm.training),
        setting=str(arm.setting),
        folder=str(target.relative_to(pool.place.out)),
        model_type=model_type(config),
    )


def _learning(arm: ArmJobs, pool: Pool) -> list[Point]:
    points, before = [], 0
    for job in arm.training:
        work: Any = job.work
        stage = work.stages[-1]
        history = pool.results[job.id]["history"]
        every = max(1, -(-len(history) // POINTS))
        for entry in history[(len(history) - 1) % every :: every]:  # the last one is always there
            points.append(
                Point(
                    arm=arm.arm.name,
                    seed=arm.seed,
                    stage=stage.name,
                    step=int(entry["step"]),
                    tokens=before + int(entry["step"]) * stage.batch_tokens,
                    context_tokens=int(entry["context_tokens"]),
                    loss=_rounded(entry["loss"]),
                    accuracy=_rounded(entry["accuracy"]),
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
