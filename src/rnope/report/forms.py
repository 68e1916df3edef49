"""Tables 2 to 9 in the paper's own form: a row of ours, a row of the paper's. Rows come through the gate alone."""

import math
from collections.abc import Sequence

from rnope.intervals import wilson
from rnope.report import paper, who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.gate import Gate
from rnope.report.measures import mass_cell, value_cell
from rnope.report.paper import PaperTable
from rnope.report.tables import arm_cell, folded_score, seeds_said
from rnope.results import MassRow, TaskRow

UNTESTABLE = Cell("–", "not testable", "not-testable")
FINE_TUNED = 65_536
"""The paper's fine-tuning length, at which table 2 asks for needles."""


def tables(gate: Gate) -> list[Table]:
    """Every table; what was not measured here is said so in its cells."""
    return [
        _table_2(gate),
        _masses(gate, paper.TABLE_3, "The arms that stand for the paper's three models."),
        _table_4(gate),
        _untestable(gate, paper.TABLE_5, "Models of this size do not read English: no standard benchmark is testable."),
        _table_6(gate),
        _untestable(gate, paper.TABLE_7, "No model was taught to answer questions on a text: not testable."),
        _masses(gate, paper.TABLE_8, "Table 4 at every length.", folded=True),
        _table_9(gate),
    ]


def _title(theirs: PaperTable) -> str:
    return f"Table {theirs.number}: {theirs.title}"


def _arm(gate: Gate, model: str) -> str | None:
    """The arm that stands for `model`; the paper's Baseline is RoPE."""
    return who.stands_for(gate.results).get("RoPE" if model == "Baseline" else model)


def _names(gate: Gate, model: str) -> tuple[Cell, Cell]:
    """First cells of our row and of the paper's."""
    arm = _arm(gate, model)
    if arm is None:
        ours = Cell("ours", f"no arm stands for {model}")
    else:
        seeds = gate.seeds(arm)
        ours = arm_cell(gate, arm, seeds_said(seeds) if seeds else "did not learn the task at any seed")
    return ours, Cell(f"paper: {model}", tone="paper")


def _paper(cells: Sequence[str]) -> list[Cell]:
    return [Cell("" if cell == "-" else cell, tone="paper") for cell in cells]


def _length(gate: Gate, label: str) -> Cell:
    return Cell(label, f"here {words.tokens(_here(gate, label))}")


def _here(gate: Gate, label: str) -> int:
    return who.here(gate.results, int(label[:-1]) * 1024)


def _table_2(gate: Gate) -> Table:
    at = who.here(gate.results, FINE_TUNED)
    rows: list[list[Cell | str]] = []
    for theirs in paper.TABLE_2.rows:
        ours, printed = _names(gate, theirs[0])
        arm = _arm(gate, theirs[0])
        models = [model for model in gate.results.models if model.arm == arm]
        first = [loss for model in models if (loss := model.stages[0].validation.get("all")) is not None]
        last = [loss for m in models if len(m.stages) > 1 and (loss := m.stages[-1].validation.get("all")) is not None]
        small = [f"seeds {words.bounds(first, 3)}"] if len(first) > 1 else []
        small += [f"{sum(last) / len(last):.3f} after fine-tuning"] if last else []
        losses = Cell(f"{sum(first) / len(first):.3f}", "\n".join(small)) if first else Cell("", "not measured")
        # At its trained length a model's score is known whether it learned the task or not.
        found = [s.row for s in gate.standings if s.arm == arm and s.row and s.row.context_tokens == at]
        needles = folded_score(found) if found else Cell("", "not measured")
        rows.append([ours, losses, *[UNTESTABLE] * (len(theirs) - 3), needles])
        rows.append([printed, *_paper(theirs[1:])])
    head: list[Cell | str] = [*paper.TABLE_2.columns[:-1], Cell(paper.TABLE_2.columns[-1], f"here {words.tokens(at)}")]
    note = (
        "Our loss is of held-out text at the end of pretraining, in nats a token, of another vocabulary than the "
        "paper's; all seeds. Needles of all seeds, those that did not learn the task included, since this is their "
        "trained length. Models of this size do not read English: standard benchmarks are not testable."
    )
    return table(_title(paper.TABLE_2), head, rows, note)


def _found(gate: Gate, model: str, position: str, length: int) -> list[MassRow]:
    """Rows of the layers with `position` (``NoPE``, ``RoPE``; empty: of all) in the arm that stands for `model`."""
    arm, start = _arm(gate, model), position.lower()
    return [r for r in gate.attention() if (r.arm, r.context_tokens) == (arm, length) and r.kind.startswith(start)]


def _segments(gate: Gate, model: str, columns: Sequence[str], length: int, *, brief: bool = False) -> list[Cell]:
    """Our masses in `columns`: a segment, or ``NoPE`` or ``RoPE`` and a segment."""
    parts = [column.rpartition(" ") for column in columns]
    return [mass_cell(_found(gate, model, position, length), segment, brief=brief) for position, _, segment in parts]


