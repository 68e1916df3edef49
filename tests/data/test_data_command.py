"""``rnope data`` from the shell: what it prints, and its exit codes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnope import cli
from rnope.data import command
from rnope.data.shards import Shards
from rnope.tokenizer import Tokenizer

SOURCE = Path(cli.__file__).parents[1]


@pytest.fixture
def rnope_(capsys, monkeypatch):
    """Runs a command and gives its exit code, standard output and standard error."""
    monkeypatch.setitem(cli.app.commands, "data", command.data)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def lines(tmp_path):
    long = "word, and " * 20_000
    rows = [{"text": f"text {i}"} for i in range(40)] + [{"text": ""}, {"text": "text 1"}, {"text": long}]
    rows += [{"prompt": "Q: what?", "completion": " An answer."}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_build_and_show(rnope_, lines, tmp_path):
    out = tmp_path / "out"
    arguments = ("data", "build", lines, "--out", out, "--vocab-size", 280, "--workers", 1, "--validation", 0.2)
    code, text, err = rnope_(*arguments)
    assert code == 0 and not err and text.splitlines()[-1] == str(out)
    train, validation = Shards.open(out), Shards.open(out, "validation")
    tokens = train.tokens + validation.tokens
    assert re.search(rf"{tokens:,} tokens in [\d.]+ s, [\d,]+ tokens/s by 1 worker\.", text)
    for shards in (train, validation):
        assert re.search(rf"{shards.split} +{shards.documents} +{shards.tokens:,} ", text)
    holder = max((train, validation), key=lambda shards: shards.tokens)
    lengths = holder.lengths()
    shares = [f"{lengths[lengths > length].sum() / holder.tokens:.1%}" for length in (8192, 32768, 131072)]
    assert re.search(rf"{holder.split} .* {' +'.join(map(re.escape, shares))}", text) and "> 32k" in text
    assert float(shares[0][:-1]) > 90
    assert re.search(rf"\.jsonl +42 +{tokens:,} +1 +1\b", re.sub(r"\n +", "", text)) or re.search(
        rf" 42 +{tokens:,} +1 +1\b", text
    )
    assert max(map(len, text.splitlines()[:-1])) <= 80 and "…" not in text
    code, again, err = rnope_(*arguments)
    assert code == 0 and "It was built before." in again
    code, shown, err = rnope_("data", "show", out, "--verify", "--documents", 50)
    assert code == 0 and not err and "train: 3 files are what was written" in shown
    assert "--- train 0: " in shown and "Q: what?[completion] An answer.<EOS_TOKEN>" in shown
    assert "characters ...]" in shown and len(shown) < 10_000
    assert shown.count("--- train") == train.documents
    assert "---" not in rnope_("data", "show", out)[1]


def test_a_changed_shard_is_found(rnope_, lines, tmp_path):
    out = tmp_path / "out"
    assert rnope_("data", "build", lines, "--out", out, "--vocab-size", 280, "--workers", 1)[0] == 0
    path = out / "train" / "shard-00000.ids.npy"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert rnope_("data", "show", out)[0] == 0
    code, _, err = rnope_("data", "show", out, "--verify")
    assert code == 2 and f"{path}: was changed: its SHA-256" in err and err.count("\n") == 1
    path.write_bytes(raw[:100])
    code, _, err = rnope_("data", "show", out)
    assert code == 2 and "was cut short" in err


def test_no_validation_is_said(rnope_, lines, tmp_path):
    out = tmp_path / "out"
    code, text, _ = rnope_("data", "build", lines, "--out", out, "--vocab-size", 280, "--workers", 1, "--validation", 0)
    assert code == 0 and "No document fell into the validation split" in text


def test_by_a_tokenizer_of_a_folder(rnope_, lines, tmp_path):
    tokenizer = Tokenizer.train(["some text"], vocab_size=264)
    tokenizer.save(tmp_path / "tokenizer")
    code, text, _ = rnope_("data", "build", lines, "--out", tmp_path / "o", "--tokenizer", tmp_path / "tokenizer",
                           "--workers", 1)  # fmt: skip
    assert code == 0 and f"Tokenizer {tokenizer.digest[:16]}: " in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("data", ["Usage: rnope data"]),
        ("data biuld", ["command = 'biuld': no such command. Did you mean 'build'?"]),
        ("data build", ["Missing argument 'INPUT...'"]),
        ("data build a.jsonl", ["Missing option '--out'"]),
        ("data build a.jsonl --out o", ["tokenizer = None: give either a tokenizer or a vocab_size"]),
        ("data build no.jsonl --out o --vocab-size 300", ["input = 'no.jsonl': does not exist"]),
        ("data build a.jsonl --out o --vocab-size 3", ["vocab_size = 3: bytes and special tokens alone are 264"]),
        ("data build a.jsonl --out o --vocab-size 300 --text-field txt", ["a.jsonl:1': has neither", "It has: text"]),
        ("data build a.jsonl --out o --tokenizer none", ["none/tokenizer.json: no tokenizer can be read"]),
        ("data build a.jsonl --out o --vocab-size 300 --workers 0", ["--workers", "0 is not in the range"]),
        ("data show none", ["none/index.json: does not exist. Give a folder that `rnope data build` has finished"]),
    ],
)
def test_mistakes(line, words, rnope_, lines, monkeypatch):
    monkeypatch.chdir(lines.parent)
    code, _, err = rnope_(*line.split())
    assert code == 2 and "Traceback" not in err and all(word in err for word in words), err


@pytest.mark.parametrize("name", command.data.commands)
def test_every_command_explains_itself(name, rnope_):
    code, out, err = rnope_("data", name, "--help")
    assert code == 0 and not err and len(out) > 300


def test_nothing_heavy_is_loaded_before_a_command_runs():
    code = (
        "import sys, rnope.data.command; sys.exit(bool({'numpy', 'tokenizers', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, timeout=60).returncode == 0
