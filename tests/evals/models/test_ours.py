"""The engine as a model to be evaluated: what is shared, where answers end, what is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rnope.errors import ConfigError, UserError
from rnope.evals.models.answers import Writing, cut_at
from rnope.evals.models.folder import folder_digest
from rnope.evals.models.model import Answer
from rnope.evals.models.ours import EngineModel
from rnope.hf.folder import load
from rnope.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from model_kit import TOKENIZER, Spelling, random_ids, siblings, spelling, spelt, write_ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ours(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def model(folder):
    return spelling(EngineModel(folder, name="m", chunk=6))


@pytest.fixture
def counted(model, monkeypatch):
    """Tokens of each pass through the decoder."""
    read = []
    inner = model.engine.model.hidden
    monkeypatch.setattr(
        model.engine.model, "hidden", lambda ids, **given: read.append(ids.numel()) or inner(ids, **given)
    )
    return read


def family():
    head, more = random_ids(40), random_ids(20, 1)
    return [np.append(head, 5), np.concatenate((head, more)), np.concatenate((head, more, [7])), random_ids(3, 2)]


def test_shared_beginnings_are_read_once_and_change_nothing(model, counted):
    alone = [model.generate([ids], 4)[0] for ids in family()]
    counted.clear()
    told = []
    assert model.generate(family(), 1, progress=told.append) == [
        dataclasses.replace(answer, text=answer.text.split()[0], tokens=1, ended=once.ended)
        for answer, once in zip(alone, model.generate(family(), 1), strict=True)
    ]
    apart = sum(map(len, family()))
    assert sum(counted) == 2 * (apart - 80 - 19)  # asked twice: 40 for two of them, 19 more for one
    assert sum(told) == apart - 80 - 19 + 4
    assert model.generate(family(), 4) == alone


def test_what_is_read_for_some_is_not_seen_by_others(model):
    assert model.generate(siblings(), 6) == [model.generate([ids], 6)[0] for ids in siblings()]


@torch.no_grad()
def test_answers_are_the_decoders_argmax(model, folder):
    decoder = load(folder)
    for ids, tokens in zip(family(), spelt(model.generate(family(), 6)), strict=True):
        whole = torch.tensor([[*ids, *tokens]])
        assert decoder(whole)[0, len(ids) - 1 : -1].argmax(-1).tolist() == tokens


def test_one_context_with_several_continuations_is_read_once(model, counted):
    context = random_ids(50)
    requests = [(context, random_ids(3, seed)) for seed in (1, 2, 3)] + [(np.append(context, 4), random_ids(2, 4))]
    told = []
    scores = dict(model.scores(requests, progress=told.append))
    assert (
        sum(counted) == 51 + 1 + 3 * 2 + 1
    )  # the context's last token is left for each of two; last targets are not read
    assert sum(told) == 49 + 1 + 2 + 3 * 3 + 2
    for place, request in enumerate(requests):
        ((_, alone),) = model.scores([request])
        np.testing.assert_allclose(scores[place].log_probabilities, alone.log_probabilities, atol=2e-4)
        assert scores[place].likeliest == alone.likeliest


def test_nothing_asked_nothing_answered(model):
    assert model.generate([], 4) == [] and list(model.scores([])) == []


def test_all_sequences_stopping_by_texts_ends_the_work(model):
    ids = random_ids(9)
    (whole,) = model.generate([ids], 30)
    told = []
    (answer,) = model.generate([ids], 30, stop=[" "], progress=told.append)
    assert answer == Answer(text=whole.text.split()[0], tokens=2, ended="stop")
    assert sum(told) == len(ids) + 2


def test_a_stop_id_of_the_folder_ends_an_answer(model, folder, tmp_path):
    ids = random_ids(9)
    tokens = spelt(model.generate([ids], 8))[0]
    stop = tokens[5]
    twin = tmp_path / "m"
    shutil.copytree(folder, twin)
    (twin / "generation_config.json").write_text(f'{{"eos_token_id": [2, {stop}]}}')
    answers = spelling(EngineModel(twin, name="m")).generate([ids, random_ids(8, 3)], 8)
    assert spelt(answers)[0] == tokens[: tokens.index(stop) + 1] and answers[0].ended == "stop"
    assert folder_digest(twin) != folder_digest(folder)  # other answers: not the same model


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    twin = tmp_path / "m"
    shutil.copytree(folder, twin)
    Tokenizer.train(["other words entirely, more of them than before " * 9], vocab_size=350).save(twin)
    assert Tokenizer.load(twin).vocab_size > 259
    Tokenizer.train([chr(c) * 3 + " " for c in range(200, 900)], vocab_size=600).save(twin)
    with pytest.raises(ConfigError, match="has more tokens than the model's 320"):
        EngineModel(twin, name="m")


def test_a_folder_without_a_tokenizer(folder, tmp_path):
    twin = tmp_path / "m"
    shutil.copytree(folder, twin)
    (twin / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no tokenizer can be read"):
        EngineModel(twin, name="m")


# ---- answers while they are written


def test_a_stop_text_across_tokens():
    made = Writing(TOKENIZER, (2,), ("ed a", "zzz"), 1)
    ids = TOKENIZER.encode("the needle is red apple")
    for token in ids:
        assert not made.finished or token == ids[-1]
        made.add(0, token)
    (answer,) = made.answers()
    assert (answer.text, answer.ended) == ("the needle is r", "stop")
    assert TOKENIZER.decode(ids[: answer.tokens - 1]) in ("the needle is red", "the needle is red ")
    made.add(0, ids[0])  # what comes after the end
    assert made.answers() == [answer]


def test_answers_end_each_for_itself():
    made = Writing(Spelling(TOKENIZER.backend), (2,), ("7",), 3)
    for place, token in [(0, 5), (1, 7), (2, 5), (0, 2), (1, 9), (2, 6)]:
        assert not made.finished
        made.add(place, token)
    assert made.answers() == [
        Answer(text="5 2", tokens=2, ended="stop"), Answer(text="", tokens=1, ended="stop"),
        Answer(text="5 6", tokens=2, ended="length"),
    ]  # fmt: skip
    made.add(2, 2)
    assert made.finished


def test_special_tokens_are_in_no_text():
    made = Writing(TOKENIZER, (2,), (), 1)
    for token in [*TOKENIZER.encode(" red hay"), 2]:
        made.add(0, token)
    assert made.answers()[0].text == " red hay" and made.answers()[0].ended == "stop"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ((), "one two"),
        (("",), "one two"),
        (("two",), "one "),
        (("wo", "e t"), "on"),
        (("nine",), "one two"),
        (("one",), ""),
    ],
)
def test_the_first_stop_text_counts(stop, text):
    answer = cut_at(Answer(text="one two", tokens=3, ended="length"), stop)
    assert (answer.text, answer.ended) == (text, "length" if text == "one two" else "stop") and answer.tokens == 3


# ---- digests


def test_the_digest_is_of_names_and_contents_and_of_nothing_else(folder, tmp_path):
    whole = folder_digest(folder)
    twin = tmp_path / "elsewhere"
    shutil.copytree(folder, twin)
    (twin / "README.md").write_text("changed")
    (twin / "tokenizer.json").unlink()
    assert folder_digest(twin) == whole
    weights = bytearray((twin / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (twin / "model.safetensors").write_bytes(weights)
    changed = folder_digest(twin)
    (twin / "model.safetensors").rename(twin / "other.safetensors")
    renamed = folder_digest(twin)
    (twin / "config.json").write_text("{}")
    assert len({whole, changed, renamed, folder_digest(twin)}) == 4


def test_a_weight_file_that_cannot_be_read(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        folder_digest(tmp_path)
