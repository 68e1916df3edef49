"""Perplexity against the cross-entropy of one forward pass, window by window."""

import json
import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, trainers

import rnope
from rnope.errors import ConfigError
from rnope.evals.frame import Frame
from rnope.evals.models.model import Score
from rnope.evals.models.ours import EngineModel
from rnope.evals.perplexity.buckets import edges, summed
from rnope.evals.perplexity.scoring import PerplexityScoring
from rnope.evals.perplexity.suite import Perplexity
from rnope.evals.results import mean_figure
from rnope.evals.run import cell_result, evaluate
from rnope.evals.suite import prompt_digest
from rnope.strict import to_plain
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXTS = [f"Day {i}: the ship {w} at port {i * 37 % 11}, and {i * 5} sailors – all of them – {w} too.\n" * 4 for i, w in
         enumerate("sings rests waits turns rolls hides".split())]  # fmt: skip
WINDOW = 5  # of the tiny model's sliding layers


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    rnope.save(tiny_model(vocab_size=300), folder)
    tokenizer.save(folder)
    return EngineModel(folder, name="tiny", chunk=24)


def suite(tokenizer, corpus, frame=None, **changes):
    asked = {"lengths": [64, 150], "samples": 3, "seed": 3} | changes
    return Perplexity(tokenizer, frame or Frame.bare(tokenizer), corpus=corpus, **asked)


def cross_entropy(model, ids, given):
    """Of one forward pass, per token, in float64."""
    with torch.inference_mode():
        logits = model.engine.model(torch.from_numpy(ids)[None])[0].double()
    return torch.nn.functional.cross_entropy(
        logits[given - 1 : -1], torch.from_numpy(ids[given:]), reduction="none"
    ).numpy()


def asked(perplexity, model, cell, done=(), batch=2):
    groups = perplexity.ask(model, cell, dict.fromkeys(done), batch=batch, progress=lambda tokens: None)
    return [line for group in groups for line in group]


@pytest.mark.parametrize("begin_ids", [True, False])
def test_sums_are_those_of_a_forward_pass(begin_ids, tokenizer, corpus, model):
    frame = None if begin_ids else Frame(begin_ids=())
    perplexity = suite(tokenizer, corpus, frame)
    for cell in perplexity.cells():
        lines = asked(perplexity, model, cell)
        assert [line.index for line in lines] == [0, 1, 2]
        for line in lines:
            ids, overlaps = perplexity.window(cell.context_tokens, line.index)
            assert len(ids) == cell.context_tokens > 2 * WINDOW and line.prompt_sha256 == prompt_digest(ids)
            assert (ids[0] == tokenizer.bos_id) == begin_ids and line.facts["overlaps"] == overlaps
            expected = cross_entropy(model, ids, 1)
            score = PerplexityScoring().score(line)
            assert score["nats"] == pytest.approx(expected.mean(), rel=1e-5)
            assert sum(b["tokens"] for b in line.facts["buckets"]) == cell.context_tokens - 1
            for bucket in line.facts["buckets"]:
                # The token at place p has p tokens before it.
                part = expected[max(0, bucket["from"] - 1) : bucket["to"] - 1]
                assert bucket["tokens"] == len(part) and bucket["nats"] == pytest.approx(part.sum(), rel=1e-5)
            assert line.facts["bytes"] == len(tokenizer.decode(ids[1:].tolist()).encode())
            assert score["bits_per_byte"] == pytest.approx(expected.sum() / math.log(2) / line.facts["bytes"], rel=1e-5)


@given(st.integers(32, 5000), st.integers(1, 40), st.integers(0, 2**31))
def test_buckets_are_each_token_once(length, given, seed):
    given = min(given, length - 1)
    values = np.random.default_rng(seed).random(length - given)
    buckets = summed(values, length)
    slow = {}
    for place, value in enumerate(values, start=given):
        begin = max(edge for edge in edges(length) if edge <= place)
        tokens, nats = slow.get(begin, (0, 0.0))
        slow[begin] = (tokens + 1, nats + value)
    assert {b["from"]: (b["tokens"], pytest.approx(b["nats"])) for b in buckets} == slow
    assert all(b["from"] < b["to"] for b in buckets) and buckets[-1]["to"] == length
    assert buckets[-1]["from"] == length * 3 // 4


