"""Attention of a comparison's models, folded by layer kind: against whole matrices, and what is blank."""

import math

import numpy as np
import pytest
import torch

from rnope.compare.look import PLACES, look
from rnope.data.needles import WORDS, Haystack, NeedleTask
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.results import SEGMENTS
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

VOCAB = 1024
SEED = 20250130


@pytest.fixture(scope="module")
def task():
    return NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS))


@pytest.fixture(scope="module")
def haystack():
    return Haystack([np.random.default_rng(i).integers(3, VOCAB, size=200) for i in range(5)])


@pytest.fixture
def looked(task, haystack):
    def run(model, *, needles_seed=SEED, context_tokens=64, samples=3):
        return look(
            model,
            task,
            haystack,
            arm="a",
            seed=6,
            needles_seed=needles_seed,
            context_tokens=context_tokens,
            samples=samples,
        )

    return run


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


def bits(shares):
    return -(shares * shares.clamp(min=1e-300).log2()).sum(-1)


@torch.no_grad()
def naive(model, task, haystack, length, samples):
    """kind -> by sample and layer: segments' masses, best head's needle mass, entropies, sink, span, hits by head, and the
    distribution; all by the whole matrices."""
    found = {}
    for sample in range(samples):
        rng = np.random.default_rng([SEED, 77, length, sample])
        context = task.context(rng, haystack, context_tokens=length, depths=[0.5])
        ((begin, end),) = context.spans
        where = {name: torch.zeros(length, dtype=torch.bool) for name in SEGMENTS}
        where["begin"][:10] = where["needle"][begin:end] = where["qc"][-4:] = True
        where["context"] = ~(where["begin"] | where["needle"] | where["qc"])
        for block, x, _ in inputs(model, torch.from_numpy(context.ids)[None]):
            rows = whole_matrix(model, block, x[0])[:, -4:]  # h 4 t
            asked = rows[:, 1]  # the key, which the value comes after
            kind = "-".join(filter(None, (block.attention.spec.position, block.attention.spec.window and "window")))
            back = rows.flip(-1).cumsum(-1)  # from the last token of the text
            spans = torch.stack([(back[:, i] < 0.9).sum(-1) + 1 - (3 - i) for i in range(4)], 1)
            found.setdefault(kind, {}).setdefault(sample, []).append({
                **{name: rows[..., mine].sum(-1).mean().item() for name, mine in where.items()},
                "best": asked[:, begin:end].sum(-1).max().item(),
                "row_entropy": bits(rows).mean().item(),
                "mean_entropy": bits(rows.mean((0, 1))).item(),
                "sink": rows[..., 0].mean().item(),
                "effective_span": spans.double().mean().item(),
                "hits": torch.isin(asked.argmax(-1), torch.tensor([begin + 1, begin + 2])).double(),  # the value or its key
                "spread": rows.mean((0, 1)),
            })  # fmt: skip
    return found


