"""One job, done in a worker process on one thread: train a stage, ask needles, look at attention."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rnope.analysis.mass import attention_mass
from rnope.compare.learn.stage import Training, layers_in, run_stage, validation_loss
from rnope.compare.plan import Ask, Job, Look, Train
from rnope.data.corpus import Split
from rnope.data.needles import Haystack, Ids, NeedleTask
from rnope.data.prepare import Prepared
from rnope.evals.needles import Prompts, Row, needle_row
from rnope.hf.folder import load, save
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.results import StageRun
from rnope.strict import to_plain

Tick = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where jobs read and write."""

    out: Path
    data: Prepared

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
def _text(data: Prepared) -> Ids:
    return data.text("train")


def perform(job: Job, place: Place, tick: Tick) -> dict[str, Any]:
    """Do `job` and return its result as plain data.

    Args:
        tick: told the number of units done since it was told last.
    """
    if isinstance(job.work, Train):
        return train(job, job.work, place, tick)
    assert job.needs is not None
    model = load(place.stage(job.needs) / "model")
    if isinstance(job.work, Ask):
        return ask(model, job.work, place, tick)
    return look(model, job.work, place)


def chain_config(work: Train) -> ModelConfig:
    """The model as the last stage of the chain has it."""
    config = work.model
    for stage in work.stages:
        config = config.with_layers(layers_in(config, stage))
    return config


def train(job: Job, work: Train, place: Place, tick: Tick) -> dict[str, Any]:
    """Run the chain's last stage and write its Hugging Face folder."""
    stage = work.stages[-1]
    folder = place.stage(job.id)
    model = Decoder(chain_config(work), seed=work.seed)
    training = Training(
        task=_task(place.data),
        text=_text(place.data),
        optimizer=work.optimizer,
        learning_rate=work.learning_rate,
        seed=work.seed,
    )
    before = place.stage(job.needs) / "checkpoint.pt" if job.needs else None
    progress = run_stage(model, stage, training, folder, before=before, tick=tick)
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


def look(model: Decoder, work: Look, place: Place) -> dict[str, Any]:
    """`MassRow`s of one length."""
    prompts = Prompts(task=_task(place.data), haystack=_haystack(place.data, "eval"), settings=work.needles)
    rows = attention_mass(
        model, prompts, arm=work.arm, seed=work.seed, context_tokens=work.context_tokens, samples=work.samples
    )
    return {"rows": to_plain(rows)}
