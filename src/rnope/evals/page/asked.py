"""What was asked of whom: models, suites, settings, cost; and a warning wherever two models were not asked the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnope.evals.page.runs import Part, Run, short
from rnope.evals.page.trust import prompts_cut
from rnope.evals.results import ModelFacts
from rnope.report import words
from rnope.report.blocks import Block, Cell, Items, Listing, Table, Text, table


def part(runs: Sequence[Run]) -> Part:
    """Models, suites, settings, versions and commands."""
    found = warnings(runs)
    blocks: list[Block | None] = []
    if found:
        blocks += [Text("Read with care:", "withheld"), Items(tuple(found), "withheld")]
    commands = list(dict.fromkeys(command for run in runs for command in run.commands))
    blocks += [
        _models(runs),
        _suites(runs),
        *_settings(runs),
        _versions(runs),
        Listing("The commands", "\n".join(commands), folded=True) if commands else None,
    ]
    return Part(blocks=[block for block in blocks if block is not None])


def warnings(runs: Sequence[Run]) -> list[str]:
    """Everything that keeps numbers from being comparable or whole."""
    found = []
    for name in dict.fromkeys(run.name for run in runs):
        digests = {run.results.model.sha256 for run in runs if run.name == name}
        if len(digests) > 1:
            found.append(f"{name}: its suites were answered by different weights ({_digests(digests)}).")
    for suite in dict.fromkeys(run.results.suite for run in runs):
        found += _unlike([run for run in runs if run.results.suite == suite], suite)
    for run in runs:
        if run.begun > len(run.results.cells):
            left = run.begun - len(run.results.cells)
            found.append(f"{run.place}: {left} of {run.begun} cells are not finished, and in no figure.")
        errors = sum(cell.errors for cell in run.results.cells)
        if errors:
            asked = sum(cell.samples for cell in run.results.cells)
            found.append(f"{run.place}: {errors:,} of {asked:,} samples have no answer (errors), and are in no figure.")
        cut = sum(map(prompts_cut, run.results.cells))
        if cut:
            found.append(f"{run.place}: {cut:,} prompts were longer than the model's context and lost their beginning.")
    return found


def _unlike(runs: Sequence[Run], suite: str) -> Iterator[str]:
    """Where models of one suite were asked different things."""
    first, *others = runs
    if len({run.results.model.tokenizer_sha256 for run in runs}) > 1:
        differ = "" if suite == "standard" else ", so that as many tokens are not the same text"
        yield f"{suite}: the models have different tokenizers{differ}."
    elif len({run.results.model.begin_ids for run in runs}) > 1:
        yield f"{suite}: prompts begin with different ids (BOS)."
    for other in others:
        before, now = flat(first.results.settings), flat(other.results.settings)
        fields = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if fields:
            listed = words.listed(fields[:6]) + (" and more" if len(fields) > 6 else "")
            yield f"{suite}: the settings of {first.name} and {other.name} differ in {listed}."
    asked = [{(cell.name, cell.samples) for cell in run.results.cells} for run in runs]
    if any(cells != asked[0] for cells in asked):
        yield f"{suite}: the models do not have the same cells and samples, so that means over cells are of different ones."
    packages = {name for run in runs for name in run.results.versions}
    unlike = sorted(name for name in packages if len({run.results.versions.get(name) for run in runs}) > 1)
    if unlike:
        yield f"{suite}: versions of {words.listed(unlike)} differ between the models."


def flat(data: dict[str, Any], start: str = "") -> dict[str, str]:
    """Nested plain data to dotted name -> text."""
    found: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{start}{key}.")
        else:
            found[f"{start}{key}"] = words.plain(value)
    return found


def _digests(digests: set[str]) -> str:
    return words.listed(sorted(map(short, digests)))


def _models(runs: Sequence[Run]) -> Table:
    """A line for each model; more where its suites do not agree on which model it is."""
    lines: dict[tuple[str, ModelFacts], list[Run]] = {}
    for run in runs:
        lines.setdefault((run.name, run.results.model), []).append(run)
    names = [name for name, _ in lines]
    rows: list[list[Cell | str]] = []
    for (name, model), own in lines.items():
        suites = words.listed([run.results.suite for run in own]) if names.count(name) > 1 else ""
        kind = f"{model.kind}" + (f" ({model.model_type})" if model.model_type else "")
        rows.append([
            Cell(name, suites, colour=own[0].colour),
            kind,
            short(model.sha256),
            short(model.tokenizer_sha256),
            f"{model.dtype} on {model.device}",
            "" if model.trained_tokens is None else words.tokens(model.trained_tokens),
            words.listed([words.tokens(window) for window in model.windows]),
            "" if model.parameters is None else f"{model.parameters:,}",
        ])  # fmt: skip
    head = ["model", "kind", "weights", "tokenizer", "computed in", "trained length", "windows", "parameters"]
    return _without_blanks(
        "The models", head, rows, "Weights and tokenizers by the first 12 digits of their SHA-256. Lengths in tokens."
    )


def _without_blanks(caption: str, head: list[str], rows: list[list[Cell | str]], note: str) -> Table:
    """A table without the columns that nothing fills."""
    kept = [
        i for i in range(len(head)) if any((c.text if isinstance(c, Cell) else c) for c in (row[i] for row in rows))
    ]
    return table(caption, [head[i] for i in kept], [[row[i] for i in kept] for row in rows], note)


def _suites(runs: Sequence[Run]) -> Table:
    rows: list[list[Cell | str]] = []
    for run in runs:
        cells = run.results.cells
        rows.append([
            run.cell,
            run.results.suite,
            words.plain(run.results.settings.get("seed")),
            f"{len(cells):,}" + (f" of {run.begun:,}" if run.begun > len(cells) else ""),
            f"{sum(cell.samples for cell in cells):,}",
            f"{round(sum(cell.samples * cell.prompt_tokens for cell in cells)):,}",
            f"{run.new_tokens:,}" if run.new_tokens else "",
            _hours(run.seconds),
        ])  # fmt: skip
    head = ["model", "suite", "seed", "cells", "samples", "prompt tokens", "new tokens", "hours"]
    note = "Cells, samples and prompt tokens are those of finished cells. New tokens and hours are of all answers, by the log."
    return _without_blanks("What was asked", head, rows, note)


def _hours(seconds: float) -> str:
    return "" if seconds == 0 else f"{seconds / 3600:.2f}" if seconds >= 36 else f"{seconds / 3600:.4f}"


def _settings(runs: Sequence[Run]) -> Iterator[Table]:
    """What decides the prompts of each suite."""
    for suite in dict.fromkeys(run.results.suite for run in runs):
        own = {run.name: flat(run.results.settings) for run in runs if run.results.suite == suite}
        if any(own.values()):
            yield _kinds(f"Settings of {suite}", own)


def _versions(runs: Sequence[Run]) -> Table | None:
    own = {run.place: run.results.versions for run in runs}
    return _kinds("Versions of packages", own) if any(own.values()) else None


def _kinds(caption: str, own: Mapping[str, Mapping[str, str]]) -> Table:
    """Fields down, and a column for all that have the same values."""
    kinds: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, values in own.items():
        kinds.setdefault(tuple(values.items()), []).append(name)
    columns = ["value"] if len(kinds) == 1 else [words.listed(names) for names in kinds.values()]
    fields = dict.fromkeys(key for kind in kinds for key, _ in kind)
    rows: list[list[Cell | str]] = [[key, *(dict(kind).get(key, "") for kind in kinds)] for key in fields]
    return table(caption, ["", *columns], rows, folded=True, prose=True)
