"""The gate: numbers of a model that did not learn the task never leave its trained length, whatever the page prints."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rnope.intervals import wilson
from rnope.report import figures
from rnope.report.gate import THRESHOLD, Gate, standing
from rnope.report.page import render
from rnope.results import Results

ARM, SEED = "swa-rope", 1


def marked(results: Results) -> tuple[Results, dict[str, str]]:
    """`results` with a number that occurs nowhere else in each thing that swa-rope's seed 1 has beyond 1×.

    Returns:
        The results, and what each marker marks.
    """
    markers: dict[str, str] = {}
    count = iter(range(1000))

    def mark(what: str, scale: float = 1.0) -> float:
        text = f"{3.0 + next(count) * 0.01:.2f}"
        markers[text] = what
        return float(text) * scale

    needles = tuple(
        replace(row, low=1.11, high=mark(f"{row.row} at {row.context_tokens}"))
        if (row.arm, row.seed) == (ARM, SEED) and row.context_tokens > 256
        else replace(row, low=1.0, high=1.0, score=1.0, hits=row.hits)
        for row in results.needles
    )
    differences = tuple(
        replace(d, difference=mark(f"difference at {d.multiple}×"), low=1.0, high=1.0)
        if (d.b, d.seed) == (ARM, SEED) and d.multiple > 1
        else replace(d, difference=1.0, low=1.0, high=1.0)
        for d in results.differences
    )
    attention = tuple(
        replace(row, best_head_needle=mark(f"mass at {row.context_tokens}", 0.1))
        if (row.arm, row.seed) == (ARM, SEED) and row.kind == "rope"
        else replace(row, best_head_needle=0.0)
        for row in results.attention
    )
    return replace(results, needles=needles, differences=differences, attention=attention), markers


def _found(results: Results, markers: dict[str, str]) -> list[set[str]]:
    """The markers that stand in the HTML and in the Markdown, as whole numbers."""
    pages = render(Gate(results), {})
    shown = [
        set(re.findall(r"(?<![\d.])\d+\.\d+(?!\d)", page.split('id="paper"')[0].split("## The paper")[0]))
        for page in pages
    ]
    return [
        {what for text, what in markers.items() if text in found or f"{float(text) / 10:.3f}" in found}
        for found in shown
    ]


def test_numbers_of_a_competent_pair_are_printed(results: Results) -> None:
    changed, markers = marked(results)
    for found in _found(changed, markers):
        assert found == set(markers.values())


def test_numbers_of_a_model_that_did_not_learn_are_held_back(failed: Results) -> None:
    changed, markers = marked(failed)
    assert any(what.startswith("difference") for what in markers.values())
    for found in _found(changed, markers):
        assert not found


def test_the_gate_hands_out_nothing_beyond_1x_of_a_model_that_did_not_learn(failed: Results) -> None:
    gate = Gate(failed)
    assert not any(
        (r.arm, r.seed) == (ARM, SEED) for r in (*gate.needles(), *gate.needles("unseen-keys"), *gate.attention())
    )
    assert all(r.context_tokens <= 256 for r in gate.side_rows() if (r.arm, r.seed) == (ARM, SEED))
    assert not any(ARM in (d.a, d.b) and d.seed == SEED for d in gate.differences())
    assert any(ARM in (d.a, d.b) and d.seed == 0 for d in gate.differences())


def test_the_page_names_who_did_not_learn_and_shows_its_curve(failed_report: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (failed_report / name).read_text(encoding="utf-8")
        assert "swa-rope seed 1 did not learn the task: " in text
        assert "swa-rope: 1 of 2 seeds learned" in text
        assert "guess level 1.25" in text
        assert "swa-rope did not learn the task, so no difference is printed." in text
    assert "(figures/not-learned.png)" in (failed_report / "report.md").read_text(encoding="utf-8")
    assert (failed_report / "figures/not-learned.png").stat().st_size > 5_000


def test_nobody_is_named_where_all_learned(report: Path) -> None:
    assert "id" in (text := (report / "report.html").read_text(encoding="utf-8"))
    assert "did not learn the task:" not in text
    assert not (report / "figures/not-learned.png").exists()


@pytest.mark.parametrize(
    ("hits", "n", "expected"),
    [
        (480, 480, True),
        (466, 480, True),
        (464, 480, False),
        (73, 73, True),
        (72, 72, False),
        (0, 480, False),
        (0, 0, False),
    ],
)
def test_competence_is_the_lower_wilson_bound(results: Results, hits: int, n: int, expected: bool) -> None:
    needles = tuple(
        replace(r, hits=hits, n=n, low=10.0)
        if (r.arm, r.seed, r.row, r.context_tokens) == ("rope", 0, "standard", 256)
        else r
        for r in results.needles
    )
    assert standing(replace(results, needles=needles), "rope", 0).competent is expected
    assert (10 * wilson(hits, n)[0] >= THRESHOLD) is expected


def test_no_needles_at_the_trained_length_is_no_competence(results: Results) -> None:
    needles = tuple(r for r in results.needles if (r.arm, r.context_tokens) != ("rope-extended", 1024))
    found = standing(replace(results, needles=needles), "rope-extended", 0)
    assert not found.competent and found.row is None and "trained length" in found.reason
    assert "no model" in standing(results, "nowhere", 0).reason


def test_an_arm_that_only_left_a_learning_curve_is_still_counted(results: Results) -> None:
    models = tuple(m for m in results.models if (m.arm, m.seed) != ("rope", 1))
    assert Gate(replace(results, models=models)).learned("rope") == "1 of 2 seeds learned"


def test_a_verdict_without_a_competent_seed_is_not_testable(failed: Results) -> None:
    verdicts = {v.claim: v for v in Gate(failed).verdicts()}
    assert "at seed 1 a side did not learn" in verdicts["NoPE, not the window, carries it"].because
    alone = replace(failed, models=tuple(m for m in failed.models if (m.arm, m.seed) != (ARM, 0)),
                    needles=tuple(r for r in failed.needles if (r.arm, r.seed) != (ARM, 0)))  # fmt: skip
    verdicts = {v.claim: v for v in Gate(alone).verdicts()}
    held = verdicts["NoPE, not the window, carries it"]
    assert held.verdict == "not testable" and "+5" not in held.because and ARM in held.because
    assert verdicts["The hybrid extrapolates further than the baseline"].verdict == "shown"
    page, markdown = render(Gate(alone), {})
    assert "+5.1" not in page and "+5.1" not in markdown
    assert "1 is not testable at this scale (“NoPE, not the window, carries it”)" in page


def test_nobody_learned(failed: Results) -> None:
    nobody = replace(failed, needles=tuple(replace(r, hits=1) for r in failed.needles))
    drawn = figures.draw_all(Gate(nobody))
    assert set(drawn) == {"learning", "not-learned", "loss", "cost"}  # losses up to the trained length
    page, markdown = render(Gate(nobody), drawn)
    for text in (page, markdown):
        assert "No model learned the task" in text and "0 of 2 seeds learned" in text
