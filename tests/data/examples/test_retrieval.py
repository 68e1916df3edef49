"""Facts in text: found again by patterns of their own, and none of an evaluation's words."""

import re

import pytest

from rnope.data.examples.draft import FULL, Counter, make
from rnope.data.examples.material import training_documents
from rnope.data.examples.retrieval import BUILDINGS, TASKS, TEMPLATES, Retrieval
from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES

KEY = r"(?:the \w+ of [A-Z]\w+|locker [A-Z]{2}-\d{4}|[A-Z][a-z]+)"
VALUE = r"(?:[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}|\d{5,6}|[a-z]+)"
PATTERNS = [
    re.compile(re.escape(said).replace(r"\{key\}", f"(?P<key>{KEY})").replace(r"\{value\}", f"(?P<value>{VALUE})"))
    for said, _ in TEMPLATES
]


@pytest.fixture(scope="module")
def made(corpus, tokenizer):
    task, counter = Retrieval(training_documents(corpus)), Counter(tokenizer)
    return [make(task, counter, seed=7, number=n, tokens=(1500, 4096)[n % 2]) for n in range(60)]


def facts(example):
    """(key, value) of each fact in the order of the text, and the question."""
    text, _, question = example.prompt.rpartition("\n\nQuestion: ")
    (pattern,) = [p for p in PATTERNS if p.search(text)]
    return [(m["key"], m["value"]) for m in pattern.finditer(text)], question


def test_the_completion_is_what_the_text_says(made):
    counts = {task: [] for task in TASKS}
    for example in made:
        found, question = facts(example)
        places = {key: match.start() for key in dict(found) if (match := re.search(rf"\b{key}\b", question))}
        asked = sorted(places, key=places.__getitem__)
        assert asked, question
        expected = [value for key in asked for other, value in found if other == key]
        assert example.completion == " " + ", ".join(expected)
        assert len({value for _, value in found}) == len(found), "two facts have one value"
        counts[example.task].append((len(found), len(asked), len(expected)))
    assert all(count == (1, 1, 1) for count in counts["single"])
    assert all(n > 1 and (keys, values) == (1, 1) for n, keys, values in counts["multi-key"])
    assert all(n > values > 1 == keys for n, keys, values in counts["multi-value"])
    assert all(n > values == keys > 1 for n, keys, values in counts["multi-query"])
    assert all(n > 20 and (keys, values) == (1, 1) for n, keys, values in counts["facts-only"])
    assert min(map(len, counts.values())) >= 4


def test_every_template_and_kind_of_key_and_value_occurs(made):
    told = [facts(example)[0][0] for example in made]
    assert {pattern.search(example.prompt) is not None for pattern in PATTERNS for example in made} == {True, False}
    assert all(any(pattern.search(example.prompt) for example in made) for pattern in PATTERNS)
    assert {key.split()[0] if " " in key else "name" for key, _ in told} == {"the", "locker", "name"}
    assert {"code" if "-" in value else "number" if value.isdigit() else "word" for _, value in told} == {
        "code",
        "number",
        "word",
    }


def test_lengths_and_where_prompt_and_completion_meet(made, tokenizer):
    for number, example in enumerate(made):
        asked = (1500, 4096)[number % 2]
        assert FULL * asked <= example.tokens <= asked
        together = tokenizer.encode(example.prompt + example.completion)
        assert together == tokenizer.encode(example.prompt) + tokenizer.encode(example.completion)
        assert len(together) + 2 == example.tokens


def test_facts_stand_at_any_depth(made):
    depths = []
    for example in made:
        (value, *_) = example.completion[1:].split(", ")
        depths.append(example.prompt.index(value) / len(example.prompt))
    quarters = [sum(q <= 4 * depth < q + 1 for depth in depths) for q in range(4)]
    assert min(quarters) >= 5, quarters


def test_no_document_of_an_evaluation(made, held_out):
    seen = {mark for example in made for mark in re.findall(r"zq\d+q", example.prompt)}
    assert len(seen) > 30 and not seen & held_out


def test_no_words_of_an_evaluation():
    words = set(re.findall("[a-z]+", f"{TEMPLATES} {BUILDINGS}".lower()))
    assert {"harbour", "log", "foundry"} < words
    assert not words & {"magic", "special", "sandwich", "san", "francisco", "secret", "recall"}
    assert not words & {*KEYS, *UNSEEN_KEYS, *VALUES}
