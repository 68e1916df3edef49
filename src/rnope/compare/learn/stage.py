"""One stage of training: the loop, and nothing about which stage comes when.

The rows of a step are a function of (seed, stage, step, row length), so that a resumed run sees what an uninterrupted
one would have seen, and every variant sees the same.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.optim import Optimizer

from rnope import config
from rnope.compare.learn.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from rnope.compare.learn.optim import build_optimizers, rate_scale, set_rates, step_if_finite
from rnope.data.needles import Ids, NeedleTask, TrainingRows
from rnope.kernels import IGNORED, cross_entropy
from rnope.model.decoder import Decoder

LOG_STEPS = 10
CHECKPOINT_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a stage is run on: the same for every variant of a comparison."""

    task: NeedleTask
    text: Ids
    optimizer: config.Optimizer
    learning_rate: float
    seed: int
    execution: config.Execution = field(default_factory=config.Execution)


def run_stage(
    model: Decoder,
    stage: config.Stage,
    training: Training,
    folder: Path,
    *,
    before: Path | None = None,
    tick: Callable[[int], None] = lambda steps: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train `model` in place through `stage`, or go on where ``folder/checkpoint.pt`` left off.

    Leaves ``checkpoint.pt`` and ``log.jsonl`` in `folder`. Killed or stopped at any moment and run again, it ends with
    the same weights, bit for bit (one thread of one machine's processor).

    Args:
        model: on its device and in its precision (`rnope.parallel.apply`), its config as the stage changed it
            (`config.Stage.changed`).
        before: the checkpoint of the stage before, whose weights and (unless the stage resets it) optimizer state are
            carried over.
        tick: told the number of steps done since it was told last.
        stop: asked after every step; once it says yes, the stage is left at a checkpoint, unfinished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / "checkpoint.pt"
    optimizers = build_optimizers(model, training.optimizer, training.learning_rate)
    progress = Progress()
    if own.exists():
        progress = restore(load_checkpoint(own), model, optimizers)
    elif before is not None:
        state = load_checkpoint(before)
        model.load_state_dict(state["model"])
        if not stage.reset_optimizer:
            restore(state, model, optimizers)
    if stage.steps == 0:  # nothing to train, but later stages start from here
        save_checkpoint(own, model, optimizers, progress)
    tick(progress.step)
    log = _Log(folder / "log.jsonl", progress)
    lengths = (*stage.curriculum, stage.context_tokens)
    _apply_warmup_window(model, stage, progress.phase)
    model.train()
    started = time.monotonic() - progress.seconds
    saved, stopped = time.monotonic(), False
    while progress.step < stage.steps and not stopped:
        row_tokens = _row_tokens(stage, progress, lengths)
        set_rates(optimizers, rate_scale(stage, progress.step))
        loss, accuracy = _step(model, optimizers, stage, training, progress, row_tokens)
        progress.step += 1
        progress.phase_steps += 1
        if math.isfinite(loss):  # such a step was left out and counted as skipped
            progress.loss = loss
        smooth = 0.9 if progress.phase_steps > 1 else 0.0
        progress.running = smooth * progress.running + (1 - smooth) * accuracy
        if progress.step % LOG_STEPS == 0 or progress.step == stage.steps:
            log.write(progress, row_tokens)
        if progress.phase < len(stage.curriculum) and _learned(stage, progress):
            progress.phase += 1
            progress.phase_steps = 0
            progress.promotions[str(lengths[progress.phase])] = progress.step
            _apply_warmup_window(model, stage, progress.phase)
        progress.seconds = time.monotonic() - started
        stopped = stop()
        due = progress.step % CHECKPOINT_STEPS == 0 and time.monotonic() - saved >= training.execution.save_seconds
        if due or stopped or progress.step == stage.steps:
            save_checkpoint(own, model, optimizers, progress)
            saved = time.monotonic()
        tick(1)
    _apply_warmup_window(model, stage, len(stage.curriculum))
    return progress


def _learned(stage: config.Stage, progress: Progress) -> bool:
    return progress.phase_steps > 20 and progress.running > stage.promote_accuracy


def _row_tokens(stage: config.Stage, progress: Progress, lengths: tuple[int, ...]) -> int:
    """Row length of the step at hand: the curriculum's, or short and long in turn."""
    if stage.short_context_tokens and progress.step % (stage.short_batches + 1) < stage.short_batches:
        return stage.short_context_tokens
    return lengths[progress.phase]


def _apply_warmup_window(model: Decoder, stage: config.Stage, phase: int) -> None:
    """Narrow every layer but the last in the first curriculum length, and restore the model's own spans after it."""
    warm = stage.warmup_window if stage.curriculum and phase == 0 else None
    for index, (block, spec) in enumerate(zip(model.blocks, model.config.layers, strict=True)):
        if warm and index < len(model.config.layers) - 1:
            spec = replace(spec, window=min(warm, spec.window or warm))
        block.attention.spec = spec


def step_generator(seed: int, stage: str, step: int, row_tokens: int, micro: int) -> np.random.Generator:
    """The generator of one micro-batch: a function of its arguments and of nothing else."""
    name = int(hashlib.sha256(stage.encode()).hexdigest()[:8], 16)
    return np.random.default_rng([seed, name, step, row_tokens, micro])


def _step(
    model: Decoder,
    optimizers: list[Optimizer],
    stage: config.Stage,
    training: Training,
    progress: Progress,
    row_tokens: int,
) -> tuple[float, float]:
    """One optimizer step; returns its loss and its needle accuracy."""
    rows = stage.batch_tokens // stage.accumulate // row_tokens
    loss_sum, right, asked = 0.0, 0, 0
    for micro in range(stage.accumulate):
        rng = step_generator(training.seed, stage.name, progress.step, row_tokens, micro)
        batch = training.task.training_rows(
            rng,
            training.text,
            rows=rows,
            row_tokens=row_tokens,
            facts=stage.facts_at(row_tokens),
            dense=row_tokens in stage.curriculum,
        )
        loss_of = _loss if training.execution.precision == "fp32" else _loss_in_chunks
        loss, hits, answers = loss_of(model, batch, rng, stage)
        (loss / stage.accumulate).backward()
        loss_sum += loss.item() / stage.accumulate
        right, asked = right + hits, asked + answers
    if not step_if_finite(model, optimizers, training.optimizer.clip_norm):
        progress.skipped += 1
    return loss_sum, right / max(asked, 1)


def _loss(
    model: Decoder, batch: TrainingRows, rng: np.random.Generator, stage: config.Stage
) -> tuple[torch.Tensor, int, int]:
    """Mean cross-entropy of the answers plus `text_weight` times that of a sample of the text.

    Only positions in the loss go through the head.
    """
    device = model.embedding.weight.device
    ids = torch.from_numpy(batch.ids).to(device)
    answers = torch.from_numpy(batch.answers).to(device)
    states = model.hidden(ids)  # n t width
    targets = ids.roll(-1, dims=1)
    logits = model.logits(states[answers])
    loss = F.cross_entropy(logits, targets[answers])
    hits = int((logits.argmax(-1) == targets[answers]).sum())
    text = torch.from_numpy(_text_targets(batch, rng, stage)).to(device)
    if text.any():  # the mean of nothing is not a number
        loss = loss + stage.text_weight * F.cross_entropy(model.logits(states[text]), targets[text])
    return loss, hits, len(logits)


def _loss_in_chunks(
    model: Decoder, batch: TrainingRows, rng: np.random.Generator, stage: config.Stage
) -> tuple[torch.Tensor, int, int]:
    """`_loss` in the precision of the states, whose logits may be more than memory holds."""
    device = model.embedding.weight.device
    ids = torch.from_numpy(batch.ids).to(device)
    states = model.hidden(ids)  # n t width
    text = _text_targets(batch, rng, stage)
    loss = torch.zeros((), device=device)
    for places, weight in ((batch.answers, 1.0), (text, stage.text_weight)):
        if places.any():
            wanted = torch.from_numpy(places).to(device)
            targets = ids.roll(-1, dims=1).masked_fill_(~wanted, IGNORED)
            total, _ = cross_entropy(
                states.flatten(0, 1), model.embedding.weight, targets.flatten(), scale=model.config.logit_scale
            )
            loss = loss + total * (weight / int(places.sum()))
    rows, columns = (torch.from_numpy(at).to(device) for at in np.nonzero(batch.answers))
    with torch.no_grad():
        best = (states[rows, columns] @ model.embedding.weight.T.to(states.dtype)).argmax(-1)
    return loss, int((best == ids[rows, columns + 1]).sum()), len(rows)


def _text_targets(batch: TrainingRows, rng: np.random.Generator, stage: config.Stage) -> NDArray[np.bool_]:
    """[n, t]: the sample of positions whose next token is text, and is to be learned."""
    if not stage.text_weight:
        return np.zeros(batch.ids.shape, dtype=bool)
    text = (rng.random(batch.ids.shape) < stage.text_share) & ~batch.answers
    text[:, -1] = False  # the last token has no successor
    return text


class _Log:
    """``log.jsonl``: a line every few steps, for machines; lines that a kill left beyond the checkpoint are dropped."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path = path
        path.write_text("".join(json.dumps(point) + "\n" for point in progress.history), encoding="utf-8")

    def write(self, progress: Progress, row_tokens: int) -> None:
        point = {
            "step": progress.step,
            "context_tokens": row_tokens,
            "loss": progress.loss,
            "accuracy": progress.running,
            "seconds": round(progress.seconds, 3),
            "skipped": progress.skipped,
        }
        progress.history.append(point)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")


@torch.inference_mode()
def validation_loss(model: Decoder, text: Ids, *, bos: int, context_tokens: int, rows: int = 16) -> dict[str, float]:
    """Cross-entropy in nats per token on held-out text: ``all``, and by quarter of the context (SPEC T6).

    Rows are BOS and `context_tokens` - 1 tokens, evenly spaced over `text`.
    """
    offsets = np.linspace(0, len(text) - context_tokens, rows).astype(int)
    sums = torch.zeros(context_tokens - 1, dtype=torch.float64)
    for offset in offsets:
        ids = torch.from_numpy(np.concatenate(([bos], text[offset : offset + context_tokens - 1])))[None]
        ids = ids.to(model.embedding.weight.device)
        targets = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
        sums += model.loss(ids, targets)[1][0, :-1].double().cpu()
    losses = sums / rows
    edges = [round(i * (context_tokens - 1) / 4) for i in range(5)]
    quarters = {f"{a}-{b - 1}": losses[a:b].mean().item() for a, b in pairwise(edges)}
    return {"all": losses.mean().item(), **quarters}
