"""The suite: its own loop against the harness's, kills, limits, and what a folder says afterwards."""

import json
import os
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate as harness_evaluate

from rnope.errors import UserError
from rnope.evals.models.model import Score
from rnope.evals.run import assemble, evaluate
from rnope.evals.standard import suite as suite_module
from rnope.evals.standard.harness import RnopeLM
from rnope.evals.standard.scoring import StandardScoring
from rnope.evals.standard.tasks import PAPER, Benchmark, load
from rnope.evals.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import standard_kit as kit

WALLS = True
try:
    suite_module.check_walls()
except UserError:
    WALLS = False


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return kit.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return kit.model(tmp_path_factory.mktemp("model"))


def inline(name, kind, metrics, doc_to_text, doc_to_target, count=5, **config):
    """A task of the harness, of our making."""
    rows = [
        {"text": f"The hay is red and {n} needles are in it.", "begin": f"The hay {n}", "end": "is red"}
        for n in range(count)
    ]
    table = {"test": Dataset.from_list(rows)}
    listed = [{"metric": each, "aggregation": how, "higher_is_better": True} for each, how in metrics]
    made = {"task": name, "output_type": kind, "test_split": "test", "metric_list": listed, "num_fewshot": 0,
            "doc_to_text": doc_to_text, "doc_to_target": doc_to_target,
            "custom_dataset": lambda **_: table, "metadata": {}, **config}  # fmt: skip
    return ConfigurableTask(config=made)


def rolling():
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    how = ("weighted_perplexity", "weighted_perplexity", "bits_per_byte")
    return inline(
        "rolling", "loglikelihood_rolling", list(zip(names, how, strict=True)), doc_to_text="", doc_to_target="text"
    )


LAST = ([("perplexity", "perplexity"), ("acc", "mean")], "{{begin}}", " {{end}}")


def last_words():
    return inline("last", "loglikelihood", *LAST)


def short(data, *names):
    """Benchmarks whose written answers are short."""
    found = [each.tasks[0] for each in load(names, data=data, shots=None)]
    for task in found:
        if task.OUTPUT_TYPE == "generate_until":
            task.config.generation_kwargs["max_gen_toks"] = 12
    return found


def with_tasks(data, *tasks, **more):
    """A suite of these tasks, one cell each."""
    made = kit.suite(data, "arc_easy", **more)
    made.__dict__["_benchmarks"] = {
        task.config.task: Benchmark(name=task.config.task, tasks=(task,), source="test", altered="") for task in tasks
    }
    return made


def test_figures_are_those_of_the_harness_s_own_loop(data, model, tmp_path):
    """Choices, choices before a common end, drawn examples and written answers, rolling, last words."""
    names = ["arc_easy", "winogrande", "commonsense_qa", "gsm8k"]

    def tasks():
        found = [*short(data, *names), rolling(), last_words()]
        for task in found:
            task.set_fewshot_seed(seed=42)
        return {task.config.task: task for task in found}

    theirs = harness_evaluate(RnopeLM(model=model), {"tasks": tasks()}, bootstrap_iters=0)
    results = evaluate(model, with_tasks(data, *tasks().values()), tmp_path, batch=2)
    store = Store(tmp_path / "tiny/standard")
    compared = 0
    for cell in results.cells:
        ours = {each.name: each.value for each in cell.figures}
        for label, value in theirs["results"][cell.name].items():
            name = label.removesuffix(",none")
            if name in ours:
                assert ours[name] == pytest.approx(value), (cell.name, label)
                compared += 1
        samples = {each["doc_id"]: each for each in theirs["samples"][cell.name]}
        for line in store.read(cell.name).values():
            answers = [answer[0] for answer in samples[line.index]["resps"]]
            if cell.name == "gsm8k":
                assert [line.answer] == answers
            else:
                given = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
                assert line.facts["log_likelihoods"] == pytest.approx(given, abs=1e-4)
    ratios = {(each.labels["task"], each.labels["metric"]): each.value for each in results.summary}
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ratios["rolling", metric] == pytest.approx(theirs["results"]["rolling"][f"{metric},none"], rel=1e-5)
        compared += 1
    assert ratios["last", "perplexity"] == pytest.approx(theirs["results"]["last"]["perplexity,none"], rel=1e-5)
    assert compared == 2 + 1 + 1 + 2 + 3 + 1
    assert len({each.value for each in results.summary}) > 3  # not all nought


