"""What eager attention outputs would need at each length, against what this used; and how long a sample took."""

from rnope import units
from rnope.analysis.page.view import Part, View
from rnope.report import words
from rnope.report.blocks import Cell, Items, Table, Text, table

WHAT = (
    "Attention outputs of an eager pass hold every row of every head and layer, length × length. Only the rows of question "
    "and completion are computed here, a part of one layer at a time, so that memory grows with the length and not with its "
    "square."
)


def part(view: View) -> Part:
    """One table."""
    if not view.lengths:
        return Part(blocks=[])
    how = list(dict.fromkeys(found.memory.peak_is for found in view.results.lengths))
    return Part(
        blocks=[Text(WHAT), _needs(view), Items(tuple(f"Used: {said}." for said in how))], headline=_headline(view)
    )


def _headline(view: View) -> str:
    most = max(view.results.lengths, key=lambda found: found.memory.eager_bytes)
    eager, used = most.memory.eager_bytes, most.memory.peak_bytes
    return (
        f"Eager attention outputs would need {units.size(eager)} for one sample of {words.tokens(most.context_tokens)} tokens "
        f"({most.model}); this used {units.size(used)}."
    )


def _needs(view: View) -> Table:
    rows: list[list[Cell | str]] = []
    for length in view.lengths:
        for model in view.models:
            found = model.lengths.get(length)
            if found is None:
                continue
            memory = found.memory
            rows.append([
                model.cell(f"{words.tokens(length)} tokens"),
                f"{found.rows:,.0f}",
                units.size(memory.eager_bytes),
                units.size(memory.rows_bytes),
                units.size(memory.peak_bytes),
                _times(memory.eager_bytes / memory.peak_bytes) if memory.peak_bytes else "",
                _seconds(found.seconds),
            ])  # fmt: skip
    head: list[Cell | str] = [
        "model and length", "rows", "eager would need", Cell("the rows measured", "all layers"), Cell("used", "at most"),
        "eager / used", "seconds a sample",
    ]  # fmt: skip
    return table(
        "What eager attention would need, and what this used", head, rows, "For one sample, beside the weights."
    )


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


def _seconds(seconds: tuple[float, ...]) -> Cell:
    if not seconds:
        return Cell("")
    middle = sum(seconds) / len(seconds)
    form = "{:,.0f}" if middle >= 100 else "{:.1f}" if middle >= 1 else "{:.2f}"
    spread = f"{form.format(min(seconds))}–{form.format(max(seconds))}" if len(seconds) > 1 else ""
    return Cell(form.format(middle), spread)
