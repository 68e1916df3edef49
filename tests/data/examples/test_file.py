"""Files of examples: the same whether made at once, alone or after any interruption."""

import json

import pytest

from rnope.data.examples.draft import Counter, make
from rnope.data.examples.file import write_examples
from rnope.data.examples.material import training_documents
from rnope.data.examples.qa import InventedQA
from rnope.data.examples.retrieval import Retrieval
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer

LENGTHS = (600, 900)


class Stop(Exception):
    pass


def stop_after(count):
    def progress(done):
        if done >= count:
            raise Stop

    return progress


@pytest.fixture
def write(tokenizer, tmp_path):
    def write(name="a.jsonl", **changes):
        given = dict(task=InventedQA(), lengths=LENGTHS, count=7, seed=3) | changes
        return write_examples(given.pop("task"), tokenizer, tmp_path / "deep" / name, **given)

    write.folder = tmp_path / "deep"
    return write


def test_lines_are_the_examples_by_number(write, tokenizer):
    told = []
    assert write(progress=told.append) == 0
    assert told == list(range(8))
    lines = [json.loads(line) for line in (write.folder / "a.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(lines) == 7
    for number, line in enumerate(lines):
        assert set(line) == {"kind", "task", "seed", "number", "tokens", "prompt", "completion", "settings"}
        assert (line["kind"], line["seed"], line["number"]) == ("qa", 3, number)
        alone = make(InventedQA(), Counter(tokenizer), seed=3, number=number, tokens=LENGTHS[number % 2])
        assert (line["prompt"], line["completion"], line["tokens"]) == (alone.prompt, alone.completion, alone.tokens)
    assert [path.name for path in write.folder.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("done", [0, 1, 4, 7])
@pytest.mark.parametrize("torn", [0, 1, 100, 10**9])
def test_interrupted_work_goes_on_and_ends_in_the_same_bytes(done, torn, write):
    write("whole.jsonl")
    with pytest.raises(Stop):
        write(progress=stop_after(done))
    partial = write.folder / ".a.jsonl.partial"
    assert not (write.folder / "a.jsonl").exists()
    whole = partial.read_bytes()
    assert whole.count(b"\n") == done
    partial.write_bytes(whole[: max(0, len(whole) - torn)])
    assert write() == (done if torn == 0 else max(0, done - 1) if torn < 10**9 else 0)
    assert (write.folder / "a.jsonl").read_bytes() == (write.folder / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("changes", [{"seed": 4}, {"lengths": (600,)}, {"lengths": (900, 600)}, {"task": "retrieval"}])
def test_work_of_other_settings_is_not_taken_up(changes, write, corpus):
    if "task" in changes:
        changes = {"task": Retrieval(training_documents(corpus))}
    with pytest.raises(Stop):
        write(progress=stop_after(4))
    assert write(**changes) == 0
    write("whole.jsonl", **changes)
    assert (write.folder / "a.jsonl").read_bytes() == (write.folder / "whole.jsonl").read_bytes()


def test_work_of_another_tokenizer_or_corpus_is_not_taken_up(write, tmp_path, corpus):
    with pytest.raises(Stop):
        write(lengths=(1500,), progress=stop_after(1))
    other = Tokenizer.train(["another text of documents about people in a town. " * 20], vocab_size=350)
    assert write_examples(InventedQA(), other, write.folder / "a.jsonl", lengths=(1500,), count=1, seed=3) == 0
    documents = training_documents(corpus)
    assert Retrieval(documents).digest != Retrieval(documents[:-1]).digest


def test_a_partial_file_serves_another_count(write):
    write("whole.jsonl", count=5)
    with pytest.raises(Stop):
        write(progress=stop_after(6))
    assert write(count=5) == 5
    assert (write.folder / "a.jsonl").read_bytes() == (write.folder / "whole.jsonl").read_bytes()


def test_what_is_there_is_not_made_again(write):
    write()
    before = (write.folder / "a.jsonl").stat().st_mtime_ns
    assert write(progress=stop_after(8)) == 7
    assert (write.folder / "a.jsonl").stat().st_mtime_ns == before
    write(count=9)
    assert len((write.folder / "a.jsonl").read_text().splitlines()) == 9


def test_a_foreign_partial_file_is_overwritten(write):
    write.folder.mkdir()
    for raw in (b"{}\n", b"[1]\n\xff\n", b"null"):
        (write.folder / ".b.jsonl.partial").write_bytes(raw)
        assert write("b.jsonl", count=1) == 0
        (write.folder / "b.jsonl").unlink()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"lengths": ()}, "tokens = "), ({"lengths": (0,)}, "tokens = 0: "), ({"count": 0}, "count = 0: ")],
)
def test_settings_that_make_nothing(changes, words, write):
    with pytest.raises(ConfigError, match=f"^{words}"):
        write(**changes)
    assert not write.folder.exists()
