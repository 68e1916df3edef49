"""The map between our names and those of `cohere` and `cohere2`: tensors and configuration, both ways.

It knows plain data only: no files, and no transformers. `config.json` says what the target class expects, every field
explicitly, and carries one ``rnope`` block with what the class has no words for. Numbers stand once, under the class's
names; the layers stand in both, and reading refuses a file in which the two disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rnope.errors import ConfigError, shown, unknown
from rnope.hf.keys import check_fixed, going_along
from rnope.hf.theta import theta
from rnope.model.spec import Init, LayerSpec, ModelConfig, Position
from rnope.strict import from_plain, to_plain

FORMAT = 1
"""Version of the ``rnope`` block."""
FULL_SPAN = 2**30 - 1
"""How `cohere2` is told that a RoPE layer sees everything: it has no RoPE without a window."""
CONTEXT_TOKENS = 8192
"""Context of a model of which nobody says it: that of the paper's pretraining."""
UNBOUNDED = 2**29
"""A window of this many tokens or more is read as none."""
ARCHITECTURES = {"cohere": "CohereForCausalLM", "cohere2": "Cohere2ForCausalLM", "rnope": "RnopeDecoder"}
"""model_type -> the class that reads it; the last opens in rnope only."""

NUMBERS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "ffn_width": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "logit_scale": "logit_scale",
    "norm_eps": "layer_norm_eps",
}
"""Field of `ModelConfig` -> field of config.json, for all three model types."""

