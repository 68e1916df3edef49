"""``rnope data examples``: options into examples, and what is said of options that do not fit."""

import json

import pytest
from click.testing import CliRunner

from rnope.data.examples_command import KINDS, examples, task_of
from rnope.errors import ConfigError
from rnope.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train(["the tokenizer of a test, and no more than that. " * 30], vocab_size=400).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"The tokenizer of test {i}, and no more. " * 9}) + "\n" for i in range(60))
    )
    return path


@pytest.mark.parametrize("kind", ["retrieval", "qa", "translation"])
def test_a_file_is_made(kind, folder, corpus, tmp_path):
    out = tmp_path / "out.jsonl"
    given = [kind, "--out", out, "--tokenizer", folder, "--tokens", "1k, 2000", "--count", 3, "--seed", 5]
    given += [] if kind == "qa" else ["--corpus", corpus]
    result = CliRunner().invoke(examples, list(map(str, given)), catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["kind"], line["seed"]) for line in lines] == [(kind, 5)] * 3
    assert [900 < line["tokens"] <= 1024 for line in lines] == [True, False, True]
    assert 1900 <= lines[1]["tokens"] <= 2000


def test_pairs(tmp_path):
    lines = [{"question": "q", "answer": "a", "context": f"c{i}", "source": f"s{i}", "target": "t"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for kind in ("qa", "translation"):
        assert type(task_of(kind, None, tmp_path / "a.jsonl")).__name__.startswith("Pair")
    for kind in ("retrieval", "code"):
        with pytest.raises(ConfigError, match=f"^pairs = .*: {kind} is made without pairs"):
            task_of(kind, None, tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"^corpus = 'x': the text comes from the pairs"):
        task_of("qa", "x", tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match=r"^corpus = 'x': qa is made of pairs"):
        task_of("qa", "x", None)


def test_an_unknown_kind():
    with pytest.raises(
        ConfigError, match=r"^kind = 'retreival': no such kind of examples\. Did you mean 'retrieval'\?"
    ):
        task_of("retreival", None, None)
    assert len(KINDS) == 4
