"""What `rnope` writes, transformers computes alike, and the other way round: float32 logits, every variant.

The all-RoPE models are the ones that would show permuted weights; windows are shorter than the text, equal to one
token, and longer than the text. One group of tests makes small mistakes on purpose and sees them.
"""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cohere2Config,
    Cohere2ForCausalLM,
    CohereConfig,
    CohereForCausalLM,
)

from rnope.hf.folder import load, save
from rnope.hf.mapping import model_type, tensor_names, to_hf
from rnope.model.accounting import parameters
from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, ModelConfig
from rnope.testing import tiny_model

T = 37  # odd, and several windows of 5 long
TOLERANCE = 2e-5  # logits have a standard deviation of about 1.4
IN_CLASSES = [name for name in VARIANTS if model_type(tiny_model(name).config) != "rnope"]


def stirred(variant, seed=0, **overrides):
    """A tiny model none of whose weights is a constant, norms included."""
    model = tiny_model(variant, seed, **overrides)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def opened(folder, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )


def token_ids(*shape, vocab_size=97):
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def difference(ours, theirs, ids):
    """Largest difference of logits, once they have been seen to be of a size that would show a mistake."""
    logits = ours(ids)
    assert logits.std() > 0.3
    return (logits - theirs(ids, use_cache=False).logits).abs().max().item()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", IN_CLASSES)
def test_every_variant_opens_in_transformers_and_computes_alike(name, attention, tmp_path):
    model = stirred(name)
    save(model, tmp_path / "m")
    theirs = opened(tmp_path / "m", attention)
    assert theirs.config.model_type == ("cohere" if name in ("rope", "qk-norm") else "cohere2")
    assert difference(model, theirs, token_ids(2, T)) < TOLERANCE


@pytest.mark.parametrize("name", ["rnope-swa", "swa-only", "rnope-10k-swa"])
@pytest.mark.parametrize("window", [1, 2, T - 1, T, 4 * T])
def test_every_window_means_the_same(name, window, tmp_path):
    model = stirred(name, window=window)
    save(model, tmp_path / "m")
    assert difference(model, opened(tmp_path / "m"), token_ids(1, T)) < TOLERANCE


@pytest.mark.parametrize("name", ["rope", "qk-norm", "nope", "rnope-swa"])
@pytest.mark.parametrize(
    "overrides", [{"head_size": 14}, {"heads": 8, "kv_heads": 1}, {"kv_heads": 4, "norm_eps": 0.01}]
)
def test_other_shapes_too(name, overrides, tmp_path):
    """Heads that do not fill the width, multi-query, no groups."""
    model = stirred(name, **overrides)
    save(model, tmp_path / "m")
    theirs = opened(tmp_path / "m")
    assert theirs.model.layers[0].self_attn.head_dim == model.config.head_size
    assert difference(model, theirs, token_ids(1, T)) < TOLERANCE


@pytest.mark.parametrize("name", ["rope", "rnope-swa"])
def test_a_thousand_tokens_on_too(name, tmp_path):
    model = stirred(name)
    save(model, tmp_path / "m")
    assert difference(model, opened(tmp_path / "m"), token_ids(1, 1025)) < TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["rope", "qk-norm", "nope", "rnope", "rnope-swa", "swa-only"])
@torch.no_grad()
def test_left_padding_is_our_starts(name, attention, tmp_path):
    model = stirred(name)
    save(model, tmp_path / "m")
    ids, padding = token_ids(3, T), torch.tensor([0, 4, 20])
    real = torch.arange(T) >= padding[:, None]  # b t
    logits = model(ids, starts=padding[:, None].expand(-1, T).contiguous())
    theirs = opened(tmp_path / "m", attention)(ids, attention_mask=real.long(), use_cache=False).logits
    assert (logits - theirs)[real].abs().max() < TOLERANCE
    assert (model(ids) - theirs)[1:][real[1:]].abs().max() > 1e-2  # the padding did matter


