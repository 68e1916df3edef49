"""What the sections are made of: each model and suite of a folder, scored again, with what its log says of cost; and
the forms that they share. It knows no suite.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnope.evals.results import CellResult, Figure, SuiteResults
from rnope.evals.run import assemble
from rnope.evals.store import Store, stores
from rnope.evals.suites import scoring_of
from rnope.report import draw
from rnope.report.blocks import Block, Cell


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One model and suite."""

    name: str
    """What the page calls the model: its folder, so that no two are alike."""
    place: str
    """Its folder, relative to OUT."""
    colour: str
    marker: str
    results: SuiteResults
    begun: int
    """Cells with a file of answers; those of `results` are the finished ones among them."""
    seconds: float
    """Spent on answers, over all calls."""
    new_tokens: int
    commands: tuple[str, ...]

    @property
    def cell(self) -> Cell:
        """The model's name, for a table."""
        return Cell(self.name, colour=self.colour)

    @property
    def label(self) -> str:
        """The model's name, for a figure: its begin and end, if it is long."""
        return draw.visible(self.name if len(self.name) <= 40 else f"{self.name[:24]}…{self.name[-15:]}")

    def figure(self, name: str | None = None, **labels: Any) -> Figure | None:
        """The first figure over cells of this name (any, if None) that has these labels."""
        return next(
            (found for found in self.results.summary if name in (None, found.name) and _has(found, labels)), None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a section adds to the page."""

    blocks: Sequence[Block]
    figures: dict[str, bytes] = field(default_factory=dict)
    """Name -> PNG."""
    headline: str = ""
    """Its sentence at the top of the page."""


def read_runs(out: Path) -> list[Run]:
    """Every model and suite under `out`, by name; each one's results.json is made anew.

    Raises:
        UserError: a file that cannot be read, or a suite that this rnope does not know.
    """
    found = stores(out)
    style = draw.styles(list(dict.fromkeys(store.folder.parent.name for store in found)))
    return [_run(store, *style[store.folder.parent.name]) for store in found]


def _run(store: Store, colour: str, marker: str) -> Run:
    suite = store.identity().suite
    log = store.read_log()
    answers = [line for line in log if line.get("event") == "answers"]
    model, folder = store.folder.parent.name, store.folder.name
    results = assemble(store, scoring_of(suite))
    store.refresh(results)
    return Run(
        name=model if folder == suite else f"{model}/{folder}",
        place=f"{model}/{folder}",
        colour=colour,
        marker=marker,
        results=results,
        begun=len(store.cells()),
        seconds=sum(line.get("seconds", 0.0) for line in answers),
        new_tokens=sum(line.get("new_tokens", 0) for line in answers),
        commands=tuple(dict.fromkeys(line["command"] for line in log if line.get("command"))),
    )


def _has(figure: Figure, labels: dict[str, Any]) -> bool:
    return all(figure.labels.get(key) == value for key, value in labels.items())


def cell_figure(cell: CellResult, name: str) -> Figure | None:
    """A metric of a cell."""
    return next((found for found in cell.figures if found.name == name), None)


def number(figure: Figure | None, digits: int = 2, *, of: float | None = None, more: str = "") -> Cell:
    """A figure with its interval and n; blank for none.

    Args:
        of: the best value there is: the cell is coloured by the share of it.
        more: said below them.
    """
    if figure is None:
        return Cell("")
    lines = []
    if figure.low is not None and figure.high is not None:
        lines.append(f"{figure.low:.{digits}f}–{figure.high:.{digits}f}")
    lines += [f"n {figure.n:,}", *([more] if more else [])]
    tone = "" if of is None else f"s{min(10, max(0, round(10 * figure.value / of)))}"
    return Cell(f"{figure.value:.{digits}f}", "\n".join(lines), tone)


def short(digest: str) -> str:
    """The begin of a SHA-256; other texts as they are."""
    return digest[:12] if len(digest) == 64 and not set(digest) - set("0123456789abcdef") else digest


def lengths(runs: Sequence[Run]) -> list[int]:
    """Context lengths of the finished cells."""
    return sorted({cell.context_tokens for run in runs for cell in run.results.cells})