_LAYER_TENSORS = {
    "norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
_QK_NORM_TENSORS = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> its name in the file, for every tensor of the model; shapes are the same on both sides."""
    names = {"embedding.weight": "model.embed_tokens.weight"}
    for i, spec in enumerate(config.layers):
        for ours, theirs in (_LAYER_TENSORS | (_QK_NORM_TENSORS if spec.qk_norm else {})).items():
            names[f"layers.{i}.{ours}.weight"] = f"model.layers.{i}.{theirs}.weight"
    return names | {"norm.weight": "model.norm.weight"}


def obstacles(config: ModelConfig) -> tuple[str, ...]:
    """Why no class of transformers can say these layers, one sentence each; empty where one can."""
    layers = config.layers
    windows = sorted({spec.window or 0 for spec in layers if spec.position == "rope"})
    found = []
    if len(config.thetas) > 1:
        bases = [f"{theta:,.10g}" for theta in config.thetas]
        found.append(f"Its RoPE layers have several θ ({', '.join(bases)}); both classes have one.")
    if len(windows) > 1:
        spans = [f"window {window:,}" if window else "full" for window in windows]
        found.append(f"Its RoPE layers have several spans ({', '.join(spans)}); cohere2 has one for all of them.")
    if any(spec.position == "nope" and spec.window for spec in layers):
        found.append("It has NoPE layers with a window; in cohere2 a layer has a window exactly where it has RoPE.")
    plain_rope = all(spec.position == "rope" and spec.window is None for spec in layers)
    if any(spec.qk_norm for spec in layers) and not (plain_rope and all(spec.qk_norm for spec in layers)):
        found.append("It has QK-Norm; only cohere has that, and there every layer has it, with RoPE and full span.")
    if any((spec.window or 0) >= UNBOUNDED for spec in layers):
        found.append(f"It has a window of {UNBOUNDED:,} tokens or more, which cohere2 files use to say: none.")
    if config.head_size % 2:
        found.append(f"Its head size {config.head_size} is odd, which the classes refuse.")
    return tuple(found)


def model_type(config: ModelConfig) -> str:
    """The class that says `config`: ``cohere`` (V1, V2), ``cohere2`` (the hybrids), or else ``rnope``."""
    if obstacles(config):
        return "rnope"
    everywhere = all(spec.position == "rope" and spec.window is None for spec in config.layers)
    return "cohere" if everywhere else "cohere2"


def to_hf(
    config: ModelConfig,
    *,
    dtype: str = "float32",
    context_tokens: int | None = None,
    special_ids: Mapping[str, int] | None = None,
    provenance: Mapping[str, Any] | None = None,
    like: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of config.json.

    Args:
        config: the architecture.
        dtype: of the weights, as torch spells it.
        context_tokens: longest trained context; serving programs take it as their limit. None is that of `like`, or
            8,192 as in the paper's pretraining.
        special_ids: ids for ``bos``, ``eos`` and ``pad``, all of them; None is those of `like`. One that nobody says is
            written as null, so that the classes' defaults (5, 255001, 0) do not leak into another vocabulary.
        provenance: where the model came from: recipe, seed, digests; plain data.
        like: another config.json. What it says beyond its architecture goes along (`keys.going_along`).
    """
    kind = model_type(config)
    raw: dict[str, Any] = {"model_type": kind, "architectures": [ARCHITECTURES[kind]], "dtype": dtype}
    raw |= {theirs: getattr(config, ours) for ours, theirs in NUMBERS.items()}
    raw |= {
        "num_hidden_layers": len(config.layers),
        "max_position_embeddings": CONTEXT_TOKENS,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": config.init.embedding_std,
        "use_cache": True,
        **dict.fromkeys(_IDS.values()),
    }
    if kind != "rnope":
        theta = config.thetas[0] if config.thetas else 1e4  # the class wants one, if only to leave it unused
        # rope_theta for transformers 4, which would fall back on its own default; rotary_pct for llama.cpp's converter.
        raw |= {
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "rope_theta": theta,
            "rotary_pct": 1.0,
        }
    if kind == "cohere":
        raw["use_qk_norm"] = config.layers[0].qk_norm
    elif kind == "cohere2":
        rope = [spec for spec in config.layers if spec.position == "rope"]
        raw["sliding_window"] = (rope[0].window if rope else None) or FULL_SPAN
        raw["layer_types"] = [_LAYER_TYPES[spec.position] for spec in config.layers]
        pattern = _pattern(raw["layer_types"])
        if pattern is not None:  # for transformers before 4.53, which takes every fourth layer to be full without it
            raw["sliding_window_pattern"] = pattern
    raw |= {key: to_plain(value) for key, value in going_along(like or {}, raw).items()}
    if context_tokens is not None:
        raw["max_position_embeddings"] = context_tokens
        raw.pop("model_max_length", None)
    if special_ids is not None:
        raw |= {theirs: special_ids.get(ours) for ours, theirs in _IDS.items()}
    block = _Block(format=FORMAT, layers=config.layers, init=config.init)
    return raw | {"rnope": to_plain(block) | {"provenance": to_plain(provenance or {})}}


_IDS = {name: f"{name}_token_id" for name in ("bos", "eos", "pad")}
_LAYER_TYPES: dict[Position, str] = {"rope": "sliding_attention", "nope": "full_attention"}
_POSITIONS = {theirs: ours for ours, theirs in _LAYER_TYPES.items()}


def _types(pattern: int, num_layers: int) -> tuple[str, ...]:
    """What ``sliding_window_pattern`` says: windows, and every `pattern`-th layer full."""
    return tuple(_LAYER_TYPES["rope" if (i + 1) % pattern else "nope"] for i in range(num_layers))


def _pattern(types: Sequence[str]) -> int | None:
    """The smallest ``sliding_window_pattern`` that says `types`; one above their number where no layer is full."""
    full = _LAYER_TYPES["nope"]
    pattern = types.index(full) + 1 if full in types else len(types) + 1
    return pattern if _types(pattern, len(types)) == tuple(types) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """The ``rnope`` block, but for its provenance, which is free."""

    format: int
    layers: tuple[LayerSpec, ...]
    init: Init


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fields:
    """What is read of the class's fields. Only what every version of the classes agrees on has a default."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    logit_scale: float
    layer_norm_eps: float = 1e-5
    use_qk_norm: bool | None = False
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    layer_switch: int | None = None
    layer_types: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("num_hidden_layers", "sliding_window_pattern", "layer_switch"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) < 2**16:
                raise ConfigError(name, getattr(self, name), "must lie in 1 … 65,535", "Mend config.json.")


def from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """The architecture that a config.json says: by its ``rnope`` block where there is one, else by the class's fields.

    Raises:
        ConfigError: an unknown model_type, a missing field, a block that contradicts the class's fields, or something
            that `rnope` cannot compute (biases, scaled or partial RoPE, an untied head).
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise unknown("model_type", kind, "model type here", ARCHITECTURES)
    check_fixed(raw)
    said = from_plain(_Fields, {f.name: raw[f.name] for f in fields(_Fields) if f.name in raw})
    block = _block(raw["rnope"]) if "rnope" in raw else None
    if kind == "rnope" and block is None:
        raise ConfigError("rnope", None, "is missing, and with it the layers", "Write the model again.")
    layers = block.layers if block is not None else ()
    if kind != "rnope":
        by_class = _cohere_layers(raw, said) if kind == "cohere" else _cohere2_layers(raw, said)
        _refuse_contradiction(layers, by_class, kind)
        layers = layers or by_class
    if len(layers) != said.num_hidden_layers:
        raise ConfigError("num_hidden_layers", said.num_hidden_layers, f"but `rnope` lists {len(layers)}", _AGREE)
    numbers: dict[str, Any] = {ours: getattr(said, theirs) for ours, theirs in NUMBERS.items()}
    if said.num_key_value_heads is None:
        numbers["kv_heads"] = said.num_attention_heads
    if said.head_dim is None:
        numbers["head_size"] = said.hidden_size // max(said.num_attention_heads, 1)
    try:
        return ModelConfig(layers=layers, init=Init() if block is None else block.init, **numbers)
    except ConfigError as error:
        raise ConfigError(NUMBERS.get(error.field, error.field), error.value, error.rule, error.remedy) from None


_AGREE = "Edit config.json so that both agree; without its `rnope` block the class's own fields count."


def _block(raw: object) -> _Block:
    if not isinstance(raw, Mapping):
        raise ConfigError("rnope", raw, "must be a table", "Delete it to go by the class's own fields.")
    version = raw.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise ConfigError("rnope.format", version, f"this rnope reads up to {FORMAT}", "Use a newer rnope.")
    return from_plain(_Block, {key: value for key, value in raw.items() if key != "provenance"}, "rnope")


def _cohere_layers(raw: Mapping[str, Any], said: _Fields) -> tuple[LayerSpec, ...]:
    for name in ("layer_types", "sliding_window", "sliding_window_pattern", "layer_switch"):
        if raw.get(name) is not None:
            rule = "in cohere every layer has RoPE and sees everything before it"
            raise ConfigError(name, raw[name], rule, "Leave it out, or write model_type cohere2.")
    layer = LayerSpec(position="rope", theta=theta(raw), qk_norm=bool(said.use_qk_norm))
    return (layer,) * said.num_hidden_layers


def _cohere2_layers(raw: Mapping[str, Any], said: _Fields) -> tuple[LayerSpec, ...]:
    if said.use_qk_norm:
        raise ConfigError("use_qk_norm", True, "cohere2 has no QK-Norm", "Leave it out, or write model_type cohere.")
    types = _said_types(said)
    kinds = {"full_attention": LayerSpec(position="nope")}
    if "sliding_attention" in types:
        window = said.sliding_window
        if window is None:
            raise ConfigError("sliding_window", None, "is missing, and there are sliding layers", "R7B has 4096.")
        if window < 1:
            raise ConfigError("sliding_window", window, "must be at least 1: it counts the current token", "Mend it.")
        kinds["sliding_attention"] = LayerSpec(
            position="rope", theta=theta(raw, per_type=True), window=None if window >= UNBOUNDED else window
        )
    return tuple(kinds[name] for name in types)


def _said_types(said: _Fields) -> tuple[str, ...]:
    """The layer types that a cohere2 file says: as a list, as a pattern in one of its two names, or by the default of 4.

    transformers reads the list, else ``sliding_window_pattern``, and knows no ``layer_switch``. Here they must agree.
    """
    count = said.num_hidden_layers
    names = {"sliding_window_pattern": said.sliding_window_pattern, "layer_switch": said.layer_switch}
    patterns = {name: value for name, value in names.items() if value is not None}
    types = said.layer_types
    if types is None:
        types = _types(next(iter(patterns.values()), 4), count)
    for i, name in enumerate(types):
        if name not in _POSITIONS:
            raise unknown(f"layer_types[{i}]", name, "layer type of cohere2", _POSITIONS)
    if len(types) != count:
        raise ConfigError("num_hidden_layers", count, f"but layer_types has {len(types)}", "Mend one.")
    for name, value in patterns.items():
        for i, (one, other) in enumerate(zip(_types(value, count), types, strict=True)):
            if one != other:
                where = "layer_types" if said.layer_types is not None else next(iter(patterns))
                rule = f"the file contradicts itself: `{where}` says {other} for layer {i}"
                raise ConfigError(name, value, rule, "Mend one, or leave the older of them out.")
    return types


def _refuse_contradiction(block: tuple[LayerSpec, ...], layers: tuple[LayerSpec, ...], kind: str) -> None:
    """Someone edited one of the two places that say a layer."""
    places = {
        "position": "layer_types" if kind == "cohere2" else "model_type",
        "theta": "rope_parameters.rope_theta",
        "window": "sliding_window" if kind == "cohere2" else "model_type",
        "qk_norm": "use_qk_norm" if kind == "cohere" else "model_type",
    }
    for i, (ours, theirs) in enumerate(zip(block, layers, strict=False)):
        for fact, place in places.items():
            value, other = getattr(ours, fact), getattr(theirs, fact)
            if value != other:
                where = f"rnope.layers[{i}].{fact}"
                raise ConfigError(where, value, f"contradicts `{place}`, which says {shown(other)}", _AGREE)
