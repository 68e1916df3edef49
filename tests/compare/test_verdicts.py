"""Verdicts: paired differences and rules, on made-up results whose outcome is known."""

import random
from dataclasses import replace

import numpy as np
import pytest

from rnope.compare.verdicts import differences, judge, paired_difference
from rnope.intervals import wilson
from rnope.results import Cell, MassRow, Model, NeedleRow, Results

DEPTHS, CONTEXTS = 11, 20
LENGTHS = (128, 256, 2048)


def row(arm, seed, length, hits, kind="standard"):
    """A row from its hits per context."""
    total, n = sum(hits), DEPTHS * len(hits)
    low, high = wilson(total, n)
    return NeedleRow(
        arm=arm, seed=seed, row=kind, context_tokens=length, n=n, hits=total, score=10 * total / n, low=10 * low,
        high=10 * high, guess=10 / DEPTHS, haystack_repeats=1.0, context_hits=tuple(hits), seconds=1.0,
        cells=(Cell(depth=0.0, n=n, hits=total),),
    )  # fmt: skip


def drawn(share, name):
    draw = random.Random(name)
    return [sum(draw.random() < share for _ in range(DEPTHS)) for _ in range(CONTEXTS)]


def model(arm, seed, trained):
    return Model(
        arm=arm, variant=arm, seed=seed, layers=(), parameters=1, trained_tokens=trained, cache_bytes={},
        prefill_flops={}, stages=(), setting="", folder="", model_type="cohere",
    )  # fmt: skip


def results_of(recipe, shares, attention=()):
    """Results in which (arm, seed, length) was answered with that share."""
    trained = {arm.name: arm.trained_tokens for arm in recipe.arms}
    needles = [
        row(arm, seed, length, drawn(share, f"{arm} {seed} {length}")) for (arm, seed, length), share in shares.items()
    ]
    return Results(
        recipe={}, scale={}, provenance={}, arms=dict.fromkeys(trained, ""), learning=(), trials=(), verdicts=(),
        models=tuple(model(arm, seed, trained[arm]) for arm, seed in dict.fromkeys(key[:2] for key in shares)),
        needles=tuple(needles), attention=tuple(attention), differences=differences(recipe, needles),
    )  # fmt: skip


@pytest.fixture
def two(recipe):
    """The hybrid against the baseline, both trained on 128 tokens, two seeds."""
    pairs = [{"a": "rnope-swa", "b": "rope", "claim": "outlasts"}]
    return recipe(("pairs", pairs), ("seeds", [0, 1]), ("needles", "context_tokens", list(LENGTHS)))


def shares(hybrid=(1.0, 1.0, 1.0), rope=(1.0, 0.6, 0.1), **changes):
    both = {("rnope-swa", seed, n): s for seed in (0, 1) for n, s in zip(LENGTHS, hybrid, strict=True)}
    both |= {("rope", seed, n): s for seed in (0, 1) for n, s in zip(LENGTHS, rope, strict=True)}
    return both


def verdict(recipe, results, start):
    (found,) = [v for v in judge(recipe, results) if v.claim.startswith(start)]
    return found.verdict, found.because


def test_a_difference_is_paired_by_context_and_its_interval_is_that_of_the_mean():
    draw = np.random.default_rng(0)
    hard = draw.integers(0, 9, size=60)  # contexts differ in difficulty far more than the two arms do
    a, b = hard + draw.integers(1, 3, size=60), hard
    found = paired_difference(row("a", 3, 256, a.tolist()), row("b", 3, 256, b.tolist()), multiple=2)
    gaps = 10 * (a - b) / DEPTHS
    assert (found.a, found.b, found.seed, found.context_tokens, found.multiple) == ("a", "b", 3, 256, 2)
    assert found.difference == pytest.approx(gaps.mean())
    half = 1.96 * gaps.std() / 60**0.5
    assert (found.low, found.high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.15 * half)
    unpaired = 1.96 * (10 / DEPTHS) * (a.var() / 60 + b.var() / 60) ** 0.5
    assert found.high - found.low < unpaired, "pairing takes the difficulty of contexts out"
    assert found == paired_difference(row("a", 3, 256, a.tolist()), row("b", 3, 256, b.tolist()), multiple=2)


