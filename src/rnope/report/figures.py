"""The figures of the report: which there are, and those of scores and costs. Only drawing: the gate picks the rows."""

from collections.abc import Callable
from typing import Any

from matplotlib.ticker import FuncFormatter

from rnope import units
from rnope.report import curves, draw, masses, words
from rnope.report.gate import THRESHOLD, Gate, arms, pooled
from rnope.results import NeedleRow

FEW_ARMS = 6
"""Up to so many, legends have room for words."""


def draw_all(gate: Gate) -> dict[str, bytes]:
    """Name -> PNG bytes, for every figure that has something to show."""
    drawn = {name: function(gate) for name, function in FIGURES.items()}
    return {name: data for name, data in drawn.items() if data is not None}


def unit(gate: Gate) -> int:
    """The length that 1× of a shared axis means: the shortest that any model was trained to."""
    return min((model.trained_tokens for model in gate.results.models), default=1)


def _score(gate: Gate) -> bytes | None:
    """Score against length: every competent seed thin, their mean thick, Wilson bars, guess level."""
    rows = gate.needles()
    if not rows:
        return None
    lengths = sorted({row.context_tokens for row in rows})
    style = draw.styles(arms(gate.results))
    shown = [arm for arm in arms(gate.results) if any(row.arm == arm for row in rows)]
    handles, labels = [], []
    with draw.look():
        figure, (axis,) = draw.new(draw.WIDTH, 4.9)
        for place, arm in enumerate(shown):
            colour, marker = style[arm]
            shift = 2 ** (min(0.1, 0.36 / len(shown)) * (place - (len(shown) - 1) / 2))
            for seed in gate.seeds(arm):
                own = sorted((r for r in rows if (r.arm, r.seed) == (arm, seed)), key=lambda r: r.context_tokens)
                _line(axis, own, colour, marker, shift)
            means = _means([row for row in rows if row.arm == arm])
            axis.plot([n * shift for n in means], list(means.values()), color=colour, linewidth=2.8, alpha=0.9)
            handles.append(draw.key(colour, marker))
            counts = f" ({gate.learned(arm)})" if len(shown) <= FEW_ARMS else ""  # the page's list of arms has them
            labels.append(f"{draw.visible(arm)}{counts}")
        guess = _guess(rows)
        axis.plot(list(guess), list(guess.values()), color=draw.GUESS, linestyle="--", linewidth=1.2)
        axis.axhline(THRESHOLD, color=draw.BAR, linewidth=0.9, linestyle=":")
        handles += [draw.key(draw.GUESS, dashes="--", width=1.2), draw.key(draw.BAR, dashes=":", width=0.9)]
        labels += ["guess: any value of the context", f"{THRESHOLD}: competent"]
        draw.token_axis(axis, lengths)
        axis.set_ylim(0, 10.35)
        axis.set_yticks(range(0, 11, 2))
        axis.set_ylabel("needles found, score of 10")
        one = unit(gate)
        for other in sorted({m.trained_tokens for m in gate.results.models if gate.open(m.arm, m.seed)} | {one}):
            axis.axvline(other, color="#c8c8c8", linewidth=5, alpha=0.45, zorder=0)
        top = axis.secondary_xaxis("top")
        top.set_xscale("log", base=2)
        top.set_xticks(lengths, [words.times(n / one) for n in lengths])
        top.minorticks_off()
        top.set_xlabel(f"multiples of {words.tokens(one)} tokens")
        top.spines["top"].set_visible(False)
        figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(labels) > 4 else 2)
        return draw.png(figure)


def _line(axis: Any, rows: list[NeedleRow], colour: str, marker: str, shift: float) -> None:
    at, scores = [row.context_tokens * shift for row in rows], [row.score for row in rows]
    bars = [[max(0.0, r.score - r.low) for r in rows], [max(0.0, r.high - r.score) for r in rows]]
    axis.errorbar(
        at, scores, yerr=bars, color=colour, marker=marker, markersize=3.8, linewidth=0.9, elinewidth=0.8, alpha=0.75
    )


