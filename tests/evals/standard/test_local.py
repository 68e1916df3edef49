"""Local files: the prompts that the harness makes of them, spelt out by hand, and what is said of files that do not fit."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from rnope.errors import UserError
from rnope.evals.standard.local import COPIES
from rnope.evals.standard.scrolls import FOLDERS, document_score
from rnope.evals.standard.tasks import PAPER, expand, kept_metrics, load, pass_at_1, ratio

sys.path.insert(0, str(Path(__file__).parent))
import standard_kit as kit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return kit.write_data(tmp_path_factory.mktemp("data"))


def asked(data, name, place=1, shots=None):
    """(requests, target) of one document."""
    (benchmark,) = load([name], data=data, shots=shots)
    task = benchmark.tasks[0]
    task.set_fewshot_seed(seed=1)
    document = task.eval_docs[place]
    context = task.fewshot_context(document, num_fewshot=task.config.num_fewshot)
    made = task.construct_requests(doc=document, ctx=context, metadata=(name, place, 1))
    return [each.args for each in (made if isinstance(made, list) else [made])], task.doc_to_target(document)


def test_every_benchmark_of_the_paper_has_a_local_form():
    assert set(COPIES) == set(PAPER)


QUERY = "Q: What is 1? Answer Choices: (A)2 (B)4 (C)9 (D)10\nA: Among A through D, the answer is"
WHERE = "Question: Where is needle 1?\n" + "".join(f"{letter}. place {letter}\n" for letter in "ABCDE") + "Answer:"
PROMPTS = {
    "arc_easy": [("Question: Which is 1?\nAnswer:", f" {c}") for c in ("one 1", "two", "three", "four apples")],
    "arc_challenge": [("Question: Which is 1?\nAnswer:", f" {c}") for c in ("one 1", "two", "three", "four apples")],
    "hellaswag": [("Hay: A man 1 sits. he", f" {c}") for c in ("eats 1", "sleeps", "runs", "is a cat")],
    "winogrande": [("Ada met Bob 1 so Ada", " left."), ("Ada met Bob 1 so Bob", " left.")],
    "commonsense_qa": [(WHERE, f" {letter}") for letter in "ABCDE"],
    "agieval_sat_math": [(f"A cat. {QUERY}", f" {c}") for c in ("(A)2", "(B)4", "(C)9", "(D)10")],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_restored(data, name):
    assert asked(data, name)[0] == PROMPTS[name]


def test_mmlu_has_57_subjects_each_with_its_own_examples(data):
    (benchmark,) = load(["mmlu"], data=data, shots=2)
    assert len(benchmark.tasks) == 57 and {len(task.eval_docs) for task in benchmark.tasks} == {2}
    ((context, choice), *_), target = asked(data, "mmlu", shots=2)
    about = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    shown = "Shown:  Which 0 of abstract_algebra?\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n"
    assert context == f"{about}{shown}{shown}Which 1 of abstract_algebra?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert choice == " A" and target == 1


def test_gsm8k_shows_its_own_number_of_training_questions(data):
    ((context, arguments),), target = asked(data, "gsm8k")
    *shown, last = context.split("\n\n")
    assert len(shown) == 5 and all(each.startswith("Question: Is it ") and "#### " in each for each in shown)
    assert last == "Question: What is 1 and 1?\nAnswer:" and target.endswith("#### 2")
    assert arguments["until"] == ["Question:", "</s>", "<|im_end|>"]


def test_mbpp_shows_the_harness_s_three_examples_and_judges_by_its_tests(data):
    (benchmark,) = load(["mbpp"], data=data, shots=None)
    (task,) = benchmark.tasks
    assert [row["task_id"] for row in task.eval_docs] == [11, 12, 13]
    ((context, arguments),), target = asked(data, "mbpp", place=0)
    assert [context.count(f"assert add({n}, 0) == {n}\n") for n in (1, 2, 3, 4, 5, 11)] == [0, 1, 1, 1, 0, 1]
    assert context.count(f"[BEGIN]\n{kit.ADD}\n[DONE]\n\n") == 3 and context.endswith(
        "assert add(11, 2) == 13\n[BEGIN]\n"
    )
    assert arguments["until"] == ["[DONE]"]
    try:
        assert pass_at_1([target], [kit.ADD]) == 1 and pass_at_1([target], ["def add(a, b): return a"]) == 0
    except UserError as error:
        assert "cannot be run safely" in str(error)
    values = {"pass_at_1": 1.0}
    assert kept_metrics(task, values, "none") == (values, {})


def test_agieval_shows_the_examples_of_its_own_file(data):
    ((context, _), *_), _ = asked(data, "agieval_sat_en", shots=2)
    assert context.startswith(
        "Q: What is 60? Answer Choices: (A)2 (B)4 (C)9 (D)10\nA: Among A through D, the answer is (A)2\n\n"
    )
    assert context.count("Among A through D, the answer is") == 3


def test_altered_copies_are_marked_and_examples_counted(data):
    found = load(PAPER, data=data, shots=None)
    altered = {each.name: each.altered for each in found}
    assert {each.name: each.shots for each in found if each.shots} == {"gsm8k": 5, "mbpp": 3}
    assert {name for name, why in altered.items() if not why} == {"mmlu", "commonsense_qa", "mbpp"}
    assert "first 64" in altered["gsm8k"]
    assert load(["gsm8k"], data=data, shots=0)[0].altered == ""


def test_shots(data):
    assert {each.name: each.shots for each in load(PAPER, data=data, shots=None) if each.shots} == {
        "gsm8k": 5,
        "mbpp": 3,
    }
    assert load(["gsm8k"], data=data, shots=2)[0].shots == 2
    with pytest.raises(UserError, match="hellaswag: there are no examples to show"):
        load(["hellaswag"], data=data, shots=2)


@pytest.mark.parametrize("name", PAPER)
def test_a_missing_file_is_named(tmp_path, name):
    for file in COPIES[name].files[1:]:
        (tmp_path / f"{file}.jsonl").write_text("{}\n")
    with pytest.raises(
        UserError, match=rf"holds no files {COPIES[name].files[0]}\.jsonl .* for {name}\. Give a folder"
    ):
        load([name], data=tmp_path, shots=None)


def test_other_faults_of_files(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        load(["arc_easy"], data=tmp_path / "none", shots=None)
    path = tmp_path / "arc_easy_test.jsonl"
    path.write_text('{"query": "a"}\n')
    with pytest.raises(UserError, match=r"is not in the shape .* \(KeyError: 'choices'\)"):
        load(["arc_easy"], data=tmp_path, shots=None)
    path.write_text("{\n")
    with pytest.raises(UserError, match=r"arc_easy_test\.jsonl: cannot be read"):
        load(["arc_easy"], data=tmp_path, shots=None)
    (tmp_path / "arc_easy_test.jsonl.gz").write_bytes(b"\x1f\x8bno")
    with pytest.raises(UserError, match="holds 2 files"):
        load(["arc_easy"], data=tmp_path, shots=None)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        load(["arc_easy"], data=tmp_path, shots=None)
    with pytest.raises(UserError, match="has no form that is read from local files"):
        load(["lambada_openai"], data=tmp_path, shots=None)


def test_a_subject_that_is_missing_is_named(tmp_path):
    kit.write_data(tmp_path)
    (path,) = tmp_path.rglob("mmlu_test.jsonl*")
    path.unlink()
    kept = [row for row in kit.rows()["mmlu_test"] if row["subject"] != "anatomy"]
    (tmp_path / "mmlu_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with pytest.raises(UserError, match="nothing of the subject anatomy"):
        load(["mmlu"], data=tmp_path, shots=None)


def test_rows_may_hold_line_breaks_of_other_kinds(tmp_path):
    row = {"query": "Question: a\u2028b\x85c?", "choices": ["a", "b", "c", "d"], "gold": 1}
    (tmp_path / "arc_easy_test.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert asked(tmp_path, "arc_easy", place=0)[0][0][0] == "Question: a\u2028b\x85c?\nAnswer:"


def test_groups():
    assert expand(["paper"]) == PAPER and len(expand(["longbench"])) == 21 and len(expand(["scrolls"])) == 7
    assert expand(["mmlu", "paper"])[0] == "mmlu" and len(expand(["mmlu", "paper"])) == 10


def test_longbench_from_its_own_files(tmp_path):
    row = {"input": "Who?", "context": "It was Ada.", "answers": ["Ada"], "all_classes": None, "length": 3, "_id": "1"}
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps(row) + "\n")
    pytest.importorskip("jieba", reason="the harness asks for it: lm_eval[longbench]")
    pytest.importorskip("rouge")
    pytest.importorskip("fuzzywuzzy")
    ((context, arguments),), _ = asked(tmp_path, "longbench_hotpotqa", place=0)
    assert context.count("It was Ada.") == 1 and context.endswith("Question: Who?\nAnswer:")
    assert arguments["max_gen_toks"] == 32
    (benchmark,) = load(["longbench_hotpotqa"], data=tmp_path, shots=None)
    values = benchmark.tasks[0].process_results(benchmark.tasks[0].eval_docs[0], ["Ada"])
    assert kept_metrics(benchmark.tasks[0], values, "none")[0] == {"score": 1.0, "qa_f1_score": 1.0}


@pytest.mark.skipif(find_spec("jieba") is not None, reason="its packages are here")
def test_longbench_without_its_packages_is_one_line(tmp_path):
    row = {"input": "Who?", "context": "It was Ada.", "answers": ["Ada"]}
    (tmp_path / "qasper.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r'longbench_qasper: needs a package .*pip install "lm_eval\[longbench\]"'):
        load(["longbench_qasper"], data=tmp_path, shots=None)


QUESTIONS = {
    "quality": ("Who is it?\n\n(A) Ada (B) Bob (C) Cy (D) Di\n\nLong text here.\n\nmore", "Bob"),
    "contract_nli": ("Is it so?\n\nThe contract.", "Entailment"),
    "qasper": ("What is it?\n\nThe paper.", "The program"),
}


@pytest.mark.slow  # the harness's module loads much of transformers
def test_scrolls_from_its_own_files(tmp_path):
    for folder in FOLDERS.values():
        text, answer = QUESTIONS.get(folder, ("What is said?\n\nAda wrote the program.", "The program"))
        rows = [{"id": "1", "pid": f"1_{n}", "input": text, "output": answer} for n in range(2)]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for benchmark in load(expand(["scrolls"]), data=tmp_path, shots=None):
        (task,) = benchmark.tasks
        (document,) = task.eval_docs  # the two answers to one question are one document
        requests, _ = asked(tmp_path, benchmark.name, place=0)
        if isinstance(requests[0][1], dict):
            means, parts = kept_metrics(task, task.process_results(document, ["a program"]), "none")
            assert means in ({"f1": 1.0}, {"rouge1": 0.5, "rouge2": 0.0, "rougeL": 0.5}) and not parts
        else:
            likely = [(-float(i), False) for i in range(len(requests))]
            assert kept_metrics(task, task.process_results(document, likely), "none")[0]["em"] == 0
    assert "transformers.data.metrics" not in sys.modules
    with pytest.raises(UserError, match="there are no examples"):
        load(["scrolls_qasper"], data=tmp_path, shots=1)


def test_f1_and_rouge_take_the_best_reference():
    assert document_score("f1", "the red apple", ["a pear", "An apple!"]) == pytest.approx(2 / 3)
    assert document_score("f1", "", ["x"]) == 0
    assert document_score("rouge1", "red apple", ["green", "red pear"]) == pytest.approx(0.5)


def test_ratios_are_the_harness_s():
    from lm_eval.api import metrics

    items = [(-12.5, 7), (-3.0, 2)]
    likelihood, weight = (sum(each) for each in zip(*items, strict=True))
    assert ratio("word_perplexity", likelihood, weight) == pytest.approx(metrics.weighted_perplexity(items))
    assert ratio("bits_per_byte", likelihood, weight) == pytest.approx(metrics.bits_per_byte(items))
    assert ratio("perplexity", -15.5, 2) == pytest.approx(metrics.perplexity([-12.5, -3.0]))


def test_without_a_network_nothing_waits(monkeypatch, tmp_path):
    def down(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", down)
    monkeypatch.setattr(datasets, "load_dataset", down)
    with pytest.raises(
        UserError, match=r"hellaswag: its data cannot be had .*no route.*give local files \(--data FOLDER\)"
    ):
        load(["hellaswag"], data=None, shots=None)
    assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE


def test_with_a_network_the_harness_downloads(monkeypatch, data):
    rows = [{"question": "Is it?", "answer": "#### 1"}] * 6
    fetched = []

    def fetch(path, name, **kwargs):
        fetched.append((path, name))
        return {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}

    session = type("Session", (), {"head": staticmethod(lambda address, timeout: None)})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: session)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, **kwargs: fetch(path, name))
    (benchmark,) = load(["gsm8k"], data=None, shots=None)
    assert fetched == [("openai/gsm8k", "main")]
    assert (benchmark.source, benchmark.altered, benchmark.shots) == ("download", "", 5)
