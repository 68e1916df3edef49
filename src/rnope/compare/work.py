"""One job, done in a worker process on one thread: train a stage, or measure a model that was trained."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from rnope.compare.chain import chain_config
from rnope.compare.clock import clock
from rnope.compare.jobs import Ask, Clock, Job, Look, Predict, Solve, Train
from rnope.compare.learn.stage import Training, run_stage, validation_loss
from rnope.compare.look import look
from rnope.compare.losses import loss_row
from rnope.compare.tasks import noise, task_rows
from rnope.config import Execution, Optimizer
from rnope.data.corpus import Split
from rnope.data.needles import Haystack, Ids, NeedleTask
from rnope.data.prepare import Prepared
from rnope.evals.needles import Prompts, Row, needle_row
from rnope.hf.folder import load, save
from rnope.model.decoder import Decoder
from rnope.parallel.apply import apply
from rnope.parallel.mesh import joined
from rnope.results import StageRun
from rnope.strict import to_plain

Tick = Callable[[int], None]
Stop = Callable[[], bool]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where jobs read and write, and what they run on."""

    out: Path
    data: Prepared
    execution: Execution = field(default_factory=Execution)

    def stage(self, job_id: str) -> Path:
        """Folder of a training job: checkpoint, log, model."""
        return self.out / "stages" / job_id


@functools.lru_cache(maxsize=1)
def _task(data: Prepared) -> NeedleTask:
    return NeedleTask(data.tokenizer())


@functools.lru_cache(maxsize=2)
def _haystack(data: Prepared, split: Split) -> Haystack:
    return Haystack(data.documents(split))


@functools.lru_cache(maxsize=1)
def _noise(data: Prepared) -> Haystack:
    return noise(data.tokenizer())


@functools.lru_cache(maxsize=2)
def _text(data: Prepared, split: Split) -> Ids:
    return data.text(split)


def perform(job: Job, place: Place, tick: Tick, stop: Stop = lambda: False) -> dict[str, Any] | None:
    """Do `job` and return its result as plain data; None for a training that was stopped before its end.

    Args:
        tick: told the number of units done since it was told last.
        stop: asked during training; once it says yes, a checkpoint is left to go on from.
    """
    if isinstance(job.work, Train):
        return train(job, job.work, place, tick, stop)
    if isinstance(job.work, Clock):
        return clock(job.work, _training(place, job.work.optimizer, learning_rate=1.0, seed=0), tick)
    assert job.needs is not None
    execution = place.execution
    folder = place.stage(job.needs) / "model"
    model = load(folder, dtype=_DTYPES[execution.precision], device=execution.device)
    if isinstance(job.work, Ask):
        return ask(model, job.work, place, tick)
    return measure(model, job.work, place, tick)


def _training(place: Place, optimizer: Optimizer, *, learning_rate: float, seed: int) -> Training:
    return Training(
        task=_task(place.data),
        text=_text(place.data, "train"),
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=seed,
        execution=place.execution,
    )


def train(job: Job, work: Train, place: Place, tick: Tick, stop: Stop) -> dict[str, Any] | None:
    """Run the chain's last stage and write its Hugging Face folder; None when it was stopped before its end."""
    stage = work.stages[-1]
    folder = place.stage(job.id)
    execution = place.execution
    mesh = joined(device=execution.device)
    model = apply(chain_config(work.model, work.stages), mesh, seed=work.seed, precision=execution.precision)
    training = _training(place, work.optimizer, learning_rate=work.learning_rate, seed=work.seed)
    before = place.stage(job.needs) / "checkpoint.pt" if job.needs else None
    progress = run_stage(model, stage, training, folder, before=before, tick=tick, stop=stop)
    if progress.step < stage.steps:
        return None
    model.eval()
    dev = place.data.text("dev")
    validation = validation_loss(model, dev, bos=training.task.bos, context_tokens=stage.context_tokens)
    trained_tokens = max(s.context_tokens for s in work.stages)
    provenance = {
        "recipe": work.recipe,
        "variant": work.variant,
        "stages": [s.name for s in work.stages],
        "seed": work.seed,
        "data": place.data.digest,
        "trained_context_tokens": trained_tokens,
    }
    save(model, folder / "model", place.data.tokenizer(), provenance=provenance, context_tokens=trained_tokens)
    run = StageRun(
        name=stage.name,
        context_tokens=stage.context_tokens,
        thetas=model.config.thetas,
        steps=progress.step,
        tokens=progress.step * stage.batch_tokens,
        seconds=round(progress.seconds, 3),
        loss=progress.loss,
        accuracy=progress.running,
        promotions=progress.promotions,
        validation=validation,
    )
    return {"run": to_plain(run), "history": progress.history, "skipped": progress.skipped}


def ask(model: Decoder, work: Ask, place: Place, tick: Tick) -> dict[str, Any]:
    """One `NeedleRow`."""
    prompts = Prompts(
        task=_task(place.data),
        haystack=_haystack(place.data, work.split),
        settings=work.needles,
        development=work.split == "dev",
    )
    row = needle_row(
        model,
        prompts,
        arm=work.arm,
        seed=work.seed,
        row=cast(Row, work.row),
        context_tokens=work.context_tokens,
        tick=tick,
    )
    return cast(dict[str, Any], to_plain(row))


def measure(model: Decoder, work: Look | Solve | Predict, place: Place, tick: Tick) -> dict[str, Any]:
    """Rows by the fields of `Results` that they belong to."""
    arm, seed, length = work.arm, work.seed, work.context_tokens
    task = _task(place.data)
    if isinstance(work, Predict):
        text = _text(place.data, "eval")
        row = loss_row(
            model, text, bos=task.bos, arm=arm, seed=seed, context_tokens=length, count=work.windows, tick=tick
        )  # fmt: skip
        return {"losses": to_plain([row])}
    text_ = _haystack(place.data, "eval")
    if isinstance(work, Look):
        masses, spreads = look(
            model, task, text_, arm=arm, seed=seed, needles_seed=work.needles_seed, context_tokens=length,
            samples=work.samples, tick=tick,
        )  # fmt: skip
        return {"attention": to_plain(masses), "spreads": to_plain(spreads)}
    haystacks = {True: _noise(place.data), False: text_}
    rows = task_rows(
        model, task, haystacks, work.names, arm=arm, seed=seed, needles_seed=work.needles_seed, context_tokens=length,
        asked=work.answers, tick=tick,
    )  # fmt: skip
    return {"tasks": to_plain(rows)}