def test_edges_by_hand():
    assert edges(1024) == [0, 16, 32, 64, 128, 256, 512, 768, 1024]
    assert edges(32) == [0, 16, 24, 32]
    assert edges(132_000) == [
        0,
        16,
        32,
        64,
        128,
        256,
        512,
        1024,
        2048,
        4096,
        8192,
        16384,
        32768,
        66_000,
        99_000,
        132_000,
    ]


def test_the_summary_has_every_length_and_bucket_and_its_exponential(tokenizer, corpus, model, tmp_path):
    perplexity = suite(tokenizer, corpus)
    results = evaluate(model, perplexity, tmp_path, batch=2)
    found = {(f.name, *(f.labels.get(key) for key in ("context_tokens", "from", "to"))): f for f in results.summary}
    for cell in perplexity.cells():
        length = cell.context_tokens
        windows = [cross_entropy(model, perplexity.window(length, i)[0], 1) for i in range(3)]
        whole, last = found["perplexity", length, None, None], found["perplexity", length, length * 3 // 4, length]
        expected = mean_figure("nats", [w.mean() for w in windows])
        assert whole.value == pytest.approx(math.exp(np.concatenate(windows).mean()), rel=1e-5)
        assert (whole.low, whole.high, whole.n) == (
            pytest.approx(math.exp(expected.low), rel=1e-5), pytest.approx(math.exp(expected.high), rel=1e-5), 3,
        )  # fmt: skip
        quarter = np.concatenate([w[length * 3 // 4 - 1 :] for w in windows])
        assert last.value == pytest.approx(math.exp(quarter.mean()), rel=1e-5)
        assert found["nats", length, 0, 16].n == 3 and ("bits_per_byte", length, None, None) in found
    kept = (tmp_path / "tiny" / "perplexity" / "predictions" / "window-150.jsonl").read_text().splitlines()
    assert max(map(len, kept)) < 2000 and json.loads(kept[1])["answer"] == ""


def test_a_hopeless_model_has_a_figure_too():
    line = SimpleNamespace(facts={"buckets": [{"from": 0, "to": 16, "tokens": 2, "nats": 4000.0}], "bytes": 0})
    score = PerplexityScoring().score(line)
    assert score == {"nats": 2000, "nats 0-16": 2000}
    figures = [mean_figure(name, [value]) for name, value in score.items()]
    cell = SimpleNamespace(context_tokens=64, figures=figures)
    assert [f.value for f in PerplexityScoring().summary([cell])] == [2000, math.inf, 2000, math.inf]
    assert PerplexityScoring().summary([]) == ()


def test_windows_are_distinct_and_depend_on_nothing_else(tokenizer, corpus):
    perplexity = suite(tokenizer, corpus, samples=30)
    windows = [perplexity.window(64, i) for i in range(30)]
    assert len({ids.tobytes() for ids, _ in windows}) == 30
    apart = len(perplexity._ids) // 63
    assert [overlaps for _, overlaps in windows] == [False] * apart + [True] * (30 - apart) and 5 < apart < 30
    text, spans = perplexity._ids, []
    for ids, _ in windows[:apart]:
        starts = [s for s in range(len(text) - 62) if (text[s : s + 63] == ids[1:]).all()]
        assert starts  # a stretch of the corpus
        spans.append(starts)
    unique = sorted(s[0] for s in spans if len(s) == 1)
    assert len(unique) > 3 and all(b - a >= 63 for a, b in pairwise(unique))
    again = suite(tokenizer, corpus, samples=2, lengths=[64])
    assert all((again.window(64, i)[0] == windows[i][0]).all() for i in range(2))
    assert again.settings() == perplexity.settings() != suite(tokenizer, corpus, seed=4).settings()
    assert not (suite(tokenizer, corpus, seed=4).window(64, 0)[0] == windows[0][0]).all()


def test_what_is_done_is_not_asked_again_and_changes_nothing(tokenizer, corpus, model):
    perplexity = suite(tokenizer, corpus, samples=5)
    (cell, _) = perplexity.cells()
    whole = asked(perplexity, model, cell)
    assert asked(perplexity, model, cell, done=(0, 3)) == [whole[i] for i in (1, 2, 4)]
    assert asked(perplexity, model, cell, batch=4) == whole


def test_scores_may_come_in_any_order(tokenizer, corpus):
    class Backwards:
        def scores(self, requests, *, progress):
            for place in reversed(range(len(requests))):
                rest = requests[place][1]
                yield place, Score(tuple(-float(i) for i in rest), tuple(False for _ in rest))

    perplexity = suite(tokenizer, corpus)
    (cell, _) = perplexity.cells()
    for line in asked(perplexity, Backwards(), cell, batch=3):
        ids = perplexity.window(64, line.index)[0]
        assert sum(b["nats"] for b in line.facts["buckets"]) == ids[1:].sum()


def test_the_mean_over_windows_is_the_mean_over_tokens(tokenizer, corpus, model):
    perplexity = suite(tokenizer, corpus)
    (_, cell) = perplexity.cells()
    lines = asked(perplexity, model, cell)
    figures = {f.name: f.value for f in cell_result(cell, lines, PerplexityScoring()).figures}
    buckets = [b for line in lines for b in line.facts["buckets"]]
    for name in {f"{b['from']}-{b['to']}" for b in buckets}:
        mine = [b for b in buckets if f"{b['from']}-{b['to']}" == name]
        expected = sum(b["nats"] for b in mine) / sum(b["tokens"] for b in mine)
        assert figures[f"nats {name}"] == pytest.approx(expected)
    assert json.loads(json.dumps(to_plain(lines[0])))["facts"] == lines[0].facts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": []}, r"lengths = .*: are none"),
        ({"lengths": [20]}, "lengths = 20: is too short a window. Use 33 or more"),
        ({"samples": 0}, "samples = 0: must be 1 or more"),
        ({"seed": -1}, "seed = -1: must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(tokenizer, corpus, changes, words):
    with pytest.raises(ConfigError, match=words):
        suite(tokenizer, corpus, **changes)


def test_a_corpus_that_is_too_short_is_refused_and_not_repeated(tokenizer, corpus):
    tokens = suite(tokenizer, corpus).settings()["corpus_tokens"]
    with pytest.raises(ConfigError, match=f"lengths = {tokens + 2}: is more than the corpus has, {tokens:,} tokens"):
        suite(tokenizer, corpus, lengths=[tokens + 2]).cells()
    with pytest.raises(ConfigError, match="samples = 3: is more than the 1 windows"):
        suite(tokenizer, corpus, lengths=[tokens + 1]).cells()
    (cell,) = suite(tokenizer, corpus, lengths=[tokens + 1], samples=1).cells()
    assert cell.context_tokens == tokens + 1
    with pytest.raises(ConfigError, match=r"corpus = .*: does not exist"):
        suite(tokenizer, corpus + "/none")


def test_a_tokenizer_over_spaces_without_special_ids(corpus):
    backend = Backend(models.BPE())
    backend.decoder = decoders.Fuse()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    over_spaces = Tokenizer(backend)
    perplexity = suite(over_spaces, corpus, lengths=[64], samples=2)
    assert perplexity.cells() and not over_spaces.begin_ids
    ids, _ = perplexity.window(64, 0)
    assert len(ids) == 64 and over_spaces.decode(ids.tolist()) in over_spaces.decode(perplexity._ids.tolist())
