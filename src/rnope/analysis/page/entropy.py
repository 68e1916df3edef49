"""Entropy in bits, both ways of aggregating it, in the form of the paper's table 9 and with its rows beside."""

import math
from collections.abc import Iterator

from rnope.analysis.page.view import CALLED, PAPER_LENGTHS, Part, Seen, View, bits, number
from rnope.analysis.results import ALL, Measures
from rnope.report import paper, words
from rnope.report.blocks import Block, Cell, Table, Text, table

WAYS = {"row_entropy": "row entropy", "mean_entropy": "entropy of the mean"}
WHAT = (
    "Row entropy is that of each row, then the mean over rows, heads, layers and samples. The entropy of the mean is that "
    "of a layer's attention averaged over rows and heads, then the mean over layers and samples: the larger of the two. The "
    "paper says “aggregated attention distribution” (table 9), which fits the second, and no unit: its 14.14 at 128k is "
    "more than natural units allow, so that it is bits."
)


def part(view: View) -> Part:
    """The table, and the paper's own where our lengths are not its."""
    if not view.lengths:
        return Part(blocks=[])
    blocks: list[Block | None] = [Text(WHAT), _entropies(view), _others(view)]
    return Part(blocks=[block for block in blocks if block is not None])


def _entropies(view: View) -> Table:
    rows: list[list[Cell]] = []
    for name, called in WAYS.items():
        for model in view.models:
            for kind in (ALL, *model.kinds) if len(model.kinds) > 1 else (ALL,):
                cells = [_cell(model, n, kind, name) for n in view.lengths]
                if any(cell.text for cell in cells):
                    about = model.cell(CALLED[kind])
                    rows.append([about, Cell(called), *cells])
        if name == "mean_entropy" and any(n in PAPER_LENGTHS for n in view.lengths):
            for theirs in paper.TABLE_9.rows:
                at = dict(zip(paper.TABLE_9.columns, theirs, strict=True))
                cells = [Cell(at.get(PAPER_LENGTHS.get(n, ""), ""), tone="paper") for n in view.lengths]
                rows.append([Cell(f"paper: {theirs[0]}", tone="paper"), Cell(called), *cells])
    bound = [Cell(f"{math.log2(n):.2f}") for n in view.lengths]
    rows.append([Cell("the most there can be"), Cell("log2(length)"), *bound])
    windows = list(_bounds(view))
    note = f"Bits, with half the width of the 95 % interval over samples.{' ' if windows else ''}{' '.join(windows)}"
    return table("Entropy (the paper's table 9)", ["model", "of what", *map(words.tokens, view.lengths)], rows, note)


def _cell(model: Seen, length: int, kind: str, name: str) -> Cell:
    found = model.at(length, kind)
    return Cell("") if found is None else number(getattr(found.measures, name), bits)


def _bounds(view: View) -> Iterator[str]:
    """What a row of a windowed layer can reach."""
    windows = sorted({window for model in view.models for window in model.windows_of()})
    if windows:
        said = [f"{math.log2(window):.2f} for {words.tokens(window)} tokens" for window in windows]
        yield f"A row of a windowed layer has log2(window) at most: {words.listed(said)}."


def _others(view: View) -> Table | None:
    missing = [n for n in paper.LENGTHS if n not in {PAPER_LENGTHS.get(length) for length in view.lengths}]
    if not missing:
        return None
    rows = []
    for row in paper.TABLE_9.rows:
        at = dict(zip(paper.TABLE_9.columns, row, strict=True))
        rows.append([Cell(f"paper: {row[0]}", tone="paper"), *(Cell(at[n], tone="paper") for n in missing)])
    return table("The paper's table 9 at lengths that are not here", ["model", *missing], rows)


def entropies(measures: Measures) -> list[Cell]:
    """Both, for a table."""
    return [number(measures.row_entropy, bits), number(measures.mean_entropy, bits)]
