"""Prompts with needles: exact lengths, spans that hold what they say, nothing that depends on what else is asked."""

import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from rnope.data.corpus import Document
from rnope.errors import ConfigError
from rnope.evals import text as haystack
from rnope.evals.frame import Frame
from rnope.evals.models.model import Answer
from rnope.evals.niah import needle as needle_module
from rnope.evals.niah.needle import ANSWER, INSTRUCTION, POOLS, Needles
from rnope.evals.niah.scoring import normalised
from rnope.evals.niah.suite import NEAR, Niah
from rnope.evals.suite import prompt_digest
from rnope.evals.text import Haystack
from rnope.tokenizer import Tokenizer

NAMES = "Ann Ben Cleo Dan Eve Fay Gus".split()
VERBS = "sees helps calls meets likes follows".split()
LETTERS = "The quick brown fox jumps over the lazy dog. PACK MY BOX WITH FIVE DOZEN LIQUOR JUGS! 0123456789?\n"


def story(number, sentences=12):
    rng = random.Random(number)
    lines = [
        f"{rng.choice(NAMES)} {rng.choice(VERBS)} {rng.choice(NAMES)} at {i} in town {number}."
        for i in range(sentences)
    ]
    return " ".join(lines)


STORIES = [story(number) for number in range(12)]


def byte_level():
    return Tokenizer.train([*STORIES, LETTERS], vocab_size=600)


