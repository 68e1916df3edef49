"""The decoder against what it says: rows, starts, causality, windows, rotation, fresh weights."""

import math

import pytest
import torch
from torch.nn import functional as F

from rnope.model.decoder import Decoder
from rnope.model.rope import rotary_table, rotate
from rnope.model.spec import VARIANTS, Init, LayerSpec, ModelConfig
from rnope.testing import tiny_model

T = 23


def token_ids(b=2, t=T, vocab_size=97):
    return torch.randint(0, vocab_size, (b, t), generator=torch.Generator().manual_seed(3))


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max().item() < tolerance


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_rows_are_those_of_the_full_forward(name):
    model, ids = tiny_model(name), token_ids()
    rows = torch.tensor([22, 0, 7, 11])
    assert close(model(ids, rows=rows), model(ids)[:, rows])
    starts = torch.tensor([0, 5])[:, None].expand(-1, T).contiguous()
    rows = torch.tensor([6, 22])
    assert close(model(ids, starts=starts, rows=rows), model(ids, starts=starts)[:, rows])


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_starts_are_the_unpadded_run(name):
    """Left padding: what lies before a sequence's start changes nothing, since RoPE is relative."""
    model, ids = tiny_model(name), token_ids()
    padding = 6
    starts = torch.tensor([[padding], [0]]).expand(-1, T).contiguous()
    logits = model(ids, starts=starts)
    assert close(logits[0, padding:], model(ids[:1, padding:])[0])
    assert close(logits[1:], model(ids[1:]))
    assert not close(logits[0, padding:], model(ids)[0, padding:], 1e-2)


@pytest.mark.parametrize("name", ["rope", "nope", "rnope-swa", "swa-only"])
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(name):
    model, ids = tiny_model(name), token_ids(1)
    starts = torch.tensor([[0] * 9 + [9] * (T - 9)])
    logits = model(ids, starts=starts)
    assert close(logits[:, :9], model(ids[:, :9])) and close(logits[:, 9:], model(ids[:, 9:]))


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_no_token_sees_a_later_one(name):
    model, ids = tiny_model(name), token_ids()
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 97
    difference = (model(ids) - model(changed)).abs().amax((0, 2))
    assert (difference[:10] < 1e-5).all() and (difference[10:] > 1e-4).any()


@torch.no_grad()
def test_windows_bound_how_far_a_token_reaches():
    """Four layers that each see 5 keys, their own included, reach 4 · 4 tokens back and no further."""
    model, ids = tiny_model("swa-only"), token_ids()
    changed = ids.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 97
    difference = (model(ids) - model(changed)).abs().amax((0, 2))
    assert difference[18] > 0 and (difference[19:] == 0).all()


@torch.no_grad()
def test_without_positions_the_past_is_a_set():
    """NoPE, one layer: the last token sees the same whatever the order before it; RoPE does not."""
    ids = token_ids(1)
    shuffled = torch.cat((ids[:, :-1].flip(1), ids[:, -1:]), 1)
    last = torch.tensor([T - 1])
    nope, rope = (tiny_model(name, num_layers=1) for name in ("nope", "rope"))
    assert close(nope(ids, rows=last), nope(shuffled, rows=last))
    assert not close(rope(ids, rows=last), rope(shuffled, rows=last), 1e-3)


@torch.no_grad()
def test_theta_is_the_layers_own():
    model, ids = tiny_model("rope"), token_ids()
    first = LayerSpec(position="rope", theta=50.0)
    other = Decoder(model.config.with_layers((first, *model.config.layers[1:])))
    other.load_state_dict(model.state_dict())
    assert other.config.thetas == (50.0, 1e4)
    assert not close(model(ids), other(ids), 1e-3)


def test_rotation_is_multiplication_by_a_complex_number():
    """Su et al., 2023: pair i of a head at position p times exp(i p theta^(-2i/d)), interleaved pairs."""
    positions = torch.tensor([0, 1, 5, 1000])
    x = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = torch.empty_like(x)
    for t, position in enumerate(positions.tolist()):
        for i in range(4):
            turn = complex(math.cos(position * 100.0 ** (-i / 4)), math.sin(position * 100.0 ** (-i / 4)))
            pair = torch.complex(x[:, :, t, 2 * i], x[:, :, t, 2 * i + 1]) * turn
            turned[:, :, t, 2 * i], turned[:, :, t, 2 * i + 1] = pair.real, pair.imag
    found = rotate(x.float(), rotary_table(positions, 8, 100.0))
    assert close(found, turned.float(), 2e-4) and close(found[:, :, :3], turned[:, :, :3].float())
    assert torch.equal(found[:, :, 0], x[:, :, 0].float())  # position 0 does not turn


