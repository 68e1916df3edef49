"""The one loop: a stage from its first step, or from its newest checkpoint, to its last.

It knows no recipe file, no arm and no console. The rows of a step are a function of (seed, stage, step); with the weights
and moments of a checkpoint these say all that comes after, bit for bit on a CPU and to rounding on other numbers of ranks.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rnope.config.execution import Execution
from rnope.config.stage import Stage
from rnope.config.training import AdamW, StageRates
from rnope.data.rows import Rows, StageRows, validation_rows
from rnope.data.shards import Shards
from rnope.errors import UserError
from rnope.kernels import IGNORED
from rnope.model.accounting import training_flops
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.parallel.apply import apply
from rnope.parallel.mesh import Mesh
from rnope.train.checkpoints import Checkpoints
from rnope.train.metrics import Log, Point, by_position, memory_bytes, position_edges, position_losses
from rnope.train.optim import build_optimizer, optimizer_tensors, step_if_finite
from rnope.train.start import fill

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage, resolved: all that its training depends on."""

    stage: Stage
    config: ModelConfig
    """With the stage's theta and windows."""
    steps: int
    rates: StageRates
    optimizer: AdamW
    execution: Execution
    seed: int
    sources: Mapping[str, Shards]
    held_out: Mapping[str, Shards]
    """Source -> its validation split, where it has one."""
    folder: Path
    before: Path | None = None
    """Folder of the stage that this one goes on from."""
    start: Path | None = None
    """Model folder that a first stage goes on from; None: its weights are fresh."""
    peak_flops: float | None = None
    """Of one device, for its utilisation."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@dataclass(kw_only=True)
class Standing:
    """Where a stage stands; with the weights and moments, all that a resumed run needs."""

    step: int = 0
    """Steps done."""
    updates: int = 0
    """Steps whose update was applied, which the optimizer counts from its last reset."""
    skipped: int = 0
    """Steps left out because a loss or gradient was not finite."""
    in_a_row: int = 0
    """Of these, the latest one after another."""
    tokens: int = 0
    seconds: float = 0.0


class Watch(Protocol):
    """Who follows a run; called by the first rank only."""

    def step(self, standing: Standing, point: Point | None) -> None:
        """A step is done; `point` is what was logged, every few steps."""

    def say(self, text: str) -> None:
        """Something the user should know."""


def fit(work: Work, mesh: Mesh, watch: Watch) -> Decoder:
    """Train through `work`, or go on where its newest whole checkpoint left off. All ranks call it together.

    Leaves ``checkpoints/`` and ``log.jsonl`` in the stage's folder.

    Returns:
        the trained model, as `rnope.parallel.apply` has wrapped it.

    Raises:
        UserError: too many steps one after another were not finite, or no checkpoint is whole.
    """
    execution, stage = work.execution, work.stage
    checkpoints = Checkpoints(work.checkpoints, keep=execution.keep, asynchronous=execution.asynchronous)
    own = checkpoints.newest()
    checkpoints.sweep(own[0] if own is not None else None)
    for fault in checkpoints.passed_over if mesh.rank == 0 else ():
        watch.say(f"A checkpoint was passed over. {fault}. The one before it is used.")
    model = apply(
        work.config,
        mesh,
        seed=work.seed if own is None and work.before is None and work.start is None else None,
        precision=stage.precision,
        checkpoint_activations=execution.checkpoint_activations,
        compile_blocks=execution.compile,
    )
    optimizer = build_optimizer(model, work.optimizer)
    if own is not None:
        standing = Standing(**own[1])
        checkpoints.load(own[0], _tensors(model, optimizer, standing.updates))
    elif work.before is not None:
        standing = _carried_over(work.before, stage, model, optimizer)
    else:
        standing = Standing()
        if work.start is not None:
            fill(model, work.start, mesh)
    log = Log(work.folder, standing.step, tensorboard=execution.tensorboard) if mesh.rank == 0 else None
    rows = StageRows(stage, work.sources, seed=work.seed)
    meter = _Meter(work, mesh)
    started = time.monotonic() - standing.seconds
    model.train()
    try:
        for micros in _ahead(_micros(rows, work, mesh, step) for step in range(standing.step, work.steps)):
            row_tokens = rows.row_tokens(standing.step)
            edges = position_edges(row_tokens)
            sums = _accumulate(model, micros, edges, mesh)
            everywhere = _total(torch.cat((sums.flatten(), sums.new_tensor([checkpoints.ready()]))), mesh)
            sums = everywhere[:-1].view(2, -1)
            loss, targets = float(sums[0].sum()), int(sums[1].sum())
            rate = work.rates(standing.step)
            norm = step_if_finite(
                model, optimizer, loss=loss, targets=targets, rate=rate, clip_norm=work.optimizer.clip_norm
            )
            standing.step += 1
            standing.tokens += stage.batch_tokens
            standing.seconds = time.monotonic() - started
            _count(standing, finite=math.isfinite(norm))
            meter.step(row_tokens)
            if everywhere[-1] == mesh.ranks:
                checkpoints.finish()
            last = standing.step == work.steps
            point = None
            if standing.in_a_row or standing.step % execution.log_steps == 0 or last:
                point = {
                    "step": standing.step,
                    "context_tokens": row_tokens,
                    "loss": loss / targets if targets else math.nan,  # rows of prompts alone have no target
                    "targets": targets,
                    "by_position": position_losses(sums, edges),
                    "gradient_norm": norm,
                    "learning_rate": rate,
                    **meter.read(standing),
                }
            if last or (execution.validation_steps and standing.step % execution.validation_steps == 0):
                checked = {"step": standing.step, "validation": validate(model, work, mesh)}
                if log is not None and checked["validation"]:
                    log.write(checked)
                    point = (point or {"step": standing.step}) | checked
            if log is not None:
                if point is not None:
                    log.write({key: value for key, value in point.items() if key != "validation"})
                watch.step(standing, point)
            if standing.in_a_row >= execution.skips or (last and standing.skipped == work.steps):
                checkpoints.finish()
                raise _hopeless(work, standing, checkpoints)
            if not standing.in_a_row and (last or standing.step % execution.save_steps == 0):
                _save(checkpoints, model, optimizer, standing)
        checkpoints.finish()
    finally:
        if log is not None:
            log.close()
    return model


def _count(standing: Standing, *, finite: bool) -> None:
    standing.updates += finite
    standing.skipped += not finite
    standing.in_a_row = 0 if finite else standing.in_a_row + 1


def _save(checkpoints: Checkpoints, model: Decoder, optimizer: torch.optim.AdamW, standing: Standing) -> None:
    checkpoints.save(standing.step, _tensors(model, optimizer), asdict(standing))


def _tensors(model: Decoder, optimizer: torch.optim.AdamW, updates: int | None = None) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name, to be read or to be filled."""
    weights = {f"weight.{name}": weight for name, weight in model.named_parameters()}
    return weights | optimizer_tensors(model, optimizer, updates)


