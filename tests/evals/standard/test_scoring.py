"""Figures from cells of our making: headlines, percent, what is comparable, and means over subjects and tasks."""

import subprocess
import sys
from pathlib import Path

import pytest

from rnope.evals.results import CellResult, mean_figure
from rnope.evals.standard.scoring import StandardScoring, headline
from rnope.evals.suite import Prediction

SOURCE = Path(__file__).parents[3] / "src"


def cell(name, metrics, comparable=True, documents=4, errors=0, facts=None):
    return CellResult(
        name=name, context_tokens=10, labels={"shots": 0, "comparable": comparable, "documents": documents}, samples=4,
        errors=errors, answers_cut=0, prompt_tokens=5.0, prompts_sha256="", facts=facts or {"cut": 0.25},
        figures=tuple(mean_figure(metric, values) for metric, values in metrics.items()),
    )  # fmt: skip


def test_the_headline_is_the_metric_that_the_benchmark_is_known_by():
    assert headline("hellaswag", ["acc", "acc_norm"]) == "acc_norm"
    assert headline("agieval_sat_en", ["acc", "acc_norm"]) == "acc"
    assert headline("mmlu", ["acc"]) == "acc"
    assert headline("gsm8k", ["exact_match,flexible-extract", "exact_match,strict-match"]) == "exact_match,strict-match"
    assert headline("longbench_hotpotqa", ["qa_f1_score", "score"]) == "score"
    assert headline("other", ["own"]) == "own" and headline("other", []) is None


def test_percent_with_its_interval_and_labels():
    first, second = StandardScoring().summary([cell("hellaswag", {"acc": [0, 0, 0, 1], "acc_norm": [0, 1, 1, 1]})])
    assert (first.name, first.value, first.n) == ("HellaSwag", 75.0, 4) and second.value == 25.0
    assert first.low is not None and first.high is not None and 0 <= first.low < 75 < first.high <= 100
    assert first.labels == {
        "task": "hellaswag", "benchmark": "HellaSwag", "metric": "acc_norm", "headline": True, "shots": 0,
        "comparable": True, "cut": 0.25,
    }  # fmt: skip
    assert second.labels["metric"] == "acc" and second.labels["headline"] is False


@pytest.mark.parametrize("change", [{"comparable": False}, {"documents": 5}, {"errors": 1}])
def test_what_is_not_comparable(change):
    (figure,) = StandardScoring().summary([cell("mbpp", {"pass_at_1": [1, 0, 0, 0]}, **change)])
    assert figure.name == "MBPP" and figure.labels["comparable"] is False


def test_subjects_count_alike_in_their_mean():
    scoring = StandardScoring()
    lines = [
        Prediction(cell="mmlu", index=i, prompt_sha256="", prompt_tokens=1, answer="", new_tokens=1, ended="stop",
                   facts={"metrics": {"acc": value}, "subject": subject})
        for i, (subject, value) in enumerate([("law", 1.0), ("law", 1.0), ("law", 0.0), ("art", 0.0)])
    ]  # fmt: skip
    scores = [scoring.score(line) for line in lines]
    assert scores[0] == {"acc": 1.0, "acc / law": 1.0} and scores[3] == {"acc": 0.0, "acc / art": 0.0}
    metrics = {"acc": [1, 1, 0, 0], "acc / law": [1, 1, 0], "acc / art": [0]}
    whole, macro = scoring.summary([cell("mmlu", metrics)])
    assert (whole.value, whole.labels["metric"], whole.labels["headline"]) == (50.0, "acc", True)
    assert macro.value == pytest.approx(100 / 3) and macro.labels["metric"] == "acc, mean of 2 subjects"


def test_longbench_has_a_mean_that_is_comparable_only_when_it_is_whole():
    tasks = [cell(f"longbench_{n}", {"score": [n / 20] * 4, "qa_f1_score": [0.0] * 4}) for n in range(21)]
    *_, some = StandardScoring().summary(tasks[:2])
    assert (some.name, some.n, some.labels["comparable"]) == ("LongBench", 8, False) and some.value == pytest.approx(
        2.5
    )
    *_, whole = StandardScoring().summary(tasks)
    assert whole.value == pytest.approx(50) and whole.labels["comparable"] is True and whole.labels["headline"] is True


def test_perplexities_are_not_percent():
    facts = {"cut": 0.0, "word_perplexity log-likelihood": -6.0, "word_perplexity weight": 2.0}
    (figure,) = StandardScoring().summary([cell("wikitext", {}, facts=facts)])
    assert figure.value == pytest.approx(20.0855, abs=1e-3) and figure.labels["metric"] == "word_perplexity"


@pytest.mark.parametrize("module", ["scoring", "suite"])
def test_importing_loads_neither_the_harness_nor_torch(module):
    code = f"import sys, rnope.evals.standard.{module}; sys.exit(bool({{'torch', 'lm_eval', 'datasets'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, timeout=60).returncode == 0
