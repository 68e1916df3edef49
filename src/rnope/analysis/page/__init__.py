"""The page of an analysis: its results to one self-contained HTML page, a Markdown twin and figures, with the paper's
own numbers beside. It looks into no model and computes nothing: it sets out what the results file says.
"""

from pathlib import Path

from rnope.analysis.page import asked, definitions, entropy, heads, layers, mass, memory, positions
from rnope.analysis.page.view import View
from rnope.analysis.results import FILE, AnalysisResults
from rnope.report import words
from rnope.report.blocks import Picture, Section
from rnope.report.page import pages
from rnope.report.page import write_pages as write_files

__all__ = ["write_pages"]

_SECTIONS = (
    ("asked", "What was looked into", asked.part),
    ("mass", "Attention mass", mass.part),
    ("entropy", "Entropy", entropy.part),
    ("positions", "Attention over positions", positions.part),
    ("heads", "Layers and heads", heads.part),
    ("layers", "Layer by layer", layers.part),
    ("memory", "Memory and time", memory.part),
    ("definitions", "What the words mean", definitions.part),
)


def write_pages(results: AnalysisResults, out: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/*.png`` into `out`.

    The page shows heat maps of each model's longest length; those of the others are files in ``figures``. Figures of an
    earlier page that this one does not draw are removed. The same results give the same bytes.

    Returns:
        The files written, the page first.
    """
    view = View(results)
    parts = [(key, title, part(view)) for key, title, part in _SECTIONS]
    body = [Section(key=key, title=title, blocks=tuple(part.blocks)) for key, title, part in parts if part.blocks]
    drawn = {name: data for _, _, part in parts for name, data in part.figures.items()}
    shown = {block.name for section in body for block in section.blocks if isinstance(block, Picture)}
    models = [model.name for model in view.models]
    page, markdown = pages(
        title="Where the model looks" if len(models) == 1 else "Where the models look",
        facts=[
            words.listed(models) if len(models) <= 8 else f"{len(models)} models",
            f"{words.listed([words.tokens(n) for n in view.lengths])} tokens" if view.lengths else "",
            view.samples,
        ],
        answer=" ".join(part.headline for _, _, part in parts if part.headline) or "No length is finished yet.",
        body=body,
        figures={name: drawn[name] for name in drawn if name in shown},
        command="rnope analyze",
        source=FILE,
    )
    earlier = {path.stem for path in (out / "figures").glob("*.png")}
    return write_files(out, page, markdown, drawn, names=[*drawn, *sorted(earlier - set(drawn))])
