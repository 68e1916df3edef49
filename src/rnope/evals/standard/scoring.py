"""Figures of the standard benchmarks from kept answers: the harness's metrics, in percent, under the paper's names."""

from collections.abc import Sequence

from rnope.evals.results import CellResult, Figure, mean_of
from rnope.evals.standard.tasks import RATIOS, ratio
from rnope.evals.suite import Prediction, Scoring

TITLES = {
    "mmlu": "MMLU",
    "hellaswag": "HellaSwag",
    "commonsense_qa": "CommonsenseQA",
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "agieval_sat_en": "SAT-en",
    "agieval_sat_math": "SAT-math",
    "gsm8k": "GSM8K",
    "winogrande": "Winogrande",
    "mbpp": "MBPP",
}
"""The harness's name -> the paper's column."""
HEADLINES = ("acc_norm", "exact_match,strict-match", "pass_at_1", "score", "em", "f1", "rougeL", "acc")
"""What a benchmark is known by: the first of these that it has, but `acc` where the list below says so."""
_BY_ACC = ("agieval_",)
"""Begins of names whose plain accuracy is meant, although a normalised one is there."""
_SUBJECT = " / "
LONGBENCH_TASKS = 21


class StandardScoring(Scoring):
    """The harness's metrics, as they stand in each line."""

    def score(self, prediction: Prediction) -> dict[str, float]:
        """The document's metrics, 0 to 1; of a benchmark with subjects, also those of its own."""
        metrics: dict[str, float] = prediction.facts["metrics"]
        subject = prediction.facts.get("subject")
        own = {} if subject is None else {f"{name}{_SUBJECT}{subject}": value for name, value in metrics.items()}
        return metrics | own

    def summary(self, cells: Sequence[CellResult]) -> tuple[Figure, ...]:
        """Each benchmark's metrics in percent (perplexities as they are), the headline first.

        Labels: benchmark, metric, headline, shots, comparable (with others' figures: an unaltered copy, all documents),
        cut (the share of documents whose prompt lost its beginning).
        """
        found = [figure for cell in cells for figure in _figures(cell)]
        long = [each for each in found if each.labels["task"].startswith("longbench_") and each.labels["headline"]]
        if long:
            labels = long[0].labels | {
                "task": "longbench",
                "benchmark": "LongBench",
                "metric": f"score, mean of {len(long)} tasks",
                "comparable": len(long) == LONGBENCH_TASKS and all(each.labels["comparable"] for each in long),
                "cut": sum(each.labels["cut"] for each in long) / len(long),
            }
            found.append(mean_of("LongBench", long, highest=100.0, **labels))
        return tuple(found)


def _figures(cell: CellResult) -> list[Figure]:
    shared = {
        "task": cell.name,
        "benchmark": TITLES.get(cell.name, cell.name),
        "shots": cell.labels["shots"],
        "comparable": bool(cell.labels["comparable"]) and cell.samples == cell.labels["documents"] and not cell.errors,
        "cut": cell.facts.get("cut", 0.0),
    }
    whole = [figure for figure in cell.figures if _SUBJECT not in figure.name]
    first = headline(cell.name, [figure.name for figure in whole])
    made = []
    for figure in sorted(whole, key=lambda figure: figure.name != first):
        labels = shared | {"metric": figure.name, "headline": figure.name == first}
        made.append(_percent(figure, figure.value, labels))
        subjects = [each for each in cell.figures if each.name.startswith(figure.name + _SUBJECT)]
        if subjects:
            labels = shared | {"metric": f"{figure.name}, mean of {len(subjects)} subjects", "headline": False}
            mean = mean_of(figure.name, subjects, highest=1.0)
            made.append(_percent(mean, mean.value, labels))
    for metric, value in ratios(cell.facts).items():
        labels = shared | {"metric": metric, "headline": not whole}
        made.append(Figure(name=shared["benchmark"], value=value, n=cell.samples - cell.errors, labels=labels))
    return made


def headline(task: str, metrics: Sequence[str]) -> str | None:
    """What a benchmark is known by among its metrics."""
    order = ("acc", *HEADLINES) if task.startswith(_BY_ACC) else HEADLINES
    return next((name for name in order if name in metrics), metrics[0] if metrics else None)


def ratios(facts: dict[str, float]) -> dict[str, float]:
    """Perplexities from the means of their parts over documents."""
    return {
        metric: ratio(metric, facts[f"{metric} log-likelihood"], facts[f"{metric} weight"])
        for metric in RATIOS
        if f"{metric} weight" in facts
    }


def _percent(figure: Figure, value: float, labels: dict[str, object]) -> Figure:
    low, high = (None if bound is None else 100 * bound for bound in (figure.low, figure.high))
    return Figure(name=str(labels["benchmark"]), value=100 * value, low=low, high=high, n=figure.n, labels=labels)