@pytest.mark.parametrize("name", IN_CLASSES)
def test_weights_go_there_and_back_bit_for_bit(name, tmp_path):
    model = stirred(name)
    save(model, tmp_path / "ours", provenance={"seed": 3})
    opened(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert again.config == model.config
    for (name_a, a), (name_b, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name_a == name_b and torch.equal(a, b)
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["rnope"]["provenance"] == {"seed": 3}
    assert config.get("eos_token_id") is None and config.get("bos_token_id") is None


def fresh(kind):
    shape = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "logit_scale": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if kind == "cohere2":
        model = Cohere2ForCausalLM(Cohere2Config(**shape, sliding_window=6))
    else:
        rope = {"rope_type": "default", "rope_theta": 777.0}
        model = CohereForCausalLM(CohereConfig(**shape, rope_parameters=rope, use_qk_norm=kind == "qk-norm"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1))
    return model.eval()


@pytest.mark.parametrize("kind", ["cohere", "qk-norm", "cohere2"])
def test_a_model_of_theirs_opens_here(kind, tmp_path):
    theirs = fresh(kind)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours = load(tmp_path / "theirs")
    kinds = {"cohere": {"rope": 5}, "qk-norm": {"rope+qk-norm": 5}, "cohere2": {"rope-window": 4, "nope": 1}}
    assert ours.config.kinds() == kinds[kind]
    assert ours.config.thetas == ((1e4,) if kind == "cohere2" else (777.0,))
    assert difference(ours, theirs, token_ids(2, T)) < TOLERANCE
    save(ours, tmp_path / "ours")
    back = opened(tmp_path / "ours").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["rope", "qk-norm", "rnope-swa"])
def test_the_paper_size_has_their_names_and_shapes(name):
    config = ModelConfig.variant(name, size="8b")
    with torch.device("meta"):
        ours, theirs = Decoder(config), AutoModelForCausalLM.from_config(AutoConfig.for_model(**to_hf(config)))
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"}
    assert {tensor_names(config)[name]: tensor.shape for name, tensor in ours.state_dict().items()} == expected
    assert theirs.num_parameters() == parameters(config)


def test_layers_no_class_can_say_are_refused_there_and_open_here(tmp_path):
    model = stirred("swa-rope")
    save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="model type `rnope`"):
        opened(tmp_path / "m")
    again = load(tmp_path / "m")
    assert torch.equal(model(token_ids(2, T)), again(token_ids(2, T)))


def edited(folder, **edit):
    raw = json.loads((folder / "config.json").read_text())
    del raw["rnope"], raw["rope_theta"], raw["sliding_window_pattern"]
    (folder / "config.json").write_text(json.dumps(raw | edit))


MISTAKES = {
    "window one more": {"sliding_window": 6},
    "window one less": {"sliding_window": 4},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 8e3}},
    "full layer first": {"layer_types": ["full_attention"] + ["sliding_attention"] * 3},
    "RoPE in the full layer": {"layer_types": ["sliding_attention"] * 4, "sliding_window": 99},
    "another logit scale": {"logit_scale": 0.51},
    "another epsilon": {"layer_norm_eps": 1e-2},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_fields_would_show(mistake, tmp_path):
    model = stirred("rnope-swa")
    save(model, tmp_path / "m")
    edited(tmp_path / "m", **MISTAKES[mistake])
    theirs = opened(tmp_path / "m")
    assert difference(model, theirs, token_ids(2, T)) > 50 * TOLERANCE
    assert difference(load(tmp_path / "m"), theirs, token_ids(2, T)) < TOLERANCE  # and both read the edit alike


def half_split(weight):
    """Rows from interleaved pairs to two halves per head of 8, as Llama has them."""
    return weight.unflatten(0, (-1, 4, 2)).transpose(1, 2).flatten(0, 2)


@pytest.mark.parametrize("name", ["rope", "qk-norm", "rnope-swa"])
@torch.no_grad()
def test_a_mistake_in_the_weights_would_show(name, tmp_path):
    model = stirred(name)
    save(model, tmp_path / "m")
    theirs = opened(tmp_path / "m")
    attention, mlp = model.blocks[0].attention, model.blocks[1].feed_forward
    ids = token_ids(2, T)
    before = attention.query.weight.clone(), attention.key.weight.clone()
    attention.query.weight.copy_(half_split(before[0]))
    attention.key.weight.copy_(half_split(before[1]))
    assert difference(model, theirs, ids) > 50 * TOLERANCE
    attention.query.weight.copy_(before[0])
    attention.key.weight.copy_(before[1])
    assert difference(model, theirs, ids) < TOLERANCE
    mlp.gate.weight, mlp.up.weight = mlp.up.weight, mlp.gate.weight
    assert difference(model, theirs, ids) > 50 * TOLERANCE
