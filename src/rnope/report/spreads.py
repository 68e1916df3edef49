"""Attention over positions (the paper's figure 3), the width of the moving average printed."""

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter

from rnope.report import draw, who, words
from rnope.report.gate import Gate
from rnope.results import SpreadRow

_KINDS = {"nope": "#444444", "rope": "#D55E00", "rope-window": "#0072B2"}
Line = tuple[str, list[SpreadRow]]
"""Colour and rows: one, since the file keeps an arm's first seed alone."""


def pair(gate: Gate) -> bytes | None:
    """The arms that stand for RoPE and QK-Norm, as the paper has it: a panel per length, and the same in logarithms."""
    found = who.stands_for(gate.results)
    arms = [arm for name in ("RoPE", "QK-Norm") if (arm := found.get(name))]
    rows = [row for row in gate.spreads() if row.arm in arms]
    lengths = sorted({row.context_tokens for row in rows})
    if not rows:
        return None
    style = draw.styles(arms)
    with draw.look():
        figure, axes = draw.new(draw.WIDTH, 4.6, 2, len(lengths))
        for place, axis in enumerate(axes):
            n = lengths[place % len(lengths)]
            own = [(style[arm][0], _of(rows, arm, n)) for arm in arms]
            _panel(axis, own, logarithmic=place >= len(lengths))
            if place < len(lengths):
                axis.set_title(_title(n, rows), fontsize=9)
            else:
                axis.set_xlabel("position, tokens")
        axes[0].set_ylabel("attention")
        axes[len(lengths)].set_ylabel("attention, logarithmic")
        handles = [draw.key(style[arm][0]) for arm in arms]
        figure.legend(handles, [draw.visible(arm) for arm in arms], loc="outside upper center", ncols=2)
        return draw.png(figure)


def kinds(gate: Gate) -> bytes | None:
    """A row of panels per arm that stands for a model of the paper and has several kinds of layers: one line per kind."""
    rows = gate.spreads()
    of = {arm: sorted({row.kind for row in rows if row.arm == arm}) for arm in who.stands_for(gate.results).values()}
    arms = [arm for arm, found in of.items() if len(found) > 1]
    lengths = sorted({row.context_tokens for row in rows if row.arm in arms})
    if not arms:
        return None
    with draw.look():
        figure, axes = draw.new(draw.WIDTH, 1.75 * len(arms) + 0.8, len(arms), len(lengths))
        for place, axis in enumerate(axes):
            arm, n = arms[place // len(lengths)], lengths[place % len(lengths)]
            own = [r for r in rows if r.arm == arm and r.context_tokens == n]
            lines = [(_KINDS.get(k, "#999933"), [r for r in own if r.kind == k]) for k in of[arm]]
            _panel(axis, lines, logarithmic=True)
            if place < len(lengths):
                axis.set_title(_title(n, rows), fontsize=9)
            if place % len(lengths) == 0:
                axis.set_ylabel(draw.visible(arm), fontsize=8)
            if place >= len(axes) - len(lengths):
                axis.set_xlabel("position, tokens")
        named = sorted({kind for arm in arms for kind in of[arm]})
        handles = [draw.key(_KINDS.get(kind, "#999933")) for kind in named]
        figure.legend(handles, [f"{kind} layers" for kind in named], loc="outside upper center", ncols=len(named))
        return draw.png(figure)


def _of(rows: Iterable[SpreadRow], arm: str, length: int) -> list[SpreadRow]:
    return [row for row in rows if row.arm == arm and row.context_tokens == length]


def _title(length: int, rows: Sequence[SpreadRow]) -> str:
    widths = sorted({row.smoothed_tokens for row in rows if row.context_tokens == length})
    said = words.listed([words.tokens(n) for n in widths])
    return f"{words.tokens(length)} tokens; average of {said}"


def _panel(axis: Any, lines: Sequence[Line], *, logarithmic: bool) -> None:
    for colour, rows in lines:
        for row in rows:
            axis.plot(row.positions, _shown(row.values, logarithmic), color=colour, linewidth=1.5)
    if logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=7.5)
    axis.locator_params(axis="x", nbins=4)


def _shown(values: Sequence[float], logarithmic: bool) -> list[float]:
    """A logarithm has no place for what a window cannot reach."""
    return [value if value > 0 or not logarithmic else float("nan") for value in values]
