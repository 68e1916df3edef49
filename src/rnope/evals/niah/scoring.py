"""How answers about a needle are scored: by rule, so that the same answer has the same score everywhere. It knows
neither tokens nor models.

A needle states three facts. The score is ten times the share of them that the answer states, "rule-10" in reports: the
paper's and Kamradt's 0 to 10 come from a language model that judges, and are another measure.
"""

import re
import unicodedata
from collections.abc import Sequence

from rnope.evals.results import CellResult, Figure, mean_of
from rnope.evals.suite import Prediction, Scoring

SCALES = {"score": 10.0, "exact": 1.0}
CONNECTING = frozenset(
    "a an and are at best by can do doing eat eating for go going in is it its most of on one or s should some that the "
    "then there thing things this to while with watch watching you your".split()
)
"""Words that an exact answer may have beside the facts and the town's name."""


def normalised(text: str) -> str:
    """`text` for comparison: compatible forms of characters made one, case folded, and each run of what is neither
    letter nor digit one space, none at the ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return re.sub(r"[\W_]+", " ", folded).strip()


def found(answer: str, facts: Sequence[str]) -> list[bool]:
    """Whether `answer` states each of `facts` as whole words."""
    line = f" {normalised(answer)} "
    return [f" {normalised(fact)} " in line for fact in facts]


def is_exact(answer: str, facts: Sequence[str], town: str) -> bool:
    """Whether the first sentence of `answer` states all `facts` and nothing else but connecting words.

    Later sentences do not count: base models go on writing.
    """
    first = re.split(r"[.!?。！？\n\r]", answer.strip(), maxsplit=1)[0]
    if not all(found(first, facts)):
        return False
    line = f" {normalised(first)} "
    for fact in facts:
        line = line.replace(f" {normalised(fact)} ", " ")
    return set(line.split()) <= CONNECTING | set(normalised(town).split())


class NiahScoring(Scoring):
    """Metrics `score` (0 to 10) and `exact` (0 or 1)."""

    def score(self, prediction: Prediction) -> dict[str, float]:
        """Of one answer."""
        facts = prediction.references
        return {
            "score": 10 * sum(found(prediction.answer, facts)) / len(facts),
            "exact": float(is_exact(prediction.answer, facts, prediction.facts["town"])),
        }

    def summary(self, cells: Sequence[CellResult]) -> tuple[Figure, ...]:
        """``raw_score``, the mean of `score` over all cells of row ``standard``, as the paper prints it; and `score` and
        `exact` by row and length, the mean over depths. Labels are ``row`` and ``context_tokens``."""
        standard = [cell for cell in cells if cell.labels["row"] == "standard"]
        figures = _mean_over("raw_score", "score", standard, row="standard")
        groups = dict.fromkeys((str(cell.labels["row"]), cell.context_tokens) for cell in cells)
        for row, length in groups:
            group = [cell for cell in cells if cell.labels["row"] == row and cell.context_tokens == length]
            for metric in ("score", "exact"):
                figures += _mean_over(metric, metric, group, row=row, context_tokens=length)
        return tuple(figures)


def _mean_over(name: str, metric: str, cells: Sequence[CellResult], **labels: str | int) -> list[Figure]:
    """The mean over cells that have an answer, each cell counting once."""
    parts = [figure for cell in cells for figure in cell.figures if figure.name == metric]
    return [mean_of(name, parts, highest=SCALES[metric], **labels)] if parts else []