@pytest.mark.parametrize("variant", ["rope", "qk-norm", "rnope-swa"])
def test_measures_are_means_over_rows_heads_layers_and_samples(task, haystack, looked, variant):
    model = scrambled(variant)
    expected = naive(model, task, haystack, 64, 3)
    masses, spreads = looked(model)
    assert {row.kind for row in masses} == {row.kind for row in spreads} == set(expected)
    for row, spread in zip(masses, spreads, strict=True):
        samples = list(expected[row.kind].values())
        by_sample = {
            name: [np.mean([layer[name] for layer in layers]) for layers in samples]
            for name in (*SEGMENTS, "best", "row_entropy", "mean_entropy", "sink", "effective_span")
        }
        assert (row.arm, row.seed, row.context_tokens, row.n) == ("a", 6, 64, 3)
        assert sum(m for m in row.mass.values() if m is not None) == pytest.approx(1, abs=1e-6)
        found = {
            **row.mass,
            **{name: getattr(row, name) for name in ("row_entropy", "mean_entropy", "effective_span", "sink")},
        }
        t = 4.302653  # of two degrees of freedom
        for name, value in found.items():
            mean, half = np.mean(by_sample[name]), t * np.std(by_sample[name], ddof=1) / math.sqrt(3)
            if value is None:
                assert mean == 0 and row.low[name] is None and row.high[name] is None
            else:
                assert (value, row.low[name], row.high[name]) == pytest.approx(
                    (mean, mean - half, mean + half), rel=1e-5, abs=2e-5
                )
        assert row.best_head_needle == pytest.approx(np.mean(by_sample["best"]), abs=1e-6)
        hits = torch.stack([torch.stack([layer["hits"] for layer in layers]) for layers in samples])
        best = hits.mean(0).amax(-1).mean().item()
        assert row.retrieval == (None if row.mass["needle"] is None else pytest.approx(best))
        assert row.uniform == pytest.approx({"begin": 10 / 64, "needle": 4 / 64, "context": 46 / 64, "qc": 4 / 64})
        average = torch.stack([layer["spread"] for layers in samples for layer in layers]).mean(0)
        assert (spread.n, spread.smoothed_tokens) == (3, 1) and spread.positions == tuple(range(10, 62))
        assert spread.values == pytest.approx(average[10:62].tolist(), abs=1e-6)


def test_a_distribution_has_few_places_and_keeps_its_ends(looked):
    _, (spread,) = looked(tiny_model("nope", vocab_size=VOCAB, num_layers=1), context_tokens=2048, samples=1)
    assert spread.smoothed_tokens == round(100 * 2048 / 8000)
    assert len(spread.positions) == len(spread.values) == PLACES == len(set(spread.positions))
    assert spread.positions[0] == pytest.approx(10 + 12.5, abs=1) and spread.positions[-1] == pytest.approx(
        1986 - 12.5, abs=1
    )


@pytest.mark.parametrize("length", [64, 67])
def test_what_no_row_can_see_is_blank_and_what_one_can_see_is_not(task, haystack, looked, length):
    """Windows up to the whole context, against the positions that are visible from question and completion."""
    base = tiny_model("rope", vocab_size=VOCAB, num_layers=1)
    rng = np.random.default_rng([SEED, 77, length, 0])
    ((begin, end),) = task.context(rng, haystack, context_tokens=length, depths=[0.5]).spans
    names = ["begin"] * 10 + ["context"] * (begin - 10) + ["needle"] * (end - begin)
    names += ["context"] * (length - 4 - end) + ["qc"] * 4
    edges = {1, 2, length - 4 - end, length - end, length - begin, length - 14, length - 13, length - 4, length}
    for window in sorted({w + step for w in edges for step in (0, 1)}):
        layers = (LayerSpec(position="rope", theta=1e4, window=window),)
        (row,), _ = looked(Decoder(base.config.with_layers(layers)), context_tokens=length, samples=1)
        visible = set(names[max(0, length - 4 - (window - 1)) :])
        assert {name for name, mass in row.mass.items() if mass is not None} == visible, window
        assert all(row.mass[name] > 0 for name in visible)
        assert (row.sink is None) == ("begin" not in visible) and (row.retrieval is None) == ("needle" not in visible)


def test_the_widest_window_of_a_kind_decides(looked):
    base = tiny_model("rope", vocab_size=VOCAB, num_layers=1)
    narrow, wide = (LayerSpec(position="rope", theta=1e4, window=w) for w in (5, 50))
    (row,), _ = looked(Decoder(base.config.with_layers((narrow, wide, narrow))), samples=1)
    assert row.mass["needle"] > 0 and row.mass["begin"] is None and row.low["needle"] is None
    assert sum(m for m in row.mass.values() if m is not None) == pytest.approx(1, abs=1e-6)


def test_another_seed_of_the_needles_gives_other_samples(looked):
    model = tiny_model("nope", vocab_size=VOCAB)
    a, b, again = (looked(model, needles_seed=seed, samples=2)[0][0].mass for seed in (SEED, 3, SEED))
    assert a == again != b
