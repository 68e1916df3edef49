"""Folders through transformers: against its own generate() and one plain pass, with and without sharing."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rnope.errors import ConfigError, UserError
from rnope.evals.models import hub
from rnope.evals.models.hub import TransformersModel

sys.path.insert(0, str(Path(__file__).parent))
from model_kit import CONFIGS, TOKENIZER, random_ids, siblings, spelling, spelt, write

GOING_ON = ["llama", "cohere2", "gemma3_text", "smollm3", "gpt2"]
FROM_THE_START = ["mamba", "lfm2", "phi3", "dynamic"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = write(tmp_path_factory.mktemp("models") / kind, kind)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def opened(folders):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = spelling(TransformersModel(folders(kind), name=kind, dtype=torch.float32))
        return made[kind]

    return get


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(hub, "CHUNK", 5)
    monkeypatch.setattr(hub, "ROWS", 3)


@torch.no_grad()
def theirs(folder, prompts, new):
    """What transformers' own generate() adds, each prompt alone, the folder opened plainly."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for ids in prompts:
        model.eval()
        given = torch.tensor(ids)[None]
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False,
                             pad_token_id=0)  # fmt: skip
        found.append(out[0, len(ids) :].tolist())
    return found


def family():
    """Prompts that share beginnings, past every window, at odd lengths; some are alike, one stands alone."""
    head, more = random_ids(19), random_ids(18, 1)
    long = np.concatenate((head, more))
    parts = (head, long, np.append(long, 9), np.append(head, [4, 5]), random_ids(3, 2), long, np.append(long[:-1], 11))
    return list(parts)


# ---- answers


@pytest.mark.parametrize("kind", GOING_ON + FROM_THE_START)
def test_answers_are_those_of_generate_though_beginnings_are_shared(kind, opened, folders, small):
    model, prompts = opened(kind), [*family(), *siblings()]
    answers = model.generate(prompts, 9)
    expected = theirs(folders(kind), prompts, 9)
    assert spelt(answers) == expected
    assert [answer.tokens for answer in answers] == [len(ids) for ids in expected]
    assert [answer.ended for answer in answers] == ["stop" if ids[-1] == 2 else "length" for ids in expected]
    assert len({tuple(ids) for ids in expected}) >= 4  # prompts matter to these models


@pytest.mark.parametrize("kind", GOING_ON)
def test_what_prompts_share_is_read_once(kind, opened, monkeypatch):
    model, prompts, told, read = opened(kind), family(), [], []
    inner = model.model.forward

    def counting(input_ids=None, **given):
        read.append(input_ids.shape[1])
        return inner(input_ids=input_ids, **given)

    monkeypatch.setattr(model.model, "forward", counting)
    answers = model.generate(prompts, 1, progress=told.append)
    shared = hub.tree(prompts)
    assert (
        sum(read) == sum(told) - 7 == sum(map(len, prompts)) - sum((n.prompts - 1) * (n.end - n.begin) for n in shared)
    )
    assert sum(map(len, prompts)) - sum(read) > 60
    assert [answer.tokens for answer in answers] == [1] * 7


@pytest.mark.parametrize("kind", FROM_THE_START)
def test_models_that_cannot_go_on_from_a_cache_read_from_the_start(kind, opened):
    model, told = opened(kind), []
    prompts = family()
    alone = [model.generate([ids], 5)[0] for ids in prompts]
    assert model.generate(prompts, 5, progress=told.append) == alone
    assert sum(told) == sum(map(len, prompts)) + sum(answer.tokens for answer in alone)


def test_a_model_that_lets_the_cache_go_is_not_asked_to_go_on_from_it(folders, opened, monkeypatch):
    kind = type(opened("llama").model)
    forward = kind.forward

    def forgetful(self, input_ids=None, past_key_values=None, use_cache=None, logits_to_keep=0):
        return forward(self, input_ids=input_ids, use_cache=False, logits_to_keep=logits_to_keep)

    assert TransformersModel(folders("llama"), name="m")._goes_on
    monkeypatch.setattr(kind, "forward", forgetful)
    assert not TransformersModel(folders("llama"), name="m")._goes_on


def test_an_answer_does_not_depend_on_what_was_asked_before(folders):
    """``dynamic`` RoPE remembers the longest text that it saw."""
    ids, long = random_ids(70), random_ids(150, 1)
    fresh = [spelling(TransformersModel(folders("dynamic"), name="m", dtype=torch.float32)) for _ in range(2)]
    first = [model.scores([(ids, ids[:9])]) for model in fresh[:1]]
    fresh[1].generate([long], 4)
    list(fresh[1].scores([(long, long[:5])]))
    assert list(fresh[1].scores([(ids, ids[:9])])) == list(first[0])
    assert fresh[1].generate([ids], 9) == fresh[0].generate([ids], 9)