def _carried_over(before: Path, stage: Stage, model: Decoder, optimizer: torch.optim.AdamW) -> Standing:
    """Weights and, unless the stage resets them, moments of the last checkpoint in folder `before`."""
    checkpoints = Checkpoints(before / "checkpoints", keep=1)
    found = checkpoints.newest()
    assert found is not None  # `rnope.train.run` has seen to it
    updates = 0 if stage.reset_optimizer else int(found[1]["updates"])
    everything = _tensors(model, optimizer, updates)
    if stage.reset_optimizer:
        everything = {name: tensor for name, tensor in everything.items() if name.startswith("weight.")}
    checkpoints.load(found[0], everything)
    return Standing(updates=updates)


def _micros(rows: StageRows, work: Work, mesh: Mesh, step: int) -> list[Rows]:
    """The micro-batches of this rank's group in `step`. Which rows a group takes does not change what the step learns."""
    count = work.execution.micro_rows(work.stage, rows.row_tokens(step), mesh.groups)
    firsts = range(mesh.group * count, rows.rows_in(step), mesh.groups * count)
    return [rows.batch(step, first, first + count) for first in firsts]


def _ahead(items: Iterable[T]) -> Iterator[T]:
    """`items`, each made while the one before it is used."""
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
        waiting = pool.submit(next, source, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, source, None)
            yield item


