"""One model, asked three ways: by rnope's engine, through transformers, and behind a server."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rnope.evals.models import hub
from rnope.evals.models.hub import TransformersModel
from rnope.evals.models.opening import ModelOptions
from rnope.evals.models.ours import EngineModel
from rnope.evals.models.server import ServerModel

sys.path.insert(0, str(Path(__file__).parent))
from fake_server import FakeServer, serving
from model_kit import random_ids, spelling, spelt, write_ours

NEW = 10


@pytest.fixture(scope="module", params=["rnope-swa", "rope"])
def folder(request, tmp_path_factory):
    return write_ours(tmp_path_factory.mktemp("models") / request.param, request.param, seed=4)


@pytest.fixture
def engine(folder):
    return spelling(EngineModel(folder, name="ours", chunk=6))


@pytest.fixture
def theirs(folder, monkeypatch):
    monkeypatch.setattr(hub, "CHUNK", 7)
    monkeypatch.setattr(hub, "ROWS", 4)
    return spelling(TransformersModel(folder, name="theirs"))


@pytest.fixture
def server(engine, folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    fake = FakeServer(serving(engine))
    yield ServerModel(f"{fake.url}#m", name="server", options=ModelOptions(tokenizer=folder, concurrency=2))
    fake.close()


def prompts():
    """All past the window of 5, at odd lengths, some sharing beginnings, two alike."""
    head, more = random_ids(17), random_ids(22, 1)
    tails = [random_ids(n, n) for n in (1, 2, 3, 8)]
    return [
        *(np.concatenate((head, tail)) for tail in tails), random_ids(11, 9), random_ids(2, 8),
        *(np.concatenate((head, more, tail)) for tail in tails), np.concatenate((head, tails[1])), random_ids(1, 7),
    ]  # fmt: skip


def test_all_three_give_the_tokens_of_transformers_own_generate(folder, engine, theirs, server):
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for ids in prompts():
        given = torch.tensor(ids)[None]
        out = plain.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=NEW, do_sample=False)
        expected.append(out[0, len(ids) :].tolist())
    assert len({tuple(ids) for ids in expected}) >= 6  # these models listen
    for model in (engine, theirs, server):
        answers = model.generate(prompts(), NEW)
        assert spelt(answers) == expected, model.facts.name
        assert [answer.tokens for answer in answers] == [len(ids) for ids in expected]
        assert answers == [model.generate([ids], NEW)[0] for ids in prompts()]  # company changes nothing


def test_stop_texts_end_all_three_at_the_same_place(engine, theirs, server):
    whole = [answer.text.split() for answer in engine.generate(prompts(), NEW)]
    stop = (f"{whole[0][4]} {whole[0][5]}", f" {whole[2][3]} ", "")
    cut = engine.generate(prompts(), NEW, stop=stop)
    assert cut == theirs.generate(prompts(), NEW, stop=stop) == server.generate(prompts(), NEW, stop=stop)
    for answer, tokens in zip(cut, whole, strict=True):
        text = " ".join(tokens)
        assert answer.text == text[: min(i if (i := text.find(s)) >= 0 else len(text) for s in stop if s)]
    assert cut[0].ended == cut[2].ended == "stop" and cut[0].tokens == 6


def test_scores_are_alike(engine, theirs, server):
    requests = [(ids, random_ids(n, n)) for n, ids in enumerate(prompts(), start=1)]
    requests += [(requests[3][0], random_ids(2, 40)), (requests[3][0], random_ids(30, 41))]
    tokens = spelt(engine.generate([requests[0][0]], 5))[0]
    requests.append((requests[0][0], np.array(tokens)))
    scores = [dict(model.scores(requests)) for model in (engine, theirs, server)]
    for place in range(len(requests)):
        ours, hubs, served = (each[place] for each in scores)
        np.testing.assert_allclose(hubs.log_probabilities, ours.log_probabilities, atol=2e-4)
        np.testing.assert_allclose(served.log_probabilities, ours.log_probabilities, atol=2e-4)
        assert ours.likeliest == hubs.likeliest == served.likeliest
        assert len(ours.likeliest) == len(requests[place][1])
    assert scores[0][len(requests) - 1].likeliest == (True,) * 5
    assert not all(all(score.likeliest) for score in scores[0].values())


def test_facts_are_alike(engine, theirs, server):
    for name in ("windows", "trained_tokens", "begin_ids", "tokenizer_sha256", "sha256", "dtype", "device", "parameters",
                 "model_type"):  # fmt: skip
        assert getattr(engine.facts, name) == getattr(theirs.facts, name), name
    assert server.facts.tokenizer_sha256 == engine.facts.tokenizer_sha256
    assert server.facts.begin_ids == engine.facts.begin_ids


def test_all_of_the_prompts_are_told_as_progress(engine, theirs, server):
    """Never more than what there is; less where beginnings are shared."""
    for model in (engine, theirs, server):
        told = []
        answers = model.generate(prompts(), NEW, progress=told.append)
        whole = sum(map(len, prompts())) + sum(answer.tokens for answer in answers)
        assert min(told) > 0
        assert sum(told) == whole if model is server else whole - 400 < sum(told) < whole - 50
