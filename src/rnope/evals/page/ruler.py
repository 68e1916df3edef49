"""RULER: the groups of tasks beside the paper's tables 6 and 7, then task by task, with what the score does not show."""

from collections.abc import Sequence
from typing import Any

from rnope.evals.page.runs import Part, Run, cell_figure, lengths, number
from rnope.evals.results import CellResult, Figure
from rnope.evals.ruler.tasks import GROUPS as TASKS_OF
from rnope.report import draw, paper, words
from rnope.report.blocks import Block, Cell, Items, Picture, Table, Text, table
from rnope.report.paper import PaperTable

GROUPS: dict[str, tuple[str, PaperTable | None]] = {
    "retrieval": ("Retrieval: mean over eight tasks", paper.TABLE_6),
    "qa": ("Question answering: mean over two tasks", paper.TABLE_7),
    "all": ("Mean over all 13 tasks", None),
}
ORDER = TASKS_OF["all"]
SIDE = {"exact": "exact", "f1": "F1", "null": "nulls"}
"""Metrics that are said beside the score, never in its place."""


def part(runs: Sequence[Run]) -> Part:
    """Groups, the figure, tasks by model, and side columns."""
    blocks: list[Block | None] = [
        Text("Scores are RULER's own, of 100: the share of the references that the answer contains (retrieval), or "
             "whether it contains any of them (question answering), with no regard to what else it says.")
    ]  # fmt: skip
    apart: dict[str, list[str]] = {}
    for run in runs:
        altered = {cell.labels["task"] for cell in run.results.cells if cell.facts.get("original", 0) < 1}
        if altered and run.results.settings.get("comparable") is False:
            tasks = words.listed([task for task in ORDER if task in altered])
            apart.setdefault(f"{tasks} ({words.plain(run.results.settings.get('why'))})", []).append(run.name)
    if apart:
        said = tuple(f"{words.listed(names)}: {why}" for why, names in apart.items())
        blocks += [Text("Not comparable with RULER's published numbers:", "withheld"), Items(said, "withheld")]
    data = lines(runs)
    if data is not None:
        blocks.append(Picture(
            name="ruler",
            alt="RULER score against context length, a panel for each group of tasks and a line for each model",
            caption="Score by context length: mean over the tasks of the group. Vertical lines: the longest length that a "
            "model says it was trained to. Grey, where all tasks of a group were asked at their lengths: the paper's models "
            "(tables 6 and 7).",
        ))  # fmt: skip
    blocks += [_group(runs, group) for group in GROUPS if _shown(runs, group)]
    folded = len(runs) > 2
    blocks += [_tasks(run, folded) for run in runs]
    blocks.append(_side(runs))
    return Part(
        blocks=[block for block in blocks if block is not None],
        figures={} if data is None else {"ruler": data},
        headline=_headline(runs),
    )


def _mean(run: Run, group: str, length: int) -> Figure | None:
    return run.figure(group=group, context_tokens=length)


def _short_of(figure: Figure) -> str:
    """What is missing from a group's mean; empty: nothing."""
    tasks, every = figure.labels["tasks"], TASKS_OF[figure.labels["group"]]
    return "" if figure.labels["complete"] else f"{tasks} of {len(every)} tasks"


def _shown(runs: Sequence[Run], group: str) -> bool:
    """The mean over all tasks is shown only where it is one: retrieval and question answering alone are shown as such."""
    means = [f for run in runs for f in run.results.summary if f.labels.get("group") == group]
    return any(f.labels["complete"] for f in means) if group == "all" else bool(means)


def _headline(runs: Sequence[Run]) -> str:
    """The groups at the longest length at which all models have all of their tasks."""
    said = []
    for group, called in (("retrieval", "retrieval"), ("qa", "question answering")):
        whole = {n: [f for run in runs if (f := _mean(run, group, n)) and f.labels["complete"]] for n in lengths(runs)}
        shared = [n for n, means in whole.items() if len(means) == len(runs)]
        if shared:
            pairs = list(zip(runs, whole[shared[-1]], strict=True))[:4]
            each = words.listed([f"{run.name} {mean.value:.1f}" for run, mean in pairs])
            more = " (and others)" if len(runs) > 4 else ""
            said.append(f"{called} at {words.tokens(shared[-1])} tokens: {each}{more}")
    return f"RULER, of 100: {'; '.join(said)}." if said else ""


def _group(runs: Sequence[Run], group: str) -> Table | None:
    """Models by length, and the paper's below them."""
    title, theirs = GROUPS[group]
    ours = [n for n in lengths(runs) if any(_mean(run, group, n) is not None for run in runs)]
    if not ours:
        return None
    printed = {} if theirs is None else {_count(column): i for i, column in enumerate(theirs.columns) if i}
    columns = sorted({*ours, *printed})
    rows: list[list[Cell]] = []
    for run in runs:
        means = [_mean(run, group, n) for n in columns]
        if any(means):
            rows.append([run.cell, *(number(m, 1, of=100, more=_short_of(m)) if m else Cell("") for m in means)])
    note = "Score of 100 and the number of answers."
    if theirs is not None:
        rows += [
            [Cell(f"paper: {row[0]}"), *(Cell(row[printed[n]] if n in printed else "") for n in columns)]
            for row in theirs.rows
        ]
        note += f" Paper: table {theirs.number}, models of 8 billion parameters trained to 128k."
    return table(title, ["model", *map(words.tokens, columns)], rows, note)


