"""The plan in words: what ``rnope train --dry-run`` prints. It computes nothing."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rnope.train.plan import Plan, RowPlan, StagePlan
from rnope.train.values import Value
from rnope.units import flops, size

_PARTS = {"layers": "layers' matrices", "attention": "attention", "head": "head"}
_STATE = {
    "weights": "weights, float32", "gradients": "gradients, float32", "moments": "AdamW's two moments, float32",
    "working": "copies for the products",
}  # fmt: skip


def describe(*plans: Plan) -> str:
    """Arms of one recipe on one mesh. What a later one shares with the first is not written out again."""
    parts = ["\n".join(_arm(plan, plans[:i])) for i, plan in enumerate(plans)]
    if len(plans) > 1:
        parts.append(f"{len(plans)} arms, {_total(plans)}")
    return "\n\n\n".join(parts)


def _arm(plan: Plan, before: Sequence[Plan]) -> list[str]:
    at_once = f"{plan.row_ranks} share a row, {plan.ranks // plan.row_ranks} such groups a batch"
    share = "each has rows of its own" if plan.row_ranks == 1 else at_once
    lines = [
        f"{plan.recipe} · {plan.arm}: {plan.summary}",
        f"{plan.parameters:,} parameters on {plan.ranks:,} × {plan.gpu}: {share}; {plan.utilisation:.0%} of the peak",
    ]
    for section, values in plan.values.items():
        lines += _section(section, values, before[0].values.get(section) if before else None, before)
    done = {stage.key: other.arm for other in reversed(before) for stage in other.stages}
    for number, stage in enumerate(plan.stages, 1):
        title = f"stage {number} of {len(plan.stages)}: {stage.name}  [{stage.key}]"
        if stage.key in done:
            lines += ["", f"{title}  trained once: see {done[stage.key]}"]
            continue
        others = [name for name in stage.arms if name != plan.arm]
        if others:
            title += f"  trained once, also for {', '.join(others)}"
        first = {other.name: other.values for other in before[0].stages} if before else {}
        lines += _section(title, stage.values, first.get(stage.name), before) or ["", title]
        lines += _stage(stage, plan)
    lines += ["", "where stages join", *_joints(plan.stages)]
    lines += ["", f"memory of each GPU, of {plan.gpu_gib} GiB", *_memory(plan)]
    return [*lines, "", _total([plan])]


def _section(title: str, values: Sequence[Value], first: Sequence[Value] | None, before: Sequence[Plan]) -> list[str]:
    """A heading and its values; with those of the `first` arm, what is not the same there."""
    rows = [[value.name, shown(value.value), value.origin] for value in values if value not in (first or ())]
    names = {value.name for value in values}
    rows += [[value.name, "–", ""] for value in first or () if value.name not in names]
    if first is not None:
        title += f"  (the rest as {before[0].arm}'s)"
    return ["", title, *_table(rows, right=(1,))] if rows else []


def shown(value: object) -> str:
    """A value of a recipe as a reader wants it."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.10g}" if value == 0 or abs(value) >= 1e-2 else f"{value:.10g}"
        case {"source": source, "weight": weight, "longer_than": least}:
            longer = f" longer than {least:,}" if least else ""
            return f"{source}{longer}" + (f" × {weight:g}" if weight != 1 else "")
        case [*items]:
            return ", ".join(map(shown, items))
    return str(value)


def _stage(stage: StagePlan, plan: Plan) -> list[str]:
    lines = []
    if stage.layers_change:
        lines += ["  layers", *("  " + line for line in stage.layer_table.splitlines())]
    rates = [f"{_rate(stage.rates.first)} at the first step", f"{_rate(stage.rates.last)} at the last"]
    if stage.rates.peak is not None:
        rates.insert(1, f"{_rate(stage.rates.peak[1])} at step {stage.rates.peak[0]:,}")
    rows = [["rate", ", ".join(rates)]]
    rows += [[f"rows of {row.row_tokens:,}", _row(row, plan)] for row in stage.rows]
    found = stage.flops
    if found is None or stage.steps is None or stage.gpu_days is None:
        average = sum(row.share * sum(row.flops.values()) for row in stage.rows)
        rows.append(["steps", "as many as the data has: give its folders with --data to know"])
        rows.append(["a step", f"{flops(round(average))}, {stage.step_seconds / plan.ranks:.3g} s"])
    else:
        total = sum(found.values())
        shares = ", ".join(f"{_PARTS[part]} {count / total:.0%}" for part, count in found.items())
        rows.append(["in all", f"{stage.steps:,} steps, {_count(stage.steps * stage.batch_tokens)} tokens"])
        rows.append(["FLOPs", f"{total:.3g}: {shares}"])
        step = f"{stage.step_seconds / plan.ranks:.3g} s a step"
        rows.append(["time", f"{_time(stage.gpu_days, plan.ranks)}; {step}"])
    return lines + _table(rows)


