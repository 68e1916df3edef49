"""The model that the harness knows as ``rnope``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from rnope.errors import UserError
from rnope.evals.standard.harness import RnopeLM
from rnope.evals.standard.requests import Responder

sys.path.insert(0, str(Path(__file__).parent))
import standard_kit as kit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    kit.model(folder)
    return folder


def requests(kind, *given):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("t", 0, 1)) for each in given]


def test_it_is_registered_and_opens_folders_as_the_command_line_asks(folder):
    model = get_model("rnope").create_from_arg_string(
        f"pretrained={folder},max_length=512", {"batch_size": 2, "max_batch_size": None, "device": None}
    )
    assert isinstance(model, RnopeLM) and model.max_length == 512 and model.responder.batch == 2
    assert model.get_model_info()["max_length"] == 512
    assert RnopeLM(str(folder)).max_length == 4096
    with pytest.raises(UserError, match="must name the model"):
        RnopeLM()
    with pytest.raises(UserError, match="must be a whole number"):
        RnopeLM(str(folder), batch_size="auto")


def test_it_answers_in_the_order_it_was_asked(folder):
    model = RnopeLM(str(folder))
    pairs = [("the red", " apple"), ("a hay", " stack"), ("the hay", " apple")]
    alone = [dict(Responder(model.responder.model).log_likelihoods([pair]))[0].value for pair in pairs]
    found = model.loglikelihood(requests("loglikelihood", *pairs))
    for (value, greedy), (by_hand, greedy_too) in zip(found, alone, strict=True):
        assert value == pytest.approx(by_hand, abs=1e-4) and greedy == greedy_too
    texts = model.generate_until(requests("generate_until", *((a, {"until": [], "max_gen_toks": 4}) for a, _ in pairs)))
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    (value,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", ("the red apple",)))
    assert value < 0


def test_cuts_are_counted_and_answers_go_into_the_harness_s_cache(folder):
    model = RnopeLM(str(folder), max_length=20)
    kept = []
    model.cache_hook = type("Hook", (), {"add_partial": lambda self, *args: kept.append(args)})()
    pairs = [("the hay " * 20, " apple"), ("the", " apple")]
    found = model.loglikelihood(requests("loglikelihood", *pairs))
    assert model.get_model_info()["requests_cut_to_max_length"] == 1
    assert {args: value for _, args, value in kept} == dict(zip(pairs, found, strict=True))


@pytest.mark.slow
def test_the_harness_s_command_line_knows_it(folder, tmp_path):
    """With a task of our making, since there may be no network."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"Is {n} red?", "a": n % 2}) + "\n" for n in range(4))
    )
    (tmp_path / "toy.yaml").write_text(
        "task: toy_red\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        + str(tmp_path / "rows.jsonl")
        + "\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: ["yes", "no"]\n'
        "doc_to_target: a\nmetric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    command = [sys.executable, "-m", "rnope.evals.standard.harness", "run", "--model", "rnope", "--device", "cpu",
               "--model_args", f"pretrained={folder}", "--include_path", str(tmp_path), "--tasks", "toy_red", "--output_path",
               str(tmp_path / "out")]  # fmt: skip
    source = str(Path(__file__).parents[3] / "src")
    environment = {
        "PYTHONPATH": source,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
    }
    subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True)
    (path,) = (tmp_path / "out").rglob("results*.json")
    found = json.loads(path.read_text())
    assert found["results"]["toy_red"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["config"]["requests_cut_to_max_length"] == 0
