"""Learning curves: running accuracy against training steps, with the curriculum as a strip under each seed."""

from typing import Any

from rnope.report import draw, who, words
from rnope.report.gate import Gate, arms
from rnope.results import Point, Results

_STRIP = 1.25
"""Height of one seed's curriculum strip, on the 0 … 10 axis."""


def offsets(results: Results, arm: str, seed: int) -> dict[str, int]:
    """Stage -> steps of the stages before it, so that the steps of a run add up."""
    found, total = {}, 0
    for model in results.models:
        if (model.arm, model.seed) == (arm, seed):
            for stage in model.stages:
                found[stage.name] = total
                total += stage.steps
    return found


def curve(results: Results, arm: str, seed: int) -> list[tuple[int, Point]]:
    """(step counted from the start of the first stage, point), in order."""
    points = [point for point in results.learning if (point.arm, point.seed) == (arm, seed)]
    before = offsets(results, arm, seed)
    return sorted(((before.get(p.stage, 0) + p.step, p) for p in points), key=lambda pair: (pair[1].tokens, pair[0]))


def learning(gate: Gate, *, key: str | None, failed_only: bool) -> bytes | None:
    """One panel per arm of the group `key` (None: of all), one line per seed; `failed_only` keeps the seeds that did not
    learn the task.
    """
    names = arms(gate.results) if key is None else who.group(gate.results, key)
    runs: dict[str, dict[int, list[tuple[int, Point]]]] = {}
    for standing in gate.standings:
        points = curve(gate.results, standing.arm, standing.seed)
        if standing.arm in names and points and not (failed_only and standing.competent):
            runs.setdefault(standing.arm, {})[standing.seed] = points
    if not runs:
        return None
    style = who.styles(gate.results)
    contexts = sorted({point.context_tokens for seeds in runs.values() for c in seeds.values() for _, point in c})
    across = 1 if len(runs) == 1 else 2
    down = -(-len(runs) // across)
    strips = max(map(len, runs.values()))
    with draw.look():
        figure, axes = draw.new(draw.WIDTH if across == 2 else 6.0, down * (2.3 + 0.3 * strips) + 0.2, down, across)
        for place, (axis, (arm, seeds)) in enumerate(zip(axes, runs.items(), strict=False)):
            _panel(axis, gate, arm, seeds, style[arm][0], contexts)
            if place >= len(runs) - across:
                axis.set_xlabel("training steps, all stages")
        for axis in axes[len(runs) :]:
            axis.set_visible(False)
        return draw.png(figure)


def _panel(
    axis: Any, gate: Gate, arm: str, seeds: dict[int, list[tuple[int, Point]]], colour: str, contexts: list[int]
) -> None:
    end = max(step for points in seeds.values() for step, _ in points)
    for place, (seed, points) in enumerate(seeds.items()):
        dashes = draw.SEED_DASHES[place % len(draw.SEED_DASHES)]
        steps, scores = [step for step, _ in points], [10 * point.accuracy for _, point in points]
        axis.plot(steps, scores, color=colour, linestyle=dashes, linewidth=1.6)
        low = -_STRIP * (place + 1)
        _strip(axis, points, low, end, contexts)
        _label(axis, f"seed {seed}{'' if gate.open(arm, seed) else ' ✗'}", low + _STRIP * 0.4, colour, dashes)
    axis.set_xlim(0, end * 1.02)
    axis.set_ylim(-_STRIP * len(seeds) - 0.15, 10.3)
    axis.set_yticks(range(0, 11, 2))
    axis.set_ylabel("running score of 10", loc="top")
    axis.set_title(f"{draw.visible(arm)}   ({gate.learned(arm)})")


def _label(axis: Any, text: str, y: float, colour: str, dashes: Any) -> None:
    """Left of a strip: whose it is, and how that seed's curve is drawn."""
    across = axis.get_yaxis_transform()
    axis.text(-0.012, y, text, transform=across, ha="right", va="center", fontsize=7.5)
    end = -0.022 - 0.0185 * len(text)
    axis.plot([end - 0.07, end], [y, y], transform=across, color=colour, linestyle=dashes, linewidth=1.6, clip_on=False)


def _strip(axis: Any, points: list[tuple[int, Point]], low: float, end: int, contexts: list[int]) -> None:
    """The context length at each step, as a bar of greys below the curve: lighter is shorter."""
    starts = [0, *(i for i in range(1, len(points)) if points[i][1].context_tokens != points[i - 1][1].context_tokens)]
    edges = [0, *(points[i][0] for i in starts[1:]), points[-1][0]]
    for k, i in enumerate(starts):
        length, left, right = points[i][1].context_tokens, edges[k], edges[k + 1]
        shade = 0.93 - 0.5 * contexts.index(length) / max(1, len(contexts) - 1)
        axis.bar(
            left, _STRIP * 0.82, right - left, low, align="edge", color=str(shade), edgecolor="white", linewidth=0.8
        )
        if right - left > 0.055 * end:
            axis.text(
                (left + right) / 2, low + _STRIP * 0.4, words.short_tokens(length),
                ha="center", va="center", fontsize=7.5, color="#222222",
            )  # fmt: skip
        if k:
            axis.plot([left, left], [low + _STRIP * 0.82, 10], color="#bbbbbb", linewidth=0.6, zorder=0)
