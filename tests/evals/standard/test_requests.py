"""Texts to ids, cuts and windows: against the harness's own functions and against one plain pass."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rnope.errors import UserError
from rnope.evals.standard.requests import Responder, new_tokens, rolling_windows, stop_texts

sys.path.insert(0, str(Path(__file__).parent))
import standard_kit as kit


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return kit.model(tmp_path_factory.mktemp("model"))


class Template(TemplateLM):
    """The harness's own rule of a pair, with our tokenizer."""

    eot_token_id = kit.TOKENIZER.eos_id

    def tok_encode(self, string, add_special_tokens=None, **kwargs):
        return kit.TOKENIZER.encode(string) if add_special_tokens is False else kit.TOKENIZER.encode_prompt(string)

    def _loglikelihood_tokens(self, requests, **kwargs): ...

    def loglikelihood_rolling(self, requests, disable_tqdm=False): ...

    def generate_until(self, requests, disable_tqdm=False): ...


PAIRS = [
    ("Question: What is it?\nAnswer:", " the red apple"),
    ("Question: What is it? ", "hay"),
    ("Question: What is it?\n\n", "hay"),
    ("the ne", "edle"),  # a token may reach over
    ("x", "x"),
    (" the", " hay"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_is_encoded_as_the_harness_does(model, pair):
    responder, theirs = Responder(model), Template()._encode_pair(*pair)
    assert responder.encode_pair(*pair) == theirs
    assert theirs[1] and theirs[0][0] == kit.TOKENIZER.bos_id


@pytest.mark.parametrize("context", ["", "  "])
def test_without_a_context_the_begin_stands_before(model, context):
    ids = kit.TOKENIZER.encode(context + "hay")
    assert Responder(model).encode_pair(context, "hay") == ([kit.TOKENIZER.bos_id], ids)


def test_a_continuation_that_melts_into_the_context_keeps_a_token(model):
    class Melting:
        begin_ids, eos_id = (1,), 2

        def encode(self, text):
            return {"a": [5, 6], "ab": [7]}[text]

    responder = Responder(model)
    responder.model = type("Model", (), {"tokenizer": Melting()})()
    responder._begin = [1]
    assert responder.encode_pair("a", "b") == ([1], [7])


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 23])
@pytest.mark.parametrize("most", [1, 3, 8, 50])
def test_windows_are_the_harness_s(length, most):
    ids = list(range(100, 100 + length))
    theirs = [make_disjoint_window(each) for each in get_rolling_token_windows(ids, 1, most, 1)]
    assert list(rolling_windows(ids, 1, most)) == theirs
    assert [token for _, predicted in theirs for token in predicted] == ids


def plain(model, context, continuation):
    """Log-likelihood and greediness by one pass over both."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.inference_mode():
        chances = torch.log_softmax(model.engine.model(ids)[0].double(), -1)
    rows = chances[len(context) - 1 : -1]
    value = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
    return value, [int(row.argmax()) for row in rows] == list(continuation)


def test_log_likelihoods_are_those_of_a_plain_pass(model):
    responder = Responder(model)
    found = dict(responder.log_likelihoods(PAIRS))
    assert sorted(found) == list(range(len(PAIRS)))
    for place, pair in enumerate(PAIRS):
        context, continuation = responder.encode_pair(*pair)
        value, greedy = plain(model, context, continuation)
        assert found[place].value == (pytest.approx(value, abs=1e-3), greedy)
        assert found[place].ids.tolist() == [*context, *continuation]
        assert (found[place].cut_tokens, found[place].new_tokens) == (0, len(continuation))


def test_long_contexts_are_cut_as_the_harness_cuts_and_it_is_told(model):
    context, continuation = "the hay " * 30, " red apple"
    responder = Responder(model, max_tokens=40)
    ((_, response),) = responder.log_likelihoods([(context, continuation)])
    before, after = Responder(model).encode_pair(context, continuation)
    kept = [*before, *after][-41:]  # the harness: the last is not read
    assert response.ids.tolist() == kept and response.cut_tokens == len(before) + len(after) - 41 > 0
    assert response.value[0] == pytest.approx(plain(model, kept[: -len(after)], after)[0], abs=1e-3)
    with pytest.raises(UserError, match=r"no room for a continuation of .* trained on 3"):
        list(Responder(model, max_tokens=3).log_likelihoods([(context, "the red apple of the law")]))


def test_the_limit_is_what_the_model_was_trained_on(tmp_path):
    assert Responder(kit.model(tmp_path, context_tokens=300)).max_tokens == 300


def test_rolling_predicts_every_token_once(model):
    text = "the red apple in the hay. " * 5
    ids = kit.TOKENIZER.encode(text)
    ((_, whole),) = Responder(model).rolling([text])
    assert whole.value == pytest.approx(plain(model, [kit.TOKENIZER.bos_id], ids)[0], abs=1e-3)
    ((_, windows),) = Responder(model, max_tokens=16).rolling([text])
    by_hand = sum(plain(model, *window)[0] for window in rolling_windows(ids, kit.TOKENIZER.bos_id, 16))
    assert windows.value == pytest.approx(by_hand, abs=1e-3) and abs(whole.value - windows.value) > 0.1
    assert dict(Responder(model).rolling([""]))[0].value == 0


def test_generation_ends_at_stop_texts_and_is_the_same_in_batches(model):
    prompts = [(f"Question: What is {n}?\nAnswer:", {"until": [], "max_gen_toks": 12}) for n in range(5)]
    alone = [Responder(model, batch=1), Responder(model, batch=3)]
    texts = [[dict(each.generate(prompts))[i].value for i in range(5)] for each in alone]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    long = max(texts[0], key=len)
    stop = long[len(long) // 2]
    ((_, cut),) = alone[0].generate([(prompts[texts[0].index(long)][0], {"until": stop, "max_gen_toks": 12})])
    assert cut.value == long[: long.index(stop)] and cut.ended == "stop"


def test_prompts_leave_room_for_the_answer(model):
    prompt = "the hay " * 30
    responder = Responder(model, max_tokens=40)
    ((_, response),) = responder.generate([(prompt, {"until": [], "max_gen_toks": 10})])
    ids = kit.TOKENIZER.encode_prompt(prompt)
    assert response.ids.tolist() == ids[-30:] and response.cut_tokens == len(ids) - 30
    with pytest.raises(UserError, match="no room for an answer of 40 tokens"):
        list(responder.generate([(prompt, {"until": [], "max_gen_toks": 40})]))


def test_generation_arguments():
    assert (
        stop_texts({"until": "x"}) == ("x",)
        and stop_texts({"until": ["x", "y"]}) == ("x", "y")
        and stop_texts({}) == ()
    )
    assert new_tokens({}) == 256 and new_tokens({"max_new_tokens": 7}) == 7
    assert new_tokens({"max_gen_toks": 9, "max_tokens": 7}) == 9
    assert new_tokens({"do_sample": False, "temperature": 1.0}) == 256
    with pytest.raises(UserError, match="asks for sampling"):
        new_tokens({"do_sample": True})


def test_the_order_of_requests_does_not_count(model):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(PAIRS))
    found, turned = (dict(Responder(model).log_likelihoods(p)) for p in (PAIRS, [PAIRS[i] for i in order]))
    for place, i in enumerate(order):
        assert turned[place].value[0] == pytest.approx(found[i].value[0], abs=1e-4)