def _row(row: RowPlan, plan: Plan) -> str:
    steps = f"{row.share:.4g} of the steps" if row.steps is None else f"{row.steps:,} steps"
    often = "one micro-batch" if row.micro_batches == 1 else f"{row.micro_batches:,} micro-batches"
    who = "each GPU" if plan.row_ranks == 1 else f"each group of {plan.row_ranks}"
    return f"{steps} of {row.rows:,} rows: {often}, {who} takes {row.rows_at_once}"


def _rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.4g}"


def _joints(stages: Sequence[StagePlan]) -> list[str]:
    rows = []
    for before, after in pairwise(stages):
        end, start = before.rates.end, after.rates.first
        if end is None or start is None:
            said = "not known before the number of steps is"
        elif abs(end - start) <= 1e-9 * max(end, start):
            said = "continuous"
        else:
            said = f"a jump to {start / end:.3g} times" if end else "a jump from nothing"
        rows.append([f"{before.name} → {after.name}", f"{_rate(end)} → {_rate(start)}", said])
    return _table(rows) or ["  there is one stage"]


def _memory(plan: Plan) -> list[str]:
    head = ["", *(stage.name for stage in plan.stages)]
    rows = [[words, *(size(stage.state_bytes[part]) for stage in plan.stages)] for part, words in _STATE.items()]
    loss = [max(row.loss_bytes for row in stage.rows) for stage in plan.stages]
    kept = [max(row.kept_bytes for row in stage.rows) for stage in plan.stages]
    checkpoint = [max(row.checkpoint_bytes for row in stage.rows) for stage in plan.stages]
    rows.append(["logits and the head's gradient", *map(size, loss)])
    marks = ("", " *") if plan.checkpoint_activations else (" *", "")
    rows.append([f"activations, all kept{marks[0]}", *map(size, kept)])
    rows.append([f"activations, checkpointed{marks[1]}", *map(size, checkpoint)])
    chosen = checkpoint if plan.checkpoint_activations else kept
    totals = [
        sum(stage.state_bytes.values()) + sum(counts) for stage, *counts in zip(plan.stages, loss, chosen, strict=True)
    ]
    full = [" !" if total > plan.gpu_gib * 2**30 else "" for total in totals]
    rows.append(["in all, with *", *(f"{size(total)}{mark}" for total, mark in zip(totals, full, strict=True))])
    lines = _table([head, *rows], right=range(1, len(head)))
    return [*lines, "  ! more than the GPU has"] if any(full) else lines


def _total(plans: Sequence[Plan]) -> str:
    stages = {stage.key: stage for plan in plans for stage in plan.stages}.values()
    left = sorted({stage.name for stage in stages if stage.steps is None})
    tokens = sum(stage.tokens or 0 for stage in stages)
    count = sum(sum((stage.flops or {}).values()) for stage in stages)
    days = sum(stage.gpu_days or 0.0 for stage in stages)
    without = f" without {', '.join(left)}" if left else ""
    return f"in all{without}: {_count(tokens)} tokens, {count:.3g} FLOPs, {_time(days, plans[0].ranks)}"


def _time(gpu_days: float, ranks: int) -> str:
    """Of all GPUs together, where that is worth telling, and by the clock."""
    together = f"{gpu_days:,.0f} GPU-days, " if gpu_days >= 10 else ""
    for unit, share in (("days", 1), ("hours", 24), ("minutes", 1440)):
        if gpu_days / ranks * share >= 1:
            return f"{together}{gpu_days / ranks * share:,.3g} {unit}"
    return f"{together}{gpu_days / ranks * 86_400:.3g} seconds"


def _count(tokens: int) -> str:
    for unit, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if tokens >= unit:
            return f"{tokens / unit:.4g} {word}"
    return f"{tokens:,}"


def _table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows with their columns aligned, `right` ones to the right."""
    if not rows:
        return []
    to_right = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(
            cell.rjust(width) if i in to_right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]  # fmt: skip
