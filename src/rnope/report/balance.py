"""What each arm costs, and what it finds for that: the paper's section 3 weighs the two."""

from typing import Any

from matplotlib.ticker import FuncFormatter

from rnope import units
from rnope.report import draw, who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.gate import Gate, arms
from rnope.report.tables import arm_cell, folded_score, seeds_said

MULTIPLES = (1, 2, 16, 64)
"""Of an arm's trained length, at which it is weighed."""


def tables(gate: Gate) -> list[Table]:
    """Scores beside costs: section 3's ablations, then every other arm; and what is counted of each arm."""
    if not gate.results.models:
        return []
    timed = {row.arm for row in gate.results.costs}
    hybrids = [arm for arm in arms(gate.results) if _ablation(gate, arm)]
    base = gate.results.recipe.get("baseline")
    first = [*([base] if base in arms(gate.results) else []), *hybrids]
    others = [arm for arm in arms(gate.results) if arm in timed and arm not in first]
    made = []
    if len(hybrids) > 1 or timed:
        made.append(_weighed(gate, "Balance: the hybrid's ratios, orders and windows", first, folded=False))
    if others:
        made.append(_weighed(gate, "Balance: the other arms", others, folded=True))
    return [*made, _counted(gate)]


def _ablation(gate: Gate, arm: str) -> bool:
    """Whether `arm` is of section 3: a windowed hybrid as pretrained, whatever its ratio, order and window."""
    model = who.model(gate.results, arm)
    return model is not None and model.variant.startswith("rnope-swa") and len(model.stages) == 1


def _weighed(gate: Gate, title: str, names: list[str], *, folded: bool) -> Table:
    costs = gate.results.costs
    length = max((row.context_tokens for row in costs), default=0)
    rows: list[list[Cell | str]] = []
    for arm in names:
        model = who.model(gate.results, arm)
        if model is None:
            continue
        seeds = gate.seeds(arm)
        needles = [row for row in gate.needles() if row.arm == arm]
        line: list[Cell | str] = [
            arm_cell(gate, arm, seeds_said(seeds) if seeds else "did not learn the task"),
            Cell(str(len(model.layers)), f"{model.parameters:,}"),
        ]
        line += [
            folded_score([r for r in needles if r.context_tokens == times * model.trained_tokens])
            for times in MULTIPLES
        ]
        at = str(length or max(map(int, model.cache_bytes), default=0))
        cache, prefill = model.cache_bytes.get(at), model.prefill_flops.get(at)
        line.append(_counts(cache, prefill))
        own = next((row for row in costs if row.arm == arm and row.context_tokens == length), None)
        if own is None:
            line += ["", "", ""]
        else:
            line += [words.brief_seconds(own.prefill_seconds), words.brief_seconds(own.step_seconds)]
            training = own.training_step_seconds
            line.append("" if training is None else words.brief_seconds(training))
        rows.append(line)
    said = f"at {words.tokens(length)} tokens" if length else "at the longest length"
    head: list[Cell | str] = [
        "arm", Cell("layers", "parameters"), *(f"score at {words.times(n)}" for n in MULTIPLES), Cell("cache", "prefill"),
        Cell("prefill", "measured"), Cell("next token", "measured"), Cell("training step", "measured"),
    ]  # fmt: skip
    rounds = sorted({row.n for row in costs})
    note = f"Score of 10, at multiples of the arm's own trained length. Cache (2 bytes a value) and FLOPs are counted, {said}."
    if rounds:
        note += (
            f" Times are medians of {words.listed([str(n) for n in rounds])} rounds in which all arms take turns, on one "
            f"thread; a training step is one of the first stage at its full length. Compare arms of as many layers."
        )
    return table(title, head, rows, note, folded=folded)


def _counted(gate: Gate) -> Table:
    """The same for each seed of an arm but for time."""
    lengths = sorted({int(n) for m in gate.results.models for n in m.cache_bytes})
    picked = [lengths[0], lengths[len(lengths) // 2], lengths[-1]] if len(lengths) > 3 else lengths
    rows: list[list[Cell | str]] = []
    for arm in arms(gate.results):
        models = [m for m in gate.results.models if m.arm == arm]
        if not models:
            continue
        model = models[0]
        spent = [f"{sum(stage.seconds for stage in m.stages):.0f}" for m in models]
        line: list[Cell | str] = [arm_cell(gate, arm, model.model_type), f"{model.parameters:,}"]
        for n in map(str, picked):
            cache, prefill = model.cache_bytes.get(n), model.prefill_flops.get(n)
            line.append(_counts(cache, prefill))
        line.append(Cell(" / ".join(spent), "seeds " + ", ".join(str(m.seed) for m in models)))
        line.append(model.setting)
        rows.append(line)
    head: list[Cell | str] = [
        "arm", "parameters", *(Cell(f"at {words.tokens(n)} tokens", "cache, then prefill") for n in picked),
        "training, seconds", "setting, from the sweep",
    ]  # fmt: skip
    note = "Cache: keys and values per sequence at 2 bytes a value. Both are counted from the layers, not measured."
    return table("Cost of each arm", head, rows, note, folded=len(rows) > who.FEW)


def _counts(cache: int | None, prefill: int | None) -> Cell:
    return Cell("" if cache is None else units.size(cache), "" if prefill is None else units.flops(prefill))


def figure(gate: Gate) -> bytes | None:
    """Cache bytes and prefill FLOPs against context length; arms that cost the same share a line."""
    panels = []
    for name in ("cache_bytes", "prefill_flops"):
        lines: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for arm in arms(gate.results):
            model = who.model(gate.results, arm)
            if model is not None and getattr(model, name):
                curve = tuple(sorted((int(length), value) for length, value in getattr(model, name).items()))
                lines.setdefault(curve, []).append(arm)
        panels.append(lines)
    if not any(panels):
        return None
    style = who.styles(gate.results)
    titles = (
        ("keys and values held per sequence", "bytes, 2 a value", 2, units.size),
        ("one prefill", "floating-point operations", 10, units.flops),
    )
    with draw.look():
        drawn, axes = draw.new(draw.WIDTH, 3.8 if max(map(len, panels)) <= who.FEW else 5.4, 1, 2)
        for axis, lines, (title, label, base, text) in zip(axes, panels, titles, strict=True):
            for curve, names in lines.items():
                colour, marker = style[names[0]]
                axis.plot(
                    [length for length, _ in curve], [value for _, value in curve],
                    color=colour, marker=marker, markersize=4, linewidth=1.8, label=draw.visible(_alike(names)),
                )  # fmt: skip
            _dress(axis, sorted({length for curve in lines for length, _ in curve}), base, text)
            axis.set_ylabel(label)
            axis.set_title(title)
        return draw.png(drawn)


def _dress(axis: Any, lengths: list[int], base: int, text: Any) -> None:
    draw.token_axis(axis, lengths[:: 1 + len(lengths) // 12])
    axis.set_yscale("log", base=base)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(round(value))))
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8 if len(axis.lines) <= who.FEW else 6.5)


def _alike(names: list[str]) -> str:
    """Arms that share a line: all by name while there is room for it."""
    return " = ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} others"
