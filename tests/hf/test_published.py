"""The configurations that Cohere published, legacy keys included: layers, and parameters counted three ways.

Facts of the models, written as tables here. Shapes, θ, window and logit scale of Command R v01, R7B and A are also in what
llama.cpp prints of them; a wrong shape of the others would show in their known sizes.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rnope.errors import ConfigError
from rnope.hf.keys import unknown_keys
from rnope.hf.mapping import from_hf, to_hf
from rnope.model.accounting import parameters
from rnope.model.spec import LayerSpec, ModelConfig

COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 5, "eos_token_id": 255001, "hidden_act": "silu",
    "initializer_range": 0.02, "layer_norm_eps": 1e-05, "pad_token_id": 0, "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
COHERE = COMMON | {"architectures": ["CohereForCausalLM"], "model_type": "cohere", "torch_dtype": "float16"}
COHERE2 = COMMON | {
    "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "torch_dtype": "bfloat16",
    "cache_implementation": "hybrid", "head_dim": 128, "layer_switch": 4, "logit_scale": 0.25, "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj", "rope_scaling": None,
    "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
    "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
    "use_parallel_embedding": False,
}  # fmt: skip


def shape(width, ffn, layers, heads, kv_heads):
    return {
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }  # fmt: skip


PLUS = shape(12288, 33792, 64, 96, 8) | {"logit_scale": 0.8333333333333334, "use_qk_norm": True}
PUBLISHED = {
    "c4ai-command-r-v01": COHERE | shape(8192, 22528, 40, 64, 64) | {
        "logit_scale": 0.0625, "max_position_embeddings": 8192, "model_max_length": 131072, "rope_theta": 8e6,
    },
    "c4ai-command-r-08-2024": COHERE | shape(8192, 24576, 40, 64, 8) | {
        "logit_scale": 0.0625, "max_position_embeddings": 131072, "rope_theta": 4e6, "use_qk_norm": False,
    },
    "c4ai-command-r-plus": COHERE | PLUS | {"max_position_embeddings": 131072, "rope_theta": 75e6},
    "c4ai-command-r-plus-08-2024": COHERE | PLUS | {"max_position_embeddings": 131072, "rope_theta": 8e6},
    "c4ai-command-r7b-12-2024": COHERE2 | shape(4096, 14336, 32, 32, 8) | {"max_position_embeddings": 8192},
    "c4ai-command-a-03-2025": COHERE2 | shape(12288, 36864, 64, 96, 8) | {"max_position_embeddings": 131072},
}  # fmt: skip
COUNTS = {
    "c4ai-command-r-v01": 34_980_831_232,
    "c4ai-command-r-08-2024": 32_296_476_672,
    "c4ai-command-r-plus": 103_810_674_688,
    "c4ai-command-r-plus-08-2024": 103_810_674_688,
    "c4ai-command-r7b-12-2024": 8_028_033_024,
    "c4ai-command-a-03-2025": 111_057_580_032,
}


def counted(raw):
    """Parameters from the published numbers alone: embedding, and per layer two of four matrices by key-value heads."""
    width, heads, kv = (raw[f] for f in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    head = 128
    attention = 2 * width * heads * head + 2 * width * kv * head
    norms = width + (head * (heads + kv) if raw.get("use_qk_norm") else 0)
    layer = attention + 3 * width * raw["intermediate_size"] + norms
    return raw["vocab_size"] * width + raw["num_hidden_layers"] * layer + width


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_counted_three_ways(name):
    raw = PUBLISHED[name]
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    assert parameters(from_hf(raw)) == counted(raw) == theirs.num_parameters() == COUNTS[name]


LAYERS = {
    "c4ai-command-r-v01": "   0–39  rope θ 8,000,000, full",
    "c4ai-command-r-08-2024": "   0–39  rope θ 4,000,000, full",
    "c4ai-command-r-plus": "   0–63  rope θ 75,000,000, full, QK-Norm",
    "c4ai-command-r-plus-08-2024": "   0–63  rope θ 8,000,000, full, QK-Norm",
    "c4ai-command-r7b-12-2024": "    0–2  rope θ 50,000, window 4,096\n      3  nope, full\n"
    "      …  the same again, 8 times in all, to layer 31",
    "c4ai-command-a-03-2025": "    0–2  rope θ 50,000, window 4,096\n      3  nope, full\n"
    "      …  the same again, 16 times in all, to layer 63",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_are_the_published_ones_and_what_transformers_makes_of_them(name):
    raw = PUBLISHED[name]
    config = from_hf(raw)
    assert config.layer_table() == LAYERS[name] and not unknown_keys(raw)
    theirs = AutoConfig.for_model(**raw)
    assert config.thetas == (theirs.rope_parameters["rope_theta"],)
    if raw["model_type"] == "cohere2":
        sliding = [kind == "sliding_attention" for kind in theirs.layer_types]
        assert sliding == [layer.position == "rope" for layer in config.layers]
        assert {layer.window for layer in config.layers if layer.window} == {theirs.sliding_window}
    else:
        assert all(layer.qk_norm == bool(theirs.use_qk_norm) for layer in config.layers)


@pytest.mark.parametrize("name", PUBLISHED)
def test_written_like_it_was_published_nothing_of_it_is_lost(name):
    raw = PUBLISHED[name]
    written = to_hf(from_hf(raw), dtype=raw["torch_dtype"], like=raw)
    assert from_hf(written) == from_hf(raw)
    elsewhere = {"torch_dtype": "dtype", "rope_scaling": "rope_parameters"}  # names of their time
    assert {key: value for key, value in raw.items() if key not in elsewhere} == {
        key: written[key] for key in raw if key not in elsewhere
    }
    assert written["dtype"] == raw["torch_dtype"]


R7B = PUBLISHED["c4ai-command-r7b-12-2024"]
TYPES = ["sliding_attention"] * 3 + ["full_attention"]


@pytest.mark.parametrize(
    "edit",
    [
        {"layer_switch": None},
        {"sliding_window_pattern": None},
        {"layer_switch": None, "sliding_window_pattern": None},
        {"layer_types": TYPES * 8},
        {"layer_types": TYPES * 8, "layer_switch": None, "sliding_window_pattern": None},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 50000}, "full_attention": None}},
        {
            "rope_theta": None,
            "rope_parameters": {t: {"rope_type": "default", "rope_theta": 5e4} for t in sorted(set(TYPES))},
        },
        {"rope_theta": None, "rope_scaling": {"type": "default", "rope_theta": 5e4}},
        {"rotary_pct": 1, "partial_rotary_factor": 1.0, "use_parallel_embedding": True, "quantization_config": None},
    ],
    ids=str,
)
def test_every_way_of_saying_r7b_says_r7b(edit):
    assert from_hf({k: v for k, v in (R7B | edit).items() if v is not None}) == from_hf(R7B)
    assert from_hf(R7B | edit) == from_hf(R7B)


def test_layer_switch_is_followed_where_transformers_does_not_read_it():
    """The one legacy key that says more than transformers computes: without it, that class takes every fourth layer."""
    raw = {k: v for k, v in R7B.items() if k != "sliding_window_pattern"} | {"layer_switch": 2}
    sliding, full = LayerSpec(position="rope", theta=5e4, window=4096), LayerSpec(position="nope")
    assert from_hf(raw).layers == (sliding, full) * 16
    assert AutoConfig.for_model(**raw).layer_types == TYPES * 8


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"layer_switch": 2}, ["layer_switch = 2", "`sliding_window_pattern` says sliding_attention for layer 1"]),
        ({"sliding_window_pattern": 8}, ["layer_switch = 4", "contradicts itself", "layer 3"]),
        ({"layer_types": TYPES[::-1] * 8}, ["sliding_window_pattern = 4", "`layer_types`", "layer 0"]),
        ({"layer_switch": 0}, ["layer_switch = 0", "1 … 65,535"]),
        ({"order_of_interleaved_layers": "global_attn_first"}, ["order_of_interleaved_layers", "local_attn_first"]),
        ({"position_embedding_type": "rope_neox"}, ["position_embedding_type = 'rope_neox'", "only 'rope_gptj'"]),
        ({"use_parallel_block": False}, ["use_parallel_block = False", "only True"]),
        ({"use_gated_activation": False}, ["use_gated_activation = False"]),
        ({"use_embedding_sharing": False}, ["use_embedding_sharing = False"]),
        ({"use_qk_norm": True}, ["use_qk_norm = True", "cohere2 has no QK-Norm"]),
        ({"is_causal": False}, ["is_causal = False"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "nothing of the kind"]),
        ({"per_layer_config": {"0": {"head_dim": 64}}}, ["per_layer_config"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5e4}}}, ["rope_parameters.sliding_attention = None"]),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 5e4}, "full_attention": {"rope_theta": 1e6}}},
            ["rope_parameters.full_attention", "no rotation", "Write null"],
        ),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 8.0}}},
            ["rope_parameters.sliding_attention", "plain RoPE"],
        ),
        ({"rope_parameters": {"rope_theta": 5e4}, "rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling"]),
        ({"model_type": "cohere"}, ["layer_switch", "cohere every layer has RoPE"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_legacy_value_that_cannot_be_computed_is_named(edit, words):
    raw = R7B | edit
    if edit.get("model_type") == "cohere":
        raw = {k: v for k, v in raw.items() if not k.startswith("sliding")}
    with pytest.raises(ConfigError) as caught:
        from_hf(raw)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_table_per_layer_type_says_nothing_of_cohere():
    raw = PUBLISHED["c4ai-command-r-v01"] | {"rope_parameters": {"sliding_attention": {"rope_theta": 8e6}}}
    with pytest.raises(ConfigError, match=r"rope_parameters = .*plain RoPE"):
        from_hf(raw)


def test_after_a_conversion_nothing_says_the_layers_of_before():
    r, r7b = PUBLISHED["c4ai-command-r-v01"], R7B
    hybrid = from_hf(r).converted("rnope-swa", window=4096)
    written = to_hf(hybrid, like=r)
    assert written["model_type"] == "cohere2" and written["architectures"] == ["Cohere2ForCausalLM"]
    assert from_hf(written) == hybrid and "use_qk_norm" not in written and written["model_max_length"] == 131072
    assert "model_max_length" not in to_hf(hybrid, like=r, context_tokens=4096)

    every_second = ModelConfig.variant("rnope-swa-1to1", size="8b", theta=5e4)
    written = to_hf(every_second, like=r7b)
    assert (written["layer_switch"], written["sliding_window_pattern"]) == (2, 2) and from_hf(written) == every_second
    full_first = ModelConfig.variant("rnope-swa-full-first", size="8b", theta=5e4)
    written = to_hf(full_first, like=r7b)
    legacy = {"layer_switch", "sliding_window_pattern", "order_of_interleaved_layers"}
    assert not legacy & set(written) and from_hf(written) == full_first
