"""Attention over positions in the form of the paper's figure 3 (appendix B): smoothed, models over one another."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnope.analysis.page.view import CALLED, Part, Seen, View, legend, log_axis
from rnope.analysis.results import ALL, Spread
from rnope.report import draw, words
from rnope.report.blocks import Block, Picture, Text

FLOOR = 1e-3
"""Times 1 / length: the least that is drawn. At the edge of a window, attention falls to nothing within a few tokens."""
Found = Mapping[tuple[int, str], Sequence[tuple[Seen, Spread]]]
"""By length and kind."""
WHAT = (
    "What a token at each place gets: the mean over samples, layers, heads and the rows of question and completion. As in "
    "the paper (appendix B) the first 10 tokens and the last 3 % are left out, since sink and recency would hide the rest, "
    "and of what is left a moving average is drawn, over as many tokens as its axis says. The vertical axis is logarithmic."
)


def part(view: View) -> Part:
    """All layers together, then by kind."""
    drawn = {"distribution": draw_spreads(view, (ALL,))}
    if view.mixed:
        drawn["distribution-kinds"] = draw_spreads(view, view.kinds)
    figures = {name: data for name, data in drawn.items() if data is not None}
    pictures: list[Block] = [Picture(
        name=name,
        alt="Smoothed attention against position in the text: lengths down, a line for each model",
        caption=_CAPTIONS[name],
    ) for name in figures]  # fmt: skip
    return Part(blocks=[Text(WHAT), *pictures] if pictures else [], figures=figures)


_CAPTIONS = {
    "distribution": "All layers together (the paper's figure 3). Vertical lines: where the needle and other named segments "
    "stand, the mean over samples. Dotted: what every token would get if all got the same.",
    "distribution-kinds": "The same by kind of layers. A windowed layer gives nothing to what is further back than its "
    "window, and its line begins there.",
}


def draw_spreads(view: View, kinds: Sequence[str]) -> bytes | None:
    """Lengths down, kinds across."""
    found: Found = {
        (length, kind): [(model, spread) for model in view.models if (spread := _spread(model, length, kind))]
        for length in view.lengths
        for kind in kinds
    }
    lengths = [length for length in view.lengths if any(found[length, kind] for kind in kinds)]
    if not lengths:
        return None
    with draw.look():
        width = draw.WIDTH if len(kinds) == 1 else 10.5
        figure, axes = draw.new(width, 2.5 * len(lengths) + 0.6, len(lengths), len(kinds), sharey="row")
        for row, length in enumerate(lengths):
            for column, kind in enumerate(kinds):
                axis = axes[row * len(kinds) + column]
                _panel(axis, length, kind, found[length, kind])
                axis.set_ylabel(_smoothing(found, length) if column == 0 else "")
                axis.set_xlabel("position in the text, tokens" if row == len(lengths) - 1 else "")
            values = [v for kind in kinds for _, spread in found[length, kind] for v in spread.values if v > 0]
            first = axes[row * len(kinds)]  # its vertical axis is that of the others, too
            first.set_yscale("log")
            first.set_ylim(0.8 * max(FLOOR / length, min(values)), 1.4 * max(values))
            log_axis(first)
        keys = [*(draw.key(model.colour) for model in view.models), draw.key(draw.GUESS, dashes=":", width=1)]
        labels = [*(model.label for model in view.models), "1 / length"]
        legend(figure, keys, labels)
        return draw.png(figure)


def _smoothing(found: Found, length: int) -> str:
    """What stands at the vertical axis of a length."""
    widths = sorted({spread.smoothed_tokens for (n, _), own in found.items() if n == length for _, spread in own})
    return f"attention of a token\nmoving average of {words.listed([f'{n:,}' for n in widths], 'or')}"


def _spread(model: Seen, length: int, kind: str) -> Spread | None:
    found = model.at(length, kind)
    return found.spread if found is not None and any(found.spread.values) else None


def _panel(axis: Any, length: int, kind: str, found: Sequence[tuple[Seen, Spread]]) -> None:
    axis.set_title(f"{words.short_tokens(length)}, {CALLED[kind]}")
    axis.set_xlim(0, length)
    axis.xaxis.set_major_formatter(lambda value, _: words.short_tokens(round(value)))
    axis.set_xticks([length * i // 4 for i in range(5)])
    axis.tick_params(labelsize=8)
    if not found:
        axis.text(0.5, 0.5, "its window is in\nwhat is left out", transform=axis.transAxes, ha="center", va="center",
                  fontsize=8.5, color="#777777")  # fmt: skip
        return
    axis.axhline(1 / length, color=draw.GUESS, linestyle=":", linewidth=1)
    for model, spread in found:
        # What no row reaches is no attention at all, which a logarithmic axis has no place for.
        values = [value if value > 0 else float("nan") for value in spread.values]
        axis.plot(spread.positions, values, color=model.colour, linewidth=1.1, alpha=0.9)
    _mark(axis, length, [model for model, _ in found])


def _mark(axis: Any, length: int, models: Sequence[Seen]) -> None:
    """Named segments, but for the two that the figure leaves out; those of all models in one place have one mark."""
    places: dict[str, list[float]] = {}
    for model in models:
        for name, (begin, end) in model.lengths[length].spans.items():
            if name not in ("begin", "qc"):
                places.setdefault(name, []).append((begin + end) / 2)
    for place, (name, middles) in enumerate(places.items()):
        groups: list[float] = []
        for middle in sorted(middles):
            if not groups or middle - groups[-1] > length / 200:
                groups.append(middle)
        for middle in groups:
            axis.axvline(middle, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axis.text(groups[0], 0.97 - 0.1 * (place % 3), f" {name}", transform=axis.get_xaxis_transform(), fontsize=8,
                  va="top", color="#222222")  # fmt: skip