@dataclass(frozen=True)
class _Share:
    """This rank's columns of some rows, on its device."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    starts: Tensor | None

    @classmethod
    def of(cls, rows: Rows, mesh: Mesh) -> "_Share":
        length = rows.ids.shape[1] // mesh.degree
        columns = slice(mesh.place * length, (mesh.place + 1) * length)

        def put(array: object) -> Tensor:
            return torch.as_tensor(array).to(mesh.device, non_blocking=True)

        return cls(
            ids=put(rows.ids[:, columns]),
            targets=put(rows.targets[:, columns]),
            positions=torch.arange(columns.start, columns.stop, device=mesh.device),
            starts=None if rows.starts is None else put(rows.starts[:, columns]),
        )


def _accumulate(model: Decoder, micros: list[Rows], edges: list[int], mesh: Mesh) -> Tensor:
    """Add up the gradients of this rank's losses; their sums, and counts, by position [2, ranges]."""
    sums = torch.zeros(2, len(edges), dtype=torch.float64, device=mesh.device)
    for rows in micros:
        share = _Share.of(rows, mesh)
        total, each = model.loss(share.ids, share.targets, positions=share.positions, starts=share.starts)
        total.backward()
        sums += by_position(each, share.targets != IGNORED, share.positions, edges)
    return sums


def _total(values: Tensor, mesh: Mesh) -> Tensor:
    """Sums over all ranks of `values`, which are changed in place."""
    if mesh.ranks > 1:
        dist.all_reduce(values)
    return values


@torch.no_grad()
def validate(model: Decoder, work: Work, mesh: Mesh) -> dict[str, Point]:
    """Loss on held-out text of each source, in nats per token, whole and by position (SPEC T6)."""
    found = {}
    length = work.stage.context_tokens
    model.eval()
    for name, shards in sorted(work.held_out.items()):
        rows = validation_rows(
            shards, length, work.execution.validation_rows, completions_only=work.stage.completions_only
        )
        count = len(rows.ids)
        if not (rows.targets != IGNORED).any():
            continue
        edges = position_edges(length)
        sums = torch.zeros(2, len(edges), dtype=torch.float64, device=mesh.device)
        for first in range(0, count, mesh.groups):
            index = first + mesh.group
            share = _Share.of(rows.one(min(index, count - 1)), mesh)
            if index >= count:  # All ranks must go through the model together; this one has nothing to add.
                share = replace(share, targets=torch.full_like(share.targets, IGNORED))
            _, each = model.loss(share.ids, share.targets, positions=share.positions, starts=share.starts)
            sums += by_position(each, share.targets != IGNORED, share.positions, edges)
        sums = _total(sums, mesh)
        loss = float(sums[0].sum() / sums[1].sum())
        found[name] = {"loss": loss, "tokens": int(sums[1].sum()), "by_position": position_losses(sums, edges)}
    model.train()
    return found


class _Meter:
    """Speed since it was read last."""

    def __init__(self, work: Work, mesh: Mesh) -> None:
        self.work, self.mesh = work, mesh
        self.flops = {n: training_flops(work.config, n) // n * work.stage.batch_tokens for n in work.stage.row_lengths}
        self._begin()

    def _begin(self) -> None:
        self.started, self.steps, self.done = time.monotonic(), 0, 0

    def step(self, row_tokens: int) -> None:
        self.steps += 1
        self.done += self.flops[row_tokens]

    def read(self, standing: Standing) -> Point:
        seconds = max(time.monotonic() - self.started, 1e-9)
        point: Point = {
            "tokens_per_second": self.steps * self.work.stage.batch_tokens / seconds,
            "flops_per_second": self.done / seconds,
            "memory_bytes": memory_bytes(self.mesh.device),
            "skipped": standing.skipped,
            "seconds": round(standing.seconds, 3),
        }
        if self.work.peak_flops:
            point["utilisation"] = self.done / seconds / (self.work.peak_flops * self.mesh.ranks)
        self._begin()
        return point


def _hopeless(work: Work, standing: Standing, checkpoints: Checkpoints) -> UserError:
    good = checkpoints.newest()
    where = (
        f"The last good checkpoint, of step {good[0]:,}, is kept in {work.checkpoints}."
        if good
        else "There is no checkpoint."
    )
    return UserError(
        f"Stage {work.stage.name!r}: {standing.in_a_row} steps one after another, up to step {standing.step:,}, had a loss or "
        f"gradient that is not finite. {where} Lower the schedule's peak or lengthen its warm-up, and run again."
    )
