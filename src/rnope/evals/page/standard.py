"""Standard benchmarks: all models and the paper's tables 5 and 2 in one table, with what keeps them from being alike."""

from collections.abc import Sequence
from dataclasses import replace

from rnope.evals.page.runs import Part, Run, number
from rnope.evals.results import CellResult, Figure
from rnope.report import paper, words
from rnope.report.blocks import Block, Cell, Items, Table, Text, table
from rnope.report.paper import PaperTable

PRINTED = (paper.TABLE_5, paper.TABLE_2)
UNKNOWN = (
    "The paper gives no numbers of shots, and no metrics: its numbers stand beside ours for orientation. Its models have "
    "8 billion parameters and were fine-tuned."
)


def part(runs: Sequence[Run]) -> Part:
    """What each benchmark is known by, beside the paper's; why some numbers are not comparable; and every metric."""
    blocks: list[Block | None] = [Text(UNKNOWN)]
    apart = _apart(runs)
    if apart:
        blocks += [Text("Not comparable with others' numbers (≠):", "withheld"), Items(tuple(apart), "withheld")]
    every = _lines(runs)
    first = [(benchmark, metric) for benchmark, metric, headline in every if headline]
    blocks.append(_scores(runs, first))
    asked = {_key(benchmark) for benchmark, _, _ in every}
    printed = {_key(column) for column in paper.TABLE_5.columns}
    if asked & printed and _key("MBPP") not in asked:
        blocks.append(
            Text("MBPP is not among them: it runs code that the model writes, and is asked only with --run-code.")
        )
    if len(every) > len(first):
        blocks.append(_metrics(runs, every))
    return Part(blocks=[block for block in blocks if block is not None], headline=_headline(runs, first))


def _headline(runs: Sequence[Run], lines: Sequence[tuple[str, str]]) -> str:
    """The first benchmark; the table says the rest."""
    if not lines:
        return ""
    found = [(run.name, figure.value) for run in runs[:4] if (figure := _of(run, *lines[0])) is not None]
    said = words.listed([f"{name} {value:.1f}" for name, value in found])
    among = f", the first of {len(lines)} benchmarks" if len(lines) > 1 else ""
    return f"{lines[0][0]}{among}, of 100: {said}{' (and others)' if len(runs) > 4 else ''}."


def _apart(runs: Sequence[Run]) -> list[str]:
    """Why numbers are not everyone's, and which: a line for each reason and set of benchmarks."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for cell in run.results.cells:
            for why in _reasons(cell):
                found.setdefault(why, {}).setdefault(run.name, []).append(cell.labels["benchmark"])
    said = []
    for why, models in found.items():
        alike: dict[tuple[str, ...], list[str]] = {}
        for name, benchmarks in models.items():
            alike.setdefault(tuple(benchmarks), []).append(name)
        said += [
            f"{words.listed(names)}, {words.listed(list(benchmarks))}: {why}" for benchmarks, names in alike.items()
        ]
    return said


def _reasons(cell: CellResult) -> list[str]:
    documents, cut = cell.labels["documents"], cell.facts.get("cut", 0.0)
    return [why for why in (
        str(cell.labels["altered"]),
        f"only {cell.samples:,} of {documents:,} documents" if cell.samples < documents else "",
        f"{cell.errors:,} documents without an answer" if cell.errors else "",
        f"{round(cut * cell.samples):,} prompts were longer than the model's context and lost their beginning" if cut else "",
    ) if why]  # fmt: skip


def _lines(runs: Sequence[Run]) -> list[tuple[str, str, bool]]:
    """Benchmark, metric, and whether it is known by that: the paper's benchmarks first and in its order."""
    found = list(dict.fromkeys(
        (f.labels["benchmark"], f.labels["metric"], f.labels["headline"]) for run in runs for f in run.results.summary
    ))  # fmt: skip
    order = list(dict.fromkeys(_key(column) for printed in PRINTED for column in printed.columns))
    rank = {key: place for place, key in enumerate(order)}
    names = list(dict.fromkeys(benchmark for benchmark, _, _ in found))
    return sorted(found, key=lambda line: (rank.get(_key(line[0]), len(rank)), names.index(line[0])))


def _key(benchmark: str) -> str:
    """SAT-en and SATen are one benchmark."""
    return "".join(c for c in benchmark.casefold() if c.isalnum())


def _of(run: Run, benchmark: str, metric: str) -> Figure | None:
    return next(
        (f for f in run.results.summary if (f.labels["benchmark"], f.labels["metric"]) == (benchmark, metric)), None
    )


def _scores(runs: Sequence[Run], lines: Sequence[tuple[str, str]]) -> Table:
    theirs = [(printed, row) for printed in PRINTED for row in printed.rows]
    rows = [
        [
            Cell(benchmark, metric),
            *(_score(_of(run, benchmark, metric)) for run in runs),
            *(Cell(_printed(source, row, benchmark)) for source, row in theirs),
        ]
        for benchmark, metric in lines
    ]
    head = [Cell("benchmark"), *(run.cell for run in runs),
            *(Cell(f"paper: {row[0]}", f"table {source.number}") for source, row in theirs)]  # fmt: skip
    used = [i for i in range(len(head)) if i <= len(runs) or any(row[i].text for row in rows)]
    note = (
        "Of 100 (perplexities as they are), with the 95 % interval, the number of documents and the examples before each "
        "question (shots). ≠: not comparable, see above."
    )
    return table("Benchmarks", [head[i] for i in used], [[row[i] for i in used] for row in rows], note)


def _metrics(runs: Sequence[Run], lines: Sequence[tuple[str, str, bool]]) -> Table:
    rows = [
        [Cell(benchmark), Cell(metric), *(number(_of(run, benchmark, metric), 1) for run in runs)]
        for benchmark, metric, _ in lines
    ]
    return table("Every metric", [Cell("benchmark"), Cell("metric"), *(run.cell for run in runs)], rows, folded=True)


def _score(figure: Figure | None) -> Cell:
    if figure is None:
        return Cell("")
    shots = figure.labels.get("shots")
    cell = number(figure, 1, more="" if shots is None else f"{shots} shot{'' if shots == 1 else 's'}")
    return cell if figure.labels["comparable"] else replace(cell, text=f"{cell.text} ≠")


def _printed(source: PaperTable, row: tuple[str, ...], benchmark: str) -> str:
    return next((text for column, text in zip(source.columns, row, strict=True) if _key(column) == _key(benchmark)), "")
