"""Layer by layer: how far back they look, and every measure by kind and by layer."""

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from rnope.analysis.page.entropy import entropies
from rnope.analysis.page.view import CALLED, KIND_COLOURS, Part, Seen, View, count, legend, number, shade, share
from rnope.analysis.results import ALL, Measures
from rnope.report import draw, words
from rnope.report.blocks import Block, Cell, Picture, Table, table

OTHERS = ["sink", "effective span, tokens", "retrieval score"]


def part(view: View) -> Part:
    """Effective span, then tables."""
    if not view.lengths:
        return Part(blocks=[])
    data = spans(view)
    blocks: list[Block] = []
    if data is not None:
        blocks.append(Picture(
            name="span-layers",
            alt="Effective span against layer, a panel for each model and a line for each length",
            caption="Tokens, counted back from the query, that hold 90 % of a row: the mean over heads, rows and samples, "
            "with the 95 % interval; a line for each context length. The colour of a point is the kind of its layer; dashed "
            "lines are windows.",
        ))  # fmt: skip
    blocks += [_by_kind(view), *(_by_layer(view, model) for model in view.models if model.lengths)]
    return Part(blocks=blocks, figures={} if data is None else {"span-layers": data})


def spans(view: View) -> bytes | None:
    """A panel for each model."""
    shown = [model for model in view.models if model.lengths]
    if not shown:
        return None
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    with draw.look():
        figure, axes = draw.new(draw.WIDTH + 1 if across == 2 else 7.0, 3.0 * down + 0.6, down, across, sharey=True)
        for place, (axis, model) in enumerate(zip(axes, shown, strict=False)):
            _lines(axis, view.lengths, model)
            axis.set_title(model.label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel("layer" if place + across >= len(shown) else "")
            axis.set_ylabel("effective span, tokens" if place % across == 0 else "")
        for axis in axes[len(shown) :]:
            axis.set_visible(False)
        axes[0].set_yscale("log", base=2)
        low, high = axes[0].get_ylim()
        powers = [i for i in range(40) if low <= 2**i <= high]
        axes[0].set_yticks([2**i for i in powers[:: 1 + len(powers) // 9]])
        axes[0].yaxis.set_major_formatter(lambda value, _: words.short_tokens(round(value)))
        axes[0].minorticks_off()
        keys = [*(draw.key(shade(view.lengths, n)) for n in view.lengths),
                *(draw.key(KIND_COLOURS[kind], "o", "none") for kind in view.kinds)]  # fmt: skip
        labels = [*(words.short_tokens(n) for n in view.lengths), *(CALLED[kind] for kind in view.kinds)]
        legend(figure, keys, labels)
        return draw.png(figure)


def _lines(axis: Any, every: Sequence[int], model: Seen) -> None:
    for length, found in model.lengths.items():
        own = [(layer, mean) for layer in found.layers if (mean := layer.measures.effective_span) is not None]
        at = [layer.index for layer, _ in own]
        colour = shade(every, length)
        axis.plot(at, [mean.value for _, mean in own], color=colour, linewidth=1.4, zorder=2)
        ends = [(mean.low, mean.high) for _, mean in own]
        axis.vlines(at, [max(1.0, low or mean.value) for (low, _), (_, mean) in zip(ends, own, strict=True)],
                    [high or mean.value for (_, high), (_, mean) in zip(ends, own, strict=True)],
                    color=colour, linewidth=0.9)  # fmt: skip
        axis.scatter(at, [mean.value for _, mean in own], color=[KIND_COLOURS[layer.kind] for layer, _ in own], s=16,
                     zorder=3)  # fmt: skip
    for window in model.windows_of():
        axis.axhline(window, color="#777777", linestyle=(0, (5, 3)), linewidth=1, zorder=0)


def _by_kind(view: View) -> Table:
    rows: list[list[Cell]] = []
    for length in view.lengths:
        for model in view.models:
            for kind in (ALL, *model.kinds) if len(model.kinds) > 1 else (ALL,):
                found = model.at(length, kind)
                if found is not None:
                    about = f"{words.tokens(length)} tokens, {CALLED[kind]}"
                    rows.append([model.cell(about), *_others(found.measures)])
    note = (
        "Below each mean half the width of its 95 % interval over samples. The retrieval score is a mean over all heads: "
        "those of the best are above."
    )
    return table("Sink, span and retrieval, by kind of layers", ["model, length, layers", *OTHERS], rows, note)


def _others(measures: Measures) -> list[Cell]:
    return [number(measures.sink, share), number(measures.effective_span, count), number(measures.retrieval, share)]


def _by_layer(view: View, model: Seen) -> Table:
    """Every measure of every layer at the longest length."""
    length, found = max(model.lengths.items())
    rows = [
        [
            Cell(f"{layer.index}", CALLED[layer.kind]),
            *(number(layer.measures.mass.get(name), share) for name in view.segments),
            *entropies(layer.measures),
            *_others(layer.measures),
        ]
        for layer in found.layers
    ]
    head = ["layer", *view.segments, "row entropy", "entropy of the mean", *OTHERS]
    return table(f"{model.name}: every layer at {words.tokens(length)} tokens", head, rows, folded=True)
