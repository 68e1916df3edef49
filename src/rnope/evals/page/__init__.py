"""The page of an evaluation: every model and suite of a folder, scored again from the kept answers, to one
self-contained HTML page, a Markdown twin and figures. It asks no model and compares nothing by itself: it says where
models were asked different things.
"""

from pathlib import Path

from rnope.errors import UserError
from rnope.evals.page import asked, niah, perplexity, ruler, standard, trust
from rnope.evals.page.runs import Part, read_runs
from rnope.files import exclusive
from rnope.report import words
from rnope.report.blocks import Section
from rnope.report.page import pages, write_pages

__all__ = ["write_report"]

_SUITES = {
    "niah": ("Needle in a haystack", niah.part),
    "ruler": ("RULER", ruler.part),
    "standard": ("Standard benchmarks", standard.part),
    "perplexity": ("Perplexity", perplexity.part),
}
_PATIENCE = 60.0
"""Seconds that a report waits for another one that is writing."""
FIGURES = ("niah", "ruler", "perplexity-position", "perplexity-length")


def write_report(out: Path) -> list[Path]:
    """Score every OUT/MODEL/SUITE again, and write ``report.html``, ``report.md`` and ``figures/*.png`` into `out`.

    Figures of an earlier page that this one does not draw are removed. The same answers give the same bytes.

    Returns:
        The files written, the page first; results.json of every model and suite is written again too.

    Raises:
        UserError: `out` holds no evaluation, or a file in it cannot be read.
    """
    runs = read_runs(out)
    if not runs:
        remedy = "Give the folder that was --out of `rnope eval niah`, `ruler`, `standard` or `perplexity`."
        raise UserError(f"{out}: holds no evaluation (no MODEL/SUITE/run.json). {remedy}")
    parts: list[tuple[str, str, Part]] = [("asked", "What was asked", asked.part(runs))]
    for suite, (title, part) in _SUITES.items():
        own = [run for run in runs if run.results.suite == suite and run.results.cells]
        if own:
            parts.append((suite, title, part(own)))
    parts.append(("trust", "What it rests on", trust.part(runs)))
    models = list(dict.fromkeys(run.name for run in runs))
    suites = [suite for suite in _SUITES if any(run.results.suite == suite for run in runs)]
    figures = {name: data for _, _, part in parts for name, data in part.figures.items()}
    page, markdown = pages(
        title="Evaluation at long context",
        facts=[words.listed(models[:8]) if len(models) <= 8 else f"{len(models)} models", words.listed(suites)],
        answer=" ".join(part.headline for _, _, part in parts if part.headline) or "No cell is finished yet.",
        body=[Section(key=key, title=title, blocks=tuple(part.blocks)) for key, title, part in parts if part.blocks],
        figures=figures,
        command="rnope eval report",
        source="the kept answers",
    )
    with exclusive(out / ".lock", seconds=_PATIENCE):  # models that are evaluated side by side may end together
        return write_pages(out, page, markdown, figures, names=FIGURES)
