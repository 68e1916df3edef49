"""RULER's tasks in the words of the needles: every arm, task and length, seeds folded."""

from rnope.report import who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.forms import task_mean
from rnope.report.gate import Gate
from rnope.report.tables import arm_cell, seeds_said


def tables(gate: Gate) -> list[Table]:
    """A table per group: the mean over tasks for each arm, then each task."""
    found = gate.tasks()
    names = list(dict.fromkeys(row.task for row in gate.results.tasks))
    lengths = sorted({row.context_tokens for row in found})
    made = []
    for group in who.groups(gate.results):
        rows: list[list[Cell | str]] = []
        for arm in group.arms:
            own = [row for row in found if row.arm == arm]
            if own:
                name = arm_cell(gate, arm, seeds_said(row.seed for row in own))
                for task in ("", *names):
                    same = [row for row in own if task in ("", row.task)]
                    cells = [task_mean([row for row in same if row.context_tokens == n]) for n in lengths]
                    rows.append(
                        [Cell(name.text, "" if task else name.small, colour=name.colour), task or "mean of all", *cells]
                    )
        if rows:
            head = ["arm", "task", *(words.tokens(n) for n in lengths)]
            answers = words.listed(sorted({str(row.n) for row in found}, key=int))
            note = (
                f"Scores of 100, {answers} answers a task, seed and length: the 95 % Wilson interval, or the range of seeds "
                "where there are several."
            )
            title = who.titled("RULER's tasks", group)
            made.append(table(title, head, rows, note, folded=True))
    return made
