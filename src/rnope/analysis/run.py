"""Looking: models, texts and a folder to results. Killed at any moment, the same call goes on where it stopped.

Every model is opened and every text checked before the first is looked at.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from rnope.analysis import room
from rnope.analysis.measures import MEASURES, mean_entropy, reach
from rnope.analysis.opening import Opened, check_given, open_probed
from rnope.analysis.peak import Peak
from rnope.analysis.probe import Layer, Marks, Reading, probe
from rnope.analysis.results import FILE, AnalysisResults
from rnope.analysis.samples import Sample
from rnope.analysis.store import Arrays, ModelIdentity, RunIdentity, Store, Unit, digest
from rnope.analysis.tables import length_result
from rnope.analysis.texts import Texts
from rnope.errors import ConfigError, UserError
from rnope.evals.frame import Frame
from rnope.evals.models.opening import ModelOptions
from rnope.evals.models.pretrained import telling_memory
from rnope.evals.plan import Speed, measure, plan_table
from rnope.evals.run import package_versions
from rnope.evals.suite import Cell
from rnope.report import words
from rnope.results import SEGMENTS
from rnope.strict import to_plain

Build = Callable[[Opened, Frame], Texts]
"""The texts for a model."""
_REMARKS = 10
"""That are printed for a model."""
_UNKNOWN = Speed(1e-6, 0.0, 1e-6, 1)


@dataclass(kw_only=True, slots=True, eq=False)
class _Plan:
    """A model that was opened and whose texts were checked."""

    given: str
    name: str
    identity: ModelIdentity
    texts: Texts
    speed: Speed
    opened: Opened | None
    """Kept where it is the only one: there may be no memory for two."""


def analyze(
    models: Sequence[tuple[str, str]], build: Build, out: Path, *, options: ModelOptions, chat: bool = False,
    console: Console | None = None, command: str = "",
) -> AnalysisResults:  # fmt: skip
    """Look into `models` while they read their texts, as far as `out` does not have that yet; write results and page.

    Models, lengths and samples that other calls left in the folder are in the results too.

    Args:
        models: (what to open, what it is called).
        build: the texts for a model; see `rnope.analysis.texts`.

    Raises:
        UserError: before work starts: a model that cannot be opened or looked into, texts that it cannot read, not enough
            memory, a folder of other texts or models, or another process at work there.
    """
    console = console or Console(quiet=True)
    store = Store(out)
    store.check_place()
    plans = _plans(models, build, options, chat, console, timed=console.is_terminal)
    with store.locked():
        store.identify(
            RunIdentity(settings={**plans[0].texts.settings, "measures": list(MEASURES)}),
            {plan.name: plan.identity for plan in plans},
        )
        left = [(plan, [*_missing(store, plan)]) for plan in plans]
        store.log("start", command=command, versions=package_versions(), samples=sum(len(todo) for _, todo in left))
        with _bar(console, left) as advance:
            for plan, todo in left:
                if todo:
                    _look(store, plan, todo, options, console, advance)
                plan.opened = None
        store.log("end")
        return assemble(store, command)


def dry_run(
    models: Sequence[tuple[str, str]], build: Build, *, options: ModelOptions, chat: bool, console: Console
) -> str:
    """What `analyze` would take, for people, after all its checks."""
    plans = _plans(models, build, options, chat, console, timed=True)
    return "\n".join(plan_table(plan.identity.model.facts, _cells(plan.texts), plan.speed) for plan in plans)


def assemble(store: Store, command: str) -> AnalysisResults:
    """Results and page from all samples of a folder."""
    from rnope.analysis.page import write_pages

    models = {name: found.model for name, found in store.models().items()}
    found = [length_result(store, model, length) for name, model in models.items() for length in store.lengths(name)]
    lengths = tuple(result for result in found if result is not None)
    names = {segment for result in lengths for segment in result.uniform}
    results = AnalysisResults(
        models=tuple(model for name, model in models.items() if any(result.model == name for result in lengths)),
        settings=store.run().settings,
        versions=package_versions(),
        command=command,
        segments=(*(name for name in SEGMENTS if name in names), *sorted(names.difference(SEGMENTS))),
        lengths=lengths,
    )
    results.save(store.out / FILE)
    write_pages(results, store.out)
    return results


def _plans(
    models: Sequence[tuple[str, str]], build: Build, options: ModelOptions, chat: bool, console: Console, *, timed: bool
) -> list[_Plan]:
    for given, _ in models:
        check_given(given)
    plans = []
    for given, name in models:
        gc.collect()  # the one before it
        opened = open_probed(given, name, options)
        frame = (Frame.of_chat if chat else Frame.bare)(opened.model.tokenizer)
        texts = build(opened, frame)
        _check(opened, texts, options)
        cells = _cells(texts)
        console.print(plan_table(opened.model.facts, cells, None), highlight=False, markup=False, soft_wrap=True)
        said = [f"{length:,} tokens: {note}" for length in texts.counts
                for note in (*texts.notes[length], *_past(opened, length))]  # fmt: skip
        more = len(texts.remarks) - _REMARKS
        said += [*texts.remarks[:_REMARKS], *([f"and {more:,} more like these"] if more > 0 else [])]
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        plans.append(
            _Plan(
                given=given,
                name=name,
                identity=ModelIdentity(model=opened.described, frame=to_plain(frame)),
                texts=texts,
                speed=measure(opened.model, cells, every_token_scored=False) if timed else _UNKNOWN,
                opened=opened if len(models) == 1 else None,
            )
        )
        del opened
    return plans


def _check(opened: Opened, texts: Texts, options: ModelOptions) -> None:
    """Refuse texts that the model cannot read, or not within the memory that there is."""
    for length in texts.counts:
        if opened.positions is not None and length > opened.positions:
            rule = f"{opened.model.facts.name} has learned positions for {opened.positions:,} tokens, and none beyond"
            raise ConfigError("--lengths", length, rule, "Use shorter texts.")
    for length, rows in texts.rows.items():
        room.check_rows(
            opened.probed.layers, head_size=opened.head_size, value_bytes=opened.value_bytes, context_tokens=length,
            rows=rows, chunk=options.chunk, device=options.device,
        )  # fmt: skip


def _past(opened: Opened, length: int) -> tuple[str, ...]:
    trained = opened.model.facts.trained_tokens
    return (f"longer than the {trained:,} that it was trained on",) if trained is not None and length > trained else ()


def _cells(texts: Texts) -> list[Cell]:
    return [
        Cell(name=str(length), context_tokens=length, samples=count, max_new_tokens=1, labels={})
        for length, count in texts.counts.items()
    ]


def _identity(plan: _Plan, length: int, index: int) -> str:
    facts = plan.identity.model.facts
    made_from = plan.texts.settings, plan.identity.frame, length, index, list(MEASURES), plan.identity.version
    return digest(facts.sha256, facts.tokenizer_sha256, facts.dtype, facts.kind, *made_from)


def _missing(store: Store, plan: _Plan) -> Iterator[tuple[int, int]]:
    """Lengths and indices that are not there."""
    for length, count in plan.texts.counts.items():
        for index in range(count):
            if not store.has(plan.name, length, index, _identity(plan, length, index)):
                yield length, index


def _look(
    store: Store, plan: _Plan, todo: Sequence[tuple[int, int]], options: ModelOptions, console: Console,
    advance: Callable[[str, float, float], None],
) -> None:  # fmt: skip
    gc.collect()  # the one before it
    opened = plan.opened or open_probed(plan.given, plan.name, options)
    peak = Peak(options.device)
    for length, index in todo:
        sample = plan.texts.sample(length, index)
        advance(f"{length:,} tokens, sample {index + 1}", 0.0, 0.0)
        peak.reset()
        started = time.perf_counter()
        try:
            with telling_memory():
                readings, new = probe(
                    opened.probed, sample.marks, MEASURES, rows_from=sample.rows_from, new_tokens=sample.new_tokens
                )
        except UserError as error:
            raise UserError(f"{plan.name} at {length:,} tokens, {sample.name}: {error}") from None
        seconds = time.perf_counter() - started
        taken = peak.taken()
        unit = Unit(
            identity=_identity(plan, length, index),
            name=sample.name,
            length=length,
            index=index,
            context_tokens=sample.context_tokens,
            rows_from=sample.rows_from,
            rows=readings[0].rows,
            segments=dict(sample.marks.spans),
            seconds=round(seconds, 4),
            peak_bytes=_computed(opened, sample) if taken is None else taken,
            peak_is="counted, as this system does not tell" if taken is None else peak.means,
            notes=(*plan.texts.notes[length], *_past(opened, length), *sample.notes),
            new_ids=tuple(new),
        )
        store.add(plan.name, unit, _arrays(readings, sample))
        store.log(
            "sample", model=plan.name, length=length, index=index, name=sample.name, tokens=sample.context_tokens,
            rows=unit.rows, seconds=unit.seconds, peak_bytes=unit.peak_bytes, notes=sample.notes,
        )  # fmt: skip
        advance(f"{length:,} tokens, sample {index + 1}", plan.speed.seconds(length, 0), seconds)
        if (length, index) == [each for each in todo if each[0] == length][-1]:
            line = f"{plan.name}: {length:,} tokens, {index + 1} of {plan.texts.counts[length]} samples"
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _computed(opened: Opened, sample: Sample) -> int:
    return room.probe_bytes(
        opened.probed.layers, head_size=opened.head_size, value_bytes=opened.value_bytes,
        context_tokens=sample.context_tokens, rows=sample.context_tokens - sample.rows_from,
    )  # fmt: skip


def _arrays(readings: Sequence[Reading], sample: Sample) -> Arrays:
    """As they are kept: see docs/analysis.md. Layers with fewer heads than others have NaN for those they lack."""
    heads = max(reading.layer.heads for reading in readings)
    found = {
        name: np.stack([_padded(reading.values[name].numpy(), heads) for reading in readings]) for name in MEASURES
    }
    found["distribution"] = np.stack([reading.distribution.numpy() for reading in readings])
    found["mean_entropy"] = np.array([mean_entropy(reading.distribution) for reading in readings])
    arrays = {name: array.astype(np.float32) for name, array in found.items()}
    reached = [_reached(reading.layer, sample.marks, sample.rows_from) for reading in readings]
    return {**arrays, "reached": np.array(reached, dtype=bool)}


def _padded(values: np.ndarray, heads: int) -> np.ndarray:
    more = np.full((heads - len(values), *values.shape[1:]), np.nan)
    return np.concatenate((values, more))


def _reached(layer: Layer, marks: Marks, rows_from: int) -> list[bool]:
    there = reach(layer, marks, rows_from)
    return [segment in there for segment in marks.spans]


@contextmanager
def _bar(
    console: Console, left: Sequence[tuple[_Plan, Sequence[tuple[int, int]]]]
) -> Iterator[Callable[[str, float, float], None]]:
    """A bar over the seconds that samples are expected to take, the rest estimated from what those before took."""
    total = sum(plan.speed.seconds(length, 0) for plan, todo in left for length, _ in todo)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    done = spent = 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("looking", total=total, left="")

        def advance(what: str, expected: float, took: float) -> None:
            nonlocal done, spent
            done, spent = done + expected, spent + took
            seconds = (total - done) * (spent / done if done else 1.0)
            progress.update(task, description=what, completed=done, left=f"about {words.seconds(seconds)} left")

        yield advance
