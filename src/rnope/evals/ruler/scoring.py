"""How RULER's answers become figures: its own metrics, its own rounding, and means over its groups of tasks."""

from collections.abc import Sequence

from rnope.evals.results import CellResult, Figure, mean_of
from rnope.evals.ruler import metrics
from rnope.evals.ruler.tasks import GROUPS, TASKS
from rnope.evals.suite import Prediction, Scoring


class RulerScoring(Scoring):
    """Metrics, all from 0 to 1: `score`, RULER's; beside it `exact`, `f1` and `null` (an empty answer)."""

    def score(self, prediction: Prediction) -> dict[str, float]:
        """Of one answer; its cell's name begins with the task's."""
        any_will_do = TASKS[prediction.cell.rpartition("-")[0]].kind == "qa"
        answer, references = metrics.postprocess(prediction.answer), prediction.references
        match = metrics.string_match_part if any_will_do else metrics.string_match_all
        return {
            "score": match(answer, references),
            "exact": metrics.exact_match(answer, references, every=not any_will_do),
            "f1": metrics.token_f1(answer, references, every=not any_will_do),
            "null": float(not answer),
        }

    def summary(self, cells: Sequence[CellResult]) -> tuple[Figure, ...]:
        """`score` by task and length, of 100 and with two decimals as RULER prints it; and the plain mean of these by
        group and length. Labels of a task: ``task``, ``context_tokens``; of a group: ``group``, ``context_tokens``,
        ``tasks``, how many it is made of, and ``complete``, whether these are all."""
        tasks = [_task_figure(cell, figure) for cell in cells for figure in cell.figures if figure.name == "score"]
        lengths = sorted({figure.labels["context_tokens"] for figure in tasks})
        groups = [_group_figure(group, length, tasks) for length in lengths for group in GROUPS]
        return (*tasks, *(figure for figure in groups if figure is not None))


def _task_figure(cell: CellResult, figure: Figure) -> Figure:
    return Figure(
        name="score",
        value=metrics.rounded(figure.value),
        low=None if figure.low is None else metrics.rounded(figure.low),
        high=None if figure.high is None else metrics.rounded(figure.high),
        n=figure.n,
        labels={"task": cell.labels["task"], "context_tokens": cell.context_tokens},
    )


def _group_figure(group: str, length: int, tasks: Sequence[Figure]) -> Figure | None:
    own = [f for f in tasks if f.labels["context_tokens"] == length and f.labels["task"] in GROUPS[group]]
    if not own:
        return None
    labels = {
        "group": group,
        "context_tokens": length,
        "tasks": len(own),
        "complete": len(own) == len(GROUPS[group]),
    }
    return mean_of("score", own, highest=100.0, **labels)