def test_a_difference_of_whole_scores_is_the_difference_of_the_scores():
    a, b = row("a", 0, 256, drawn(0.9, "a")), row("b", 0, 256, drawn(0.4, "b"))
    there, back = (paired_difference(x, y, multiple=2) for x, y in ((a, b), (b, a)))
    assert there.difference == pytest.approx(a.score - b.score) and there.low > 0
    assert back.difference == pytest.approx(-there.difference) and back.high < 0


def test_equal_rows_have_no_difference():
    a = row("a", 0, 256, drawn(0.5, "a"))
    found = paired_difference(a, replace(a, arm="b"), multiple=2)
    assert (found.difference, found.low, found.high) == (0, 0, 0)


def test_differences_are_taken_beyond_the_longer_trained_length_at_whole_multiples(recipe):
    made = recipe()  # rope is trained on 128 tokens, rope-extended on 256
    rows = [
        row(arm, seed, n, drawn(0.5, f"{arm}{n}"))
        for arm in ("rope", "rope-extended", "rnope-swa") for seed in (0, 1) for n in (64, 128, 256, 300, 512, 1024)
        if (arm, seed, n) not in {("rope", 1, 512), ("rnope-swa", 0, 1024)}
    ]  # fmt: skip
    controls = [row(arm, 0, 512, [0] * CONTEXTS, "no-needle") for arm in ("rope", "rnope-swa")]
    found = {(d.a, d.b, d.seed, d.context_tokens): d.multiple for d in differences(made, [*rows, *controls])}
    assert found == {
        ("rnope-swa", "rope", 0, 256): 2, ("rnope-swa", "rope", 0, 512): 4,
        ("rnope-swa", "rope", 1, 256): 2, ("rnope-swa", "rope", 1, 1024): 8,
        ("rnope-swa", "rope-extended", 0, 512): 2,
        ("rnope-swa", "rope-extended", 1, 512): 2, ("rnope-swa", "rope-extended", 1, 1024): 4,
    }  # fmt: skip
    gap = next(d for d in differences(made, [*rows, *controls]) if d.context_tokens == 512 and d.b == "rope")
    at = {(r.arm, r.seed, r.context_tokens): r.score for r in rows}
    assert gap.difference == pytest.approx(at["rnope-swa", 0, 512] - at["rope", 0, 512]), "controls play no part"


def test_a_pair_is_shown_where_every_seed_agrees_at_both_endpoints(two):
    found, because = verdict(two, results_of(two, shares()), "outlasts")
    assert found == "shown"
    assert because.count("seed 0 at") == because.count("seed 1 at") == 2 and "16×" in because


def test_a_pair_is_not_shown_where_one_endpoint_of_one_seed_is_missed(two):
    equal = shares() | {("rope", 1, 2048): 1.0}
    assert verdict(two, results_of(two, equal), "outlasts")[0] == "not shown"
    assert verdict(two, results_of(two, shares(rope=(1.0, 1.0, 0.1))), "outlasts")[0] == "not shown"
    assert (
        verdict(two, results_of(two, shares(hybrid=(1.0, 0.1, 0.1), rope=(1.0, 0.6, 0.6))), "outlasts")[0]
        == "not shown"
    )


@pytest.mark.parametrize("side", ["rope", "rnope-swa"])
def test_a_side_that_did_not_learn_makes_a_pair_untestable(two, side):
    never = shares() | {(side, seed, 128): 0.9 for seed in (0, 1)}
    found, because = verdict(two, results_of(two, never), "outlasts")
    assert found == "not testable" and "did both sides learn" in because


def test_only_the_seeds_at_which_both_learned_are_judged(two):
    """The hybrid would lose at seed 1, where it never learned; the baseline's seed 1 does not count either then."""
    some = shares() | {("rnope-swa", 1, n): 0.2 for n in LENGTHS}
    found, because = verdict(two, results_of(two, some), "outlasts")
    assert found == "shown" and "seed 1" not in because
    crossed = shares() | {("rnope-swa", 1, 128): 0.2, ("rope", 0, 128): 0.2}
    assert verdict(two, results_of(two, crossed), "outlasts")[0] == "not testable"


