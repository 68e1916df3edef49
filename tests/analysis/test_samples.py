"""Samples: exact lengths, segments that hold what they are called, copied tokens that are the ones they are copied from."""

import json
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from rnope.analysis.samples import NeedleSamples, _copied, read_samples, task_sample
from rnope.analysis.spans import offsets
from rnope.data.needles import WORDS, NeedleTask
from rnope.data.needles import Haystack as TaskHaystack
from rnope.errors import ConfigError, UserError
from rnope.evals.frame import Frame
from rnope.evals.text import Haystack
from rnope.tokenizer import Tokenizer

LETTERS = "The quick brown fox jumps over the lazy dog. PACK MY BOX WITH FIVE DOZEN LIQUOR JUGS! 0123456789?\n"


def story(number):
    rng = random.Random(number)
    return " ".join(f"{rng.choice(['Ann', 'Ben'])} meets Cleo at {rng.randrange(99)} o'clock." for _ in range(12))


STORIES = [story(number) for number in range(12)]


def byte_level():
    return Tokenizer.train([*STORIES, LETTERS], vocab_size=600)


def across_spaces():
    """A BPE without words, whose tokens run over spaces and ends of sentences. No special tokens at all."""
    backend = Backend(models.BPE())
    backend.decoder = decoders.Fuse()
    texts = [*STORIES, LETTERS, *[" is to eat pie\n", ".\nAnn"] * 40]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, show_progress=False))
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


def source(tokenizer, folder, **changes):
    asked = {"seed": 7} | changes
    frame = asked.pop("frame", None) or Frame.bare(tokenizer)
    return NeedleSamples(tokenizer, frame, Haystack(tokenizer, folder), **asked)


def squeezed(text):
    return "".join(text.split())


def part(tokenizer, sample, name):
    return "".join(tokenizer.decode(sample.marks.ids[a:b]) for a, b in sample.marks.spans[name])


@pytest.mark.parametrize("length", [900, 1501])
def test_needle_samples_fill_their_length_and_segments_hold_their_names(tokenizer, folder, length):
    for index in range(3):
        sample = source(tokenizer, folder).sample(length, index)
        marks = sample.marks
        assert len(marks.ids) == sample.context_tokens == length and sample.new_tokens == 0
        assert list(marks.spans) == ["begin", "needle", "context", "qc"] and marks.spans["begin"] == ((0, 10),)
        assert sum(b - a for stretches in marks.spans.values() for a, b in stretches) == length
        needle = squeezed(part(tokenizer, sample, "needle"))
        assert needle.startswith("Thebestthingtodoin") and needle.endswith(".")
        question = squeezed(part(tokenizer, sample, "qc"))
        assert question.startswith("Answerthequestion") and question.endswith(needle), "the gold answer is whole"
        assert question.count(needle) == 1
        assert "bestthing" not in squeezed(part(tokenizer, sample, "context"))
        begin, end = marks.spans["needle"][0]
        assert 0.25 < begin / length < 0.6, "near half of the haystack, with a question behind it"
        assert sample.rows_from == marks.spans["qc"][0][0] and marks.spans["qc"][0][1] == length
        assert end <= sample.rows_from


def test_copied_tokens_are_those_of_the_completion_in_the_needle(tokenizer, folder):
    for index in range(4):
        sample = source(tokenizer, folder).sample(900, index)
        marks = sample.marks
        ((begin, end),) = marks.spans["needle"]
        for position, (place,) in marks.copied.items():
            assert marks.ids[position + 1] == marks.ids[place] and begin <= place < end
        rows, places = list(marks.copied), [place for (place,) in marks.copied.values()]
        assert rows == sorted(rows) and places == sorted(places) and len(set(places)) == len(places)
        text = squeezed(tokenizer.decode([marks.ids[row + 1] for row in rows]))
        assert len(text) > 30 and text in squeezed(part(tokenizer, sample, "needle"))
        assert rows[-1] <= 898 and rows[-1] >= 897  # the last, a full stop, may be one token with the line's end


def test_with_words_the_copied_tokens_are_the_whole_completion(plain, folder):
    sample = source(plain, folder).sample(900, 0)
    rows = list(sample.marks.copied)
    assert rows == list(range(rows[0], 899))
    assert plain.decode(sample.marks.ids[rows[0] + 1 :]).startswith(" to eat ")
    assert plain.decode(sample.marks.ids[: rows[0] + 1]).endswith(" is")


