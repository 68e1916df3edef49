"""Arms of a recipe through their stages: what is done stays done, and stages that arms share are trained once.

In the output folder, ``stages/NAME-DIGEST`` holds a stage's checkpoints, log and model; ``ARM/STAGE`` leads there.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnope import __version__
from rnope.config.training import Arm, TrainingRecipe
from rnope.data.rows import StageRows
from rnope.data.shards import Index, Shards
from rnope.errors import ConfigError, UserError, check
from rnope.files import exclusive, write_text
from rnope.hf.folder import save_state
from rnope.model.accounting import parameters
from rnope.model.decoder import Decoder
from rnope.parallel.apply import full_state
from rnope.parallel.mesh import Mesh
from rnope.train.checkpoints import Checkpoints
from rnope.train.gpus import peak_flops
from rnope.train.keys import stage_key
from rnope.train.loop import Standing, Work, fit
from rnope.train.metrics import Point
from rnope.units import size

Sources = Mapping[str, Shards]
LINE_SECONDS = 10
"""Between lines where nobody watches; log.jsonl has all."""


def train(
    recipe: TrainingRecipe, arms: Sequence[str], *, data: Mapping[str, str], out: Path, mesh: Mesh, console: Console
) -> list[Path]:
    """Train `arms` of `recipe` (none given: all of them), or go on with what `out` has already. All ranks call it.

    Args:
        data: source -> folder that ``rnope data build`` wrote, over those that the recipe names.
        console: of the first rank.

    Returns:
        the Hugging Face folder of every arm's last stage.

    Raises:
        UserError: data, mesh or disk do not fit what is asked, before any work starts; or the run cannot go on.
    """
    chosen = [recipe.arm(name) for name in arms] if arms else list(recipe.arms)
    sources, held_out = open_sources(recipe, chosen, data)
    jobs = [_works(recipe, arm, sources, held_out, out, mesh) for arm in chosen]
    for arm, works in zip(chosen, jobs, strict=True):
        recipe.execution.check_ranks(mesh.ranks, arm.stages, works[0].config)
    distinct = {work.folder: work for works in jobs for work in works}
    todo = [work for work in distinct.values() if not _is_done(work)]
    if mesh.rank == 0:
        _check_room(todo, recipe, out)
    with _alone(out, mesh), _following(todo, console, mesh) as watch:
        for arm, works in zip(chosen, jobs, strict=True):
            for index, work in enumerate(works):
                watch.begin(f"{arm.name} {work.stage.name}", work)
                if not _is_done(work):
                    model = _reach(works, index, mesh, watch)
                    _export(model, work, recipe, arm, sources, mesh)
                    del model
                if mesh.rank == 0:
                    _point(out / arm.name / work.stage.name, work.folder)
    return [out / arm.name / arm.stages[-1].name / "model" for arm in chosen]


def open_sources(
    recipe: TrainingRecipe, arms: Sequence[Arm], data: Mapping[str, str]
) -> tuple[dict[str, Shards], dict[str, Shards]]:
    """The training and the validation splits of all sources that `arms` use.

    Raises:
        UserError: a source that no folder is given for, a folder that is damaged, or tokenizers that differ.
    """
    folders = recipe.folders(data)
    needed = sorted({source for arm in arms for stage in arm.stages for source in stage.sources})
    sources: dict[str, Shards] = {}
    held_out: dict[str, Shards] = {}
    for name in needed:
        folder = folders[name]
        check(f"sources.{name}", folder, bool(folder), "no folder is given for it",
              f"Run `rnope data build`, and give its folder with --data {name}=FOLDER.")  # fmt: skip
        sources[name] = Shards.open(Path(folder))
        if (held := _validation(Path(folder))) is not None:
            held_out[name] = held
    first = needed[0]
    for name in needed[1:]:
        ok = sources[name].tokenizer_digest == sources[first].tokenizer_digest
        rule = f"was made with another tokenizer than {str(sources[first].folder)!r}"
        remedy = "Build all sources with one --tokenizer."
        check(f"sources.{name}", str(sources[name].folder), ok, rule, remedy)
    if recipe.opened is not None:
        ok = sources[first].tokenizer_digest == recipe.opened.tokenizer
        rule = f"was made with another tokenizer than the model's in {recipe.start!r}"
        remedy = f"Run `rnope data build ... --tokenizer {recipe.start}`."
        check(f"sources.{first}", str(sources[first].folder), ok, rule, remedy)
    for arm in arms:
        least, given = sources[first].vocab_size, recipe.model_config(arm).vocab_size
        rule = f"the tokenizer of {str(sources[first].folder)!r} has {least:,} tokens"
        check(
            "vocab_size", given, given >= least, rule, "Use a larger vocabulary, or data made with the right tokenizer."
        )
    return sources, held_out


def _validation(folder: Path) -> Shards | None:
    """The validation split of a folder, if it has documents."""
    return Shards.open(folder, "validation") if Index.read(folder).validation else None


def _works(recipe: TrainingRecipe, arm: Arm, sources: Sources, held_out: Sources, out: Path, mesh: Mesh) -> list[Work]:
    """The stages of an arm, each with its place."""
    used = [{name: sources[name] for name in stage.sources} for stage in arm.stages]
    # What is wrong with the data comes out here, before work starts.
    steps = tuple(StageRows(stage, mine, seed=recipe.seed).steps for stage, mine in zip(arm.stages, used, strict=True))
    rates = recipe.rates(arm, steps)
    digests = {name: shards.digest for name, shards in sources.items()}
    configs = recipe.stage_configs(arm)
    works: list[Work] = []
    for index, stage in enumerate(arm.stages):
        key = stage_key(recipe, arm, index, steps, digests)
        works.append(
            Work(
                stage=stage,
                config=configs[index],
                steps=steps[index],
                rates=rates[index],
                optimizer=recipe.optimizer,
                execution=recipe.execution,
                seed=recipe.seed,
                sources=used[index],
                held_out={name: held_out[name] for name in stage.sources if name in held_out},
                folder=out / "stages" / f"{stage.name}-{key}",
                before=works[-1].folder if works else None,
                start=Path(recipe.start) if recipe.start is not None and not works else None,
                peak_flops=peak_flops(mesh.device_name, stage.precision),
            )
        )
    return works


def _is_done(work: Work) -> bool:
    return (work.folder / "model" / "config.json").exists()


def _reach(works: Sequence[Work], index: int, mesh: Mesh, watch: "_Follow") -> Decoder:
    """Train stage `index` to its end; the stage before it first, where its last checkpoint is not there or damaged."""
    work = works[index]
    if index and not Checkpoints(work.checkpoints, keep=1).steps():  # `fit` looks at what they hold
        before = works[index - 1]
        found = Checkpoints(before.checkpoints, keep=1).newest()
        if found is None or found[0] != before.steps:
            watch.say(f"Stage {before.stage.name!r} lacks its last checkpoint: it is trained from the one before that.")
            _reach(works, index - 1, mesh, watch)
    return fit(work, mesh, watch)


def _export(model: Decoder, work: Work, recipe: TrainingRecipe, arm: Arm, sources: Sources, mesh: Mesh) -> None:
    """The stage's Hugging Face folder, which is also the sign that the stage is done."""
    state = full_state(model, mesh)
    if mesh.rank == 0:
        first = sources[work.stage.sources[0]]
        provenance = {
            "recipe": recipe.name, "arm": arm.name, "stage": work.stage.name, "steps": work.steps, "seed": recipe.seed,
            "precision": work.stage.precision, "data": {name: shards.digest for name, shards in work.sources.items()},
            "tokenizer": first.tokenizer_digest, "rnope": __version__,
        }  # fmt: skip
        longest = 0
        if recipe.opened is not None:
            provenance["start"] = {"weights": recipe.opened.weights, "provenance": recipe.opened.provenance}
            longest = recipe.opened.context_tokens
        if work.stage.precision != "fp32":
            state = {name: tensor.bfloat16() for name, tensor in state.items()}
        longest = max(longest, *(stage.context_tokens for stage in arm.stages[: arm.stages.index(work.stage) + 1]))
        save_state(
            work.config,
            state,
            work.folder / "model",
            first.tokenizer() if recipe.start is None else None,  # else the folder's own, with its chat template
            like=recipe.start,
            provenance=provenance,
            context_tokens=longest,
        )
    if mesh.ranks > 1:
        dist.barrier()


