"""What every key of a config.json is to us, and which of them go along when new weights take a model's place.

It knows names and fixed values. What the numbers mean for the layers is `mapping`'s business.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rnope.errors import ConfigError

Kind = Literal["architecture", "fixed", "context", "ids", "bookkeeping", "code"]

FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "is_causal": True,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "attention_chunk_size": None,
    "per_layer_config": None,
    "quantization_config": None,
    # Of the files that Cohere published. transformers reads none of them, and computes what they say.
    "rotary_pct": 1.0,
    "position_embedding_type": "rope_gptj",
    "order_of_interleaved_layers": "local_attn_first",
    "use_parallel_block": True,
    "use_gated_activation": True,
    "use_embedding_sharing": True,
}
"""Keys with the one value that the classes and `rnope` compute."""

_OTHERS: dict[Kind, tuple[str, ...]] = {
    # Read, and written from the new architecture.
    "architecture": (
        "model_type", "architectures", "dtype", "torch_dtype", "vocab_size", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "logit_scale", "layer_norm_eps",
        "use_qk_norm", "layer_types", "sliding_window", "sliding_window_pattern", "layer_switch", "rope_parameters",
        "rope_scaling", "rope_theta", "rnope",
    ),
    # How long a text the model was made for.
    "context": ("max_position_embeddings", "model_max_length"),
    "ids": ("bos_token_id", "eos_token_id", "pad_token_id"),
    # What changes nothing of a model that is asked: of training, of generation, of the classes' own housekeeping.
    "bookkeeping": (
        "attention_dropout", "initializer_range", "use_cache", "cache_implementation", "use_parallel_embedding",
        "transformers_version", "_name_or_path", "return_dict", "output_hidden_states", "output_attentions",
        "chunk_size_feed_forward", "id2label", "label2id", "problem_type",
    ),
    # Names of Python code beside the weights, which is never run and never handed on.
    "code": ("auto_map", "custom_pipelines", "custom_generate"),
}  # fmt: skip

KEYS: dict[str, Kind] = {name: kind for kind, names in _OTHERS.items() for name in names}
KEYS |= dict.fromkeys(FIXED, "fixed")
"""Key of config.json -> what it is; a key that is not here is unknown."""
CODE = frozenset(_OTHERS["code"])
_ALWAYS, _WHERE_SAID = ("unknown", "ids", "bookkeeping"), ("fixed", "context")


def unknown_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json that mean nothing here. They are kept, and change nothing of what is computed."""
    return {key: value for key, value in raw.items() if key not in KEYS}


def context_key(raw: Mapping[str, Any]) -> str:
    """Which key says the longest trained context: ``model_max_length`` where there is one.

    Command R v01 has it: 131,072, beside 8,192 as ``max_position_embeddings``. vLLM and llama.cpp's converter go by it too.
    """
    return "model_max_length" if raw.get("model_max_length") else "max_position_embeddings"


def check_fixed(raw: Mapping[str, Any]) -> None:
    """Refuse a value of `FIXED` that `rnope` cannot compute.

    Raises:
        ConfigError: there is one.
    """
    for name, value in FIXED.items():
        found = raw.get(name, value)
        if found != value and not (value is None and found == {}):
            rule = f"rnope has only {value!r}" if value is not None else "rnope computes nothing of the kind"
            raise ConfigError(name, found, rule, "Use transformers for this model.")


def left_out(raw: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What of a config.json is not handed on because it names code: a table of it, or a class that is none of `classes`."""
    found = {key: value for key, value in raw.items() if key in CODE}
    named = raw.get("architectures")
    foreign = isinstance(named, list) and not set(map(str, named)) <= set(classes)
    return found | ({"architectures": named} if foreign else {})


def going_along(like: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What of another model's config.json stays true beside `written`, a config.json of new weights.

    That is all that is unknown, the special ids, the context and the bookkeeping; and of what Cohere published the keys
    that say again what `written` says: ``layer_switch`` where it has a ``sliding_window_pattern``, for example.
    """
    found = {key: value for key, value in like.items() if KEYS.get(key, "unknown") in _ALWAYS}
    found |= {key: value for key, value in like.items() if KEYS.get(key) in _WHERE_SAID and value}
    pattern = written.get("sliding_window_pattern")
    if pattern is None:
        found.pop("order_of_interleaved_layers", None)
    elif like.get("layer_switch") is not None:
        found["layer_switch"] = pattern
    if "use_qk_norm" in like and written["model_type"] == "cohere2":
        found["use_qk_norm"] = False
    return found