def test_a_completion_is_copied_as_far_as_its_tokens_are_those_of_the_needle():
    ids = [5, 6, 7, 8, 9, 1, 2, 0, 7, 8, 4, 9]
    assert _copied(ids, 8, (0, 5)) == {7: (2,), 8: (3,), 10: (4,)}, "4 is not in the needle"
    assert _copied(ids, 12, (0, 5)) == {}


def test_a_completion_merged_with_the_prompts_last_word_is_spelt_on_its_own(folder):
    tokenizer = across_spaces()
    text = "The best thing to do in Xy is to eat"
    joint = next(p for p in offsets(tokenizer, text) if p[0] < text.index(" to eat") < p[1])
    made = source(tokenizer, folder)
    assert joint[0] < text.index(" to eat") and made._completion(text, text.index(" to eat")) == tokenizer.encode(
        " to eat"
    )


def test_generated_completions_are_left_out_and_their_room_is_kept(tokenizer, folder):
    given, asked = (source(tokenizer, folder, new_tokens=n).sample(900, 0) for n in (0, 40))
    assert (len(asked.marks.ids), asked.context_tokens, asked.new_tokens) == (860, 900, 40)
    assert asked.marks.spans["qc"] == ((asked.rows_from, 900),) and not asked.marks.copied
    question = squeezed(part(tokenizer, asked, "qc"))
    assert squeezed(part(tokenizer, given, "qc")).startswith(question) and question.endswith("is")


def test_a_sample_depends_on_seed_length_and_index_alone(plain, folder):
    def every(lengths, samples, seed=7):
        made = source(plain, folder, seed=seed)
        found = [made.sample(length, index) for length in lengths for index in range(samples)]
        return {sample.name: sample for sample in found}

    few, many = every([900], 1), every([1200, 900], 3)
    assert list(many) == ["1200-0", "1200-1", "1200-2", "900-0", "900-1", "900-2"]
    assert few["900-0"] == many["900-0"]
    assert len({tuple(sample.marks.ids) for sample in [*many.values(), every([900], 1, seed=8)["900-0"]]}) == 7


def test_a_chat_frame_stands_around_text_and_question(plain, folder):
    frame = Frame(begin_ids=(), before="<BOS_TOKEN>USER ", after=" MODEL ", chat=True)
    sample = source(plain, folder, frame=frame).sample(900, 0)
    assert plain.decode(sample.marks.ids).startswith("<BOS_TOKEN>USER Read the text")
    assert "? MODEL The best thing" in part(plain, sample, "qc")


def test_a_haystack_shorter_than_the_length_is_gone_through_again(plain, folder):
    sample = source(plain, folder).sample(20_000, 0)
    assert len(sample.marks.ids) == 20_000 and sample.notes == ()


def test_lengths_and_settings_that_cannot_be_are_refused(plain, folder):
    made = source(plain, folder)
    for refuse in (made.check, lambda length: made.sample(length, 0)):
        with pytest.raises(ConfigError, match=r"lengths = 60: cannot hold needle, question and completion"):
            refuse(60)
    for changes in ({"seed": -1}, {"new_tokens": -1}):
        with pytest.raises(ConfigError, match=r"must be 0 or more"):
            source(plain, folder, **changes)


def test_the_shortest_length_that_is_allowed_holds_every_sample(plain, folder):
    made = source(plain, folder)
    shortest = next(n for n in range(100, 900) if not raises(made, n))
    assert all(len(made.sample(shortest, index).marks.ids) == shortest for index in range(30))


def raises(made, length):
    try:
        made.check(length)
    except ConfigError:
        return True
    return False


# The comparison's needles.


@pytest.fixture(scope="module")
def task():
    return NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=1024, whole_words=WORDS))


@pytest.mark.parametrize("length", [64, 65, 500])
def test_the_comparisons_sample_is_its_context_with_one_copied_value(task, length):
    hay = TaskHaystack([np.random.default_rng(i).integers(3, 1024, size=200) for i in range(5)])
    for index in range(3):
        seed = [6, 77, length, index]
        sample = task_sample(task, hay, np.random.default_rng(seed), context_tokens=length)
        context = task.context(np.random.default_rng(seed), hay, context_tokens=length, depths=[0.5])
        marks = sample.marks
        assert list(marks.ids) == context.ids.tolist() and sample.context_tokens == length
        (needle,) = context.spans
        qc = (length - 4, length)
        between = ((10, needle[0]), (needle[1], qc[0]))
        assert marks.spans == {"begin": ((0, 10),), "needle": (needle,), "context": between, "qc": (qc,)}
        assert sample.rows_from == length - 4 and marks.ids[sample.rows_from] == task.recall
        ((position, (value, key)),) = marks.copied.items()
        assert position == int(context.rows[0]) and marks.ids[value] == context.answers[0] == marks.ids[position + 1]
        assert marks.ids[key] == marks.ids[position], "the question's key"
        assert needle[0] <= value < key < needle[1]


