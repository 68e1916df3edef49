"""Asking: a model, a suite and a folder to results. Killed at any moment, the same call goes on where it stopped."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnope import __version__
from rnope.evals.models.model import EvalModel
from rnope.evals.plan import Speed, measure
from rnope.evals.results import CellResult, SuiteResults, mean_figure
from rnope.evals.store import Identity, Store
from rnope.evals.suite import Cell, Prediction, Scoring, Suite

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "lm_eval", "wonderwords")
"""What may change an answer or a prompt."""


def evaluate(
    model: EvalModel, suite: Suite, out: Path, *, batch: int = 1, console: Console | None = None, command: str = ""
) -> SuiteResults:
    """Ask `model` the cells of `suite` that OUT/MODEL/SUITE does not have yet.

    Samples whose answer was an error are asked again. Cells that other calls left in the folder are in the result too.

    Args:
        batch: samples asked together. More of them decode faster and need more memory.

    Raises:
        UserError: the folder belongs to another model or to other settings, or another process is at work there.
    """
    console = console or Console(quiet=True)
    store = Store(out / model.facts.name / suite.name)
    cells = suite.cells()
    versions = package_versions()
    with store.locked():
        store.identify(
            Identity(
                suite=suite.name,
                model=model.facts,
                settings=suite.settings(),
                batch=1 if model.facts.kind == "server" else batch,  # what else a server is asked is not known here
                versions=versions,
            )
        )
        store.log("start", command=command, versions=versions, cells=len(cells))
        for cell in cells:
            store.check(cell)
        left = [cell for cell in cells if _missing(store, cell)]
        known: dict[str, CellResult] = {}
        with _bar(console, left, model, suite) as advance:
            for cell in left:
                _ask(model, suite, store, cell, batch, advance(cell))
                known.pop(cell.name, None)
                assemble(store, suite.scoring, known).save(store.results_path)
                if cell.name in known:
                    _say(console, _line(known[cell.name]))
        store.log("end")
        results = assemble(store, suite.scoring, known)
        results.save(store.results_path)
        errors = sum(cell.errors for cell in results.cells)
        if errors:
            samples = sum(cell.samples for cell in results.cells)
            told = f"{errors:,} of {samples:,} samples have no answer (errors): the same command asks them again."
            _say(console, f"{model.facts.name}: {suite.name}: {told}")
        return results


def assemble(store: Store, scoring: Scoring, known: dict[str, CellResult] | None = None) -> SuiteResults:
    """Score the kept answers of all finished cells. Asks no model, and writes nothing.

    Args:
        known: results of cells that have not changed since; those that are found are added.
    """
    identity = store.identity()
    known = {} if known is None else known
    cells = []
    for cell in store.cells():
        if cell.name not in known:
            lines = store.read(cell.name)
            if len(lines) < cell.samples:
                continue
            known[cell.name] = cell_result(cell, [lines[index] for index in sorted(lines)], scoring)
        cells.append(known[cell.name])
    return SuiteResults(
        suite=identity.suite,
        model=identity.model,
        settings=identity.settings,
        versions=identity.versions,
        cells=tuple(cells),
        summary=tuple(scoring.summary(cells)),
    )


def cell_result(cell: Cell, lines: Sequence[Prediction], scoring: Scoring) -> CellResult:
    """The figures of one cell."""
    answered = [line for line in lines if line.ended != "error"]
    scores = [scoring.score(line) for line in answered]
    metrics = list(dict.fromkeys(name for score in scores for name in score))
    digests = "".join(line.prompt_sha256 for line in lines)
    return CellResult(
        name=cell.name,
        context_tokens=cell.context_tokens,
        labels=dict(cell.labels),
        samples=len(lines),
        errors=len(lines) - len(answered),
        answers_cut=sum(line.ended == "length" for line in answered),
        prompt_tokens=sum(line.prompt_tokens for line in lines) / len(lines),
        prompts_sha256=hashlib.sha256(digests.encode()).hexdigest(),
        figures=tuple(mean_figure(name, [score[name] for score in scores if name in score]) for name in metrics),
        facts=_means([line.facts for line in lines]),
    )


def _missing(store: Store, cell: Cell) -> bool:
    lines = store.read(cell.name)
    return any(index not in lines or lines[index].ended == "error" for index in range(cell.samples))


def _ask(model: EvalModel, suite: Suite, store: Store, cell: Cell, batch: int, progress: Callable[[int], None]) -> None:
    done = store.begin(cell)
    for line in done.values():
        progress(line.prompt_tokens + line.new_tokens)
    started = time.monotonic()
    for lines in suite.ask(model, cell, done, batch=batch, progress=progress):
        store.add(cell, lines)
        now = time.monotonic()
        store.log(
            "answers",
            cell=cell.name,
            samples=[line.index for line in lines],
            seconds=round(now - started, 4),
            prompt_tokens=sum(line.prompt_tokens for line in lines),
            new_tokens=sum(line.new_tokens for line in lines),
            errors=[line.error for line in lines if line.error is not None],
        )
        started = now
    store.close(cell)


def _line(cell: CellResult) -> str:
    """A finished cell for people: its first figure, and what is missing."""
    parts = [f"{figure.name} {figure.value:.4g}" for figure in cell.figures[:1]]
    parts += [f"n {cell.samples - cell.errors:,}", *([f"{cell.errors:,} errors"] if cell.errors else [])]
    return f"{cell.name}: {', '.join(parts)}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bar(
    console: Console, cells: Sequence[Cell], model: EvalModel, suite: Suite
) -> Iterator[Callable[[Cell], Callable[[int], None]]]:
    """A bar over the seconds that the cells are expected to take, since a long prompt's tokens take longer each."""
    speed = Speed(1e-6, 0.0, 1e-6, 1)
    if cells and console.is_terminal and not console.quiet:
        speed = measure(model, cells, every_token_scored=suite.every_token_scored)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    name = model.facts.name
    title = name if len(name) <= 20 else f"{name[:12]}…{name[-7:]}"  # the estimate must stay on the line
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=sum(speed.cell_seconds(cell) for cell in cells))
        before = dict(
            zip([cell.name for cell in cells], accumulate([0.0, *map(speed.cell_seconds, cells)]), strict=False)
        )

        def advance(cell: Cell) -> Callable[[int], None]:
            # Cells end before their time where answers do, or prompts share a beginning.
            progress.update(task, description=f"{title}: {cell.name}", completed=before[cell.name])
            per_token = speed.cell_seconds(cell) / max(1, cell.samples * cell.context_tokens)
            return lambda tokens: progress.advance(task, tokens * per_token)

        yield advance
        progress.update(task, description=title, completed=sum(map(speed.cell_seconds, cells)))


def package_versions() -> dict[str, str]:
    """rnope and what may change an answer or a prompt: package -> version."""
    found = {"rnope": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _means(facts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of the facts that are numbers, over the samples that have them."""
    names = list(dict.fromkeys(name for each in facts for name in each))
    found = {name: [each[name] for each in facts if type(each.get(name)) in (int, float)] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items() if values}
