"""The report: a results file to one self-contained HTML page, a Markdown twin and figures. It formats, and judges
nothing but who may be compared with whom (`gate`).
"""

from pathlib import Path

from rnope.report.figures import FIGURES, draw_all
from rnope.report.gate import Gate
from rnope.report.page import render, write_pages
from rnope.results import Results

__all__ = ["write_report"]


def write_report(results: Results, out: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and ``figures/*.png`` into `out`; each file is replaced whole.

    Figures of an earlier report that this one does not draw are removed.

    Returns:
        The files written, the page first.
    """
    gate = Gate(results)
    figures = draw_all(gate)
    page, markdown = render(gate, figures)
    return write_pages(out, page, markdown, figures, names=FIGURES)