@pytest.mark.parametrize("length", range(9, 30))
def test_where_there_is_little_text_begin_ends_before_the_needle(task, length):
    hay = TaskHaystack([np.arange(3, 300)])
    sample = task_sample(task, hay, np.random.default_rng(0), context_tokens=length)
    ((begin, end),), ((needle, _),) = sample.marks.spans["begin"], sample.marks.spans["needle"]
    assert begin == 0 and end == min(10, needle)


# The user's own.

PROMPT = "It was a dark night. Ann hid the blue pearl under a stone “là-bas”. Nobody knew. Where is the pearl?"


def written(tmp_path, *lines):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n", "utf-8")
    return path


def characters(text):
    return [PROMPT.index(text), PROMPT.index(text) + len(text)]


def test_a_users_line_becomes_tokens_and_segments(plain, tmp_path):
    line = {
        "prompt": PROMPT,
        "completion": " Ann hid it under a stone",
        "spans": {
            "needle": characters("Ann hid the blue pearl under a stone"),
            "quoted": characters("“là-bas”"),
            "qc": characters("Where is the pearl?"),
        },
    }
    (sample,) = read_samples(written(tmp_path, line), plain)
    marks = sample.marks
    assert list(marks.ids) == [*plain.begin_ids, *plain.encode(PROMPT), *plain.encode(line["completion"])]
    assert list(marks.spans) == ["begin", "needle", "context", "qc", "quoted"]
    assert part(plain, sample, "needle").strip() == "Ann hid the blue pearl under a stone"
    assert part(plain, sample, "quoted").strip() == "“là-bas”"
    assert part(plain, sample, "qc").strip() == "Where is the pearl? Ann hid it under a stone"
    assert sample.name == "line-1" and sample.notes == () and sample.rows_from == marks.spans["qc"][0][0]
    copied = {row + 1: place for row, (place,) in marks.copied.items()}
    assert all(marks.ids[token] == marks.ids[place] for token, place in copied.items())
    assert squeezed(plain.decode([marks.ids[token] for token in sorted(copied)])) == "Annhidunderastone"


def test_tokens_may_be_given_and_are_used_as_they_are(plain, tmp_path):
    ids = plain.encode(PROMPT)
    lines = (
        {"ids": ids, "spans": {"needle": [12, 15], "qc": [20, len(ids)]}, "unit": "tokens", "name": "mine"},
        {"prompt": PROMPT, "spans": {"needle": [12, 15], "qc": [20, len(ids)]}, "unit": "tokens"},
        {"ids": ids, "spans": {"begin": [0, 3]}, "unit": "tokens", "completion": " stone"},
    )
    first, second, third = read_samples(written(tmp_path, *lines), plain)
    assert list(first.marks.ids) == ids and first.name == "mine" and first.marks.spans["needle"] == ((12, 15),)
    assert len(plain.begin_ids) == 1 and second.marks.spans["needle"] == ((13, 16),), "behind the BOS"
    assert third.marks.spans["begin"] == ((0, 3),) and third.rows_from == len(ids), "the completion alone is the qc"


def test_begin_gives_way_to_a_span_and_says_so(plain, tmp_path):
    needle = {"needle": characters("was a dark"), "qc": characters("Where is the pearl?")}
    (sample,) = read_samples(written(tmp_path, {"prompt": PROMPT, "spans": needle}), plain)
    ((_, end),) = sample.marks.spans["begin"]
    assert 0 < end < 10 and end == sample.marks.spans["needle"][0][0]
    assert sample.notes == (f"begin is {end} tokens, not 10: another span begins there",)
    ids = {"ids": [5] * 30, "spans": {"needle": [0, 3], "qc": [20, 30]}, "unit": "tokens"}
    (sample,) = read_samples(written(tmp_path, ids), plain)
    assert "begin" not in sample.marks.spans


def test_a_merged_needle_is_widened_and_noted(tmp_path):
    tokenizer = across_spaces()
    prompt = "Ben meets Cleo at 5 o'clock. What is to eat pie\n Where?"
    begin = prompt.index("eat pie")
    line = {"prompt": prompt, "spans": {"needle": [begin, begin + 5], "qc": [len(prompt) - 6, len(prompt)]}}
    (sample,) = read_samples(written(tmp_path, line), tokenizer)
    assert "eat p" in part(tokenizer, sample, "needle") and part(tokenizer, sample, "needle") != "eat p"
    assert any(note.startswith("needle is widened to whole tokens: characters ") for note in sample.notes)
    line["spans"]["next"] = [begin + 5, begin + 7]
    with pytest.raises(ConfigError, match=r"spans\.\w+ .*overlaps with \w+ .*widened to whole tokens"):
        read_samples(written(tmp_path, line), tokenizer)


