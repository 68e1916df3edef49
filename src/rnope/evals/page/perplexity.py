"""Perplexity: by position within the context, and by context length."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator

from rnope.evals.page.runs import Part, Run, lengths, number
from rnope.evals.results import CellResult, Figure
from rnope.report import draw, words
from rnope.report.blocks import Block, Cell, Picture, Table, Text, table

TOKENIZERS = (
    "The models have different tokenizers: a token is not the same amount of text, so compare bits per byte and not "
    "perplexities."
)
QUARTER = "last quarter of the window"
LINES = (
    ("perplexity", "", "perplexity", 2),
    ("perplexity", QUARTER, "perplexity, last quarter", 2),
    ("nats", "", "nats per token", 3),
    ("bits_per_byte", "", "bits per byte of text", 4),
)
"""Figures by context length: name, place, what they are called here, and digits."""


def part(runs: Sequence[Run]) -> Part:
    """Both figures and the tables."""
    blocks: list[Block | None] = []
    if len({run.results.model.tokenizer_sha256 for run in runs}) > 1:
        blocks.append(Text(TOKENIZERS, "withheld"))
    drawn = {"perplexity-position": by_position(runs), "perplexity-length": by_length(runs)}
    figures = {name: data for name, data in drawn.items() if data is not None}
    if "perplexity-position" in figures:
        blocks.append(Picture(
            name="perplexity-position",
            alt="Perplexity against position in the context, a panel for each model and a line for each length",
            caption="Perplexity of the tokens at each place of the context: a line for each context length; bands are 95 % "
            "intervals over windows of text. Dashed: the sliding windows of the model's layers. Dotted: the longest length "
            "that the model says it was trained to.",
        ))  # fmt: skip
    if "perplexity-length" in figures:
        blocks.append(Picture(
            name="perplexity-length",
            alt="Perplexity against context length, a line for each model",
            caption="Perplexity of whole windows of text, by their length. Vertical lines: trained lengths.",
        ))  # fmt: skip
    blocks += [_lengths(runs), *(_positions(run) for run in runs)]
    return Part(blocks=[block for block in blocks if block is not None], figures=figures, headline=_headline(runs))


def _buckets(run: Run, length: int, name: str = "perplexity") -> list[Figure]:
    """By position in the context."""
    found = [f for f in run.results.summary if f.name == name and f.labels.get("context_tokens") == length]
    return sorted((f for f in found if "from" in f.labels), key=lambda figure: figure.labels["from"])


def _finite(figure: Figure) -> bool:
    """Whether it can be drawn: a perplexity may be beyond all numbers."""
    return all(end is None or math.isfinite(end) for end in (figure.low, figure.value, figure.high))


def _whole(run: Run, length: int, name: str = "perplexity", place: str = "") -> Figure | None:
    """Of whole windows of a length, or of their last quarter."""
    if place == QUARTER:
        return next((f for f in _buckets(run, length, name) if f.labels["to"] == length), None)
    found = [f for f in run.results.summary if f.name == name and f.labels.get("context_tokens") == length]
    return next((f for f in found if "from" not in f.labels), None)


def _headline(runs: Sequence[Run]) -> str:
    shared = [n for n in lengths(runs) if all(_whole(run, n) is not None for run in runs)]
    if not shared:
        return ""
    found = [(run.name, figure.value) for run in runs[:4] if (figure := _whole(run, shared[-1])) is not None]
    said = words.listed([f"{name} {value:.2f}" for name, value in found])
    return f"Perplexity over {words.tokens(shared[-1])} tokens: {said}{' (and others)' if len(runs) > 4 else ''}."


def _lengths(runs: Sequence[Run]) -> Table | None:
    columns = lengths(runs)
    rows: list[list[Cell]] = []
    for run in runs:
        for name, place, called, digits in LINES:
            cells = [number(_whole(run, n, name, place), digits) for n in columns]
            if any(cell.text for cell in cells):
                rows.append([run.cell, Cell(called), *cells])
    note = "With the 95 % interval over windows of text, and their number."
    shared = {n for run in runs for n, cell in _cells(run).items() if cell.facts.get("overlaps", 0) > 0}
    if shared:
        listed = words.listed([words.tokens(n) for n in sorted(shared)])
        note += f" At {listed} tokens some windows share text, so that the intervals are too narrow."
    return table("By context length", ["model", "what", *map(words.tokens, columns)], rows, note) if rows else None


def _cells(run: Run) -> dict[int, CellResult]:
    return {cell.context_tokens: cell for cell in run.results.cells}


def _positions(run: Run) -> Table | None:
    columns = [n for n in lengths([run]) if _buckets(run, n)]
    at = {(b.labels["from"], b.labels["to"], n): b for n in columns for b in _buckets(run, n)}
    spans = sorted({(begin, end) for begin, end, _ in at})
    rows = [
        [Cell(f"{words.tokens(begin)}–{words.tokens(end - 1)}"), *(number(at.get((begin, end, n)), 2) for n in columns)]
        for begin, end in spans
    ]
    if not rows:
        return None
    title = f"{run.name}: perplexity by position"
    return table(title, ["positions", *map(words.tokens, columns)], rows, "Columns: context length.", folded=True)


def _bounds(found: Sequence[Figure]) -> tuple[list[float], list[float]]:
    return [f.value if f.low is None else f.low for f in found], [f.value if f.high is None else f.high for f in found]


def by_position(runs: Sequence[Run]) -> bytes | None:
    """A panel for each model, a line for each length; darker is longer."""
    shown = [run for run in runs if any(_buckets(run, n) for n in lengths([run]))]
    if not shown:
        return None
    every = lengths(shown)
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    with draw.look():
        size = draw.WIDTH + 1.5 if across == 2 else 7.0
        figure, axes = draw.new(size, 3.2 * down + 0.5, down, across, sharex=True, sharey=True)
        for axis, run in zip(axes, shown, strict=False):
            for n in every:
                found = [bucket for bucket in _buckets(run, n) if _finite(bucket)]
                if found:
                    shade = _shade(every, n)
                    at, values = [(f.labels["from"] + 1 + f.labels["to"]) / 2 for f in found], [f.value for f in found]
                    axis.fill_between(at, *_bounds(found), color=shade, alpha=0.18, linewidth=0)
                    axis.plot(at, values, color=shade, marker="o", markersize=2.5, linewidth=1.5)
            _marks(axis, run, every[-1])
            axis.set_title(run.label)
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        ticks = [2**i for i in range(3, every[-1].bit_length(), 2)]
        for place, axis in enumerate(axes[: len(shown)]):
            draw.token_axis(axis, ticks)
            _log_axis(axis)
            lowest = place + across >= len(shown)
            axis.tick_params(labelbottom=lowest)
            axis.set_xlabel("position in the context, tokens" if lowest else "")
            axis.set_ylabel("perplexity" if place % across == 0 else "")
        keys = [draw.key(_shade(every, n)) for n in every]
        figure.legend(keys, [f"{words.short_tokens(n)} context" for n in every], loc="outside lower center", ncols=6)
        return draw.png(figure)


def by_length(runs: Sequence[Run]) -> bytes | None:
    """A line for each model."""
    ticks = lengths(runs)
    lines = {run.name: [(n, f) for n in ticks if (f := _whole(run, n)) is not None and _finite(f)] for run in runs}
    if max(map(len, lines.values())) < 2:
        return None  # a table says it
    with draw.look():
        figure, (axis,) = draw.new(draw.WIDTH, 3.8)
        for run in runs:
            found = lines[run.name]
            values = [f.value for _, f in found]
            low, high = _bounds([f for _, f in found])
            bars = [
                [v - end for v, end in zip(values, low, strict=True)],
                [end - v for v, end in zip(values, high, strict=True)],
            ]
            at = [n for n, _ in found]
            axis.errorbar(at, values, yerr=bars, color=run.colour, marker=run.marker, markersize=5, elinewidth=0.9)
            trained = run.results.model.trained_tokens
            if trained is not None and ticks[0] <= trained <= ticks[-1]:
                axis.axvline(trained, color=run.colour, linewidth=1, linestyle=(0, (1, 2)), zorder=0)
        draw.token_axis(axis, ticks)
        _log_axis(axis)
        axis.set_ylabel("perplexity")
        figure.legend([draw.key(run.colour, run.marker) for run in runs], [run.label for run in runs],
                      loc="outside lower center", ncols=min(3, len(runs)))  # fmt: skip
        return draw.png(figure)


def _shade(every: Sequence[int], length: int) -> Any:
    """Of a length: from light to dark along one scale."""
    return matplotlib.colormaps["viridis_r"](0.12 + 0.83 * every.index(length) / max(1, len(every) - 1))


def _marks(axis: Any, run: Run, longest: int) -> None:
    """The model's windows and trained length."""
    marks: list[tuple[int, str, str, Any]] = [
        (window, "window", "#777777", (0, (5, 3))) for window in run.results.model.windows
    ]
    if run.results.model.trained_tokens is not None:
        marks.append((run.results.model.trained_tokens, "trained", "#222222", (0, (1, 1.5))))
    for tokens, what, colour, dashes in marks:
        if tokens <= longest:
            axis.axvline(tokens, color=colour, linewidth=1.1, linestyle=dashes, zorder=0)
            axis.text(tokens, 1, f"{what} {words.short_tokens(tokens)} ", transform=axis.get_xaxis_transform(),
                      rotation=90, ha="right", va="top", fontsize=7.5, color=colour)  # fmt: skip


def _log_axis(axis: Any) -> None:
    """A log axis with some round ticks, however narrow its range."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    decades = [step * 10.0**power for power in range(-1, 12) for step in (1, 2, 5)]
    ticks = decades if high / low > 6 else MaxNLocator(6).tick_values(low, high)
    ticks = [tick for tick in ticks if low <= tick <= high]
    while len(ticks) > 8:
        ticks = ticks[::2]
    axis.set_yticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axis.minorticks_off()
