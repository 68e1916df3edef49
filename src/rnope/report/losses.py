"""Loss on held-out text by position: a figure and a table per group of arms."""

from collections.abc import Sequence

from rnope.report import draw, who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.gate import Gate
from rnope.report.tables import arm_cell, seeds_said
from rnope.results import LossBin, LossRow


def longest(gate: Gate) -> dict[str, list[LossRow]]:
    """Arm -> the rows of its longest windows, one per seed."""
    most = max((row.context_tokens for row in gate.results.losses), default=0)
    found: dict[str, list[LossRow]] = {}
    for row in gate.losses():
        if row.context_tokens == most:
            found.setdefault(row.arm, []).append(row)
    return found


def figure(gate: Gate) -> bytes | None:
    """A panel per group: the mean over seeds, and the interval of a single seed."""
    found = longest(gate)
    panels = [(group, [arm for arm in group.arms if arm in found]) for group in who.groups(gate.results)]
    panels = [(group, arms) for group, arms in panels if arms]
    if not panels:
        return None
    style = who.styles(gate.results)
    with draw.look():
        drawn, axes = draw.new(draw.WIDTH, 3.4 * len(panels), len(panels), 1)
        for axis, (group, arms) in zip(axes, panels, strict=True):
            for arm in arms:
                colour, marker = style[arm]
                bins = _means(found[arm])
                at = [_middle(one) for one in bins]
                axis.plot(at, [one.loss for one in bins], color=colour, marker=marker, markersize=3.5, linewidth=1.4,
                          label=draw.visible(arm))  # fmt: skip
                if len(found[arm]) == 1:
                    axis.fill_between(
                        at, [b.low for b in bins], [b.high for b in bins], color=colour, alpha=0.12, linewidth=0
                    )
            for one in sorted({n for (arm, _), n in gate.trained.items() if arm in arms}):
                axis.axvline(one, color="#c8c8c8", linewidth=5, alpha=0.45, zorder=0)
            ends = sorted({b.end for arm in arms for row in found[arm] for b in row.bins})
            draw.token_axis(axis, ends)
            axis.set_xlabel("position in the text, tokens")
            axis.set_ylabel("loss, nats a token")
            axis.set_title(group.title)
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        return draw.png(drawn)


def _middle(one: LossBin) -> float:
    return float((max(1, one.begin) * one.end) ** 0.5)


def _means(rows: Sequence[LossRow]) -> list[LossBin]:
    """Mean over seeds, at the positions that each of them has."""
    shared = [
        one for one in rows[0].bins if all(any((b.begin, b.end) == (one.begin, one.end) for b in r.bins) for r in rows)
    ]
    made = []
    for one in shared:
        same = [b for row in rows for b in row.bins if (b.begin, b.end) == (one.begin, one.end)]
        loss, low, high = (sum(getattr(b, name) for b in same) / len(same) for name in ("loss", "low", "high"))
        made.append(LossBin(begin=one.begin, end=one.end, loss=loss, low=low, high=high))
    return made


def tables(gate: Gate) -> list[Table]:
    """By position in the longest windows; seeds folded."""
    found = longest(gate)
    if not found:
        return []
    windows = {row.n for rows in found.values() for row in rows}
    length = next(iter(found.values()))[0].context_tokens
    bins = sorted({(b.begin, b.end) for rows in found.values() for row in rows for b in row.bins})
    made = []
    for group in who.groups(gate.results):
        rows = []
        for arm in (arm for arm in group.arms if arm in found):
            name = arm_cell(gate, arm, seeds_said(row.seed for row in found[arm]))
            rows.append([name, *(_cell(found[arm], begin, end) for begin, end in bins)])
        if rows:
            head = [Cell("arm"), *(Cell(f"{words.tokens(begin)}–{words.tokens(end - 1)}") for begin, end in bins)]
            note = (
                f"Nats a token, windows of {words.tokens(length)} tokens ({words.listed([str(n) for n in sorted(windows)])} "
                "of them): the 95 % interval over windows, or the range of seeds. Models that did not learn the task are "
                "given up to their trained length."
            )
            title = who.titled("Loss by position", group)
            made.append(table(title, head, rows, note, folded=True))
    return made


def _cell(rows: Sequence[LossRow], begin: int, end: int) -> Cell:
    same = [b for row in rows for b in row.bins if (b.begin, b.end) == (begin, end)]
    if not same:
        return Cell("")
    losses = [b.loss for b in same]
    small = words.bounds([same[0].low, same[0].high], 3) if len(same) == 1 else f"seeds {words.bounds(losses, 3)}"
    return Cell(f"{sum(losses) / len(losses):.3f}", small)