def test_all_ten_end_to_end_and_scored_again_without_a_model(data, model, tmp_path):
    results = evaluate(model, kit.suite(data, "paper", limit=1, run_code=WALLS), tmp_path, batch=4)
    assert {cell.name for cell in results.cells} == set(PAPER) - (set() if WALLS else {"mbpp"})
    cells = {cell.name: cell for cell in results.cells}
    assert cells["mmlu"].samples == 57 and cells["gsm8k"].samples == 1
    assert cells["gsm8k"].labels["shots"] == 5 and cells["arc_easy"].labels["comparable"] is False
    figures = {(each.name, each.labels["metric"]): each for each in results.summary}
    assert figures["MMLU", "acc"].value == pytest.approx(figures["MMLU", "acc, mean of 57 subjects"].value)
    assert {name for name, _ in figures} >= {
        "MMLU",
        "HellaSwag",
        "ARC-E",
        "ARC-C",
        "SAT-en",
        "SAT-math",
        "GSM8K",
        "Winogrande",
    }
    store = Store(tmp_path / "tiny/standard")
    before = store.results_path.read_bytes()
    store.results_path.unlink()
    assemble(store, StandardScoring()).save(store.results_path)
    assert store.results_path.read_bytes() == before
    line = store.read("arc_easy")[0]
    assert line.facts["document"] == "arc_easy/0" and line.answer in ("one 0", "two", "three", "four apples")
    assert line.references == ("0",) and line.prompt_tokens > 10


class Deaf:
    """A model that gives no score to some requests, as a server may."""

    def __init__(self, model, places):
        self.facts, self.tokenizer, self._model, self._places = model.facts, model.tokenizer, model, places

    def scores(self, requests, *, progress=lambda tokens: None):
        for place, score in self._model.scores(requests, progress=progress):
            yield place, Score((), (), "no reply") if place in self._places else score


def test_a_question_with_a_choice_that_has_no_score_is_an_error(data, model, tmp_path):
    suite = with_tasks(data, rolling(), *short(data, "arc_easy"))
    cells = {cell.name: cell for cell in evaluate(Deaf(model, [0]), suite, tmp_path).cells}
    assert cells["arc_easy"].errors == 1 and cells["rolling"].errors == 5
    lines = Store(tmp_path / "tiny/standard").read("arc_easy").values()
    assert [line.error for line in lines if line.ended == "error"] == ["no reply"]
    assert all("metrics" not in line.facts for line in lines if line.error)
    again = {cell.name: cell for cell in evaluate(model, suite, tmp_path).cells}
    assert again["arc_easy"].errors == again["rolling"].errors == 0


class Dying:
    """A model that is killed at its n-th call."""

    def __init__(self, model, calls):
        self.facts, self.tokenizer, self._model, self.left, self.asked = model.facts, model.tokenizer, model, calls, 0

    def generate(self, prompts, *rest, **more):
        self._count(len(prompts))
        return self._model.generate(prompts, *rest, **more)

    def scores(self, requests, **more):
        self._count(len(requests))
        return self._model.scores(requests, **more)

    def _count(self, number):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += number


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 5])
def test_a_killed_run_goes_on_without_asking_again(data, model, tmp_path, calls):
    names = ("gsm8k", "arc_easy")
    whole = Dying(model, -1)
    straight = evaluate(whole, with_tasks(data, *short(data, *names)), tmp_path / "straight", batch=2)
    first, second = Dying(model, calls), Dying(model, -1)
    with pytest.raises(KeyboardInterrupt) if calls < 4 else pytest.raises(ZeroDivisionError):
        evaluate(first, with_tasks(data, *short(data, *names)), tmp_path / "killed", batch=2)
        raise ZeroDivisionError
    assert evaluate(second, with_tasks(data, *short(data, *names)), tmp_path / "killed", batch=2) == straight
    assert first.asked + second.asked == whole.asked == 5 + 20
    kept = "tiny/standard/predictions/gsm8k.jsonl"
    assert (tmp_path / "killed" / kept).read_bytes() == (tmp_path / "straight" / kept).read_bytes()


