"""RULER's metrics are the original's, and its means are plain means."""

import ast
import os
import re
import sys
from pathlib import Path
from random import Random

import pytest

from rnope.evals.results import CellResult, mean_figure
from rnope.evals.ruler import metrics
from rnope.evals.ruler.scoring import RulerScoring
from rnope.evals.suite import Prediction

sys.path.insert(0, str(Path(__file__).parent))
import ruler_original as original

PIECES = [
    "", " ", "\n", "\t", "\x00", "\x1f", "\x7f", "\x85", "\u2028", "1234567", "straße", "STRASSE", "İ", "i̇", "ß", "ẞ", "ﬁ",
    "fi", "Σ", "ς", "a", "A", "the", "Blue-Sky", "blue-sky", ".", ",", "ABCDE", "abc", "\u00a0", "é", "é", "\ud83d", "🙂",
]  # fmt: skip


def pairs(count):
    rng = Random(0)
    for _ in range(count):
        references = ["".join(rng.choices(PIECES, k=rng.randint(0, 3))) for _ in range(rng.randint(1, 5))]
        answer = "".join(rng.choices([*PIECES, *references], k=rng.randint(0, 8)))
        yield rng.choice([answer, answer.upper(), answer.lower(), answer.title()]), references


def transcribed():
    """The original's three functions, as they stand there."""

    def postprocess_pred(predict_str, task_config):
        predict_str = predict_str.strip()
        np_pattern = re.compile(r"[\x00-\x1f]")
        return np_pattern.sub("\n", predict_str).strip()

    def string_match_part(preds, refs):
        score = (
            sum(
                [
                    max([1.0 if r.lower() in pred.lower() else 0.0 for r in ref])
                    for pred, ref in zip(preds, refs, strict=False)
                ]
            )
            / len(preds)
            * 100
        )
        return round(score, 2)

    def string_match_all(preds, refs):
        score = (
            sum(
                [
                    sum([1.0 if r.lower() in pred.lower() else 0.0 for r in ref]) / len(ref)
                    for pred, ref in zip(preds, refs, strict=False)
                ]
            )
            / len(preds)
            * 100
        )
        return round(score, 2)

    return postprocess_pred, string_match_part, string_match_all


def from_checkout():
    """The functions of the checkout; the modules themselves cannot be imported without NeMo."""
    names = ("postprocess_pred", "string_match_part", "string_match_all")
    found = {"re": re}
    for path in ("scripts/eval/evaluate.py", "scripts/eval/synthetic/constants.py"):
        tree = ast.parse(Path(os.environ[original.VARIABLE], path).read_bytes())
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
        exec(compile(tree, path, "exec"), found)
    return tuple(found[name] for name in names)


@pytest.mark.parametrize("source", [transcribed, from_checkout])
def test_metrics_are_the_originals(source):
    if source is from_checkout and original.VARIABLE not in os.environ:
        pytest.skip(f"{original.VARIABLE} does not name a checkout of NVIDIA/RULER (see docs/evaluation.md)")
    postprocess, part, every = source()
    generated = list(pairs(10_000))
    processed = [postprocess(answer, {}) for answer, _ in generated]
    references = [refs for _, refs in generated]
    assert [metrics.postprocess(answer) for answer, _ in generated] == processed
    for answer, refs in zip(processed, references, strict=True):
        assert metrics.rounded(metrics.string_match_part(answer, refs)) == part([answer], [refs])
        assert metrics.rounded(metrics.string_match_all(answer, refs)) == every([answer], [refs])
    kinds = {metrics.string_match_all(a, r) for a, r in zip(processed, references, strict=True)}
    assert {0.0, 0.5, 1.0} < kinds, "pairs of all sorts"


def _prediction(cell, answer, references):
    return Prediction(
        cell=cell, index=0, prompt_sha256="", prompt_tokens=1, answer=answer, new_tokens=1, ended="stop",
        references=references,
    )  # fmt: skip


def test_retrieval_needs_all_references_and_questions_any():
    score = RulerScoring().score
    both = _prediction("niah_multivalue-4096", " 1111111, and\t7654321.", ("1111111", "2222222"))
    assert score(both) == {"score": 0.5, "exact": 0.0, "f1": pytest.approx(2 / 5), "null": 0.0}
    assert score(_prediction("qa_1-4096", "In 308 BC, or so.", ("in 308", "308 BC", "x")))["score"] == 1.0
    assert score(_prediction("qa_1-4096", "The 308 B.C.", ("in 308", "308 BC")))["exact"] == 1.0
    assert score(_prediction("qa_2-131072", " \n\x00 ", ("yes",))) == {
        "score": 0.0, "exact": 0.0, "f1": 0.0, "null": 1.0,
    }  # fmt: skip
    assert score(_prediction("vt-4096", "BBBBB AAAAA", ("AAAAA", "BBBBB")))["exact"] == 1.0


def _cell(task, length, values):
    figures = (mean_figure("score", values), mean_figure("null", [0.0] * len(values)))
    return CellResult(
        name=f"{task}-{length}", context_tokens=length, labels={"task": task}, samples=len(values), errors=0,
        answers_cut=0, prompt_tokens=1.0, prompts_sha256="", figures=figures,
    )  # fmt: skip


def test_summary_is_of_100_rounded_and_says_what_is_missing():
    cells = [_cell("qa_1", 4096, [1.0, 0.0, 0.0]), _cell("qa_2", 4096, [1.0]), _cell("niah_single_1", 8192, [0.25, 1])]
    figures = RulerScoring().summary(cells)
    found = {
        (f.labels.get("task") or f.labels["group"], f.labels["context_tokens"]): (
            f.value,
            f.n,
            f.labels.get("complete"),
        )
        for f in figures
    }
    assert found == {
        ("qa_1", 4096): (33.33, 3, None), ("qa_2", 4096): (100.0, 1, None), ("niah_single_1", 8192): (62.5, 2, None),
        ("qa", 4096): (pytest.approx(66.665), 4, True), ("all", 4096): (pytest.approx(66.665), 4, False),
        ("retrieval", 8192): (62.5, 2, False), ("all", 8192): (62.5, 2, False),
    }  # fmt: skip
    assert RulerScoring().summary([]) == ()
