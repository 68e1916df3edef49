"""Names and fields: which class says which layers, and that config.json loses nothing on the way out and back."""

import json
import random

import pytest

from rnope.errors import ConfigError
from rnope.hf.mapping import FULL_SPAN, from_hf, model_type, obstacles, tensor_names, to_hf
from rnope.model.spec import VARIANTS, Init, LayerSpec, ModelConfig
from rnope.testing import tiny_model

ONLY_HERE = {"swa-rope"}
COHERE = {"rope", "qk-norm"}


def tiny(*layers, **overrides):
    base = tiny_model().config
    return ModelConfig(
        **{name: getattr(base, name) for name in base.__slots__ if name not in ("layers", *overrides)},
        layers=layers,
        **overrides,
    )


def through_json(config, **options):
    return json.loads(json.dumps(to_hf(config, **options), allow_nan=False))


def without_block(config):
    raw = through_json(config)
    del raw["rnope"]
    return raw


ROPE, NOPE = LayerSpec(position="rope", theta=1e4), LayerSpec(position="nope")
SLIDING = LayerSpec(position="rope", theta=1e4, window=5)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_has_its_class_and_survives(name):
    config = ModelConfig.variant(name)
    expected = "rnope" if name in ONLY_HERE else "cohere" if name in COHERE else "cohere2"
    assert model_type(config) == expected
    assert bool(obstacles(config)) == (name in ONLY_HERE)
    assert from_hf(through_json(config)) == config
    if name not in ONLY_HERE:
        assert from_hf(without_block(config)).layers == config.layers


def test_any_list_of_layers_survives():
    rng = random.Random(0)

    def layer():
        rope, window = rng.random() < 0.5, rng.choice([None, 1, 7, 2**29 - 1, 2**29, 2**30 - 1])
        return LayerSpec(
            position="rope" if rope else "nope",
            theta=rng.choice([1e4, 2e6, 8e6, 50_000.5]) if rope else None,
            window=window,
            qk_norm=rng.random() < 0.3,
        )

    kinds = set()
    for _ in range(300):
        kinds_of_layer = [layer() for _ in range(rng.randint(1, 3))]
        config = tiny(*(rng.choice(kinds_of_layer) for _ in range(4)), init=Init(embedding_std=rng.random()))
        assert from_hf(through_json(config)) == config
        kinds.add(model_type(config))
        if model_type(config) != "rnope":
            assert from_hf(without_block(config)).layers == config.layers
    assert kinds == {"cohere", "cohere2", "rnope"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tiny(ROPE, LayerSpec(position="rope", theta=2e6)), "several θ (10,000, 2,000,000)"),
        (tiny(SLIDING, ROPE), "several spans (full, window 5)"),
        (tiny(SLIDING, LayerSpec(position="rope", theta=1e4, window=6), NOPE), "several spans (window 5, window 6)"),
        (tiny(LayerSpec(position="nope", window=5)), "NoPE layers with a window"),
        (tiny(LayerSpec(position="rope", theta=1e4, qk_norm=True), NOPE), "QK-Norm"),
        (tiny(LayerSpec(position="rope", theta=1e4, qk_norm=True), ROPE), "QK-Norm"),
        (tiny(LayerSpec(position="rope", theta=1e4, window=5, qk_norm=True)), "QK-Norm"),
        (tiny(LayerSpec(position="nope", qk_norm=True)), "QK-Norm"),
        (tiny(LayerSpec(position="rope", theta=1e4, window=2**29)), "536,870,912 tokens or more"),
        (tiny(NOPE, head_size=7), "head size 7 is odd"),
    ],
)
def test_what_no_class_can_say_is_said_in_words(config, words):
    assert any(words in reason for reason in obstacles(config))
    assert model_type(config) == "rnope"
    assert from_hf(through_json(config)) == config