def across_spaces():
    """A BPE without words: its tokens run over spaces and ends of sentences. No special tokens at all."""
    backend = Backend(models.BPE())
    backend.decoder = decoders.Fuse()
    backend.train_from_iterator([*STORIES, LETTERS], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return Tokenizer(backend)


def with_metaspace():
    """As Llama 2's: a mark for the space before each word, and a BOS and an EOS around every prompt."""
    backend = Backend(models.BPE(byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([*STORIES, LETTERS], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return Tokenizer(backend)


KINDS = {"byte level": byte_level, "across spaces": across_spaces, "metaspace": with_metaspace}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def plain():
    return byte_level()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hay")
    for number, text in enumerate(STORIES):
        (path / f"{number:02}.txt").write_text(text)
    return str(path)


def suite(tokenizer, hay, frame=None, **changes):
    asked = {"lengths": [900, 2048], "depths": 5, "samples": 3, "seed": 7, "max_new_tokens": 20} | changes
    return Niah(tokenizer, frame or Frame.bare(tokenizer), haystack=hay, **asked)


def cell(niah, name):
    return next(cell for cell in niah.cells() if cell.name == name)


def samples(niah, name, done=()):
    return list(niah.samples(cell(niah, name), dict.fromkeys(done)))


def everything(niah):
    return {
        c.name: [(s.index, s.ids.tolist(), s.references, s.facts) for s in niah.samples(c, {})] for c in niah.cells()
    }


def sentence(sample):
    food, place, sight = sample.references
    return f"The best thing to do in {sample.facts['town']} is to eat {food} in {place} and watch the {sight}."


def squeezed(text):
    return "".join(text.split())


def test_cells_are_rows_lengths_and_depths(plain, folder):
    cells = suite(plain, folder, lengths=[2048, 900, 2048], depths=5).cells()
    assert [c.name for c in cells] == ["needle-only"] + [
        name
        for length in (900, 2048)
        for name in [f"no-needle-{length}", *(f"standard-{length}-d{d}" for d in ("000", "025", "050", "075", "100"))]
    ]
    assert {c.name: dict(c.labels) for c in cells}["standard-900-d025"] == {"row": "standard", "depth": 25.0}
    assert all(c.samples == 3 and c.max_new_tokens == 20 for c in cells)
    assert [c.labels["depth"] for c in suite(plain, folder, depths=1).cells() if "depth" in c.labels] == [50.0, 50.0]


@pytest.mark.parametrize("depths", [2, 11, 35, 101])
def test_names_are_unique_whatever_the_depths(plain, folder, depths):
    names = [c.name for c in suite(plain, folder, lengths=[900], depths=depths).cells()]
    assert len(set(names)) == len(names) == depths + 2


def test_every_prompt_fills_its_length_and_begins_and_ends_as_it_must(tokenizer, folder):
    niah = suite(tokenizer, folder)
    for c in niah.cells():
        for sample in niah.samples(c, {}):
            assert sample.ids.dtype == np.int64 and sample.ids.ndim == 1
            text = tokenizer.decode_answer(sample.ids.tolist())
            assert text.endswith(ANSWER.format(town=sample.facts["town"]))
            assert sample.ids[: len(tokenizer.begin_ids)].tolist() == list(tokenizer.begin_ids)
            if c.labels["row"] == "needle-only":
                assert len(sample.ids) + 20 <= c.context_tokens
            else:
                assert len(sample.ids) + 20 == c.context_tokens


def test_the_span_is_the_needle_and_nothing_else_is(tokenizer, folder):
    niah = suite(tokenizer, folder)
    for c in niah.cells():
        for sample in niah.samples(c, {}):
            text = squeezed(tokenizer.decode_answer(sample.ids.tolist()))
            if c.labels["row"] == "no-needle":
                assert "needle" not in sample.facts
                assert squeezed(sentence(sample)) not in text
                assert not any(
                    f" {normalised(fact)} " in normalised(tokenizer.decode(sample.ids.tolist()))
                    for fact in sample.references
                )
                continue
            begin, end = sample.facts["needle"]
            assert squeezed(tokenizer.decode(sample.ids[begin:end].tolist())) == squeezed(sentence(sample))
            assert text.count(squeezed(sentence(sample))) == 1
            for fact in sample.references:
                assert text.count(squeezed(fact)) == 1


def test_needles_stand_where_sentences_end_and_near_their_depth(plain, folder):
    niah = suite(plain, folder, lengths=[4000], depths=9)
    head = len(niah._needles.head)
    for c in niah.cells():
        if c.labels["row"] != "standard":
            continue
        wanted = c.labels["depth"]
        for sample in niah.samples(c, {}):
            begin, end = sample.facts["needle"]
            hay = sample.facts["haystack_tokens"]
            assert hay == len(sample.ids) - head - (end - begin) - len(niah._needles.draw(_rng(c, sample)).tail)
            assert sample.facts["depth"] == pytest.approx(100 * (begin - head) / hay)
            before = plain.decode(sample.ids[head:begin].tolist())
            if wanted == 0:
                assert before == "" and sample.facts["depth"] == 0
            elif wanted == 100:
                assert sample.facts["depth"] == 100
            else:
                assert re.search(r"[.!?]\s*$", before)
                assert abs(sample.facts["depth"] - wanted) < 100 * 40 / hay  # a sentence has some 20 tokens


def _rng(c, sample):
    """The generator of a sample, as the suite's own words say it: seed, row, length, depth and index."""
    rng = random.Random(f"niah 7 standard {c.context_tokens} {c.labels['depth']} {sample.index}")
    rng.getrandbits(128)
    return rng


def test_without_sentences_the_needle_goes_exactly_to_its_depth(plain, tmp_path):
    (tmp_path / "list.txt").write_text(" ".join(f"item {i} of the list" for i in range(800)))
    for sample in samples(suite(plain, str(tmp_path), lengths=[2048]), "standard-2048-d025"):
        assert abs(sample.facts["depth"] - 25) < 100 / sample.facts["haystack_tokens"]


def test_a_sentence_that_ends_far_away_does_not_move_the_needle(plain, tmp_path):
    (tmp_path / "long.txt").write_text("Here it begins. " + "and on it goes " * 3000)
    (sample, *_) = samples(suite(plain, str(tmp_path), lengths=[6000]), "standard-6000-d050")
    assert sample.facts["haystack_tokens"] > 10 * NEAR and abs(sample.facts["depth"] - 50) < 0.02


def test_prompts_depend_on_nothing_else_that_is_asked(plain, folder):
    whole = everything(suite(plain, folder, lengths=[900, 2048], depths=5))
    assert whole == everything(suite(plain, folder, lengths=[900, 2048], depths=5))
    few = everything(suite(plain, folder, lengths=[2048], depths=3, samples=2))
    assert set(few) < set(whole)
    assert all(few[name] == whole[name][:2] for name in few)
    niah = suite(plain, folder)
    (left,) = samples(niah, "standard-900-d050", done=(0, 1))
    assert (left.index, left.ids.tolist(), left.references, left.facts) == whole["standard-900-d050"][2]
    more = suite(plain, folder, samples=30).cells()
    assert [c.context_tokens for c in more] == [c.context_tokens for c in niah.cells()]  # a folder may gain samples


def test_no_two_prompts_are_alike(plain, folder):
    niah = suite(plain, folder, samples=8)
    found = [s for c in niah.cells() for s in niah.samples(c, {})]
    assert len({prompt_digest(s.ids) for s in found}) == len(found)
    assert len({s.facts["town"] for s in found}) == len(found)
    cell_of = samples(niah, "standard-900-d050")
    hays = [s.ids[len(niah._needles.head) : s.facts["needle"][0]].tobytes() for s in cell_of]
    assert len(set(hays)) == len(hays)  # not the needles alone differ
    other = suite(plain, folder, samples=8, seed=8)
    assert not {prompt_digest(s.ids) for s in found} & {
        prompt_digest(s.ids) for c in other.cells() for s in other.samples(c, {})
    }


def test_repeats_are_counted(plain, folder):
    niah = suite(plain, folder, lengths=[700, 30_000])
    hay = Haystack(plain, folder)
    few, many = samples(niah, "no-needle-700")[0], samples(niah, "no-needle-30000")[0]
    assert few.facts["haystack_repeats"] == 1 and few.facts["haystack_tokens"] < hay.tokens
    assert many.facts["haystack_repeats"] == many.facts["haystack_tokens"] / hay.tokens > 4
    text = plain.decode(many.ids.tolist())
    marks = [text.count(f"at 5 in town {number}.") for number in range(12)]
    assert (
        {int(many.facts["haystack_repeats"])}
        <= set(marks)
        <= {int(many.facts["haystack_repeats"]) + d for d in (-1, 0, 1)}
    )


def test_chat_puts_the_template_around_and_the_first_words_into_the_answer(plain, folder):
    frame = Frame(begin_ids=(), before="<BOS_TOKEN>user: ", after="<EOS_TOKEN>model: ", chat=True)
    niah = suite(plain, folder, frame, lengths=[900])
    for sample in samples(niah, "standard-900-d025"):
        text = plain.decode(sample.ids.tolist())
        town = sample.facts["town"]
        assert text.startswith(f"<BOS_TOKEN>user: {INSTRUCTION}") and sample.ids[0] == plain.bos_id
        assert text.endswith(
            f"What is the best thing to do in {town}?<EOS_TOKEN>model: The best thing to do in {town} is"
        )
        assert sample.ids.tolist().count(plain.eos_id) == 1 and len(sample.ids) == 880


def test_special_tokens_named_in_the_haystack_are_text(plain, tmp_path):
    (tmp_path / "x.md").write_text("It ends with <EOS_TOKEN>. Then <PAD> follows. " * 60)
    for sample in samples(suite(plain, str(tmp_path)), "standard-900-d050"):
        assert plain.eos_id not in sample.ids and plain.pad_id not in sample.ids


def test_facts_that_the_haystack_holds_are_never_drawn(plain):
    foods, places = POOLS["food"], POOLS["place"]
    told = [f"{a} {b}" for a in foods[0] for b in foods[1]][1:]  # all but the first
    text = ", ".join(told).upper() + ". In heron—square."
    needles = Needles(plain, Frame.bare(plain), [text])
    drawn = [needles.draw(random.Random(i)) for i in range(400)]
    assert {needle.facts[0] for needle in drawn} == {f"{foods[0][0]} {foods[1][0]}"}
    assert "Heron Square" not in {needle.facts[1] for needle in drawn}
    assert len({needle.facts[1] for needle in drawn}) > 0.6 * len(places[0]) * len(places[1])
    town = drawn[3].town
    assert Needles(plain, Frame.bare(plain), [text, f"In {town.upper()}."]).draw(random.Random(3)).town != town
    with pytest.raises(ConfigError, match="holds every food that a needle could name"):
        Needles(plain, Frame.bare(plain), [", ".join(f"{a} {b}" for a in foods[0] for b in foods[1])])


def test_no_fact_is_part_of_another():
    facts = [f"{a} {b}" for first, second in POOLS.values() for a in first for b in second]
    assert len(set(facts)) == len(facts)
    words = [w for pool in POOLS.values() for part in pool for w in part]
    assert len(set(words)) == len(words)  # so that no two facts share a word, and none can be within another
    assert all(re.fullmatch("[A-Za-z]+", word) for word in words)


def test_needles_keep_within_their_room(tokenizer, monkeypatch):
    monkeypatch.setattr(needle_module, "_PROBES", 3)  # so that many draws are too long
    needles = Needles(tokenizer, Frame.bare(tokenizer), [])
    for i in range(300):
        needle = needles.draw(random.Random(1000 + i))
        assert len(needle.ids) <= needles.most_tokens and len(needle.tail) <= needles.most_tail


@given(length=st.integers(0, 400), new=st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_the_least_length_that_is_named_works_and_one_less_does_not(plain, folder, length, new):
    niah = suite(plain, folder, lengths=[length], depths=3, samples=2, max_new_tokens=new)
    try:
        cells = niah.cells()
    except ConfigError as error:
        least = int(re.search(r"Use ([\d,]+) or more", str(error))[1].replace(",", ""))
        assert length < least
        with pytest.raises(ConfigError, match=f"Use {least:,} or more"):
            suite(plain, folder, lengths=[least - 1], depths=3, samples=2, max_new_tokens=new).cells()
        niah = suite(plain, folder, lengths=[least], depths=3, samples=2, max_new_tokens=new)
        cells = niah.cells()
    for c in cells:
        for sample in niah.samples(c, {}):
            assert len(sample.ids) + new <= c.context_tokens
            assert len(sample.ids) + new == c.context_tokens or c.labels["row"] == "needle-only"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths": []}, "lengths = .*: are none"),
        ({"lengths": [900, 50]}, "lengths = 50: cannot hold needle, question and 20 new tokens"),
        ({"depths": 0}, "depths = 0: must be 1 to 101"),
        ({"depths": 102}, "depths = 102"),
        ({"samples": 0}, "samples = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_numbers_out_of_range_are_refused(plain, folder, changes, words):
    with pytest.raises(ConfigError, match=words):
        suite(plain, folder, **changes).cells()


def test_a_haystack_without_text_is_refused_by_its_own_name(plain, tmp_path):
    with pytest.raises(ConfigError, match=r"haystack = .*: holds no text"):
        suite(plain, str(tmp_path))
    with pytest.raises(ConfigError, match=r"haystack = .*: does not exist"):
        suite(plain, str(tmp_path / "none"))


def test_tokenizers_that_cannot_spell_are_refused(folder):
    backend = Backend(models.BPE(unk_token="?"))
    alphabet = "abcdefghijklmnoprstuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ .,:\n"  # no q, which "Square" needs
    backend.train_from_iterator(
        [alphabet], trainers.BpeTrainer(vocab_size=80, special_tokens=["?"], show_progress=False)
    )
    with pytest.raises(ConfigError, match=r"cannot spell 1 words of the needles: it has no q\b"):
        suite(Tokenizer(backend), folder)
    backend = Backend(models.WordLevel({"?": 0, "walnut": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match="cannot spell"):
        suite(Tokenizer(backend), folder)


def test_a_tokenizer_without_capitals_will_do(folder):
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.train_from_iterator([LETTERS], trainers.BpeTrainer(vocab_size=60, show_progress=False))
    (sample, *_) = samples(suite(Tokenizer(backend), folder), "standard-900-d050")
    assert len(sample.ids) == 880


def test_the_built_in_haystack_is_of_the_evaluation_split(plain, monkeypatch):
    built_in = tuple(Document(source=str(i), text=story(i)) for i in range(60))
    monkeypatch.setattr(haystack, "read_corpus", lambda path: built_in)
    wanted = [document.text for document in built_in if document.split == "eval"]
    assert haystack.Haystack(plain, None).texts == wanted and 10 < len(wanted) < 50
    assert len(haystack.Haystack(plain, "a user's folder").texts) == 60


def test_settings_tell_prompts_apart(plain, folder, tmp_path):
    base = suite(plain, folder).settings()
    assert base == suite(plain, folder, lengths=[5000], depths=2, samples=1).settings()  # a folder may gain these
    (tmp_path / "a.txt").write_text(STORIES[0])
    chat = Frame(begin_ids=(), before="u", after="m", chat=True)
    others = [
        suite(plain, folder, seed=1),
        suite(plain, str(tmp_path)),
        suite(plain, folder, chat),
        suite(plain, folder, max_new_tokens=21),
    ]
    assert all(other.settings() != base for other in others)


class Oracle:
    """Reads the needle in the prompt's text and says it again, or says nothing."""

    facts = SimpleNamespace(kind="rnope")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, prompts, max_new_tokens, *, stop=(), progress=lambda tokens: None):
        return [Answer(text=self.answer(ids), tokens=9, ended="stop") for ids in prompts]

    def answer(self, ids):
        text = self.tokenizer.decode(ids.tolist())
        told = re.search(r"do in (\w+) is( to eat [\w ]+\.)", text)
        return told[2] if told and f"What is the best thing to do in {told[1]}?" in text else " unknown."


def test_an_oracle_scores_ten_and_nothing_where_there_is_no_needle(plain, folder):
    niah = suite(plain, folder)
    for c in niah.cells():
        lines = [line for group in niah.ask(Oracle(plain), c, {}, batch=2, progress=lambda t: None) for line in group]
        assert [line.index for line in lines] == [0, 1, 2]
        for line in lines:
            expected = (0, 0) if c.labels["row"] == "no-needle" else (10, 1)
            assert tuple(niah.scoring.score(line).values()) == expected


def test_a_million_tokens_are_put_together_at_once(plain, folder):
    niah = suite(plain, folder, lengths=[1_048_576], depths=1, samples=1)
    (sample,) = samples(niah, "standard-1048576-d050")
    assert len(sample.ids) == 1_048_556 and abs(sample.facts["depth"] - 50) < 0.1
