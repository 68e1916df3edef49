"""Text in, text out: a folder, its tokenizer and the engine, and the command over them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnope
from rnope import cli
from rnope.complete.completer import Completer, cost_lines, describe
from rnope.errors import UserError
from rnope.generate import Greedy
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "The ring holds the window; the full layer holds everything. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT, "grüße · 日本語 · θ"], vocab_size=300)


@pytest.fixture
def folder(tmp_path, tokenizer):
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    rnope.save(model, tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def answer(model, text, n=12):
    pieces, cost = model.stream(model.encode(text), max_new_tokens=n, sampling=Greedy(), ignore_stop=True)
    return "".join(pieces), cost


def test_the_text_is_the_decoded_tokens_of_the_engine(folder, tokenizer):
    model = Completer(folder)
    ids = model.encode(TEXT)
    assert ids == [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    tokens = model.engine.generate([ids], max_new_tokens=12).tokens[0]
    assert answer(model, TEXT)[0] == tokenizer.backend.decode(tokens, skip_special_tokens=True)


def test_characters_of_several_tokens_come_whole(tokenizer):
    text = "θ grüße 日本"
    pieces = list(tokenizer.stream(tokenizer.encode(text)))
    assert pieces[0] == "θ" and "".join(pieces) == text


def test_the_model_ends_where_its_config_says(folder, tokenizer):
    model = Completer(folder)
    ids = model.encode("a")
    first = model.engine.generate([ids], max_new_tokens=3).tokens[0]
    raw = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").unlink(missing_ok=True)
    for eos in (first[1], [5, first[1]]):
        (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": eos}))
        pieces, cost = Completer(folder).stream(ids, max_new_tokens=9, sampling=Greedy())
        list(pieces)
        assert cost.new_tokens == 2
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": first[0]}))
    pieces, cost = Completer(folder).stream(ids, max_new_tokens=9, sampling=Greedy())
    list(pieces)
    assert cost.new_tokens == 1


def test_costs_and_plan_name_the_cache_of_each_kind(folder):
    model = Completer(folder, prefill_chunk_tokens=7)
    _, cost = answer(model, TEXT)
    assert cost.new_tokens == 12 and cost.prompt_tokens > 100
    assert cost.first_token_seconds > 0 and cost.decode_seconds > 0 and cost.compile_seconds == 0
    lines = "\n".join(cost_lines(cost, model.engine))
    plan = describe(model.engine, 1000)
    # 3 windowed layers hold 5 tokens, a full one 1,000; a token has 2 × 2 × 8 float32.
    for line in ("3 rope-window: 1.88 KiB (full attention: 375 KiB)", "1 nope: 125 KiB", "25.4% of full attention's"):
        assert line in plan, plan
    assert "attention of rope-window: blockwise" in plan and "tokens/s" in lines and "3 rope-window" in lines


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_converted_as_asked(folder, dtype):
    model = Completer(folder, dtype=dtype)
    assert model.engine.dtype == dtype and answer(model, TEXT)[1].new_tokens == 12


def test_the_command_streams_the_same_text_from_every_source(folder, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text(TEXT, encoding="utf-8")
    expected = answer(Completer(folder), TEXT)[0]
    common = ["generate", str(folder), "--max-new-tokens", "12", "--ignore-stop"]
    piped = subprocess.run(
        [sys.executable, "-m", "rnope", *common, "--stats"],
        input=TEXT, capture_output=True, text=True, timeout=120,
        env={"PYTHONPATH": str(Path(rnope.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert piped.returncode == 0 and piped.stdout == expected + "\n" and "tokens/s" in piped.stderr
    (tmp_path / "marked.txt").write_text(TEXT, encoding="utf-8-sig")
    for source in ([TEXT], *(["--file", str(tmp_path / name)] for name in ("prompt.txt", "marked.txt"))):
        assert cli.run([*common, *source]) == 0
        assert capsys.readouterr() == (expected + "\n", "")


MISTAKES = [
    (("",), "prompt is empty"),
    (("\udcff",), "not UTF-8 text"),
    (("x", "--temperature", "-1"), "temperature = -1.0"),
    (("x", "--top-p", "0"), "top_p = 0.0"),
    (("x", "--chunk", "0"), "prefill_chunk_tokens = 0"),
    (("x", "--max-new-tokens", "0"), "max_new_tokens = 0"),
    (("x", "--max-new-tokens", "900000000000"), "tokens fit"),
    (("x", "--device", "cuda:99"), "device = 'cuda:99'"),
    (("x", "--device", "nowhere"), "device = 'nowhere'"),
    (("x", "--dtype", "int3"), "int3"),
    (("x", "--file", "/dev/null"), "give one"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES, ids=lambda x: " ".join(x) if isinstance(x, tuple) else None)
def test_mistakes_are_one_message_and_exit_2(folder, capsys, arguments, words):
    assert cli.run(["generate", str(folder), *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.out == "" and "Traceback" not in said.err


def test_a_missing_shard_is_named(folder, capsys):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert cli.run(["generate", str(folder), "x"]) == 2
    assert "model-00001-of-00002.safetensors" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(folder, tokenizer):
    other = Tokenizer.train([TEXT * 3, "θ" * 50], vocab_size=320)
    other.save(folder)
    last = max(other.backend.get_vocab().items(), key=lambda pair: pair[1])[0]
    with pytest.raises(UserError, match="tokenizer"):
        Completer(folder).encode(other.backend.decoder.decode([last]))


def test_a_folder_without_tokenizer_says_so(tmp_path, capsys):
    rnope.save(tiny_model(), tmp_path / "m")
    assert cli.run(["generate", str(tmp_path / "m"), "x"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err
