"""The figures of the report: which there are, and those of scores. Only drawing: the gate picks the rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

from rnope.report import balance, curves, draw, losses, masses, spreads, who, words
from rnope.report.gate import THRESHOLD, Gate, arms, pooled
from rnope.results import NeedleRow


def draw_all(gate: Gate) -> dict[str, bytes]:
    """Name -> PNG bytes, for every figure that has something to show."""
    drawn = {name: function(gate) for name, function in FIGURES.items()}
    return {name: data for name, data in drawn.items() if data is not None}


def unit(gate: Gate) -> int:
    """The length that 1× of a shared axis means: the shortest that any model was trained to."""
    return min((model.trained_tokens for model in gate.results.models), default=1)


def _score(gate: Gate) -> bytes | None:
    """Score against length, a panel per group: every competent seed thin, their mean thick, guess level."""
    rows = gate.needles()
    if not rows:
        return None
    lengths = sorted({row.context_tokens for row in rows})
    panels = [(g, [arm for arm in g.arms if gate.seeds(arm)]) for g in who.groups(gate.results)]
    panels = [(g, shown) for g, shown in panels if shown]
    with draw.look():
        figure, axes = draw.new(draw.WIDTH, 4.9 if len(panels) == 1 else 4.0 * len(panels), len(panels), 1)
        for place, (axis, (group, shown)) in enumerate(zip(axes, panels, strict=True)):
            handles, labels = _score_panel(axis, gate, [row for row in rows if row.arm in shown], shown)
            draw.token_axis(axis, lengths)
            axis.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.18)
            if len(panels) == 1:
                figure.legend(handles, labels, loc="outside lower center", ncols=3 if len(labels) > 4 else 2)
            else:
                axis.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title=group.title,
                            title_fontsize=8)  # fmt: skip
            if place:
                continue
            one = unit(gate)
            top = axis.secondary_xaxis("top")
            top.set_xscale("log", base=2)
            top.set_xticks(lengths, [words.times(n / one) for n in lengths])
            top.minorticks_off()
            top.set_xlabel(f"multiples of {words.tokens(one)} tokens")
            top.spines["top"].set_visible(False)
        return draw.png(figure)


def _score_panel(axis: Any, gate: Gate, rows: list[NeedleRow], shown: list[str]) -> tuple[list[Any], list[str]]:
    """Handles and labels of its legend."""
    style = who.styles(gate.results)
    handles, labels = [], []
    few = len(shown) <= who.FEW
    for place, arm in enumerate(shown):
        colour, marker = style[arm]
        shift = 2 ** (min(0.1, 0.36 / len(shown)) * (place - (len(shown) - 1) / 2))
        for seed in gate.seeds(arm):
            own = sorted((r for r in rows if (r.arm, r.seed) == (arm, seed)), key=lambda r: r.context_tokens)
            _line(axis, own, colour, marker, shift, bars=few or len(gate.seeds(arm)) == 1)
        means = _means([row for row in rows if row.arm == arm])
        axis.plot(
            [n * shift for n in means], list(means.values()), color=colour, linewidth=2.8 if few else 2, alpha=0.9
        )
        handles.append(draw.key(colour, marker))
        counts = f" ({gate.learned(arm)})" if few and len(arms(gate.results)) <= who.FEW else ""
        labels.append(f"{draw.visible(arm)}{counts}")
    guess = _guess(rows)
    axis.plot(list(guess), list(guess.values()), color=draw.GUESS, linestyle="--", linewidth=1.2)
    axis.axhline(THRESHOLD, color=draw.BAR, linewidth=0.9, linestyle=":")
    for other in sorted({gate.trained[row.arm, row.seed] for row in rows} | {unit(gate)}):
        axis.axvline(other, color="#c8c8c8", linewidth=5, alpha=0.45, zorder=0)
    axis.set_ylim(0, 10.35)
    axis.set_yticks(range(0, 11, 2))
    axis.set_ylabel("needles found, score of 10")
    handles += [draw.key(draw.GUESS, dashes="--", width=1.2), draw.key(draw.BAR, dashes=":", width=0.9)]
    return handles, [*labels, "guess: any value of the context", f"{THRESHOLD}: competent"]


def _line(axis: Any, rows: list[NeedleRow], colour: str, marker: str, shift: float, *, bars: bool) -> None:
    at, scores = [row.context_tokens * shift for row in rows], [row.score for row in rows]
    wilson = [[max(0.0, r.score - r.low) for r in rows], [max(0.0, r.high - r.score) for r in rows]]
    axis.errorbar(
        at,
        scores,
        yerr=wilson if bars else None,
        color=colour,
        marker=marker,
        markersize=3.8,
        linewidth=0.9,
        elinewidth=0.8,
        alpha=0.75,
    )


def _means(rows: list[NeedleRow]) -> dict[int, float]:
    """Context length -> mean over seeds, where every seed of `rows` has that length."""
    seeds = {row.seed for row in rows}
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.context_tokens, []).append(row.score)
    return {n: sum(scores) / len(scores) for n, scores in sorted(found.items()) if len(scores) == len(seeds)}


def _guess(rows: list[NeedleRow]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(row.context_tokens, []).append(row.guess)
    return {n: sum(values) / len(values) for n, values in sorted(found.items())}


def _heat(gate: Gate, key: str = "") -> bytes | None:
    """Depth against length, one map per competent arm of the group `key`, its competent seeds together."""
    rows = gate.needles()
    maps = {arm: pooled(row for row in rows if row.arm == arm) for arm in who.group(gate.results, key)}
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


FIGURES: dict[str, Callable[[Gate], bytes | None]] = {
    "score": _score,
    **{who.named("heat", key): partial(_heat, key=key) for key in who.KEYS},
    **{who.named("learning", key): partial(curves.learning, key=key, failed_only=False) for key in who.KEYS},
    "not-learned": lambda gate: curves.learning(gate, key=None, failed_only=True),
    **{who.named("attention", key): partial(masses.attention, key=key) for key in who.KEYS},
    "spread": spreads.pair,
    "spread-kinds": spreads.kinds,
    "loss": losses.figure,
    "cost": balance.figure,
}
"""Those of a group of arms carry its key."""
