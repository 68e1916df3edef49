"""Attention mass: the rows that are recomputed against whole matrices, and the memory that they take."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnope.analysis.mass import BEGIN_TOKENS, SEGMENTS, attention_mass, probabilities, segment_ids
from rnope.config import Needles
from rnope.data.needles import WORDS, Haystack, NeedleTask
from rnope.evals.needles import Prompts
from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, LayerSpec
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

VOCAB = 1024


@pytest.fixture(scope="module")
def prompts():
    task = NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS))
    haystack = Haystack([np.random.default_rng(i).integers(3, VOCAB, size=200) for i in range(5)])
    return Prompts(task=task, haystack=haystack, settings=Needles())


def layer_norm(x, weight, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x, theta):
    """Rotary embedding [h, t, d] by complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    size = x.shape[-1]
    speeds = torch.tensor([theta ** (-2 * i / size) for i in range(size // 2)], dtype=torch.float64)
    angles = torch.arange(x.shape[1])[:, None] * speeds
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def whole_matrix(model, block, x):
    """[h, t, t] attention of a block's input [t, width], in float64, from its weights and its `LayerSpec` alone."""
    config, spec, attention = model.config, block.attention.spec, block.attention
    x = layer_norm(x.double(), block.norm.weight.double(), config.norm_eps)
    q, k = (
        (x @ linear.weight.double().T).unflatten(-1, (-1, config.head_size)).transpose(0, 1)
        for linear in (attention.query, attention.key)
    )  # h t d
    if spec.qk_norm:
        q = layer_norm(q, attention.query_norm.weight.double()[:, None], config.norm_eps)
        k = layer_norm(k, attention.key_norm.weight.double()[:, None], config.norm_eps)
    if spec.theta is not None:
        q, k = turned(q, spec.theta), turned(k, spec.theta)
    shares = []
    for head in range(config.heads):
        scores = q[head] @ k[head // (config.heads // config.kv_heads)].T / math.sqrt(config.head_size)
        for i in range(len(x)):
            scores[i, i + 1 :] = -math.inf
            if spec.window is not None:
                scores[i, : max(0, i - spec.window + 1)] = -math.inf
        shares.append(scores.softmax(-1))
    return torch.stack(shares)


def scrambled(variant, **overrides):
    """A model whose norms are not all ones."""
    model = tiny_model(variant, vocab_size=VOCAB, **overrides)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return model


def inputs(model, ids):
    """Every block with its input [1, t, width]."""
    tables = model.rotary_tables(torch.arange(ids.shape[1]))
    x = model.embedding(ids)
    for block in model.blocks:
        yield block, x, tables
        x = block(x, tables)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_probabilities_are_the_rows_of_the_whole_matrix(variant):
    model = scrambled(variant)
    assert model.config.heads > model.config.kv_heads
    ids = torch.randint(3, VOCAB, (1, 40), generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([0, 3, 4, 5, 11, 38, 39])
    for block, x, tables in inputs(model, ids):
        found = probabilities(block, x, tables, rows)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), whole_matrix(model, block, x[0])[:, rows], atol=2e-6)


def test_segments_are_where_they_should_be(prompts):
    context = prompts.task.context(np.random.default_rng(0), prompts.haystack, context_tokens=200, depths=[0.5])
    (span,) = context.spans
    segment = segment_ids(context, span, 196)
    for at in range(200):
        name = "qc" if at >= 196 else "needle" if span[0] <= at < span[1] else "begin" if at < 10 else "context"
        assert SEGMENTS[segment[at]] == name
    assert span[1] - span[0] == 4 and abs(span[0] - 100) < 5
    assert context.ids[196] == prompts.task.recall and int(context.rows[0]) == 197


@torch.no_grad()
def naive_masses(model, prompts, length, samples):
    """kind -> (mass by segment, best head's needle mass), by the whole matrices."""
    found, best = {}, {}
    for sample in range(samples):
        rng = np.random.default_rng([prompts.settings.seed, 77, length, sample])
        context = prompts.task.context(rng, prompts.haystack, context_tokens=length, depths=[0.5])
        segment = segment_ids(context, context.spans[0], length - 4)
        for block, x, _ in inputs(model, torch.from_numpy(context.ids)[None]):
            rows = whole_matrix(model, block, x[0])[:, -4:]  # h 4 t
            masses = [rows[:, :, segment == i].sum(-1).mean().item() for i in range(4)]
            kind = block.attention.spec.kind
            found.setdefault(kind, []).append(masses)
            best.setdefault(kind, []).append(rows[:, 1][:, segment == 1].sum(-1).max().item())
    return {kind: (np.mean(found[kind], axis=0), np.mean(best[kind])) for kind in found}


@pytest.mark.parametrize("variant", ["rope", "qk-norm", "rnope-swa", "rnope-10k-swa"])
def test_masses_are_means_over_rows_heads_layers_and_samples(prompts, variant):
    model = scrambled(variant)
    expected = naive_masses(model, prompts, 64, 3)
    rows = attention_mass(model, prompts, arm="a", seed=6, context_tokens=64, samples=3)
    assert {row.kind for row in rows} == set(model.config.kinds()) == set(expected)
    for row in rows:
        masses, best = expected[row.kind]
        assert (row.arm, row.seed, row.context_tokens, row.n) == ("a", 6, 64, 3)
        assert sum(m for m in row.mass.values() if m is not None) == pytest.approx(1, abs=1e-6)
        assert [row.mass[name] or 0.0 for name in SEGMENTS] == pytest.approx(masses, abs=1e-6)
        assert row.best_head_needle == pytest.approx(best, abs=1e-6)
        assert list(row.uniform) == list(SEGMENTS) and sum(row.uniform.values()) == pytest.approx(1)
        assert row.uniform == pytest.approx({"begin": 10 / 64, "needle": 4 / 64, "context": 46 / 64, "qc": 4 / 64})


@pytest.mark.parametrize("length", [64, 65, 66, 67])
def test_what_no_row_can_see_is_blank_and_what_one_can_see_is_not(prompts, length):
    """Every window up to the whole context, against the positions that are visible from question and completion."""
    base = tiny_model("rope", vocab_size=VOCAB, num_layers=1)
    context = prompts.task.context(np.random.default_rng(0), prompts.haystack, context_tokens=length, depths=[0.5])
    segment = segment_ids(context, context.spans[0], length - 4).tolist()
    for window in range(1, length + 2):
        layers = (LayerSpec(position="rope", theta=1e4, window=window),)
        model = Decoder(base.config.with_layers(layers))
        (row,) = attention_mass(model, prompts, arm="a", seed=0, context_tokens=length, samples=1)
        visible = {SEGMENTS[s] for s in segment[max(0, length - 4 - (window - 1)) :]}
        assert {name for name, mass in row.mass.items() if mass is not None} == visible, window
        assert all(row.mass[name] > 0 for name in visible)


def test_the_widest_window_of_a_kind_decides(prompts):
    base = tiny_model("rope", vocab_size=VOCAB, num_layers=1)
    narrow, wide = (LayerSpec(position="rope", theta=1e4, window=w) for w in (5, 50))
    model = Decoder(base.config.with_layers((narrow, wide, narrow)))
    (row,) = attention_mass(model, prompts, arm="a", seed=0, context_tokens=64, samples=1)
    assert row.mass["needle"] > 0 and row.mass["begin"] is None
    assert sum(m for m in row.mass.values() if m is not None) == pytest.approx(1, abs=1e-6)


def test_another_seed_of_the_prompts_gives_other_samples(prompts):
    model = tiny_model("nope", vocab_size=VOCAB)
    other = replace(prompts, settings=Needles(seed=3))
    a, b = (attention_mass(model, p, arm="a", seed=0, context_tokens=64, samples=2)[0].mass for p in (prompts, other))
    again = attention_mass(model, prompts, arm="a", seed=0, context_tokens=64, samples=2)[0].mass
    assert a == again != b


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def test_no_matrix_of_all_positions_by_all_positions_is_ever_held(prompts):
    """SPEC A4. The bound is far below 4,096² and above what rows, vocabulary and tiles need."""
    length = 4096
    layers = (
        LayerSpec(position="rope", theta=1e4, window=16),
        LayerSpec(position="nope"),
        LayerSpec(position="rope", theta=1e4, qk_norm=True),
    )
    small = tiny_model("rope", vocab_size=VOCAB, num_layers=1, width=8, heads=2, kv_heads=1, head_size=4, ffn_width=16)
    model = Decoder(small.config.with_layers(layers))
    with Largest() as largest:
        rows = attention_mass(model, prompts, arm="a", seed=0, context_tokens=length, samples=1)
    assert len(rows) == 3 and rows[0].mass["needle"] is None
    assert 4 * length <= largest.numel < length * length // 16
    with Largest() as caught:
        torch.ones(length, 1) @ torch.ones(1, length)
    assert caught.numel == length * length, "the watch does see such a matrix"


def test_begin_is_ten_tokens_as_in_the_paper():
    assert BEGIN_TOKENS == 10