def test_what_was_not_measured_is_not_testable(two):
    without = {key: share for key, share in shares().items() if key != ("rope", 1, 2048)}
    found, because = verdict(two, results_of(two, without), "outlasts")
    assert found == "not testable" and "were not measured" in because
    alone = {key: share for key, share in shares().items() if key[0] == "rnope-swa"}
    assert verdict(two, results_of(two, alone), "outlasts")[0] == "not testable"


def test_an_arm_holds_where_the_lower_bound_does_at_every_length_and_seed(two):
    start = "Trained on 128 tokens, rnope-swa still finds the needles at 2,048 (16×)"
    assert verdict(two, results_of(two, shares()), start)[0] == "shown"
    # 211 of 220 is 9.59, and its lower bound 9.24.
    one = results_of(two, shares())
    worse = tuple(
        row("rnope-swa", 1, 256, [11] * 11 + [10] * 9)
        if (r.arm, r.seed, r.context_tokens) == ("rnope-swa", 1, 256)
        else r
        for r in one.needles
    )
    found, because = verdict(two, replace(one, needles=worse), start)
    assert found == "not shown" and "9.59" in because and "at 256 tokens, seed 1" in because
    never = shares() | {("rnope-swa", seed, 128): 0.5 for seed in (0, 1)}
    assert verdict(two, results_of(two, never), start)[0] == "not testable"


def mass(arm, seed, kind, length, needle):
    rest = None if needle is None else 1 - needle
    return MassRow(
        arm=arm, seed=seed, context_tokens=length, kind=kind, n=2, uniform={}, best_head_needle=0.0,
        mass={"begin": None, "needle": needle, "context": rest, "qc": 0.0},
    )  # fmt: skip


def masses(kept, lost, seeds=(0, 1)):
    for seed in seeds:
        for length, by in ((2048, 1.0), (128, None)):  # in any order
            yield mass("rnope-swa", seed, "nope", length, 0.4 * (kept if by else 1))
            yield mass("rnope-swa", seed, "rope-window", length, None)
            yield mass("rope", seed, "rope", length, 0.3 * (lost if by else 1))


@pytest.mark.parametrize(("kept", "lost", "expected"), [
    (0.9, 0.1, "shown"), (0.4, 0.1, "not shown"), (0.9, 0.6, "not shown"), (0.0, 0.0, "not shown"),
])  # fmt: skip
def test_needle_mass_is_judged_by_its_ratio_from_the_shortest_to_the_longest(two, kept, lost, expected):
    results = results_of(two, shares(), masses(kept, lost))
    assert verdict(two, results, "The NoPE layers of rnope-swa")[0] == expected


def test_needle_mass_needs_both_sides_competent_and_measured(two):
    start = "The NoPE layers of rnope-swa"
    never = shares() | {("rope", seed, 128): 0.5 for seed in (0, 1)}
    assert verdict(two, results_of(two, never, masses(0.9, 0.1)), start)[0] == "not testable"
    assert verdict(two, results_of(two, shares(), []), start)[0] == "not testable"


def test_the_cache_is_counted_and_needs_no_model_that_learned(two):
    found, because = verdict(two, results_of(two, shares(hybrid=(0.0, 0.0, 0.0))), "rnope-swa keeps about a quarter")
    # 2 (keys, values) x 2 heads x 8 channels x 2 bytes, times what four layers hold at 2,048 tokens
    assert found == "shown" and f"{64 * (2048 + 3 * 8):,} against {64 * 4 * 2048:,} bytes" in because


def test_a_recipe_that_asks_at_no_common_length_can_still_be_judged(recipe):
    bare = recipe(("needles", "context_tokens", []), ("needles", "far_tokens", []))
    results = results_of(bare, {("rnope-swa", 0, 128): 1.0, ("rope", 0, 128): 1.0})
    assert {v.verdict for v in judge(bare, results)} <= {"not testable", "shown", "not shown"}


