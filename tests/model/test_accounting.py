"""What a model costs, against the real thing: its parameters, its visible pairs, its FLOPs as torch counts them."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint as checkpointed
from torch.utils.flop_counter import FlopCounterMode

from rnope.kernels.cross_entropy import BLOCK_VALUES_ELSEWHERE, LOGITS_BYTES_ELSEWHERE
from rnope.model.accounting import (
    BLOCK_VALUES,
    LOGITS_BYTES,
    activation_bytes,
    attention_pairs,
    cache_bytes,
    decode_flops,
    layer_activation_bytes,
    layer_parameters,
    loss_bytes,
    parameters,
    prefill_flops,
    state_bytes,
    training_flops,
    training_flops_by_part,
)
from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, LayerSpec, ModelConfig
from rnope.parallel.apply import apply
from rnope.parallel.mesh import joined
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


@pytest.mark.parametrize("name", ["rope", "rnope-swa", "swa-only"])
def test_training_flops_by_part(name):
    config = tiny_model(name).config
    parts = training_flops_by_part(config, 23)
    assert sum(parts.values()) == training_flops(config, 23)
    assert parts["head"] == 6 * 23 * config.vocab_size * config.width
    matrices = sum(layer_parameters(config, spec) - config.width for spec in config.layers)
    assert parts["layers"] == 6 * 23 * matrices


def kept(work, model):
    """Bytes of all storages, but those of weights, that the graph of `work()` keeps for its backward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage  # Held, so that no other takes its place.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    assert result.requires_grad
    return sum(storage.nbytes() for storage in held.values())


SHAPE = dict(width=64, head_size=16, ffn_width=96, window=700)
"""Rows of 3,000 tokens: long enough that a window is computed as on long rows, by a kernel that keeps no weights."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "row_tokens"), [(1, 3000), (2, 1501)])
@pytest.mark.parametrize("name", ["rope", "nope", "qk-norm", "rnope-swa"])
def test_activation_bytes_are_what_autograd_saves(name, rows, row_tokens, dtype):
    model = tiny_model(name, **SHAPE).to(dtype)
    ids = torch.randint(0, 97, (rows, row_tokens), generator=torch.Generator().manual_seed(0))
    counted = activation_bytes(model.config, rows, row_tokens, value_bytes=dtype.itemsize, checkpoint=False)
    assert kept(lambda: model(ids), model) == pytest.approx(counted, rel=0.002)  # but for norms in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointed_activation_bytes_are_inputs_and_one_layer(dtype, monkeypatch):
    model = tiny_model("rnope-swa", **SHAPE).to(dtype)
    config, size = model.config, dtype.itemsize
    ids = torch.arange(3000)[None] % 97
    each = [layer_activation_bytes(config, spec, 1, 3000, value_bytes=size) for spec in config.layers]
    assert len(set(each)) == 2  # A RoPE layer keeps tables besides.
    x, tables = model.embedding(ids), model.rotary_tables(torch.arange(3000))
    for block, counted in zip(model.blocks, each, strict=True):
        assert kept(lambda block=block: block(x, tables), model) == pytest.approx(counted, rel=0.002)
    for block in model.blocks:
        monkeypatch.setattr(
            block, "forward", lambda x, tables, f=block.forward, **_: checkpointed(f, x, tables, use_reentrant=True)
        )
    counted = activation_bytes(config, 1, 3000, value_bytes=size, checkpoint=True) - max(each)
    assert kept(lambda: model(ids), model) == pytest.approx(counted, rel=0.002)


def test_activations_over_ranks_are_the_shares_and_what_attention_gathers():
    config = ModelConfig.variant("rnope-swa", size="tiny", kv_heads=2, window=33)
    window, full = config.layers[0], config.layers[3]

    def of(spec, row_tokens, ranks, rows=3):
        return layer_activation_bytes(config, spec, rows, row_tokens, value_bytes=2, ranks=ranks)

    keys = 2 * 2 * config.kv_heads * config.head_size  # bytes a token, of keys and values
    # A window keeps what its first query sees before the share, however long the row, or all that there is.
    for row_tokens in (240, 480, 960):
        assert of(window, row_tokens, 4) == of(window, row_tokens // 4, 1) + 3 * 32 * keys
    assert of(window, 24, 4) == of(window, 6, 1) + 3 * 18 * keys
    # A full layer has a share of the heads instead of one of the row; where heads are fewer than ranks, some twice.
    assert of(full, 240, 2) == of(full, 120, 1)
    assert of(full, 240, 4) == of(full, 60, 1) + 3 * 60 * keys


def test_state_bytes_of_the_paper_over_64_ranks():
    config = ModelConfig.variant("rnope-swa")
    found = state_bytes(config, 64, value_bytes=2, checkpoint=True)
    assert found["weights"] == found["gradients"] == found["moments"] // 2 == 8_028_033_024 // 16
    embedding, layer = 256_001 * 4096, 218_107_904
    assert layer_parameters(config, config.layers[0]) == layer
    # The embedding and its gradient, two layers and a gradient in 16 bits, and that gradient in 32.
    assert found["working"] == 4 * embedding + 6 * layer + 4 * layer


@pytest.mark.parametrize(("precision", "value_bytes"), [("fp32", 4), ("bf16", 2)])
def test_a_loss_keeps_activations_copies_and_the_heads_gradient(precision, value_bytes):
    """The real model of `rnope.parallel.apply`, on one rank."""
    config = tiny_model("rnope-swa", **SHAPE).config
    ids = torch.arange(3000)[None] % 97
    with joined(1, device="cpu") as mesh:
        model = apply(config, mesh, precision=precision)
        found = kept(lambda: model.loss(ids, ids)[0], model)
    counted = activation_bytes(config, 1, 3000, value_bytes=value_bytes, checkpoint=False)
    counted += state_bytes(config, 1, value_bytes=value_bytes, checkpoint=False)["working"]
    # The head's copy is used up when the gradient is there.
    counted += (4 - (value_bytes if value_bytes < 4 else 0)) * config.vocab_size * config.width
    assert found == pytest.approx(counted, rel=0.002)


def test_loss_bytes():
    config, head = ModelConfig.variant("rope"), 256_000 * 4096
    assert LOGITS_BYTES == LOGITS_BYTES_ELSEWHERE and BLOCK_VALUES == BLOCK_VALUES_ELSEWHERE
    assert loss_bytes(config, 16_384, value_bytes=2) == 2**31 + 2**29 + 4 * head + 2 * head
    assert loss_bytes(config, 16_384, value_bytes=4) == 2**31 + 2**29 + 4 * head
    assert loss_bytes(config, 100, value_bytes=2) == 100 * 256_000 * (2 + 8) + 6 * head


def test_state_bytes_of_one_rank():
    config = ModelConfig.variant("rope", size="tiny", num_layers=6)
    layer = layer_parameters(config, config.layers[0])
    found = [
        state_bytes(config, 1, value_bytes=size, checkpoint=keep)["working"]
        for size in (2, 4)
        for keep in (False, True)
    ]
    embedding = 97 * config.width
    assert found == [12 * layer + 2 * embedding, 2 * layer + 2 * embedding, 0, 0]
    assert state_bytes(config, 3, value_bytes=4, checkpoint=False)["weights"] == 4 * -(-parameters(config) // 3)
