"""The report: a results file to one self-contained HTML page, a Markdown twin and figures. It formats, and judges
nothing but who may be compared with whom (`gate`).
"""

from pathlib import Path

from rnope.files import beside, write_text
from rnope.report.figures import FIGURES, draw_all
from rnope.report.gate import Gate
from rnope.report.page import render
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
    folder = out / "figures"
    written = [out / "report.html", out / "report.md"]
    for name in FIGURES:
        path = folder / f"{name}.png"
        if name in figures:
            with beside(path) as place:
                place.write_bytes(figures[name])
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    write_text(written[0], page)
    write_text(written[1], markdown)
    return written
