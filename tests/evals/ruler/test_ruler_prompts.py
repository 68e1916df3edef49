"""RULER's prompts are the original's, byte for byte; and the same after any interruption."""

import json
import os
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from rnope.errors import ConfigError
from rnope.evals.frame import Frame
from rnope.evals.ruler import counting
from rnope.evals.ruler.needles import Essays, Pairs
from rnope.evals.ruler.sentences import sentences
from rnope.evals.ruler.suite import Ruler
from rnope.evals.suite import Prediction

sys.path.insert(0, str(Path(__file__).parent))
import ruler_original as original
from ruler_original import LONG, SMALL, Case
from ruler_texts import ADJECTIVES, ESSAYS, NOUNS, make_tokenizer, write_texts

TOKENIZER = make_tokenizer()
FRAMES = {
    "base": ("", ""),
    "meta-chat": ("[INST] ", " [/INST]"),
    "meta-llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


def suite(data, case: Case, begin_ids=(), tokenizer=TOKENIZER):
    before, after = FRAMES[case.frame]
    frame = Frame(begin_ids=begin_ids, before=before, after=after)
    return Ruler(
        tokenizer, frame, tasks=[case.task], lengths=[case.length], samples=case.samples, seed=case.seed, data=data
    )


def samples(ruler, done=None):
    (cell,) = ruler.cells()
    return list(ruler.samples(cell, done or {}))


def ours(data, case):
    """As `ruler_original.digests`."""
    ruler = suite(data, case)
    (cell,) = ruler.cells()
    return [
        [original.digest(TOKENIZER.decode(sample.ids), sample.references), len(sample.ids) + cell.max_new_tokens]
        for sample in ruler.samples(cell, {})
    ]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_prompts_have_the_digests_of_the_originals(data, case):
    kept = json.loads(original.DIGESTS.read_text())
    assert ours(data, case) == kept[case.name] and len(kept[case.name]) == case.samples


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_long_prompts_have_the_digests_of_the_originals(data, case):
    assert ours(data, case) == json.loads(original.DIGESTS.read_text())[case.name]


@pytest.mark.slow
@pytest.mark.skipif(
    original.VARIABLE not in os.environ,
    reason=f"{original.VARIABLE} does not name a checkout of NVIDIA/RULER (see docs/evaluation.md)",
)
def test_prompts_are_those_that_the_original_makes_now(data):
    cases = [case for case in SMALL if case.seed != 7]
    made = original.run_original(Path(os.environ[original.VARIABLE]), cases)
    for case, lines in zip(cases, made, strict=True):
        (cell,) = suite(data, case).cells()
        for sample, line in zip(samples(suite(data, case)), lines, strict=True):
            assert TOKENIZER.decode(sample.ids) == line["input"] + line["answer_prefix"], (case, sample.index)
            assert list(sample.references) == line["outputs"]
            assert len(sample.ids) + cell.max_new_tokens == line["length"]


def _line(cell, sample):
    facts = json.loads(json.dumps(dict(sample.facts)))
    return Prediction(
        cell=cell.name, index=sample.index, prompt_sha256="", prompt_tokens=1, answer="", new_tokens=0, ended="stop",
        facts=facts,
    )  # fmt: skip


@pytest.mark.parametrize("task", original.TASKS)
def test_going_on_gives_what_an_uninterrupted_run_gives(data, task):
    ruler = suite(data, Case(task, 2048, 11, 7))
    (cell,) = ruler.cells()
    whole = samples(ruler)
    assert [sample.index for sample in whole] == list(range(7))
    for kept in ({0}, {0, 1, 2, 3}, {1, 4}, {6}, {0, 2, 3, 5, 6}, set(range(7))):
        done = {index: _line(cell, whole[index]) for index in kept}
        again = samples(ruler, done)
        assert [sample.index for sample in again] == [index for index in range(7) if index not in kept]
        for sample in again:
            assert np.array_equal(sample.ids, whole[sample.index].ids)
            assert sample.references == whole[sample.index].references
            assert dict(sample.facts) == dict(whole[sample.index].facts)


@pytest.mark.parametrize("task", original.TASKS)
def test_going_on_counts_no_tokens_of_what_is_there(data, task, monkeypatch):
    ruler = suite(data, Case(task, 2048, 11, 6))
    (cell,) = ruler.cells()
    done = {sample.index: _line(cell, sample) for sample in samples(ruler) if sample.index != 5}
    counted = []
    monkeypatch.setattr(counting.Counting, "count", lambda self, text: counted.append(text))
    monkeypatch.setattr(counting.Counting, "fits", lambda self, text, room: counted.append(text))
    assert [sample.index for sample in samples(ruler, done)] == [5] and not counted


def test_seeds_differ(data):
    one, other = (samples(suite(data, Case("niah_multikey_2", 2048, seed, 1))) for seed in (1, 2))
    assert not np.array_equal(one[0].ids, other[0].ids)


@pytest.mark.parametrize("task", original.TASKS)
def test_special_ids_have_room_and_the_samples_after_stay_the_originals(data, task):
    """The original leaves no room for BOS. With many such ids some prompts must be smaller; the streams go on alike."""
    case = Case(task, 3000, 4, 8)
    plain, shifted = samples(suite(data, case)), samples(suite(data, case, begin_ids=(1,) * 60))
    (cell,) = suite(data, case).cells()
    less = 0
    for bare, begun in zip(plain, shifted, strict=True):
        assert len(begun.ids) + cell.max_new_tokens <= 3000 and list(begun.ids[:60]) == [1] * 60
        if "shortened" in begun.facts:
            less += 1
            assert len(bare.ids) + 60 + cell.max_new_tokens > 3000
            assert begun.facts["units"] + begun.facts["shortened"] == bare.facts["units"]
        else:
            assert np.array_equal(begun.ids[60:], bare.ids) and begun.facts == bare.facts
    assert less or task in ("niah_multikey_1", "qa_1", "qa_2", "fwe"), "these happen to leave room"


class Slow(counting.Counting):
    """Encodes every text."""

    def _guess(self, text, room, *, sample):
        return None


def _across_words():
    """A tokenizer whose tokens go across words: no text is the sum of its words."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    from rnope.tokenizer import Tokenizer

    backend = Backend(models.BPE(unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["?"], show_progress=False)
    backend.train_from_iterator([ESSAYS, "The grass is green. The sky is blue. " * 9, "0123456789"], trainer)
    return Tokenizer(backend)


QUICK = ("niah_single_1", "niah_multikey_2", "fwe", "qa_1")


@pytest.mark.parametrize("tokenizer", [TOKENIZER, _across_words()], ids=["by word", "across words"])
@pytest.mark.parametrize(
    "task", [task if task in QUICK else pytest.param(task, marks=pytest.mark.slow) for task in original.TASKS]
)
def test_decisions_without_encoding_are_those_with_it(data, task, tokenizer, monkeypatch):
    monkeypatch.setattr(counting, "ALWAYS", 500)
    case = Case(task, 12000, 9, 3)
    encoded: list[int] = []
    ids = counting.Counting.ids
    monkeypatch.setattr(counting.Counting, "ids", lambda self, text: encoded.append(len(text)) or ids(self, text))
    quick = samples(suite(data, case, tokenizer=tokenizer))
    cost, _ = sum(encoded), encoded.clear()
    monkeypatch.setattr("rnope.evals.ruler.suite.Counting", Slow)
    slow = samples(suite(data, case, tokenizer=tokenizer))
    for a, b in zip(quick, slow, strict=True):
        assert np.array_equal(a.ids, b.ids) and dict(a.facts) == dict(b.facts)
    assert cost < sum(encoded)


def test_too_short_a_length_is_an_error_where_the_original_never_ends(data):
    with pytest.raises(ConfigError, match="niah_single_1: its question and answer alone take"):
        suite(data, Case("niah_single_1", 150, 1, 1)).cells()
    with pytest.raises(ConfigError, match="fwe: its question and answer alone take 250 tokens"):
        suite(data, Case("fwe", 249, 1, 1)).cells()
    with pytest.raises(ConfigError, match="lengths = 4096: is too short for cwe"):
        samples(suite(data, Case("cwe", 4096, 1, 1)))
    with pytest.raises(ConfigError, match="qa_2 has 40 questions here"):
        suite(data, Case("qa_2", 4096, 1, 500)).cells()


def test_arguments_are_checked(data):
    with pytest.raises(ConfigError, match="Did you mean 'niah_single_1'"):
        suite(data, Case("niah_singel_1", 4096, 1, 1))
    with pytest.raises(ConfigError, match="samples"):
        suite(data, Case("vt", 4096, 1, 0))


def test_groups_are_tasks_in_order(data):
    def names(*tasks):
        frame = Frame(begin_ids=())
        ruler = Ruler(TOKENIZER, frame, tasks=tasks, lengths=[8192, 4096], samples=1, seed=1, data=data)
        return [cell.name for cell in ruler.cells()]

    assert names("qa", "niah_single_1") == [
        f"{task}-{n}" for n in (4096, 8192) for task in ("niah_single_1", "qa_1", "qa_2")
    ]
    assert len(names("retrieval")) == 16 and len(names("all", "qa")) == 26


def test_a_length_too_short_for_a_task_is_said_before_anything_is_asked(data):
    """The original would try for ever: `cwe` never gets small enough for this tokenizer."""
    ruler = Ruler(
        TOKENIZER, Frame(begin_ids=()), tasks=["niah_single_1", "cwe"], lengths=[4096], samples=1, seed=1, data=data
    )
    assert len(ruler.cells()) == 2
    with pytest.raises(ConfigError, match=r"4096: is too short for cwe"):
        ruler.check()


def test_pairs_are_the_sorted_set_without_being_made():
    nouns = [*NOUNS, "c"]
    slow = sorted({f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in nouns})
    quick = Pairs(ADJECTIVES, nouns)
    assert len(quick) == len(slow) and [quick[i] for i in range(len(slow))] == slow
    assert len(slow) < len(set(ADJECTIVES)) * len(set(nouns)), "a-b + c and a + b-c are one word"


@pytest.mark.parametrize("text", [ESSAYS, ESSAYS.strip(), "One. Two", "one two "], ids=range(4))
def test_sentences_of_the_first_words_are_those_of_their_text(text):
    import re

    words = re.sub(r"\s+", " ", text).split(" ")
    essays, rng = Essays(text), Random(0)
    assert essays.words == words
    for size in [1, 2, len(words), len(words) + 1, *(rng.randint(1, 3 * len(words)) for _ in range(40))]:
        assert essays.sentences(size) == sentences(" ".join((words * 4)[:size]).strip()), size


def test_sentences_end_where_people_see_it():
    text = 'Mr. J. Smith came. "Why?" she asked. He had 3.5 kg, i.e. all of it! (Nobody knew.) Then, in the U.S. Senate'
    assert sentences(text) == [
        "Mr. J. Smith came.", '"Why?" she asked.', "He had 3.5 kg, i.e. all of it!", "(Nobody knew.)",
        "Then, in the U.S. Senate",
    ]  # fmt: skip
    assert sentences("") == [""] and sentences("one") == ["one"]
