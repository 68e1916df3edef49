"""Translation: invented languages are translated back by the prompt alone, with code of the test's own."""

import json
import re

import pytest

from rnope.data.corpus import Document
from rnope.data.examples.draft import FULL, Counter, make
from rnope.data.examples.material import training_documents
from rnope.data.examples.translation import ORDERS, InventedTranslation, Language, PairTranslation
from rnope.errors import ConfigError

PROMPT = re.compile(
    r"(?P<name>[A-Z]\w+) is a language .*? then the words of the line (?P<order>.*?)\. A word keeps its capitals\..*?"
    r"English first:\n\n(?P<glossary>.*?)\n\n"
    r"Translate this text (?P<way>into|from) (?P=name), line by line:\n\n(?P<text>.*)\n\nTranslation:",
    re.DOTALL,
)


def cut(line):
    """Words and what stands between them, by turns, beginning with what stands between; letter by letter."""
    parts, inside = [""], False
    for at, letter in enumerate(line):
        joins = letter in "'’" and inside and line[at + 1 : at + 2].isalpha()
        word = letter.isalpha() or joins
        if word != inside:
            parts.append("")
        parts[-1] += letter
        inside = word
    return parts if len(parts) % 2 else [*parts, ""]


def source_of(order, count):
    """Which word of the English line stands at each place of the foreign one."""
    places = list(range(count))
    if "reverse" in order:
        return [count - 1 - place for place in places]
    if "two by two" in order:
        return [place ^ 1 if place ^ 1 < count else place for place in places]
    assert "the last comes first" in order
    return [(place - 1) % count for place in places]


def english(line, order, glossary):
    """A foreign line in English."""
    back = {foreign: word for word, foreign in glossary.items()}
    parts = cut(line)
    words = parts[1::2]
    found = [""] * len(words)
    for place, origin in enumerate(source_of(order, len(words))):
        foreign = words[place]
        word = back.get(foreign.lower(), "")
        if foreign.islower():
            found[origin] = word
        elif foreign == foreign.lower().capitalize():
            found[origin] = word[0].upper() + word[1:]
        elif foreign.isupper():
            found[origin] = word.upper()
        if not found[origin]:
            found[origin] = foreign
    parts[1::2] = found
    return "".join(parts)


@pytest.fixture(scope="module")
def made(corpus, tokenizer):
    task, counter = InventedTranslation(training_documents(corpus)), Counter(tokenizer)
    return [make(task, counter, seed=0, number=n, tokens=(2500, 6000)[n % 2]) for n in range(24)]


def test_the_glossary_and_the_rule_translate_back(made):
    names, tasks = set(), set()
    for example in made:
        found = PROMPT.fullmatch(example.prompt)
        glossary = dict(line.split(" = ") for line in found["glossary"].split("\n"))
        assert len(set(glossary.values())) == len(glossary), "two words of English share one"
        completion = example.completion.removeprefix("\n")
        foreign, expected = (completion, found["text"]) if found["way"] == "into" else (found["text"], completion)
        assert len(foreign.split("\n")) == len(expected.split("\n")) > 3
        for line, meant in zip(foreign.split("\n"), expected.split("\n"), strict=True):
            assert english(line, found["order"], glossary) == meant != line
        used = {word.lower() for line in expected.split("\n") for word in cut(line)[1::2]}
        assert set(glossary) <= used, "an entry that nothing needs"
        assert used - set(glossary) <= {"mcdonald", "iphone", "o'neill"}
        names.add(found["name"])
        tasks.add(example.task)
    assert len(names) == len(made)
    assert tasks == {f"{way}-{order}" for way in ("into", "from") for order in ORDERS}


def test_the_text_is_that_of_the_corpus(made, texts, held_out):
    plain = [" ".join(text.split()) for text in texts]
    for example in made:
        found = PROMPT.fullmatch(example.prompt)
        lines = (found["text"] if found["way"] == "into" else example.completion).split("\n")
        assert all(any(line in text for text in plain) for line in lines if line)
        assert not set(re.findall(r"zq\d+q", "".join(lines))) & held_out


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("reversed", "McDonald Te NE, na: Ke'ta!"),
        ("rotated", "McDonald Ke'ta na, NE: Te!"),
        ("swapped", "na Ke'ta Te, NE: McDonald!"),
    ],
)
def test_a_line_word_for_word(order, expected):
    glossary = {"don't": "ke'ta", "say": "na", "nasa": "ne", "i": "te"}
    assert Language(order, glossary).line("Don't say NASA, I: McDonald!") == expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", range(6))
def test_every_order_keeps_every_word(order, count):
    words = [str(i) for i in range(count)]
    places = [int(word) for word in ORDERS[order][0](words)]
    assert sorted(places) == list(range(count))
    assert count < 2 or places != sorted(places)
    assert places == source_of(ORDERS[order][1], count)


@pytest.fixture(scope="module")
def path(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    passages = (text[at : at + 100] for text in texts for at in range(0, 500, 100))
    lines = ({"source": f"{text} [{n}]", "target": f"{text.upper()} [{n}] "} for n, text in enumerate(passages))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_stand_in_their_order_after_one_with_its_translation(path, tokenizer):
    task, counter = PairTranslation.read(path), Counter(tokenizer)
    sources = [json.loads(line)["source"] for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [str(n) for n, text in enumerate(sources) if Document(source="", text=text).split == "train"]
    assert 200 < len(kept) < 350
    starts = set()
    for number in range(12):
        example = make(task, counter, seed=0, number=number, tokens=3000)
        head, _, body = example.prompt.partition("one passage after another:")
        sources, targets = (re.findall(r"\[(\d+)\]", part) for part in (body, example.completion))
        assert sources == targets and len(sources) > 2
        first, again = re.findall(r"\[(\d+)\]", head)
        start = kept.index(first)
        assert first == again
        ring = [*kept[start + 1 :], *kept[:start]]
        places = [ring.index(source) for source in sources]
        assert places == sorted(set(places)) and places[:3] == [0, 1, 2]
        # Each passage of the completion is the translation of that of the prompt.
        assert body.removesuffix("Translation:").strip().upper() == example.completion.strip()
        starts.add(start)
    assert len(starts) > 8


@pytest.mark.parametrize("pairs", [True, False])
def test_lengths_and_where_prompt_and_completion_meet(pairs, path, corpus, tokenizer):
    task = PairTranslation.read(path) if pairs else InventedTranslation(training_documents(corpus))
    counter = Counter(tokenizer)
    for number, tokens in enumerate((4000, 6000, 12_000)):
        example = make(task, counter, seed=4, number=number, tokens=tokens)
        together = tokenizer.encode(example.prompt + example.completion)
        assert together == tokenizer.encode(example.prompt) + tokenizer.encode(example.completion)
        assert FULL * tokens <= len(together) + 2 == example.tokens <= tokens


def test_material_that_is_too_short(path, corpus, counter):
    for field, task in (
        ("pairs", PairTranslation.read(path)),
        ("corpus", InventedTranslation(training_documents(corpus))),
    ):
        with pytest.raises(
            ConfigError, match=rf"^{field} = '[\d,]+ tokens': are all there is to train on, too few to fill"
        ):
            make(task, counter, seed=0, number=0, tokens=1_000_000)
        with pytest.raises(ConfigError, match=r"^tokens = 30: is too short"):
            make(task, counter, seed=0, number=0, tokens=30)
