"""Judgement, by rules that stand here before any run: paired differences, and what was shown, not shown, not testable.

Only models that learned the task at their trained length are compared (`report.gate`). Every seed in which both sides
did is judged, and each must agree.
"""

from collections.abc import Sequence

import numpy as np

from rnope.compare.chain import chain_config
from rnope.compare.plan import longer
from rnope.config import Pair, Pattern, Quantity, Recipe
from rnope.model.accounting import cache_bytes
from rnope.report.gate import THRESHOLD, Gate
from rnope.results import SEGMENTS, NeedleRow, PairedDifference, Results, Verdict

RESAMPLES = 10_000


def paired_difference(a: NeedleRow, b: NeedleRow, *, multiple: int) -> PairedDifference:
    """Score of `a` minus score of `b` on the same contexts, with a bootstrap over contexts.

    Answers of one context are not independent, so whole contexts are drawn. Identical contexts give a zero-width
    interval: read it together with the Wilson intervals of both sides.
    """
    gaps = np.array(a.context_hits, dtype=float) - np.array(b.context_hits, dtype=float)
    gaps *= 10 * len(a.context_hits) / a.n
    rng = np.random.default_rng(0)
    means = gaps[rng.integers(0, len(gaps), size=(RESAMPLES, len(gaps)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return PairedDifference(
        a=a.arm,
        b=b.arm,
        seed=a.seed,
        context_tokens=a.context_tokens,
        multiple=multiple,
        difference=float(gaps.mean()),
        low=float(low),
        high=float(high),
    )


def differences(recipe: Recipe, needles: Sequence[NeedleRow]) -> tuple[PairedDifference, ...]:
    """Every pair of the recipe, at every length that both sides were asked and at every seed they share."""
    rows = {(r.arm, r.seed, r.context_tokens): r for r in needles if r.row == "standard"}
    found = []
    for pair in recipe.pairs:
        unit = longer(recipe, pair)
        for (arm, seed, length), a in sorted(rows.items()):
            b = rows.get((pair.b, seed, length))
            if arm == pair.a and b is not None and length % unit == 0 and length > unit:
                found.append(paired_difference(a, b, multiple=length // unit))
    return tuple(found)


def judge(recipe: Recipe, results: Results) -> tuple[Verdict, ...]:
    """All claims of the recipe."""
    far, baseline, gate = recipe.needles.far_arms, recipe.baseline, Gate(results)
    return (
        *(_pair(gate, pair) for pair in recipe.pairs),
        *(_pattern(gate, pattern) for pattern in recipe.patterns),
        *(_holds(recipe, gate, name, recipe.needles.context_tokens) for name in far if recipe.needles.context_tokens),
        *(_holds(recipe, gate, name, recipe.needles.far_tokens) for name in far if recipe.needles.far_tokens),
        *(_needle_mass(gate, name, baseline) for name in far if recipe.attention_tokens),
        *(_cache(recipe, name, baseline) for name in far),
    )


def _verdict(claim: str, rule: str, arms: tuple[str, ...], holds: bool | None, because: str) -> Verdict:
    verdict = "not testable" if holds is None else "shown" if holds else "not shown"
    return Verdict(claim=claim, rule=rule, verdict=verdict, because=because, arms=arms)


def _pair(gate: Gate, pair: Pair) -> Verdict:
    a, b, claim = pair.a, pair.b, pair.claim
    multiples = " and ".join(f"{m}×" for m in pair.multiples)
    where = "above 0" if pair.margin is None else f"within ±{pair.margin:g}"
    rule = (
        f"At {multiples} the longer trained length, the 95 % interval of the paired difference ({a} minus {b}) lies "
        f"{where} at every seed at which both sides learned the task."
    )
    seeds = gate.shared(a, b)
    found = [
        d for d in gate.results.differences if (d.a, d.b) == (a, b) and d.seed in seeds and d.multiple in pair.multiples
    ]
    if not seeds:
        return _verdict(claim, rule, (a, b), None, "at no seed did both sides learn the task at their trained length")
    if len(found) < len(pair.multiples) * len(seeds):
        return _verdict(claim, rule, (a, b), None, f"{multiples} were not measured for both sides")
    said = "; ".join(
        f"seed {d.seed} at {d.multiple}×: {d.difference:+.2f} ({d.low:+.2f} … {d.high:+.2f})" for d in found
    )
    margin = pair.margin
    held = [d.low > 0 if margin is None else -margin < d.low and d.high < margin for d in found]
    return _verdict(claim, rule, (a, b), all(held), said)


Bounded = tuple[float, float, float]
"""A value and its 95 % bounds; the value itself where none are known."""


def _pattern(gate: Gate, pattern: Pattern) -> Verdict:
    a, b = pattern.a, pattern.b
    if b is None:
        rule = f"{a}: at the longest length below the shortest, the 95 % intervals apart, at every seed that learned the task."
        arms: tuple[str, ...] = (a.arm,)
        found = [
            (f"seed {seed}", values[max(values)], values[min(values)])
            for seed in _seeds(gate, a)
            if len(values := _measured(gate, a, seed)) > 1
        ]
        pairs = [(where, first, last) for where, last, first in found]
    else:
        rule = f"{a} above {b} at every length, the 95 % intervals apart, at every seed that both have and learned the task."
        arms = tuple(dict.fromkeys((a.arm, b.arm)))
        pairs = []
        for seed in sorted({*_seeds(gate, a)} & {*_seeds(gate, b)}):
            one, other = _measured(gate, a, seed), _measured(gate, b, seed)
            pairs += [
                (f"seed {seed} at {n:,}" if n else f"seed {seed}", one[n], other[n]) for n in sorted({*one} & {*other})
            ]
    gated = () if a.of == "score" else arms
    if not pairs:
        return _verdict(
            pattern.claim, rule, gated, None, "it was not measured on both sides of a model that learned the task"
        )
    sign = ">" if all(high[1] > low[2] for _, high, low in pairs) else "against"
    said = "; ".join(f"{where}: {high[0]:.4g} {sign} {low[0]:.4g}" for where, high, low in pairs)
    return _verdict(pattern.claim, rule, gated, sign == ">", said)


def _seeds(gate: Gate, q: Quantity) -> list[int]:
    """Seeds that may be judged. Scores at the trained length are what the gate itself asks for, so they need none."""
    if q.of == "score":
        return sorted({m.seed for m in gate.results.models if m.arm == q.arm})
    return sorted(gate.seeds(q.arm))


def _measured(gate: Gate, q: Quantity, seed: int) -> dict[int, Bounded]:
    """Length in tokens -> `q`; length 0 for what has none."""
    results = gate.results
    if q.of == "score":
        rows = [r for r in results.needles if (r.arm, r.seed, r.row) == (q.arm, seed, "standard")]
        trained = max((m.trained_tokens for m in results.models if m.arm == q.arm), default=0)
        return {r.context_tokens: (r.score, r.low, r.high) for r in rows if r.context_tokens >= trained}
    if q.of == "validation":
        (model,) = (m for m in results.models if (m.arm, m.seed) == (q.arm, seed))
        loss = model.stages[-1].validation["all"]
        return {0: (loss, loss, loss)}
    found: dict[int, Bounded] = {}
    for row in results.attention:
        if (row.arm, row.seed, row.kind) != (q.arm, seed, q.kind):
            continue
        value = row.mass[q.of] if q.of in SEGMENTS else getattr(row, q.of)
        if value is not None:
            low, high = (bounds.get(q.of) for bounds in (row.low, row.high))
            found[row.context_tokens] = (value, value if low is None else low, value if high is None else high)
    return found


def _holds(recipe: Recipe, gate: Gate, arm: str, lengths: Sequence[int]) -> Verdict:
    trained = next(a.trained_tokens for a in recipe.arms if a.name == arm)
    most = max(lengths)
    claim = f"Trained on {trained:,} tokens, {arm} still finds the needles at {most:,} ({most // trained:,}×)."
    rule = f"The lower 95 % bound of the score reaches {THRESHOLD} at every length asked, at every seed that learned the task."
    seeds = gate.seeds(arm)
    rows = [
        r
        for r in gate.results.needles
        if (r.arm, r.row) == (arm, "standard") and r.seed in seeds and r.context_tokens in lengths
    ]
    if not rows:
        return _verdict(claim, rule, (arm,), None, "no seed that learned the task was asked at these lengths")
    worst = min(rows, key=lambda r: r.low)
    said = (
        f"{len(rows)} rows at seeds {', '.join(map(str, sorted({r.seed for r in rows})))}; the lowest is {worst.score:.2f} "
        f"({worst.low:.2f} … {worst.high:.2f}, n {worst.n}) at {worst.context_tokens:,} tokens, seed {worst.seed}"
    )
    return _verdict(claim, rule, (arm,), worst.low >= THRESHOLD, said)


def _needle_mass(gate: Gate, arm: str, baseline: str) -> Verdict:
    claim = f"The NoPE layers of {arm} keep their attention on the needle as the context grows; the baseline's layers lose it."
    rule = (
        "Needle mass at the longest measured length over that at the shortest: above 0.5 for the NoPE layers and below "
        f"0.5 for {baseline}'s layers, at every seed at which both learned the task."
    )
    ratios = []
    for seed in gate.shared(arm, baseline):
        kept, lost = _mass_ratio(gate, arm, seed, "nope"), _mass_ratio(gate, baseline, seed, "rope")
        if kept is not None and lost is not None:
            ratios.append((seed, kept, lost))
    if not ratios:
        return _verdict(claim, rule, (arm, baseline), None, "attention was not measured for both sides at one seed")
    said = "; ".join(f"seed {seed}: {kept:.2f} against {lost:.2f}" for seed, kept, lost in ratios)
    return _verdict(claim, rule, (arm, baseline), all(k > 0.5 > b for _, k, b in ratios), said)


def _mass_ratio(gate: Gate, arm: str, seed: int, kind: str) -> float | None:
    rows = sorted(
        (r for r in gate.results.attention if (r.arm, r.seed, r.kind) == (arm, seed, kind)),
        key=lambda r: r.context_tokens,
    )
    first, last = (rows[0].mass["needle"], rows[-1].mass["needle"]) if len(rows) > 1 else (None, None)
    return last / first if first and last is not None else None


def _cache(recipe: Recipe, arm: str, baseline: str) -> Verdict:
    length = max(recipe.needles.context_tokens or [a.trained_tokens for a in recipe.arms])
    held = {a.name: cache_bytes(chain_config(recipe.model_config(a), a.stages), length) for a in recipe.arms}
    mine, theirs = held[arm], held[baseline]
    claim = f"{arm} keeps about a quarter of the baseline's cache."
    rule = "Bytes of keys and values at the longest common length, counted exactly: at most 0.26 of the baseline's."
    said = f"{mine:,} against {theirs:,} bytes a sequence at {length:,} tokens: {mine / theirs:.4f}"
    return _verdict(claim, rule, (), mine / theirs <= 0.26, said)