def test_a_stop_id_ends_an_answer_and_is_not_in_its_text(tmp_path, folders):
    ids = random_ids(11)
    (expected,) = theirs(folders("llama"), [ids], 8)
    stop = expected[4]
    folder = write(tmp_path / "m", "llama", eos_token_id=[2, stop])
    first = expected.index(stop)
    (answer,) = spelling(TransformersModel(folder, name="m", dtype=torch.float32)).generate([ids], 8)
    assert spelt([answer]) == [expected[: first + 1]] and answer.ended == "stop"
    model = TransformersModel(folder, name="m", dtype=torch.float32)
    assert set(model.stop_ids) == {2, stop}


def test_a_stop_text_ends_an_answer_before_it_and_saves_the_rest(opened, folders):
    model, ids, told = opened("smollm3"), random_ids(11), []
    (expected,) = theirs(folders("smollm3"), [ids], 8)
    text = f" {expected[3]} "
    end = " ".join(map(str, expected)).find(text)
    (answer,) = model.generate([ids], 8, stop=("", "nowhere", text), progress=told.append)
    assert answer.text == " ".join(map(str, expected))[:end] and answer.ended == "stop"
    assert answer.tokens < 8 and sum(told) == len(ids) + answer.tokens


def test_settings_of_the_folder_that_change_greedy_choices_do_not_count(tmp_path, folders):
    folder = write(tmp_path / "m", "llama")
    odd = {"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.5, "repetition_penalty": 5.0, "num_beams": 3,
           "eos_token_id": 2, "max_length": 12, "suppress_tokens": list(range(300)), "min_new_tokens": 4}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(odd))
    ids = random_ids(30)
    model = spelling(TransformersModel(folder, name="m", dtype=torch.float32))
    assert spelt(model.generate([ids], 9)) == theirs(folders("llama"), [ids], 9)
    assert model.stop_ids == (2,)


def test_learned_positions_end_the_sample_and_not_the_run(opened):
    model = opened("gpt2")
    fits, beyond, odd = random_ids(56), random_ids(57), np.array([5, 99999])
    empty = np.array([], dtype=np.int64)
    answers = model.generate([beyond, fits, odd, empty], 8)
    assert [answer.ended for answer in answers] == ["error", "length", "error", "error"]
    assert answers[0].error == "the model has learned positions for 64 tokens, and this takes 65"
    assert answers[2].error == "the prompt has token ids beyond the model's 320"
    assert answers[3].error == "the prompt is empty"
    with pytest.raises(UserError, match="cannot score 65 tokens: the model has learned positions for 64"):
        list(model.scores([(beyond, random_ids(8))]))
    assert len(list(model.scores([(fits, random_ids(8))]))) == 1


@pytest.mark.parametrize("kind", ["llama", "cohere2", "gemma3_text", "smollm3"])
def test_others_may_be_asked_beyond_what_they_were_trained_on(kind, opened, folders):
    ids = [random_ids(90)]
    assert spelt(opened(kind).generate(ids, 4)) == theirs(folders(kind), ids, 4)


# ---- scores


@pytest.mark.parametrize("kind", GOING_ON + FROM_THE_START)
def test_scores_are_those_of_one_plain_pass(kind, opened, folders, small):
    head = random_ids(21)
    requests = [
        (head, random_ids(4, 1)), (np.append(head, 7), random_ids(1, 2)), (head, random_ids(13, 3)),
        (random_ids(1, 4), random_ids(20, 5)), (np.append(head, random_ids(17, 6)), random_ids(2, 7)), (head, head[:3]),
    ]  # fmt: skip
    plain = AutoModelForCausalLM.from_pretrained(folders(kind), dtype=torch.float32)
    told = []
    scores = dict(opened(kind).scores(requests, progress=told.append))
    assert sorted(scores) == list(range(6))
    for place, (context, target) in enumerate(requests):
        with torch.no_grad():
            whole = torch.tensor(np.concatenate((context, target)))
            logits = plain(whole[None], use_cache=False).logits[0, len(context) - 1 : -1]
        logs = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
        torch.testing.assert_close(torch.tensor(scores[place].log_probabilities), logs, atol=3e-5, rtol=1e-5)
        assert scores[place].likeliest == tuple((logits.argmax(-1) == torch.tensor(target)).tolist())
    asked = sum(len(context) + len(target) for context, target in requests)
    if kind in GOING_ON:  # three requests have one context
        assert sum(told) < asked - 2 * len(head) + 1
    else:
        assert sum(told) == asked


