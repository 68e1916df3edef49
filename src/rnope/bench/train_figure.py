"""The figure of training: tokens a second, what the hybrid gains beside the paper's points, and peak memory."""

from collections.abc import Callable, Iterator
from typing import Any

from matplotlib.ticker import FuncFormatter

from rnope.bench.axes import COLOURS, DASHES, FAINT, NAMES, Curve, byte_axis, legend, our_layouts, ticks, token_axis
from rnope.bench.lines import Data, measured, rate, took
from rnope.report import draw as style

PAPER = {65_536: 1.5, 131_072: 2.0}
"""Context tokens -> tokens a second over those of full attention: "about 50 %" and "nearly 2×" (section 5.3, 8B)."""


def draw(data: Data, rows: list[Data]) -> bytes:
    """PNG bytes; `rows` are those of one setting, shortest first."""
    with style.look():
        figure, (speed, gain, memory) = style.new(13.5, 5.0, 1, 3)
        _speed(speed, data, rows)
        _gain(gain, data)
        _memory(memory, rows)
        return style.png(figure)


def _curves(rows: list[Data], value: Callable[[Data, Data], float]) -> Iterator[tuple[Data, Curve]]:
    """Every contestant but limits, one that stands for its rows, with the `value` of each row: ours last."""
    found: dict[str, tuple[Data, Curve]] = {}
    for row in rows:
        for name, each in measured(row).items():
            if each["who"] != "limit":
                found.setdefault(name, (each, {}))[1][row["tokens"]] = value(row, each)
    yield from sorted(found.values(), key=lambda pair: pair[0]["who"] == "ours")


def _plot(axis: Any, rows: list[Data], value: Callable[[Data, Data], float]) -> None:
    faint, ways = iter(DASHES * 2), iter(DASHES[1:] * 2)
    for each, curve in _curves(rows, value):
        label = " ".join(x for x in (each["who"], each["how"], NAMES[each["layout"]]) if x)
        if each["who"] == "ours":
            colour, marker = COLOURS[each["layout"]]
            dashes = next(ways) if each["how"] else "-"
            axis.plot(list(curve), list(curve.values()), color=colour, marker=marker, linewidth=2.4, linestyle=dashes,
                      label=label)  # fmt: skip
        else:
            axis.plot(list(curve), list(curve.values()), color=FAINT.get(each["who"], "#9a9a9a"), marker=".",
                      linewidth=1.1, linestyle=next(faint), label=label)  # fmt: skip
    token_axis(axis, [row["tokens"] for row in rows])


def _speed(axis: Any, data: Data, rows: list[Data]) -> None:
    _plot(axis, rows, lambda row, each: row["tokens"] / took(each))
    for layout in NAMES:
        limits = {
            row["tokens"]: row["tokens"] * limit / own["flops"]
            for row in rows
            if (limit := rate(row)) is not None and (own := our_layouts(row).get(layout)) is not None
        }
        axis.plot(list(limits), list(limits.values()), color=COLOURS[layout][0], linewidth=1.1, linestyle=":",
                  label=f"limit by FLOPs, {NAMES[layout]}")  # fmt: skip
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.minorticks_off()
    ticks(axis)
    row, model = rows[0], data["model"]
    where = data["machine"].get("gpu") or f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    axis.set_title(f"tokens a second ({model['size']}, {model['layers']} layers, {row['dtype']}, {where})")
    legend(axis)


def _gain(axis: Any, data: Data) -> None:
    """The hybrid's tokens a second over full attention's, in every setting."""
    curves: dict[tuple[int, str], Curve] = {}
    ideal: Curve = {}
    for row in sorted(data["rows"], key=lambda row: row["tokens"]):
        both = our_layouts(row)
        if len(both) == 2:
            curves.setdefault((row["threads"], row["dtype"]), {})[row["tokens"]] = took(both["full"]) / took(
                both["hybrid"]
            )
            ideal[row["tokens"]] = both["full"]["flops"] / both["hybrid"]["flops"]
    colour, marker = COLOURS["hybrid"]
    for ((threads, dtype), curve), dashes in zip(curves.items(), DASHES * len(curves), strict=False):
        axis.plot(list(curve), list(curve.values()), color=colour, marker=marker, linewidth=2.2, linestyle=dashes,
                  label=f"measured, {dtype}, {threads} thread{'s' * (threads > 1)}")  # fmt: skip
    axis.plot(list(ideal), list(ideal.values()), color=colour, linewidth=1.1, linestyle=":", label="by FLOPs")
    axis.plot(list(PAPER), list(PAPER.values()), color="#222222", marker="*", markersize=11, linestyle="none",
              label="the paper (8B)")  # fmt: skip
    axis.axhline(1, color=style.BAR, linestyle="--", linewidth=1)
    token_axis(axis, [*ideal, *PAPER])
    axis.set_ylim(bottom=0)
    axis.set_ylabel("times full attention's tokens a second")
    axis.set_title("what the hybrid gains")
    legend(axis)


def _memory(axis: Any, rows: list[Data]) -> None:
    _plot(axis, rows, lambda _, each: float(each["facts"]["memory"]["peak_bytes"]))
    byte_axis(axis)
    axis.set_title("peak memory of a step")
    legend(axis)
