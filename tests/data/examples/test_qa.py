"""Questions over documents: each answer found again by reading the documents with patterns of the test's own."""

import json
import re

import pytest

from rnope.data.corpus import Document
from rnope.data.examples.draft import FULL, Counter, make
from rnope.data.examples.qa import InventedQA, PairQA
from rnope.errors import ConfigError

SAID = {
    "river": r"on the river (\w+)\.|The river (\w+) flows",
    "founded": r"founded in (\d+)|foundation is of the year (\d+)",
    "people": r"has ([\d,]+) inhabitants|last count, ([\d,]+) people",
    "craft": r"known for ([a-z ]+)\.|old craft of ([a-z ]+)\.",
    "born at": r"was born in ([A-Z]\w+)",
    "born in": r"was born in \w+ in (\d+)|^[\w ]+\. In (\d+),",
    "profession": r"was a ([a-z]+)\.|the work of a ([a-z]+)\.",
    "instrument": r"played the (\w+)|playing the (\w+)",
    "collection": r"collection of ([a-z ]+) filled|collected ([a-z ]+)\.",
}
ASKED = {
    r"On which river lies (.+)\?": "river",
    r"In what year was (.+) founded\?": "founded",
    r"How many people live in (.+)\?": "people",
    r"What craft is (.+) known for\?": "craft",
    r"Where was (.+) born\?": "born at",
    r"In what year was (.+) born\?": "born in",
    r"What was the profession of (.+)\?": "profession",
    r"What instrument did (.+) play\?": "instrument",
    r"What did (.+) collect\?": "collection",
}


def documents(prompt):
    """Text of each document, their numbers checked, and the question."""
    body, _, question = prompt.rpartition("\n\nQuestion: ")
    parts = re.split(r"\n\nDocument (\d+): ", body)
    assert list(map(int, parts[1::2])) == list(range(1, len(parts) // 2 + 1))
    return parts[2::2], question.split("\n")[0]


def said(sheets, title, what):
    (sheet,) = [sheet for sheet in sheets if sheet.startswith(f"{title}. ")]
    (found,) = re.findall(SAID[what], sheet)
    return found if isinstance(found, str) else "".join(found)


@pytest.fixture(scope="module")
def invented(tokenizer):
    counter = Counter(tokenizer)
    return [make(InventedQA(), counter, seed=1, number=n, tokens=(1200, 4000)[n % 2]) for n in range(40)]


def test_the_sheets_answer(invented):
    kinds, depths = set(), set()
    for example in invented:
        sheets, question = documents(example.prompt)
        ((subject, what),) = [(m[1], what) for asked, what in ASKED.items() if (m := re.fullmatch(asked, question))]
        by_way = re.fullmatch("the town where (.+) was born", subject)
        assert (by_way is not None) == (example.task == "two-hop")
        title = said(sheets, by_way[1], "born at") if by_way else subject
        assert example.completion == " " + said(sheets, title, what)
        kinds.add((example.task, what))
        depths.add(next(i for i, sheet in enumerate(sheets) if sheet.startswith(f"{title}.")) * 4 // len(sheets))
    assert len(kinds) >= 11 and depths == {0, 1, 2, 3}


def test_titles_are_distinct_and_birth_towns_have_sheets(invented):
    for example in invented[:10]:
        sheets, _ = documents(example.prompt)
        titles = [sheet.split(". ")[0] for sheet in sheets]
        assert len(set(titles)) == len(titles) > 5
        towns = {town for sheet in sheets for town in re.findall(SAID["born at"], sheet)}
        missing = towns - set(titles)  # such a sheet can be the one that did not fit
        assert len(missing) <= 1


@pytest.fixture(scope="module")
def path(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = (
        {"question": f"Which mark has number {n}, part {part}?", "answer": f"zq{n}q", "context": f"{text[:600]} "}
        for n, text in enumerate(texts)
        for part in range(2)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_the_gold_document_stands_among_others(path, tokenizer):
    task, counter = PairQA.read(path), Counter(tokenizer)
    contexts = {pair["context"] for pair in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    held_out = {text.split()[0] for text in contexts if Document(source="", text=text).split != "train"}
    assert 40 < len(held_out) < 80
    places, golds = set(), set()
    for number in range(40):
        example = make(task, counter, seed=2, number=number, tokens=3000)
        texts, question = documents(example.prompt)
        mark = example.completion.removeprefix(" ")
        assert re.fullmatch(rf"Which mark has number {mark[2:-1]}, part [01]\?", question)
        marks = [re.match(r"zq\d+q", text)[0] for text in texts]
        assert marks.count(mark) == 1 and len(set(marks)) == len(marks) > 5
        assert not set(marks) & held_out
        places.add(marks.index(mark) * 4 // len(marks))
        golds.add(mark)
    assert places == {0, 1, 2, 3} and len(golds) > 15


@pytest.mark.parametrize("pairs", [True, False])
def test_lengths_and_where_prompt_and_completion_meet(pairs, path, tokenizer):
    task, counter = PairQA.read(path) if pairs else InventedQA(), Counter(tokenizer)
    for number, tokens in enumerate((2000, 4000, 9000)):
        example = make(task, counter, seed=4, number=number, tokens=tokens)
        together = tokenizer.encode(example.prompt + example.completion)
        assert together == tokenizer.encode(example.prompt) + tokenizer.encode(example.completion)
        assert FULL * tokens <= len(together) + 2 == example.tokens <= tokens


def test_too_few_pairs_and_too_short_a_length(path, counter):
    with pytest.raises(ConfigError, match=r"^pairs = '[\d,]+ tokens': are all there is to train on, too few to fill"):
        make(PairQA.read(path), counter, seed=0, number=0, tokens=100_000)
    for task in (PairQA.read(path), InventedQA()):
        with pytest.raises(ConfigError, match=r"^tokens = 40: is too short"):
            make(task, counter, seed=0, number=0, tokens=40)