def _means(rows: list[NeedleRow]) -> dict[int, float]:
    """Context length -> mean over seeds, where every seed of `rows` has that length."""
    seeds = {row.seed for row in rows}
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.context_tokens, []).append(row.score)
    return {n: sum(scores) / len(scores) for n, scores in sorted(found.items()) if len(scores) == len(seeds)}


def _guess(rows: tuple[NeedleRow, ...]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.context_tokens, []).append(row.guess)
    return {n: sum(values) / len(values) for n, values in sorted(found.items())}


def _heat(gate: Gate) -> bytes | None:
    """Depth against length, one map per competent arm, its competent seeds together."""
    rows = gate.needles()
    maps = {arm: pooled(row for row in rows if row.arm == arm) for arm in arms(gate.results)}
    maps = {arm: cells for arm, cells in maps.items() if cells}
    if not maps:
        return None
    lengths = sorted({length for cells in maps.values() for length, _ in cells})
    depths = sorted({depth for cells in maps.values() for _, depth in cells})
    across = 1 if len(maps) == 1 else 2
    down = -(-len(maps) // across)
    height = down * (0.95 + 0.2 * min(len(depths), 16)) + 0.4
    with draw.look():
        figure, axes = draw.new(10.5 if across == 2 else 6.5, height, down, across)
        image = None
        for axis, (arm, cells) in zip(axes, maps.items(), strict=False):
            grid = [
                [10 * c.hits / c.n if (c := cells.get((n, d))) and c.n else float("nan") for n in lengths]
                for d in depths
            ]
            one = next(m.trained_tokens for m in gate.results.models if m.arm == arm)
            image = draw.heat_map(axis, grid, lengths, [100 * depth for depth in depths], one)
            axis.set_title(f"{draw.visible(arm)} ({_seeds(gate.seeds(arm))}; 1× = {words.tokens(one)})", fontsize=9)
        for axis in axes[len(maps) :]:
            axis.set_visible(False)
        figure.colorbar(image, ax=axes, label="score of 10", shrink=min(0.85, 2 / down), aspect=40, pad=0.01)
        return draw.png(figure)


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {words.listed([str(seed) for seed in seeds])}"


def _alike(names: list[str]) -> str:
    """Arms that share a line: all by name while there is room for it."""
    return " = ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} others"


def _cost(gate: Gate) -> bytes | None:
    """Cache bytes and prefill FLOPs against context length; arms that cost the same share a line."""
    panels = []
    for name in ("cache_bytes", "prefill_flops"):
        lines: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for arm in arms(gate.results):
            model = next((m for m in gate.results.models if m.arm == arm), None)
            if model is not None and getattr(model, name):
                curve = tuple(sorted((int(length), value) for length, value in getattr(model, name).items()))
                lines.setdefault(curve, []).append(arm)
        panels.append(lines)
    if not any(panels):
        return None
    style = draw.styles(arms(gate.results))
    titles = (
        ("keys and values held per sequence", "bytes, 2 a value", 2, units.size),
        ("one prefill", "floating-point operations", 10, units.flops),
    )
    with draw.look():
        figure, axes = draw.new(draw.WIDTH, 3.8, 1, 2)
        for axis, lines, (title, label, base, text) in zip(axes, panels, titles, strict=True):
            for curve, names in lines.items():
                colour, marker = style[names[0]]
                axis.plot(
                    [length for length, _ in curve], [value for _, value in curve],
                    color=colour, marker=marker, markersize=4, linewidth=1.8, label=draw.visible(_alike(names)),
                )  # fmt: skip
            lengths = sorted({length for curve in lines for length, _ in curve})
            draw.token_axis(axis, lengths[:: 1 + len(lengths) // 12])
            axis.set_yscale("log", base=base)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text(round(value))))
            axis.tick_params(labelsize=8)
            axis.set_ylabel(label)
            axis.set_title(title)
            axis.legend(fontsize=8)
        return draw.png(figure)


FIGURES: dict[str, Callable[[Gate], bytes | None]] = {
    "score": _score,
    "heat": _heat,
    "learning": lambda gate: curves.learning(gate, failed_only=False),
    "not-learned": lambda gate: curves.learning(gate, failed_only=True),
    "attention": masses.attention,
    "cost": _cost,
}