def test_the_likeliest_are_what_generate_chooses(opened):
    model, ids = opened("cohere2"), random_ids(33)
    (tokens,) = spelt(model.generate([ids], 12))
    ((_, score),) = model.scores([(ids, np.array(tokens))])
    assert score.likeliest == (True,) * 12
    ((_, score),) = model.scores([(ids, np.array([*tokens[:5], 3 + (tokens[5] == 3)]))])
    assert score.likeliest == (True,) * 5 + (False,)


def test_a_long_continuation_never_has_all_its_logits_at_once(opened, small, monkeypatch):
    model, rows = opened("llama"), []
    likely = hub._likely
    monkeypatch.setattr(hub, "_likely", lambda logits, wanted: rows.append(len(logits)) or likely(logits, wanted))
    inner, widest = model.model.lm_head.forward, []
    monkeypatch.setattr(model.model.lm_head, "forward", lambda x: widest.append(x.shape[1]) or inner(x))
    list(model.scores([(random_ids(40), random_ids(50, 1))]))
    assert sum(rows) == 50 and max(rows) == max(widest) == 3


# ---- opening


@pytest.mark.parametrize(
    ("kind", "windows", "trained", "goes_on"),
    [("llama", (), 64, True), ("cohere2", (7,), 64, True), ("gemma3_text", (6,), 64, True), ("mamba", (), None, False),
     ("smollm3", (), 64, True), ("gpt2", (), 64, True), ("phi3", (), 64, False)],
)  # fmt: skip
def test_facts(kind, windows, trained, goes_on, opened, folders):
    facts = opened(kind).facts
    assert (facts.windows, facts.trained_tokens, facts.model_type) == (windows, trained, kind)
    assert (facts.kind, facts.name, facts.dtype, facts.device) == ("transformers", kind, "float32", "cpu")
    stored = {name: weight.numel() for name, weight in load_file(folders(kind) / "model.safetensors").items()}
    assert facts.parameters == sum(stored.values())
    assert facts.begin_ids == (1,) and facts.tokenizer_sha256 == TOKENIZER.digest
    assert opened(kind)._goes_on == goes_on


def test_the_dtype_is_that_of_the_file_unless_told(tmp_path):
    folder = write(tmp_path / "m", "llama", dtype="bfloat16")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert TransformersModel(folder, name="m").facts.dtype == "bfloat16"
    assert TransformersModel(folder, name="m", dtype=torch.float32).facts.dtype == "float32"


def test_pickles_are_never_opened(tmp_path):
    folder = write(tmp_path / "m", "llama")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=r"no safetensors; .*pickles, which can run code.*convert once"):
        TransformersModel(folder, name="m")


def test_missing_weights_are_not_made_up(tmp_path):
    folder = write(tmp_path / "m", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, such as model.layers.1.mlp.up_proj.weight"):
        TransformersModel(folder, name="m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "nothing-known"}, "transformers cannot open it"),
        ({"model_type": "nothing-known", "auto_map": {"AutoModelForCausalLM": "code.Model"}}, "cannot open it"),
        ({"hidden_size": 40}, "transformers cannot open it"),
    ],
)
def test_folders_that_transformers_cannot_open(tmp_path, change, message):
    folder = write(tmp_path / "m", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (folder / "code.py").write_text("raise SystemExit('code of a folder was run')")
    with pytest.raises(UserError, match=message) as caught:
        TransformersModel(folder, name="m")
    assert "\n" not in str(caught.value)


def test_devices_that_are_not_there(folders):
    for device in ("toaster", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(ConfigError, match="device"):
            TransformersModel(folders("llama"), name="m", device=device)


def test_a_tokenizer_that_is_no_json_is_converted(tmp_path):
    folder = write(tmp_path / "m", "gpt2", tokenizer=False)
    with pytest.raises(UserError, match="no tokenizer can be read"):
        TransformersModel(folder, name="m")
    backend = json.loads(TOKENIZER.backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    model = TransformersModel(folder, name="m")
    expected = AutoTokenizer.from_pretrained(folder)("the needle in hay")["input_ids"]
    assert model.tokenizer.encode("the needle in hay") == expected and len(expected) < 10


def test_transformers_is_quiet_and_as_it_was(folders, capfd, caplog):
    logging.set_verbosity_info()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = TransformersModel(folders("llama"), name="m")
            model.generate(family(), 3)
            list(model.scores([(random_ids(9), random_ids(3))]))
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_running_out_of_memory_is_said(opened, monkeypatch):
    model = opened("llama")

    def forward(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr(model.model.model, "forward", forward)
    for call in (
        lambda: model.generate([random_ids(5)], 2),
        lambda: list(model.scores([(random_ids(5), random_ids(2))])),
    ):
        with pytest.raises(UserError, match=r"do not fit into memory .*shorter contexts"):
            call()


def test_every_kind_is_tested():
    assert set(CONFIGS) == {*GOING_ON, *FROM_THE_START}