@pytest.mark.parametrize("theta", [1e4, 5e4, 2e6, 8e6])
def test_rotary_tables_are_bit_for_bit_those_of_transformers(theta):
    """Far out, the order of float32 operations decides; ours is theirs."""
    from transformers import Cohere2Config
    from transformers.models.cohere2.modeling_cohere2 import Cohere2RotaryEmbedding

    theirs = Cohere2RotaryEmbedding(
        Cohere2Config(
            hidden_size=256, num_attention_heads=2, rope_parameters={"rope_type": "default", "rope_theta": theta}
        )
    )
    positions = torch.cat((torch.arange(64), torch.arange(131_000, 131_072), torch.arange(990_000, 990_064)))
    for ours, expected in zip(
        rotary_table(positions, 128, theta), theirs(torch.zeros(1), positions[None]), strict=True
    ):
        assert torch.equal(ours, expected[0, :, ::2])


@torch.no_grad()
def test_a_block_is_parallel():
    """x + attention(norm(x)) + down(silu(gate) * up), one norm for both; the head is the embedding, scaled."""
    model, ids = tiny_model("nope", num_layers=1), token_ids(1, 1)
    block, x = model.blocks[0], model.embedding(ids)
    normal = F.layer_norm(x, (32,), eps=1e-5)
    attention, mlp = block.attention, block.feed_forward
    value = attention.value(normal).unflatten(-1, (2, 1, 8)).expand(-1, -1, 2, 2, 8).flatten(-3)  # one key: its value
    out = x + attention.output(value) + mlp.down(F.silu(mlp.gate(normal)) * mlp.up(normal))
    expected = F.layer_norm(out, (32,), eps=1e-5) @ model.embedding.weight.T * model.config.logit_scale
    assert close(model(ids), expected)


@torch.no_grad()
def test_qk_norm_is_per_head_and_before_the_rotation():
    model = tiny_model("qk-norm")
    attention = model.blocks[0].attention
    assert attention.query_norm.weight.shape == (4, 8) and attention.key_norm.weight.shape == (2, 8)
    x = torch.randn(1, T, 32, generator=torch.Generator().manual_seed(0))
    q = attention.queries(x, model.rotary_tables(torch.arange(T)))
    plain = F.layer_norm(attention.query(x).unflatten(-1, (4, 8)), (8,), eps=1e-5).transpose(1, 2)
    assert close(q, rotate(plain, rotary_table(torch.arange(T), 8, 1e4)))


def test_fresh_weights_follow_their_seed_and_their_scale():
    a, b, c = tiny_model(seed=0), tiny_model(seed=0), tiny_model(seed=1)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)
    wide = Decoder(ModelConfig.variant("rope", size="cpu", init=Init(embedding_std=0.7, matrix_gain=2.0)))
    assert wide.embedding.weight.std().item() == pytest.approx(0.7, rel=0.02)
    assert wide.blocks[0].feed_forward.down.weight.std().item() == pytest.approx(2 * 128**-0.5, rel=0.05)
    assert all((p == 1).all() for name, p in wide.named_parameters() if "norm" in name)


def test_a_shared_vector_is_added_to_every_embedding():
    init = Init(embedding_std=0.1, embedding_shared_std=3.0)
    weight = Decoder(ModelConfig.variant("rope", size="cpu", init=init)).embedding.weight
    assert weight.mean(0).std().item() == pytest.approx(3.0, rel=0.3)
    assert (weight - weight.mean(0)).std().item() == pytest.approx(0.1, rel=0.05)


def test_tied_keys_start_as_their_groups_first_query():
    model = tiny_model("rnope-swa", init=Init(tie_query_key=True))
    last, first = model.blocks[-1].attention, model.blocks[0].attention
    by_head = last.query.weight.unflatten(0, (4, 8))
    assert torch.equal(last.key.weight.unflatten(0, (2, 8)), by_head[[0, 2]])
    assert not torch.equal(first.key.weight.unflatten(0, (2, 8)), first.query.weight.unflatten(0, (4, 8))[[0, 2]])


def test_meta_device_holds_nothing():
    with torch.device("meta"):
        model = Decoder(ModelConfig.variant("rnope-swa", size="8b"))
    assert all(p.is_meta for p in model.parameters())
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("name", ["rope", "qk-norm", "rnope-swa"])
def test_gradients_reach_every_weight(name):
    model = tiny_model(name)
    F.cross_entropy(model(token_ids())[:, :-1].flatten(0, 1), token_ids()[:, 1:].flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ["qk-norm", "rnope-swa"])
@torch.no_grad()
def test_bfloat16_stays_near_float32(name):
    model, ids = tiny_model(name), token_ids()
    logits = model(ids)
    low = model.to(torch.bfloat16)(ids)
    assert low.dtype == torch.bfloat16
    assert (low.float() - logits).std() < 0.05 * logits.std()