def test_every_field_is_explicit_and_nothing_of_the_classes_leaks():
    raw = to_hf(ModelConfig.variant("rnope-swa", size="tiny"))
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (None, None, None)
    assert (raw["sliding_window"], raw["rope_theta"], raw["rotary_pct"], raw["num_key_value_heads"]) == (5, 1e4, 1.0, 2)
    assert raw["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]
    ids = to_hf(ModelConfig.variant("rnope-swa", size="tiny"), special_ids={"bos": 1, "eos": 2, "pad": 0})
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, 0)
    assert to_hf(ModelConfig.variant("rnope", size="tiny"))["sliding_window"] == FULL_SPAN == 2**30 - 1
    assert to_hf(ModelConfig.variant("rope", size="tiny"))["use_qk_norm"] is False
    assert to_hf(ModelConfig.variant("qk-norm", size="tiny"))["use_qk_norm"] is True
    assert to_hf(ModelConfig.variant("swa-rope", size="tiny"))["architectures"] == ["RnopeDecoder"]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("rnope-swa", 4), ("rnope-swa-1to1", 2), ("rnope-last", 2), ("nope", 1), ("swa-only", 5), ("rnope", None),
     ("rnope-swa-full-first", None), ("rope", None), ("swa-rope", None)],
)  # fmt: skip
def test_the_older_word_for_the_layers_is_there_where_it_says_them(name, pattern):
    assert to_hf(ModelConfig.variant(name, size="tiny")).get("sliding_window_pattern") == pattern


@pytest.mark.parametrize("name", VARIANTS)
def test_tensor_names_cover_the_model_once(name):
    model = tiny_model(name)
    names = tensor_names(model.config)
    assert set(names) == set(dict(model.named_parameters())) == set(model.state_dict())
    assert len(set(names.values())) == len(names)


# Command R7B as it was published: legacy fields, and many that say nothing here.
R7B = {
    "architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 5, "eos_token_id": 255001, "pad_token_id": 0, "cache_implementation": "hybrid", "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale": 0.25, "max_position_embeddings": 8192,
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj", "rope_scaling": None,
    "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096, "sliding_window_pattern": 4,
    "torch_dtype": "bfloat16", "use_embedding_sharing": True, "use_gated_activation": True, "use_parallel_block": True,
    "vocab_size": 256000,
}  # fmt: skip


def test_command_r7b_as_published_is_the_8b_size_at_theta_50k():
    assert from_hf(R7B) == ModelConfig.variant("rnope-swa", size="8b", theta=5e4)
    bare = {k: v for k, v in R7B.items() if k not in ("sliding_window_pattern", "head_dim")}
    assert from_hf(bare) == from_hf(R7B)
    modern = {k: v for k, v in bare.items() if k not in ("rope_theta", "layer_switch")}
    modern |= {"layer_types": ["full_attention", "sliding_attention"] * 16}
    modern |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert from_hf(modern) == ModelConfig.variant("rnope-swa-1to1", size="8b").with_layers(
        (LayerSpec(position="nope"), LayerSpec(position="rope", theta=1e4, window=4096)) * 16
    )