def test_completions_may_be_left_to_the_model(plain, tmp_path):
    line = {"prompt": PROMPT, "completion": " under a stone", "spans": {"qc": characters("Where is the pearl?")}}
    (sample,) = read_samples(written(tmp_path, line), plain, new_tokens=9)
    ids = [*plain.begin_ids, *plain.encode(PROMPT)]
    assert list(sample.marks.ids) == ids and sample.new_tokens == 9
    assert sample.context_tokens == sample.marks.spans["qc"][0][1] == len(ids) + 9


GOOD = {"prompt": PROMPT, "spans": {"qc": [90, len(PROMPT)]}}
BAD = {
    "no JSON": ('{"prompt": ', r"mine\.jsonl:2\.line = .*is no JSON"),
    "no object": ("[1]", r"mine\.jsonl:2\.line = .*must be an object"),
    "twice": ('{"prompt": "a", "prompt": "b", "spans": {}}', r"mine\.jsonl:2\.prompt .*given twice"),
    "span twice": ('{"prompt": "a", "spans": {"a": [0, 1], "a": [0, 1]}}', r"mine\.jsonl:2\.a .*given twice"),
    "unknown key": (GOOD | {"span": {}}, r"mine\.jsonl:2\.span = .*no such key"),
    "no prompt": ({"spans": {}}, r"mine\.jsonl:2\.prompt = None: must be there, or ids"),
    "both": (GOOD | {"ids": [1]}, r"mine\.jsonl:2\.prompt .*not both"),
    "no spans": ({"prompt": PROMPT}, r"mine\.jsonl:2\.spans = None: is missing"),
    "nothing asked": (GOOD | {"spans": {"needle": [30, 40]}}, r"mine\.jsonl:2\.spans = .*name no question"),
    "characters of ids": ({"ids": [4] * 9, "spans": {"qc": [8, 9]}}, r"mine\.jsonl:2\.unit .*needs the prompt's text"),
    "wrong ids": ({"ids": [4, 99999], "spans": {}, "unit": "tokens"}, r"mine\.jsonl:2\.ids = 99999: is no token"),
    "three numbers": (GOOD | {"spans": {"qc": [1, 2, 3]}}, r"mine\.jsonl:2\.spans\.qc .*must be two numbers"),
    "not whole": (GOOD | {"spans": {"qc": [1, 2.5]}}, r"mine\.jsonl:2\.spans\.qc\[1\] = 2\.5: must be a whole number"),
    "outside": (
        GOOD | {"spans": {"qc": [90, 9999]}},
        rf"mine\.jsonl:2\.spans\.qc = \(90, 9999\): is not inside the text of {len(PROMPT)} characters",
    ),
    "outside tokens": (
        GOOD | {"spans": {"qc": [9, 9999]}, "unit": "tokens"},
        r"mine\.jsonl:2\.spans\.qc = \(9, 9999\): is not inside .* tokens",
    ),
    "question not last": (
        GOOD | {"spans": {"qc": [50, 60]}},
        rf"mine\.jsonl:2\.spans\.qc = \(50, 60\): must go to the end of the prompt, {len(PROMPT)} characters",
    ),
    "overlap": (
        GOOD | {"spans": {"a": [30, 50], "b": [45, 60], "qc": [90, len(PROMPT)]}},
        r"mine\.jsonl:2\.spans\.b = \(45, 60\): overlaps with a = \(30, 50\)",
    ),
    "context": (GOOD | {"spans": {"context": [30, 50], "qc": [90, len(PROMPT)]}}, r"spans\.context .*leave over"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_lines_that_cannot_be_are_refused_with_their_number(plain, tmp_path, kind):
    line, message = BAD[kind]
    with pytest.raises(ConfigError, match=message):
        read_samples(written(tmp_path, GOOD, line), plain)


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(plain, tmp_path):
    path = tmp_path / "mine.jsonl"
    line = json.dumps(GOOD).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    first, second = read_samples(path, plain)
    assert first.marks == second.marks and (first.name, second.name) == ("line-1", "line-3")


def test_files_that_hold_nothing_or_cannot_be_read_are_refused(plain, tmp_path):
    empty, binary = written(tmp_path, "", "  "), tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe")
    for path, message in (
        (empty, "holds no sample"),
        (binary, "cannot be read"),
        (tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_samples(path, plain)