def test_a_higher_limit_only_adds(data, model, tmp_path):
    asked = []

    def two_subjects(limit=None):
        made = with_tasks(data, last_words(), limit=limit)
        tasks = (inline("both_a", "loglikelihood", *LAST), inline("both_b", "loglikelihood", *LAST, count=3))
        made._benchmarks["both"] = Benchmark(name="both", tasks=tasks, source="test", altered="")
        return made

    for limit in (1, 4, None):
        counted = Dying(model, -1)
        results = evaluate(counted, two_subjects(limit), tmp_path)
        asked.append(counted.asked)
    assert results == evaluate(model, two_subjects(), tmp_path / "straight")
    assert asked == [1 + 2, 3 + 5, 1 + 1]
    lines = Store(tmp_path / "tiny/standard").read("both")
    assert [lines[i].facts["document"] for i in range(8)] == [
        "both_a/0", "both_b/0", "both_a/1", "both_b/1", "both_a/2", "both_b/2", "both_a/3", "both_a/4",
    ]  # fmt: skip
    figures = {each.labels["metric"]: each for each in results.summary if each.labels["task"] == "both"}
    parts = {each.name: each for cell in results.cells if cell.name == "both" for each in cell.figures}
    by_subject = [parts["acc / a"], parts["acc / b"]]
    assert [each.n for each in by_subject] == [5, 3] and figures["acc"].n == 8
    assert figures["acc"].value == pytest.approx(100 * sum(each.value * each.n for each in by_subject) / 8)
    macro = figures["acc, mean of 2 subjects"].value
    assert macro == pytest.approx(100 * sum(each.value for each in by_subject) / 2)


def test_a_limit_and_altered_copies_are_not_comparable(data, model, tmp_path):
    (figure,) = evaluate(model, kit.suite(data, "commonsense_qa", limit=2), tmp_path).summary
    assert figure.labels["comparable"] is False
    (figure,) = evaluate(model, kit.suite(data, "commonsense_qa"), tmp_path).summary
    assert figure.labels["comparable"] is True and figure.n == 5
    (figure,) = evaluate(model, kit.suite(data, "winogrande"), tmp_path / "other").summary
    assert figure.labels["comparable"] is False


def test_other_data_or_examples_are_refused_in_the_same_folder(data, model, tmp_path):
    evaluate(model, kit.suite(data, "arc_easy"), tmp_path / "out")
    with pytest.raises(UserError, match="shots"):
        evaluate(model, kit.suite(data, "arc_easy", shots=0), tmp_path / "out")
    other = kit.write_data(tmp_path / "data", count=6)
    with pytest.raises(UserError, match="arc_easy"):
        evaluate(model, kit.suite(other, "arc_easy"), tmp_path / "out")


def test_prompts_that_were_cut_are_told(data, tmp_path):
    short = kit.model(tmp_path / "model", context_tokens=30)
    results = evaluate(short, kit.suite(data, "commonsense_qa"), tmp_path / "out")
    assert results.cells[0].facts["cut"] == 1 and results.summary[0].labels["cut"] == 1
    with pytest.raises(UserError, match="no room for an answer of 256 tokens"):
        evaluate(short, kit.suite(data, "gsm8k"), tmp_path / "out")


def test_a_model_may_be_asked_beyond_its_trained_length(data, model, tmp_path):
    short = kit.model(tmp_path / "model", context_tokens=30)  # the weights of `model`, which was trained to 4,096
    results = evaluate(short, kit.suite(data, "commonsense_qa", context_tokens=4096), tmp_path / "out")
    assert results.cells[0].facts["cut"] == 0 and results.settings["context_tokens"] == 4096
    whole = evaluate(model, kit.suite(data, "commonsense_qa"), tmp_path / "whole")
    assert results.cells[0].prompts_sha256 == whole.cells[0].prompts_sha256
    with pytest.raises(UserError, match="context_tokens"):
        evaluate(short, kit.suite(data, "commonsense_qa"), tmp_path / "out")


