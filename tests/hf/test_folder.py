"""Folders: written whole or not at all, read back bit for bit, and refused with a remedy when they are damaged."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import rnope
from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_config, read_provenance
from rnope.hf.folder import load, save, save_state
from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, LayerSpec, ModelConfig
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

FILES = ["README.md", "config.json", "model.safetensors"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(a, b):
    state_a, state_b = a.state_dict(), b.state_dict()
    assert list(state_a) == list(state_b)
    return all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(state_a.values(), state_b.values(), strict=True)
    )


@pytest.fixture
def folder(tmp_path):
    save(tiny_model(), tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_changes_no_bit(name, dtype, tmp_path):
    model = tiny_model(name).to(dtype)
    rnope.save(model, tmp_path / "m")
    again = rnope.load(tmp_path / "m")
    assert again.config == model.config == read_config(tmp_path / "m")
    assert same(model, again)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert names(tmp_path / "m") == FILES and names(tmp_path) == ["m"]
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert "lm_head.weight" not in stored and len(stored) == len(model.state_dict())


def test_layers_of_every_kind_at_once_survive(tmp_path):
    layers = (
        LayerSpec(position="rope", theta=1e4, window=3, qk_norm=True),
        LayerSpec(position="nope", window=7),
        LayerSpec(position="rope", theta=8e6),
        LayerSpec(position="nope", qk_norm=True),
    )
    model = Decoder(tiny_model().config.with_layers(layers))
    save(model, tmp_path / "m", provenance={"recipe": "mixed", "seed": 1})
    assert same(model, load(tmp_path / "m")) and load(tmp_path / "m").config.layers == layers
    assert read_provenance(tmp_path / "m") == {"recipe": "mixed", "seed": 1}
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Only `rnope`" in card and "several θ (10,000, 8,000,000)" in card and "library_name: rnope" in card


def test_dtype_and_device_are_converted_on_request(folder):
    assert {p.dtype for p in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert load(folder, torch.float64, "cpu").embedding.weight.dtype == torch.float64
    with pytest.raises(ConfigError, match=r"dtype = torch\.int8"):
        load(folder, torch.int8)
    with pytest.raises(ConfigError, match=r"device = 'vulkan'.*cannot use it"):
        load(folder, device="vulkan")


def test_a_loaded_model_trains_and_saves_over_its_own_folder(folder):
    before = load_file(folder / "model.safetensors")
    model = load(folder)
    with torch.no_grad():
        model.embedding.weight.add_(1.0)
    assert torch.equal(
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    )
    save(model, folder)
    assert same(load(folder), model) and names(folder) == FILES
    model(torch.arange(6)[None]).sum().backward()
    assert model.layers[0].attention.query.weight.grad is not None


def test_the_card_says_what_opens_it(tmp_path):
    save(tiny_model(), tmp_path / "m", provenance={"recipe": "r", "seed": 0})
    card = (tmp_path / "m" / "README.md").read_text()
    for words in (
        "33,984 parameters",
        "Cohere2ForCausalLM",
        "0–2  rope θ 10,000, window 5",
        "from_pretrained",
        '"seed": 0',
        """vLLM: as `Cohere2ForCausalLM`, with `--hf-overrides '{"sliding_window": 4}'`""",
        "llama.cpp: as `cohere2`\n",
    ):
        assert words in card
    assert "AutoTokenizer" not in card


def test_the_tokenizer_goes_along_and_its_ids_count(tmp_path):
    tokenizer = Tokenizer.train(["one two three, one two"] * 20, vocab_size=300)
    save(tiny_model(vocab_size=300), tmp_path / "m", tokenizer, context_tokens=64)
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == ids
    assert raw["max_position_embeddings"] == 64
    theirs = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == ids
    assert theirs("one two 31é").input_ids == [tokenizer.bos_id, *tokenizer.encode("one two 31é")]
    assert "AutoTokenizer" in (tmp_path / "m" / "README.md").read_text()
    save(tiny_model(vocab_size=300), tmp_path / "m", tokenizer)  # a folder with a tokenizer is a model folder too
    with pytest.raises(ConfigError, match="vocab_size = 97: the tokenizer has"):
        save(tiny_model(), tmp_path / "small", tokenizer)
    assert names(tmp_path) == ["m"]


class BrokenTokenizer:
    vocab_size, bos_id, eos_id, pad_id, stop_ids = 3, 0, 1, 2, (1,)

    def __init__(self, error):
        self.error = error

    def save(self, folder):
        (folder / "tokenizer.json").write_text("half")
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(error, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save(tiny_model(seed=1), folder, BrokenTokenizer(error))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == ["m"]
    with pytest.raises(expected):
        save(tiny_model(seed=1), folder.parent / "fresh", BrokenTokenizer(error))
    assert names(folder.parent) == ["m"]


def test_a_failing_rename_brings_the_old_folder_back(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace = os.replace

    def once(source, target):
        if str(source).endswith(".tmp"):
            raise OSError("busy")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(UserError, match="busy"):
        save(tiny_model(seed=1), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == ["m"]


def test_only_model_folders_are_replaced(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        save(tiny_model(), folder)
    (folder / "notes.txt").unlink()
    (folder / "runs").mkdir()
    with pytest.raises(UserError, match="holds runs"):
        save(tiny_model(), folder)
    (folder / "runs").rmdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="no model of rnope's kinds"):
        save(tiny_model(), folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no model of rnope's kinds"):
        save(tiny_model(), folder)
    with pytest.raises(UserError, match="is a file"):
        save(tiny_model(), folder / "model.safetensors")
    with pytest.raises(UserError, match="cannot be written"):
        save(tiny_model(), folder / "model.safetensors" / "m")
    shutil.rmtree(folder)
    folder.mkdir()
    save(tiny_model(), folder)
    save(tiny_model(), folder.parent / "new" / "place")
    assert names(folder) == names(folder.parent / "new" / "place") == FILES


def test_a_link_is_followed(folder):
    (folder.parent / "latest").symlink_to(folder)
    save(tiny_model(seed=1), folder.parent / "latest")
    assert (folder.parent / "latest").is_symlink() and same(load(folder), tiny_model(seed=1))


def test_what_cannot_be_saved(tmp_path):
    with torch.device("meta"):
        empty = Decoder(ModelConfig.variant("rnope-swa", size="tiny"))
    with pytest.raises(UserError, match="meta device"):
        save(empty, tmp_path / "m")
    state = tiny_model().state_dict()
    del state["norm.weight"]
    with pytest.raises(UserError, match=r"lack norm\.weight"):
        save_state(tiny_model().config, state, tmp_path / "m")
    with pytest.raises(ValueError):
        save(tiny_model(), tmp_path / "m", provenance={"loss": float("nan")})
    assert names(tmp_path) == []


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_folders_that_are_none(folder, tmp_path):
    refused(tmp_path / "nowhere", "nowhere", "no such folder")
    refused(tmp_path, "has no config.json")
    for text, words in (("{", "not readable as JSON"), ("[]", "JSON object"), ("\udcff", "not readable as JSON")):
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        refused(folder, "config.json", words)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    refused(folder, "config.json: model_type", "'llama'", "Valid: cohere, cohere2, rnope")
