"""Attention mass over the four segments, ours beside the paper's (tables 3 and 8), as stacked bars."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnope.report import draw, paper, who, words
from rnope.report.gate import Gate, arms
from rnope.results import SEGMENTS, MassRow


def by_kind(gate: Gate) -> dict[tuple[str, str], dict[int, list[MassRow]]]:
    """(arm, layer kind) -> context length -> rows of the competent seeds, arms in their order."""
    order = arms(gate.results)
    found: dict[tuple[str, str], dict[int, list[MassRow]]] = {}
    for row in sorted(gate.attention(), key=lambda r: (order.index(r.arm), r.kind, r.context_tokens, r.seed)):
        found.setdefault((row.arm, row.kind), {}).setdefault(row.context_tokens, []).append(row)
    return found


def mean(rows: Sequence[MassRow], segment: str) -> float | None:
    """Mean mass over seeds; None where the window cannot reach the segment."""
    values = [value for row in rows if (value := row.mass.get(segment)) is not None]
    return sum(values) / len(values) if values else None


def attention(gate: Gate, key: str) -> bytes | None:
    """A row of bars per arm of the group `key` and layer kind: ours by length on the left, the paper's nearest model on
    the right.
    """
    names = who.group(gate.results, key)
    found = {own: lengths for own, lengths in by_kind(gate).items() if own[0] in names}
    if not found:
        return None
    trained = {m.arm: m.trained_tokens for m in gate.results.models}
    with draw.look():
        figure, axes = draw.new(draw.WIDTH, 1.15 * len(found) + 0.7, len(found), 2, width_ratios=(1.15, 1))
        for place, ((arm, kind), lengths) in enumerate(found.items()):
            ours, theirs = axes[2 * place], axes[2 * place + 1]
            labels = [f"{words.times(n / trained[arm])}  {words.short_tokens(n)}" for n in lengths]
            _bars(ours, labels, [{s: mean(rows, s) for s in SEGMENTS} for rows in lengths.values()])
            ours.set_title(f"{draw.visible(arm)}: {kind} layers", fontsize=9.5)
            name = who.nearest(gate.results, arm)
            known = [] if name is None else [(n, m) for n in paper.LENGTHS if (m := paper.masses(name, kind, n))]
            if known:
                _bars(theirs, [length for length, _ in known], [m for _, m in known])
                position = "NoPE" if kind.startswith("nope") else "RoPE"
                theirs.set_title(
                    f"paper: {name}{'' if name == position else f', {position} layers'}", fontsize=9.5, color="#555555"
                )
            else:
                theirs.set_axis_off()
                theirs.text(0.0, 0.5, "no such layers in the paper's tables", color="#777777", fontsize=8.5)
        for axis in axes[-2:]:
            axis.set_xlabel("share of attention mass")
        handles = [draw.patch(colour) for colour in draw.SEGMENTS.values()]
        segments = ["begin (first 10 tokens)", "needle", "context", "question and completion"]
        figure.legend(handles, segments, loc="outside upper center", ncols=4, fontsize=8.5)
        return draw.png(figure)


def _bars(axis: Any, labels: list[str], bars: Sequence[Mapping[str, float | None]]) -> None:
    for y, bar in enumerate(bars):
        left = 0.0
        for segment, colour in draw.SEGMENTS.items():
            width = bar.get(segment) or 0.0
            axis.barh(y, width, left=left, color=colour, height=0.72)
            if segment == "needle":
                text = "needle out of reach" if bar.get(segment) is None else f"needle {width:.3f}"
            left += width
        axis.text(1.02, y, text, va="center", fontsize=7.5, color="#8a3d00")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(max(3, len(labels)) - 0.5, -0.5)
    axis.set_xlim(0, 1.28)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "¼", "½", "¾", "1"], fontsize=8)
    axis.grid(False)
    axis.tick_params(axis="y", length=0)