def test_an_error_of_one_prompt_is_an_error_of_its_document(data, model, tmp_path):
    class Failing(Dying):
        def generate(self, prompts, *rest, **more):
            found = super().generate(prompts, *rest, **more)
            return [type(found[0])(text="", tokens=0, ended="error", error="it burnt"), *found[1:]]

    results = evaluate(Failing(model, -1), with_tasks(data, *short(data, "gsm8k"), limit=2), tmp_path, batch=2)
    assert (
        results.cells[0].errors == 1 and results.summary[0].n == 1 and results.summary[0].labels["comparable"] is False
    )
    results = evaluate(model, with_tasks(data, *short(data, "gsm8k"), limit=2), tmp_path, batch=2)
    assert results.cells[0].errors == 0


def test_mbpp_is_off_unless_it_is_allowed(data, monkeypatch):
    made = kit.suite(data, "paper")
    assert made.notes and "--run-code" in made.notes[0] and "mbpp" not in {cell.name for cell in made.cells()}
    with pytest.raises(UserError, match="mbpp needs --run-code"):
        kit.suite(data, "mbpp")

    def none():
        raise UserError("no walls")

    monkeypatch.setattr(suite_module, "check_walls", none)
    with pytest.raises(UserError, match="no walls"):
        kit.suite(data, "mbpp", run_code=True)
    assert kit.suite(data, "arc_easy", run_code=True).notes == ()


def test_tasks_that_are_not_scored_by_means_are_refused(data, monkeypatch):
    from rnope.evals.standard import tasks

    task = inline("corpus", "generate_until", [("bleu", "bleu")], doc_to_text="{{begin}}", doc_to_target="{{end}}",
                  generation_kwargs={"until": ["x"]})  # fmt: skip
    with pytest.raises(UserError, match=r"is scored over the whole corpus \(bleu\)"):
        tasks._check(task, "corpus")
    task = inline("code", "loglikelihood", [("acc", "mean")], doc_to_text="", doc_to_target="end", unsafe_code=True)
    with pytest.raises(UserError, match="runs code that the model writes"):
        tasks._check(task, "code")


def test_without_the_harness_it_is_one_line(data, monkeypatch):
    from rnope.evals.standard import tasks

    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'not installed\. Install it: pip install "rnope\[eval\]"'):
        kit.suite(data, "arc_easy")


def test_the_plan_knows_documents_and_lengths(data):
    (cell,) = kit.suite(data, "gsm8k").cells()
    assert cell.samples == 5 and cell.max_new_tokens == 256 and cell.labels["documents"] == 5
    assert 256 + 50 < cell.context_tokens < 256 + 500
    assert kit.suite(data, "gsm8k", limit=1).cells()[0].context_tokens == cell.context_tokens


@pytest.mark.slow
@pytest.mark.skipif("RNOPE_BENCH_DATA" not in os.environ, reason="RNOPE_BENCH_DATA names no folder with the benchmarks")
def test_all_ten_from_the_real_files(tmp_path):
    model = kit.model(tmp_path / "model", context_tokens=16384)
    made = kit.suite(Path(os.environ["RNOPE_BENCH_DATA"]), "paper", limit=2, run_code=WALLS)
    results = evaluate(model, made, tmp_path / "out", batch=2)
    sizes = {cell.name: cell.labels["documents"] for cell in results.cells}
    assert sizes.pop("mbpp", 500) == 500
    assert sizes == {
        "mmlu": 14042, "hellaswag": 10042, "commonsense_qa": 1221, "arc_easy": 2376, "arc_challenge": 1172,
        "agieval_sat_en": 206, "agieval_sat_math": 220, "gsm8k": 1319, "winogrande": 1267,
    }  # fmt: skip
    assert all(cell.samples == (114 if cell.name == "mmlu" else 2) and not cell.errors for cell in results.cells)
    assert all(cell.facts["cut"] == 0 for cell in results.cells)
    json.loads((tmp_path / "out/tiny/standard/results.json").read_text())
