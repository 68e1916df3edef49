"""transformers -> ours -> transformers: every tensor bit for bit, and every key of config.json, none at its default.

The fields are those of the classes' own signatures, so that one that a later transformers adds fails here by name.
"""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
)

from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_config, read_stop_ids
from rnope.hf.folder import load, save
from rnope.hf.keys import unknown_keys
from rnope.hf.mapping import to_hf
from rnope.model.spec import VARIANTS
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

ROPE = {"rope_type": "default", "rope_theta": 777.0}
CHANGED = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "logit_scale": 0.3, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 123, "initializer_range": 0.7,
    "layer_norm_eps": 3e-4, "use_cache": False, "pad_token_id": 4, "bos_token_id": 1, "eos_token_id": [2, 3],
    "rope_parameters": ROPE, "attention_dropout": 0.1, "architectures": None, "output_hidden_states": True,
    "return_dict": False, "chunk_size_feed_forward": 5, "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2}, "problem_type": "regression",
}  # fmt: skip
OWN = {
    CohereConfig: {"use_qk_norm": True},
    Cohere2Config: {"sliding_window": 5, "layer_types": ["full_attention"] + ["sliding_attention"] * 2},
}
AT_DEFAULT = {
    "hidden_act": "rnope has SwiGLU only",
    "tie_word_embeddings": "rnope has tied heads only",
    "attention_bias": "rnope has no biases",
    "is_encoder_decoder": "a decoder",
    "transformers_version": "the class writes its own",
    "dtype": "that of the weights",
}
UNKNOWN = {"trained_by": "somebody", "nested": {"list": [1, None, {"x": 2.5}]}, "rms_norm": False, "nothing": None}
LEGACY = {
    "rotary_pct": 1.0, "position_embedding_type": "rope_gptj", "use_parallel_block": True, "use_gated_activation": True,
    "use_embedding_sharing": True, "use_parallel_embedding": False, "model_max_length": 456, "head_dim": 6,
}  # fmt: skip
CLASSES = {CohereConfig: CohereForCausalLM, Cohere2Config: Cohere2ForCausalLM}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_of_the_class_is_off_its_default_or_named_with_a_reason(kind):
    fields = {f.name: f.default for f in dataclasses.fields(kind)}
    assert set(fields) == set(CHANGED) | set(OWN[kind]) | set(AT_DEFAULT)
    same = {name for name, value in (CHANGED | OWN[kind]).items() if value == fields[name]}
    assert same == {"architectures"}  # save_pretrained writes it


def theirs(kind, folder, dtype, **options):
    """A folder that transformers wrote: every field off its default, unknown keys, weights of `dtype`."""
    model = CLASSES[kind](kind(**CHANGED, **OWN[kind], **UNKNOWN, **LEGACY)).to(dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.generation_config.update(temperature=0.5, do_sample=True)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one", "shards"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CLASSES)
def test_there_and_back_every_tensor_and_every_key_is_the_same(kind, dtype, options, tmp_path):
    before = theirs(kind, tmp_path / "theirs", dtype, **options)
    ours = load(tmp_path / "theirs")
    save(ours, tmp_path / "ours", like=tmp_path / "theirs", shard_bytes=20_000 if options else 10**9)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1 or not options

    after = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", local_files_only=True)
    assert type(after) is type(before)
    for name, tensor in before.state_dict().items():
        back = after.state_dict()[name]
        assert back.dtype == tensor.dtype == dtype and torch.equal(back, tensor), name

    raw, again = (json.loads((tmp_path / f / "config.json").read_text()) for f in ("theirs", "ours"))
    own = {"rnope", "rope_theta", "rotary_pct", "sliding_window_pattern"}  # what we say besides
    assert set(again) - set(raw) <= own | set(to_hf(ours.config)) and {k: again[k] for k in raw} == raw
    first, second = before.config.to_dict() | {"_name_or_path": ""}, after.config.to_dict() | {"_name_or_path": ""}
    assert {key: second.get(key, "missing") for key in first} == first
    assert set(second) - set(first) == {"rnope"}
    generation = [json.loads((tmp_path / f / "generation_config.json").read_text()) for f in ("theirs", "ours")]
    assert generation[0] == generation[1] and generation[0]["temperature"] == 0.5
    assert read_stop_ids(tmp_path / "ours") == (2, 3)
    assert unknown_keys(again) == UNKNOWN
    card = (tmp_path / "ours" / "README.md").read_text()
    assert '"trained_by": "somebody"' in card and "Left out" not in card


@pytest.mark.parametrize("kind", CLASSES)
def test_without_like_nothing_of_it_is_there(kind, tmp_path):
    theirs(kind, tmp_path / "theirs", torch.float32)
    save(load(tmp_path / "theirs"), tmp_path / "ours")
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not unknown_keys(raw) and raw["eos_token_id"] is None and raw["max_position_embeddings"] == 8192
    assert not (tmp_path / "ours" / "generation_config.json").exists()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "swa-rope"])
def test_ours_through_their_configuration_is_the_same_with_its_block(name, tmp_path):
    config = tiny_model(name, norm_eps=0.01).config
    raw = to_hf(config, context_tokens=77, special_ids={"bos": 1, "eos": 2, "pad": 0}, provenance={"seed": 3})
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again") == config
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["rnope"] == raw["rnope"] and again["max_position_embeddings"] == 77
    without = {key: value for key, value in raw.items() if key not in ("layer_types", "rnope")}
    if "sliding_window_pattern" in raw:  # what transformers before 4.53 goes by
        assert AutoConfig.for_model(**without).layer_types == raw["layer_types"]


TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def tokenizer():
    return Tokenizer.train(["one two three, one two"] * 20, vocab_size=300)


def edited(path, **edit):
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))


def test_the_tokenizer_goes_along_without_what_names_code(tokenizer, tmp_path):
    model = tiny_model(vocab_size=300)
    save(model, tmp_path / "m", tokenizer, context_tokens=64)
    edited(tmp_path / "m" / "config.json", auto_map={"AutoModel": "evil.Model"}, architectures=["Evil"], mine=1)
    edited(tmp_path / "m" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    (tmp_path / "m" / "evil.py").write_text("raise SystemExit")
    save(load(tmp_path / "m"), tmp_path / "next", like=tmp_path / "m")
    files = {path.name for path in (tmp_path / "next").iterdir()}
    assert {*TOKENIZER, "generation_config.json"} <= files and "evil.py" not in files
    for file in files - {"README.md", "model.safetensors"}:
        assert "evil" not in (tmp_path / "next" / file).read_text().lower()
    raw = json.loads((tmp_path / "next" / "config.json").read_text())
    assert raw["mine"] == 1 and raw["max_position_embeddings"] == 64 and raw["eos_token_id"] == tokenizer.eos_id
    card = (tmp_path / "next" / "README.md").read_text()
    assert "Left out" in card and "evil.Model" in card and '"Evil"' in card and "AutoTokenizer" in card
    save(load(tmp_path / "m"), tmp_path / "given", Tokenizer.load(tmp_path / "m"))
    assert "evil" not in (tmp_path / "given" / "tokenizer_config.json").read_text()
    ids = AutoTokenizer.from_pretrained(tmp_path / "next", local_files_only=True)("one two").input_ids
    assert ids == tokenizer.encode_prompt("one two")


def test_a_given_tokenizer_and_context_win(tokenizer, tmp_path):
    model = tiny_model(vocab_size=300)
    save(model, tmp_path / "m", tokenizer, context_tokens=64)
    edited(tmp_path / "m" / "config.json", eos_token_id=[7, 8], model_max_length=64)
    edited(tmp_path / "m" / "generation_config.json", eos_token_id=[7, 8], top_p=0.5)
    save(model, tmp_path / "n", tokenizer, like=tmp_path / "m", context_tokens=128)
    raw = json.loads((tmp_path / "n" / "config.json").read_text())
    assert raw["eos_token_id"] == tokenizer.eos_id and raw["max_position_embeddings"] == 128
    assert "model_max_length" not in raw
    generation = json.loads((tmp_path / "n" / "generation_config.json").read_text())
    assert generation["top_p"] == 0.5 and read_stop_ids(tmp_path / "n") == tokenizer.stop_ids
    save(model, tmp_path / "m", like=tmp_path / "m")  # over itself
    assert read_stop_ids(tmp_path / "m") == (7, 8) and Tokenizer.load(tmp_path / "m").digest == tokenizer.digest


def test_what_ends_a_turn_ends_a_text(tokenizer, tmp_path):
    model, talker = tiny_model(vocab_size=300), Tokenizer.train(["one two"] * 20, vocab_size=300, chat=True)
    save(model, tmp_path / "m", talker)
    assert len(talker.stop_ids) == 2 and read_stop_ids(tmp_path / "m") == talker.stop_ids
    assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == talker.eos_id
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "m", local_files_only=True)
    assert opened.generation_config.eos_token_id == list(talker.stop_ids)
    (tmp_path / "m" / "generation_config.json").unlink()
    edited(tmp_path / "m" / "config.json", eos_token_id=[9, tokenizer.eos_id])
    save(model, tmp_path / "n", tokenizer, like=tmp_path / "m")
    assert read_stop_ids(tmp_path / "n") == (tokenizer.eos_id, 9), "the same vocabulary, by its EOS"


def test_like_must_be_a_folder_that_opens_here(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        save(tiny_model(), tmp_path / "m", like=tmp_path / "nowhere")
    save(tiny_model(), tmp_path / "m")
    edited(tmp_path / "m" / "config.json", max_position_embeddings="long")
    with pytest.raises(UserError, match="max_position_embeddings = 'long'"):
        save(tiny_model(), tmp_path / "n", like=tmp_path / "m")
    edited(tmp_path / "m" / "config.json", model_type="llama")
    with pytest.raises(UserError, match="model_type = 'llama'"):
        save(tiny_model(), tmp_path / "n", like=tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", ["NaN", "[1, -Infinity]", '"\\ud800"', "[" * 900 + "]" * 900], ids=len)
def test_what_is_no_json_is_named_and_not_handed_on(name, value, tmp_path):
    save(tiny_model(), tmp_path / "m")
    place = tmp_path / "m" / name
    said = place.read_text().rstrip().rstrip("}") + "," if place.exists() else "{"
    place.write_text(f'{said} "somebody_knows": {value}}}')
    load(tmp_path / "m")
    with pytest.raises(ConfigError, match=rf"/{name}: somebody_knows = .*no JSON"):
        save(tiny_model(), tmp_path / "n", like=tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_weights_go_back_under_the_names_they_came_with(tmp_path):
    theirs(Cohere2Config, tmp_path / "theirs", torch.bfloat16)
    save(load(tmp_path / "theirs"), tmp_path / "ours", like=tmp_path / "theirs")
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
