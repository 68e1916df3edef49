"""Layers by heads: heat maps of needle mass, retrieval and sink, and the heads that find the needle best."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from rnope.analysis.page.view import CALLED, KIND_COLOURS, Part, Seen, View, number, share
from rnope.analysis.results import KINDS, LayerResult, LengthResult
from rnope.report import draw, words
from rnope.report.blocks import Block, Cell, Picture, Table, Text, table

MAPS = {"retrieval": "retrieval score", "sink": "sink"}
BEST = 5
"""Heads of each model in the open table; the results file has ten."""


def part(view: View) -> Part:
    """A figure for each model and length, of which the page shows the longest; the best heads."""
    figures, blocks = {}, []
    top = _most(view)
    for model in view.models:
        for length, found in model.lengths.items():
            data = heat(view, model, found, top)
            if data is not None:
                figures[_name(model, length)] = data
        if model.lengths and _name(model, longest := max(model.lengths)) in figures:
            blocks.append(_picture(model, longest))
    others = [n for model in view.models for n in list(model.lengths)[:-1]]
    best = [_best(view, longest=True), _best(view, longest=False)]
    shown: list[Block | None] = [
        Text(_what(view) + (" Heat maps of shorter lengths are in the folder figures." if others else "")),
        *blocks, *best,
    ]  # fmt: skip
    return Part(blocks=[block for block in shown if block is not None] if figures else [], figures=figures)


def _what(view: View) -> str:
    focus = (
        "" if view.focus is None else f"mass of segment {view.focus} (its colours are the same scale for all models), "
    )
    return (
        f"One square for each head: {focus}how often its top key is the token that is to be copied (retrieval score), and "
        "what the first token and learned sinks get (sink). Grey: out of reach, or nothing to measure. The strip on the left "
        "is the kind of the layer."
    )


def _name(model: Seen, length: int) -> str:
    return f"heads-{model.slug}-{length}"


def _picture(model: Seen, length: int) -> Picture:
    return Picture(
        name=_name(model, length),
        alt=f"Heat maps of layers by heads of {model.name} at {words.tokens(length)} tokens",
        caption=f"{model.name} at {words.tokens(length)} tokens: layers down, heads across; mean over samples and rows.",
    )


def _most(view: View) -> float:
    """The most that any head of any model gives to the segment that figures are about."""
    values = [
        value
        for found in view.results.lengths
        for layer in found.layers
        for value in layer.heads.get(f"mass.{view.focus}", ())
        if value is not None
    ]
    return max(values, default=0.0) or 1.0


def heat(view: View, model: Seen, found: LengthResult, top: float) -> bytes | None:
    """The maps of one model and length that have anything in them, side by side."""
    names = {f"mass.{view.focus}": f"mass of {view.focus}"} | MAPS
    maps = {name: grid for name in names if (grid := _grid(found.layers, name)) is not None}
    if not maps:
        return None
    across = max(len(line) for grid in maps.values() for line in grid)
    height = 1.45 + min(9.0, max(1.2, 0.13 * len(found.layers)))
    with draw.look():
        width = (5.0, 8.0, 10.5)[len(maps) - 1]
        # Laid out by hand: to find room by measuring every label takes longer than to draw the maps.
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(0.65 / width, 0.8 / height, 1 - 0.1 / width, 1 - 0.65 / height, wspace=0.2)
        axes = figure.subplots(1, len(maps), squeeze=False)[0]
        for place, (axis, (name, grid)) in enumerate(zip(axes, maps.items(), strict=True)):
            most = 1.0 if name in MAPS else top
            norm = PowerNorm(0.5, 0, most)  # most heads give little: the low end is spread out
            image = axis.imshow(grid, cmap="magma_r", norm=norm, aspect="auto", interpolation="nearest")
            bar = figure.colorbar(image, ax=axis, aspect=30, pad=0.03)
            bar.set_ticks([most * part for part in (0, 0.0625, 0.25, 1)])
            bar.set_ticklabels([f"{most * part:.2g}" for part in (0, 0.0625, 0.25, 1)], fontsize=8)
            bar.minorticks_off()
            axis.set_facecolor("#d4d4d4")
            axis.grid(False)
            axis.set_title(names[name])
            _strip(axis, found.layers, across)
            axis.set_xlabel("head")
            if place == 0:
                axis.set_ylabel("layer", labelpad=26)
        kinds = [kind for kind in KINDS if any(layer.kind == kind for layer in found.layers)]
        figure.legend([draw.patch(KIND_COLOURS[kind]) for kind in kinds], [CALLED[kind] for kind in kinds],
                      loc="lower left", ncols=len(kinds))  # fmt: skip
        figure.suptitle(f"{model.label}, {words.tokens(found.context_tokens)} tokens", x=0.01, y=1 - 0.08 / height,
                        ha="left", va="top", fontsize=11)  # fmt: skip
        return draw.png(figure)


def _grid(layers: Sequence[LayerResult], name: str) -> list[list[float]] | None:
    """[layer][head], NaN where there is nothing; None if that is everywhere."""
    lines = [list(layer.heads.get(name, ())) for layer in layers]
    across = max(map(len, lines), default=0)
    grid = [[math.nan if v is None else v for v in line] + [math.nan] * (across - len(line)) for line in lines]
    return grid if any(value == value for line in grid for value in line) else None


def _strip(axis: Any, layers: Sequence[LayerResult], across: int) -> None:
    """Layer numbers, and a strip of the layers' kinds between them and the map."""
    strip = axis.inset_axes((-0.045, 0, 0.03, 1), sharey=axis)
    codes = [[KINDS.index(layer.kind)] for layer in layers]
    strip.imshow(codes, cmap=ListedColormap([KIND_COLOURS[kind] for kind in KINDS]), vmin=-0.5, vmax=len(KINDS) - 0.5,
                 aspect="auto", interpolation="nearest")  # fmt: skip
    strip.set_xticks([])
    strip.grid(False)
    for side in strip.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0, labelsize=8, labelleft=False)
    strip.tick_params(length=0, labelsize=8, labelleft=True)
    few, some = -(-len(layers) // 24), -(-across // 12)  # every so many are named
    strip.set_yticks(range(0, len(layers), few), [str(layer.index) for layer in layers[::few]])
    axis.set_xticks(range(0, across, some))


def _best(view: View, *, longest: bool) -> Table | None:
    """The heads with the highest retrieval scores."""
    rows: list[list[Cell | str]] = []
    for model in view.models:
        lengths = sorted(model.lengths)
        for length in lengths[-1:] if longest else lengths[:-1]:
            for head in model.lengths[length].retrieval_heads[: BEST if longest else None]:
                rows.append([
                    model.cell(f"{words.tokens(length)} tokens"),
                    f"{head.layer}.{head.head}",
                    CALLED[head.kind],
                    number(head.score, share),
                    "" if head.needle_mass is None else share(head.needle_mass),
                ])  # fmt: skip
    head_row = ["model", "layer.head", "layers", "retrieval score", "needle mass"]
    title = (
        "The best retrieval heads, at the longest length" if longest else "The best retrieval heads at other lengths"
    )
    return table(title, head_row, rows, folded=not longest) if rows else None