def mass_row(arm, seed, length, kind, half=0.01, **values):
    mass = {"begin": 0.1, "needle": 0.1, "context": 0.7, "qc": 0.1} | values
    low, high = ({name: None if m is None else m + sign * half for name, m in mass.items()} for sign in (-1, 1))
    return MassRow(
        arm=arm, seed=seed, context_tokens=length, kind=kind, n=8, mass=mass, uniform={}, best_head_needle=0.5,
        low=low, high=high, row_entropy=3.0,
    )  # fmt: skip


def judged(two, pattern, masses, shares_=None):
    plain = two(("pairs", []), ("patterns", [pattern]))
    results = results_of(plain, shares() if shares_ is None else shares_, masses)
    return judge(plain, results)[0]


@pytest.fixture
def patterned(recipe):
    return lambda *changes: recipe(("seeds", [0, 1]), ("needles", "context_tokens", list(LENGTHS)), *changes)


ABOVE = {
    "claim": "NoPE layers find it",
    "a": {"arm": "rnope-swa", "kind": "nope", "of": "needle"},
    "b": {"arm": "rope", "kind": "rope", "of": "needle"},
}


def test_a_quantity_lies_above_another_only_at_every_length_and_seed(patterned):
    def masses(last):
        rows = [mass_row("rope", seed, n, "rope", needle=0.2) for seed in (0, 1) for n in (128, 256)]
        rows += [mass_row("rnope-swa", 0, n, "nope", needle=0.5) for n in (128, 256)]
        return [
            *rows,
            mass_row("rnope-swa", 1, 128, "nope", needle=0.5),
            mass_row("rnope-swa", 1, 256, "nope", needle=last),
        ]

    assert judged(patterned, ABOVE, masses(0.5)).verdict == "shown"
    overlapping = judged(patterned, ABOVE, masses(0.215))  # 0.205 … against 0.21
    assert overlapping.verdict == "not shown"
    assert "seed 1 at 256: 0.215 against 0.2" in overlapping.because
    assert judged(patterned, ABOVE, []).verdict == "not testable"


def test_what_a_window_cannot_reach_and_models_that_did_not_learn_are_not_compared(patterned):
    rows = [mass_row("rope", 0, 128, "rope", needle=0.2), mass_row("rnope-swa", 0, 128, "nope", needle=None)]
    assert judged(patterned, ABOVE, rows).verdict == "not testable"
    rows[1] = mass_row("rnope-swa", 0, 128, "nope", needle=0.5)
    assert judged(patterned, ABOVE, rows).verdict == "shown"
    failed = shares(rope=(0.5, 0.5, 0.5))
    assert judged(patterned, ABOVE, rows, failed).verdict == "not testable"


def test_a_quantity_falls_from_the_shortest_length_to_the_longest(patterned):
    falls = {"claim": "falls", "a": {"arm": "rope", "kind": "rope", "of": "needle"}}

    def verdict_of(last):
        rows = [
            mass_row("rope", seed, n, "rope", needle=v)
            for seed in (0, 1)
            for n, v in ((128, 0.3), (256, 0.9), (512, last))
        ]
        return judged(patterned, falls, rows).verdict

    assert (verdict_of(0.27), verdict_of(0.29), verdict_of(0.4)) == ("shown", "not shown", "not shown")


def test_scores_are_compared_without_the_gate_from_the_trained_length_on(patterned):
    scores = {"claim": "cannot", "a": {"arm": "rope", "of": "score"}, "b": {"arm": "rnope-swa", "of": "score"}}
    found = judged(patterned, scores, [], shares(hybrid=(0.1, 0.1, 0.1), rope=(1.0, 0.9, 0.9)))
    assert found.verdict == "shown" and found.arms == ()
    assert found.because.count("seed") == 2 * len(LENGTHS)


def test_two_arms_are_alike_only_when_the_whole_interval_is_within_the_margin(recipe):
    def found(hybrid):
        pairs = [{"a": "rnope-swa", "b": "rope", "claim": "alike", "margin": 0.5}]
        plain = recipe(("pairs", pairs), ("seeds", [0, 1]), ("needles", "context_tokens", list(LENGTHS)))
        return verdict(plain, results_of(plain, shares(hybrid=hybrid, rope=(1.0, 1.0, 1.0))), "alike")[0]

    assert found((1.0, 1.0, 1.0)) == "shown"
    assert found((1.0, 1.0, 0.9)) == "not shown"
