"""What a model costs, against the real thing: its parameters, its visible pairs, its FLOPs as torch counts them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rnope.model.accounting import (
    attention_pairs,
    cache_bytes,
    decode_flops,
    parameters,
    prefill_flops,
    training_flops,
)
from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, LayerSpec, ModelConfig
from rnope.testing import tiny_model


def test_the_paper_size_has_8_03_billion_parameters():
    config = ModelConfig.variant("rnope-swa", size="8b")
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == parameters(config) == 8_028_033_024
    assert parameters(ModelConfig.variant("qk-norm", size="8b")) == 8_028_033_024 + 163_840


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_of_every_variant(name):
    model = tiny_model(name)
    assert parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_parameters_of_a_hybrid_with_some_qk_norm():
    config = tiny_model().config
    layers = (LayerSpec(position="nope", qk_norm=True), LayerSpec(position="nope"), *config.layers)
    model = Decoder(config.with_layers(layers))
    assert parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("window", [None, 1, 2, 5, 16, 17, 18, 1000])
@pytest.mark.parametrize("context_tokens", [1, 2, 17])
def test_attention_pairs_by_counting(window, context_tokens):
    span = context_tokens if window is None else window
    counted = sum(0 <= i - j < span for i in range(context_tokens) for j in range(context_tokens))
    assert attention_pairs(LayerSpec(position="nope", window=window), context_tokens) == counted


@pytest.mark.parametrize("name", ["rope", "nope", "rnope-swa", "swa-only"])
def test_linear_flops_are_what_torch_counts(name, monkeypatch):
    """The attention itself is left out of both: kernels differ in what they waste."""
    monkeypatch.setattr("rnope.model.attention.attend", lambda q, k, v, **_: q)
    model, tokens = tiny_model(name), 19
    config = model.config
    attention = sum(attention_pairs(spec, tokens) for spec in config.layers) * 4 * config.heads * config.head_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long))
    assert prefill_flops(config, tokens, logits=tokens) - attention == counter.get_total_flops()


@pytest.mark.parametrize("name", ["rope", "rnope-swa", "swa-only"])
def test_decoding_a_context_token_by_token_costs_one_prefill(name):
    config = tiny_model(name).config
    steps = sum(decode_flops(config, length) for length in range(1, 24))
    assert steps == prefill_flops(config, 23, logits=23)
    assert training_flops(config, 23) == 3 * steps


def test_cache_bytes_of_the_paper():
    """SPEC I1: 4,096 bytes per token and layer; at 1:3 the saving approaches 75 % from below."""
    full, hybrid = (ModelConfig.variant(name) for name in ("rope", "rnope-swa"))
    gib = 2**30
    assert cache_bytes(full, 131_072) == 16 * gib
    assert cache_bytes(hybrid, 131_072) == 4.375 * gib
    assert cache_bytes(hybrid, 262_144) == 8.375 * gib
    assert cache_bytes(full, 4096) == cache_bytes(hybrid, 4096) == 4096 * 4096 * 32
    assert cache_bytes(full, 1, bytes_per_value=4) == 2 * 4096 * 32
    assert 0.749 < 1 - cache_bytes(hybrid, 10**8) / cache_bytes(full, 10**8) < 0.75


@pytest.mark.parametrize("context_tokens", [1, 4, 5, 6, 40])
def test_cache_bytes_layer_by_layer(context_tokens):
    config = ModelConfig.variant("rnope-swa", size="tiny")
    kept = [min(context_tokens, 5)] * 3 + [context_tokens]
    assert cache_bytes(config, context_tokens) == sum(kept) * 2 * config.kv_heads * config.head_size * 2