def test_command_r_as_published_is_rope_throughout():
    windows = ("sliding_window", "sliding_window_pattern", "layer_switch")
    raw = {k: v for k, v in R7B.items() if k not in (*windows, "num_key_value_heads")} | {"model_type": "cohere"}
    config = from_hf(raw)
    assert config.kinds() == {"rope": 32} and config.thetas == (5e4,) and config.kv_heads == 32
    assert from_hf(raw | {"use_qk_norm": True}).kinds() == {"rope+qk-norm": 32}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"model_type": "cohere3"}, ["model_type", "Did you mean 'cohere", "rnope"]),
        ({"model_type": None}, ["model_type", "no such model type"]),
        ({"hidden_size": None}, ["hidden_size", "must be a whole number"]),
        ({"num_attention_heads": "32"}, ["num_attention_heads = '32'", "must be a whole number"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads = 5", "must divide"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers = 0"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"rope_theta": None}, ["rope_theta", "is missing"]),
        ({"rope_theta": 0.5}, ["rope_theta = 0.5", "above 1"]),
        ({"rope_theta": "big"}, ["rope_theta = 'big'"]),
        ({"rope_parameters": {"rope_theta": 1e4}}, ["contradicts itself", "10000", "50000"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, ["rope_parameters", "plain RoPE"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["plain RoPE"]),
        ({"rope_parameters": [1]}, ["rope_parameters", "must be a table"]),
        ({"rotary_pct": 0.5}, ["rotary_pct = 0.5", "only 1.0"]),
        ({"attention_bias": True}, ["attention_bias = True"]),
        ({"tie_word_embeddings": False}, ["tie_word_embeddings = False"]),
        ({"hidden_act": "gelu"}, ["hidden_act = 'gelu'"]),
        ({"sliding_window": None}, ["sliding_window", "is missing"]),
        ({"sliding_window": 0}, ["sliding_window = 0", "at least 1"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps = 0.0", "between 0 and 1"]),
        ({"sliding_window_pattern": 0}, ["sliding_window_pattern = 0"]),
        ({"layer_types": ["full_attention"]}, ["num_hidden_layers = 32", "layer_types has 1"]),
        ({"layer_types": ["chunked_attention"] * 32}, ["layer_types[0]", "chunked_attention"]),
    ],
)
def test_a_field_that_does_not_fit_is_named(edit, words):
    with pytest.raises(ConfigError) as caught:
        from_hf(R7B | edit)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "logit_scale"])
def test_a_missing_field_is_named(name):
    with pytest.raises(ConfigError, match=f"{name} = None: is missing"):
        from_hf({k: v for k, v in R7B.items() if k != name})


@pytest.mark.parametrize(
    ("variant", "edit", "words"),
    [
        ("rnope-swa", {"sliding_window": 7}, ["rnope.layers[0].window = 5", "`sliding_window`", "says 7"]),
        (
            "rnope-swa",
            {"rope_theta": 2e6, "rope_parameters": {"rope_theta": 2e6}},
            ["rnope.layers[0].theta = 10000.0", "`rope_parameters.rope_theta`", "2000000.0"],
        ),
        (
            "rnope-swa",
            {"layer_types": ["sliding_attention"] * 4, "sliding_window_pattern": None},
            ["rnope.layers[3].position = 'nope'", "`layer_types`", "'rope'"],
        ),
        ("rope", {"use_qk_norm": True}, ["rnope.layers[0].qk_norm = False", "`use_qk_norm`", "True"]),
        ("rope", {"model_type": "cohere2", "sliding_window": 9}, ["window = None", "`sliding_window`", "9"]),
        ("rope", {"num_hidden_layers": 3}, ["num_hidden_layers = 3", "lists 4"]),
        ("swa-rope", {"num_hidden_layers": 3}, ["num_hidden_layers = 3", "lists 4"]),
    ],
)
def test_a_block_and_a_class_that_disagree_are_both_named(variant, edit, words):
    raw = through_json(tiny_model(variant).config)
    if "layer_types" not in edit and edit.get("model_type") == "cohere2":
        edit = edit | {"layer_types": ["sliding_attention"] * 4}
    with pytest.raises(ConfigError) as caught:
        from_hf(raw | edit)
    if "num_hidden_layers" not in edit:
        words = [*words, "without its `rnope` block"]
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (None, ["rnope = None", "must be a table"]),
        ({"format": 2}, ["rnope.format = 2", "newer rnope"]),
        ({"format": 1}, ["rnope.layers", "is missing"]),
        ({"format": 1, "layers": [{"positon": "rope"}]}, ["rnope.layers[0].positon", "Did you mean 'position'"]),
        ({"format": 1, "layers": [{"position": "rope"}], "init": {}}, ["rnope.layers[0].theta", "above 1"]),
    ],
)
def test_a_damaged_block_is_named(block, words):
    raw = through_json(tiny_model("swa-rope").config) | {"rnope": block}
    with pytest.raises(ConfigError) as caught:
        from_hf(raw)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_type_rnope_needs_its_block():
    with pytest.raises(ConfigError, match="rnope = None: is missing"):
        from_hf(without_block(tiny_model("swa-rope").config))