def _count(column: str) -> int:
    """8k -> 8192"""
    return int(column.removesuffix("k")) * 1024


def _at(run: Run) -> dict[tuple[str, int], CellResult]:
    return {(str(cell.labels.get("task", cell.name)), cell.context_tokens): cell for cell in run.results.cells}


def _tasks(run: Run, folded: bool) -> Table:
    cells = _at(run)
    tasks = sorted({task for task, _ in cells}, key=ORDER.index)
    columns = lengths([run])
    rows = [
        [Cell(task), *(number(run.figure(task=task, context_tokens=n), 1, of=100) for n in columns)] for task in tasks
    ]
    return table(f"{run.name}: task by task", ["task", *map(words.tokens, columns)], rows, folded=folded)


def _side(runs: Sequence[Run]) -> Table:
    """Every cell's score with what stands beside it."""
    rows: list[list[Cell]] = []
    for run in runs:
        for (task, length), cell in sorted(_at(run).items(), key=lambda item: (ORDER.index(item[0][0]), item[0][1])):
            side = [cell_figure(cell, name) for name in SIDE]
            rows.append([
                run.cell, Cell(task), Cell(words.tokens(length)),
                _plain(run.figure(task=task, context_tokens=length)),
                *(_plain(figure, 100) for figure in side),
                Cell(f"{cell.answers_cut:,}"), Cell(f"{cell.errors:,}"), Cell(f"{cell.samples:,}"),
                Cell(f"{cell.facts['repeats']:.2f}×" if "repeats" in cell.facts else ""),
            ])  # fmt: skip
    head = ["model", "task", "context", "score", *SIDE.values(), "cut", "errors", "samples", "texts"]
    note = (
        "Exact: the answer is a reference and nothing else; F1: of its words; both, like nulls (empty answers), in percent. "
        "The score rewards long answers: a model that says much and one that says only the answer score alike. Cut: answers "
        "that used up their tokens. Texts: how often the essays or documents are gone through; above 1 they repeat."
    )
    return table("Score and what stands beside it", head, rows, note, folded=True)


def _plain(figure: Figure | None, times: float = 1) -> Cell:
    return Cell("" if figure is None else f"{times * figure.value:.1f}")


def lines(runs: Sequence[Run]) -> bytes | None:
    """Score against length: a panel for each group, a line for each model."""
    found = {group: [run for run in runs if run.figure(group=group)] for group in GROUPS if _shown(runs, group)}
    if not found:
        return None
    ticks = lengths(runs)
    shown = list(dict.fromkeys(run.name for own in found.values() for run in own))
    with draw.look():
        figure, axes = draw.new(draw.WIDTH if len(found) > 1 else 6.0, 4.1, 1, len(found), sharey=True)
        handles = {run.label: draw.key(run.colour, run.marker) for run in runs if run.name in shown}
        for axis, (group, own) in zip(axes, found.items(), strict=True):
            for run in own:
                _line(axis, run, group, ticks, _most(own, group))
            theirs, most = GROUPS[group][1], _most(own, group)
            whole = most == len(TASKS_OF[group])
            if theirs is not None and whole:
                handles |= _papers(axis, theirs, ticks)
            draw.token_axis(axis, ticks)
            axis.set_ylim(0, 103)
            axis.set_title(
                GROUPS[group][0] if whole else f"{group}: mean over {most} of {len(TASKS_OF[group])} tasks",
                fontsize=9.5,
            )
        axes[0].set_ylabel("score of 100")
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(4, len(handles)))
        return draw.png(figure)


def _most(runs: Sequence[Run], group: str) -> int:
    """The most tasks that a mean of the group is made of: means over fewer are not drawn beside it."""
    return max(f.labels["tasks"] for run in runs for f in run.results.summary if f.labels.get("group") == group)


def _line(axis: Any, run: Run, group: str, ticks: list[int], tasks: int) -> None:
    means = [(n, f.value) for n in ticks if (f := _mean(run, group, n)) is not None and f.labels["tasks"] == tasks]
    if means:
        axis.plot(*zip(*means, strict=True), color=run.colour, marker=run.marker, markersize=5, linewidth=1.8)
    trained = run.results.model.trained_tokens
    if trained is not None and ticks[0] <= trained <= ticks[-1]:
        axis.axvline(trained, color=run.colour, linewidth=1, linestyle=(0, (1, 2)), zorder=0)


def _papers(axis: Any, theirs: PaperTable, ticks: list[int]) -> dict[str, Any]:
    """The paper's models, at the lengths between ours; keys for the legend."""
    keys = {}
    for row, dashes in zip(theirs.rows, (":", "--"), strict=True):
        points = [(_count(column), float(text)) for column, text in zip(theirs.columns[1:], row[1:], strict=True)]
        points = [(n, value) for n, value in points if ticks[0] <= n <= ticks[-1]]
        if points:
            axis.plot(*zip(*points, strict=True), color=draw.BAR, linestyle=dashes, linewidth=1.3, marker=".")
            keys[f"paper: {row[0]}"] = draw.key(draw.BAR, ".", dashes=dashes, width=1.3)
    return keys