def _point(link: Path, folder: Path) -> None:
    """Have `link` lead to `folder`, by a relative path so that the whole can be moved."""
    target = os.path.relpath(folder, link.parent)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        if os.readlink(link) == target:
            return
        link.unlink()
    try:
        link.symlink_to(target)
    except FileExistsError:
        raise UserError(f"{link} is in the way of a link to {folder}. Move it, or choose another --out.") from None
    except OSError:  # a file system without links
        write_text(link.with_suffix(".txt"), target + "\n")


def _check_room(todo: Sequence[Work], recipe: TrainingRecipe, out: Path) -> None:
    """Refuse what the disk cannot hold: checkpoints (float32 weights and two moments), and a model at the end."""
    needed = 0
    for work in todo:
        weights = parameters(work.config)
        kept = len(list(work.checkpoints.glob("step-*")))
        needed += (12 * max(0, min(recipe.execution.keep, work.steps) - kept) + 4) * weights
    if todo:
        needed += 12 * parameters(todo[0].config)  # the one that is written before an old one goes
    place = next(path for path in (out, *out.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    rule = f"has {size(free)} free, and checkpoints and models need {size(needed)}"
    if needed > free:
        raise ConfigError("--out", str(out), rule, "Make room, choose another place, or lower execution.keep.")


@contextmanager
def _alone(out: Path, mesh: Mesh) -> Iterator[None]:
    """Refuse a folder in which another run is at work."""
    if mesh.rank:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / ".lock") as ours:
        check("--out", str(out), ours, "another run is at work there", "Wait for it, or stop it.")
        yield


class _Follow:
    """The console of the first rank: a bar with an estimate where someone watches, lines where nobody does."""

    def __init__(self, todo: Sequence[Work], console: Console, mesh: Mesh) -> None:
        self.console, self.first = console, mesh.rank == 0
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
        )  # fmt: skip
        self.bar = Progress(*columns, console=console, transient=True, disable=not (self.first and console.is_terminal))
        self.task = self.bar.add_task("", total=sum(work.steps for work in todo), state="")
        self.name, self.at, self.printed = "", 0, 0.0

    def begin(self, name: str, work: Work) -> None:
        self.name, self.at = name, 0
        self.bar.update(self.task, description=name)
        if _is_done(work):
            self.say(f"{name}: done before, {work.folder / 'model'}")

    def step(self, standing: Standing, point: Point | None) -> None:
        self.bar.advance(self.task, standing.step - self.at)
        self.at = standing.step
        if point is None:
            return
        text = " · ".join(_said(point))
        self.bar.update(self.task, state=text)
        quiet = time.monotonic() - self.printed < LINE_SECONDS
        if self.first and ("validation" in point or standing.in_a_row or not (self.console.is_terminal or quiet)):
            self.printed = time.monotonic()
            self.console.print(f"{self.name} step {standing.step:,}: {text}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        if self.first:
            self.console.print(text, highlight=False, soft_wrap=True)


def _said(point: Point) -> Iterator[str]:
    """The numbers of a logged step for a reader."""
    if "loss" in point:
        yield f"loss {point['loss']:.4f} at {point['context_tokens']:,} tokens"
        yield f"gradient {point['gradient_norm']:.2f}"
        yield f"rate {point['learning_rate']:.2e}"
        yield f"{point['tokens_per_second']:,.0f} tokens/s"
        if "utilisation" in point:
            yield f"{100 * point['utilisation']:.1f} % of peak"
        yield size(point["memory_bytes"])
        if point["skipped"]:
            yield f"{point['skipped']} skipped"
    for name, found in point.get("validation", {}).items():
        yield f"validation {name} {found['loss']:.4f}"


@contextmanager
def _following(todo: Sequence[Work], console: Console, mesh: Mesh) -> Iterator[_Follow]:
    watch = _Follow(todo, console, mesh)
    with watch.bar:
        yield watch
    sys.stdout.flush()
