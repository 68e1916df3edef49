"""Scores of answers about a needle: by hand, and against a slow reading of the same rule."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnope.evals.niah.needle import ANSWER, POOLS, SENTENCE
from rnope.evals.niah.scoring import CONNECTING, NiahScoring, found, is_exact, normalised
from rnope.evals.results import Figure
from rnope.evals.run import cell_result
from rnope.evals.suite import Cell, Prediction

FACTS = ("walnut soup", "Heron Square", "amber kites")
RIGHT = " to eat walnut soup in Heron Square and watch the amber kites."


def answered(text, index=0, ended="stop", facts=FACTS):
    return Prediction(
        cell="c", index=index, prompt_sha256="0", prompt_tokens=9, answer=text, new_tokens=3, ended=ended,
        references=facts, facts={"town": "Zagdivo"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "score", "exact"),
    [
        (RIGHT, 10, 1),
        ("\n\n " + RIGHT.upper(), 10, 1),
        (RIGHT + " The best thing to do in Rome is to eat ice.\n\nQuestion: who?", 10, 1),
        ("The best thing to do in Zagdivo is to eat **walnut soup** in `Heron  Square`, and watch amber-kites!", 10, 1),
        ("ｗａｌｎｕｔ soup; Heron\u00a0Square; amber\tkites", 10, 1),
        ("Watch the amber kites while eating walnut soup in Heron Square", 10, 1),
        (RIGHT.replace("amber kites", "amber kites and red boats"), 10, 0),
        ("I think it is walnut soup in Heron Square, with amber kites.", 10, 0),
        ("walnut soup. Heron Square. amber kites.", 10, 0),  # not in one sentence
        (" to eat walnut soup in Heron Park and watch the amber kites.", 20 / 3, 0),
        (" to eat walnut soup", 10 / 3, 0),
        (" to eat walnut and soup in Square Heron and watch kites, amber.", 0, 0),
        ("walnut soups in Herons Square, amber kitesurfers", 0, 0),
        ("walnut_soup", 10 / 3, 0),
        ("", 0, 0),
        (".", 0, 0),
        ("unknown", 0, 0),
    ],
)
def test_hand_cases(answer, score, exact):
    assert NiahScoring().score(answered(answer)) == {"score": pytest.approx(score), "exact": exact}


def slow_words(text):
    """Characters one by one."""
    words, word = [], ""
    for c in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        if c.isalnum():
            word += c
        elif word:
            words.append(word)
            word = ""
    return [*words, word] if word else words


def slow_found(answer, fact):
    words, wanted = slow_words(answer), slow_words(fact)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))


PARTS = st.sampled_from(
    [*FACTS, "Walnut", "SOUP", "soups", "heron", "kites", "the", "-", "_", "...", "\n", "ß", "ﬁ", "½"]
)


@given(st.lists(st.tuples(PARTS, st.sampled_from(["", " ", "  ", ", ", "\u00a0"])), max_size=12))
def test_a_slow_reading_finds_the_same(parts):
    answer = "".join(part + gap for part, gap in parts)
    assert found(answer, FACTS) == [slow_found(answer, fact) for fact in FACTS]
    if is_exact(answer, FACTS, "Zagdivo"):
        assert all(found(answer, FACTS))


@given(st.text())
def test_normalising_is_done_once(text):
    once = normalised(text)
    assert normalised(once) == once == " ".join(once.split())


def test_any_text_without_the_facts_has_no_score():
    text = SENTENCE.replace("{food}", "x").replace("{place}", "y").replace("{sight}", "z") * 9
    assert NiahScoring().score(answered(text)) == {"score": 0, "exact": 0}


def test_connecting_words_are_no_words_of_facts_and_cover_the_needle():
    assert not CONNECTING & {word.casefold() for pool in POOLS.values() for part in pool for word in part}
    frame = SENTENCE.format(town="", food="", place="", sight="") + ANSWER.format(town="")
    assert set(normalised(frame).split()) <= CONNECTING


def results(scores, row="standard", length=1024, depth=50.0):
    """A cell whose answers have so many facts right; None is an error."""
    cell = Cell(
        name="c", context_tokens=length, samples=len(scores), max_new_tokens=9, labels={"row": row, "depth": depth}
    )
    texts = ["", "walnut soup", "walnut soup Heron Square", RIGHT]
    lines = [answered("", i, "error") if score is None else answered(texts[score], i) for i, score in enumerate(scores)]
    return cell_result(cell, lines, NiahScoring())


def by_labels(figures):
    return {(f.name, *f.labels.values()): f for f in figures}


def test_the_raw_score_is_the_mean_over_cells_and_not_over_samples():
    cells = [
        results([3, 3, 3, 3], depth=0.0),
        results([0, None], depth=100.0),
        results([3], length=2048),
        results([0, 0], row="no-needle"),
        results([3, 3], row="needle-only", length=180),
        results([None], length=4096),
    ]
    found = by_labels(NiahScoring().summary(cells))
    assert found["raw_score", "standard"].value == pytest.approx(20 / 3) and found["raw_score", "standard"].n == 6
    assert found["score", "standard", 1024].value == 5 and found["score", "standard", 2048].value == 10
    assert found["exact", "standard", 1024].value == 0.5
    assert found["score", "no-needle", 1024].value == 0 and found["score", "needle-only", 180].value == 10
    assert ("score", "standard", 4096) not in found  # nothing but errors
    assert NiahScoring().summary([]) == ()


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6))
def test_intervals_hold_the_mean_and_stay_on_the_scale(cells):
    for figure in NiahScoring().summary([results(scores) for scores in cells]):
        assert -1e-9 <= figure.low <= figure.value + 1e-9 and figure.value <= figure.high + 1e-9 <= 10 + 2e-9


def test_the_interval_of_a_length_agrees_with_resampling_every_cell():
    rng = np.random.default_rng(0)
    cells = [rng.choice(4, size=16, p=p) for p in ([0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.2, 0.1], [0, 0, 0.1, 0.9])]
    values = [10 * cell / 3 for cell in cells]
    means = [np.mean([rng.choice(v, size=16).mean() for v in values]) for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    figure: Figure = by_labels(NiahScoring().summary([results(list(cell)) for cell in cells]))[
        "score", "standard", 1024
    ]
    assert figure.low == pytest.approx(low, abs=0.15) and figure.high == pytest.approx(high, abs=0.15)