def _masses(gate: Gate, theirs: PaperTable, note: str, *, folded: bool = False) -> Table:
    """Tables 3 and 8."""
    rows: list[list[Cell | str]] = []
    for length, model, *printed in theirs.rows:
        ours, name = _names(gate, model)
        where = _length(gate, length)
        rows.append([ours, where, *_segments(gate, model, theirs.columns[2:], _here(gate, length))])
        rows.append([name, Cell(length, tone="paper"), *_paper(printed)])
    head = ["model", "context", *theirs.columns[2:]]
    return table(_title(theirs), head, rows, f"{note} {_MASS} {_BLANK}", folded=folded)


_MASS = (
    "“samples”: the 95 % interval over samples, from the lowest bound of any seed to the highest; “seeds”: from the "
    "lowest seed to the highest."
)
_BLANK = "Blank where there is no such layer, where a window cannot reach, or where no seed learned the task."


def _table_4(gate: Gate) -> Table:
    mass_at, needles_at = _here(gate, "32k"), _here(gate, "128k")
    rows: list[list[Cell | str]] = []
    for model, *printed in paper.TABLE_4.rows:
        ours, name = _names(gate, model)
        found = [r for r in gate.needles() if r.arm == _arm(gate, model) and r.context_tokens == needles_at]
        columns = paper.TABLE_4.columns[1:-1]
        rows.append([ours, *_segments(gate, model, columns, mass_at, brief=True), folded_score(found)])
        rows.append([name, *_paper(printed)])
    head: list[Cell | str] = [*paper.TABLE_4.columns[:-1], Cell("needles at 128k", f"here {words.tokens(needles_at)}")]
    note = (
        f"Masses at 32k, here {words.tokens(mass_at)}: the mean over seeds with their range, of one seed the 95 % interval "
        f"over samples. {_BLANK}"
    )
    return table(_title(paper.TABLE_4), head, rows, note)


def _untestable(gate: Gate, theirs: PaperTable, note: str) -> Table:
    rows: list[list[Cell | str]] = []
    for model, *printed in theirs.rows:
        arm = _arm(gate, model)
        rows.append([arm_cell(gate, arm) if arm else "ours", *[UNTESTABLE] * len(printed)])
        rows.append([Cell(f"paper: {model}", tone="paper"), *_paper(printed)])
    return table(_title(theirs), theirs.columns, rows, note)


def task_mean(rows: Sequence[TaskRow]) -> Cell:
    """Mean over tasks of one arm at one length: of one seed with the 95 % Wilson interval of all answers together, of
    several with the range of seeds.
    """
    if not rows:
        return Cell("")
    seeds = sorted({row.seed for row in rows})
    means = [sum(r.score for r in rows if r.seed == s) / sum(r.seed == s for r in rows) for s in seeds]
    hits, n = sum(row.hits for row in rows), sum(row.n for row in rows)
    low, high = wilson(hits, n)
    small = f"seeds {words.bounds(means, 1)}" if len(seeds) > 1 else f"{100 * low:.1f}–{100 * high:.1f}"
    return Cell(f"{sum(means) / len(means):.1f}", small)


def _table_6(gate: Gate) -> Table:
    labels = paper.TABLE_6.columns[1:]
    lengths = {_here(gate, label): label for label in labels}
    for n in sorted({row.context_tokens for row in gate.results.tasks} - set(lengths)):
        lengths[n] = words.short_tokens(who.there(gate.results, n))
    rows: list[list[Cell | str]] = []
    for model, *printed in paper.TABLE_6.rows:
        ours, name = _names(gate, model)
        own = [row for row in gate.tasks() if row.arm == _arm(gate, model)]
        rows.append([ours, *(task_mean([row for row in own if row.context_tokens == n]) for n in lengths)])
        rows.append([name, *_paper(printed), *[Cell("")] * (len(lengths) - len(printed))])
    head: list[Cell | str] = ["model", *(Cell(label, f"here {words.tokens(n)}") for n, label in lengths.items())]
    tasks = list(dict.fromkeys(row.task for row in gate.results.tasks))
    note = (
        f"Ours: the mean over {words.listed(tasks)}, put in the words of the needles; RULER's retrieval has eight tasks. "
        "Scores of 100. Blank: not asked, or no seed learned the task."
        if tasks
        else "No task of RULER was asked in this run."
    )
    return table(_title(paper.TABLE_6), head, rows, note)


def _table_9(gate: Gate) -> Table:
    rows: list[list[Cell | str]] = []
    labels = paper.TABLE_9.columns[1:]
    for model, *printed in paper.TABLE_9.rows:
        ours, name = _names(gate, model)
        for measure, said in (("mean_entropy", "entropy of the mean row"), ("row_entropy", "mean entropy of rows")):
            cells = [value_cell(_found(gate, model, "", _here(gate, label)), measure, 2) for label in labels]
            rows.append([ours, said, *cells])
        rows.append([name, Cell("not said", tone="paper"), *_paper(printed)])
    head: list[Cell | str] = ["model", "what"]
    for label in labels:
        at = _here(gate, label)
        head.append(Cell(label, f"here {words.tokens(at)}: at most {math.log2(at):.1f} bits"))
    note = (
        "Bits. The paper does not say which of the two it means; its figures exceed what nats allow at 128k. Of one "
        "seed with the 95 % interval over samples, of several the mean with their range."
    )
    return table(_title(paper.TABLE_9), head, rows, note)
