"""The probe through the engine: against the rows of the whole text, transformers' eager attention, and `Engine.generate`."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import rnope
from rnope.analysis.ours import EngineProbed
from rnope.analysis.probe import Marks, probe
from rnope.analysis.rows import rows_by_group
from rnope.errors import ConfigError
from rnope.generate import Engine
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.testing import tiny_model

VARIANTS = ["rope", "qk-norm", "nope", "rnope", "rnope-swa"]
LENGTH, WINDOW = 37, 5


def stirred(variant, **overrides):
    """Norms that are not all ones, and queries that make rows uneven."""
    return with_norms(tiny_model(variant, seed=3, **overrides))


def with_norms(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
            if "query.weight" in name or "key.weight" in name:
                parameter.mul_(2)
    return model.requires_grad_(False)


def text(length, seed=7):
    return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def gathered(model, ids, **options):
    """Attention [layers, h, r, t] of what is handed over, zeros where a layer no longer has the key; the new tokens."""
    pieces = {}

    def take(captured):
        rows = torch.cat([rows.probabilities for rows in rows_by_group(captured)])
        pieces.setdefault(captured.layer, []).append((captured.positions, captured.first_key, rows))

    new = model.read(ids, take=take, **options)
    total = len(ids) + max(len(new) - 1, 0)
    layers = []
    for index in range(len(model.layers)):
        at = torch.cat([positions for positions, _, _ in pieces[index]])
        assert at.tolist() == list(range(options["rows_from"], total))
        whole = torch.zeros(len(pieces[index][0][2]), total, total)
        for positions, first, rows in pieces[index]:
            whole[:, positions, first : first + rows.shape[-1]] = rows
        layers.append(whole[:, options["rows_from"] :])
    return torch.stack(layers), new


@torch.no_grad()
def slow(model, ids):
    """[layers, h, t, t], from the inputs of every block over the whole text."""
    places = torch.arange(len(ids))
    behind = places[:, None] - places
    tables = model.rotary_tables(places)
    x, found = model.embedding(torch.tensor(ids)[None]), []
    for block in model.blocks:
        queries = block.attention.queries(block.norm(x), tables)[0].float()
        keys = block.attention.keys_values(block.norm(x), tables)[0][0].float()
        scores = queries @ keys.repeat_interleave(len(queries) // len(keys), 0).mT / queries.shape[-1] ** 0.5
        window = block.attention.spec.window or len(ids)
        found.append(scores.masked_fill((behind < 0) | (behind >= window), -torch.inf).softmax(-1))
        x = block(x, tables)
    return torch.stack(found)


def eager(folder, ids):
    """[layers, h, t, t], as transformers gives it."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.cat(model(torch.tensor([ids]), output_attentions=True).attentions)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() < 1e-5
    assert expected.std() > 0.01  # uneven, so that there is something to tell apart


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_those_of_the_whole_text_and_of_transformers_eager(variant, tmp_path):
    """Windows of 5 in a text of 37, chunks that split the rows, and 6 new tokens."""
    model = stirred(variant)
    rnope.save(model, tmp_path / "model")
    ids = text(LENGTH)
    found, new = gathered(EngineProbed(model, chunk=8), ids, rows_from=19, new_tokens=6)
    assert len(new) == 6
    read = ids + new[:-1]
    assert_same(found, slow(model, read)[:, :, 19:])
    assert_same(found, eager(tmp_path / "model", read)[:, :, 19:])


@pytest.mark.parametrize("chunk", [1, 3, 16, 2048])
@pytest.mark.parametrize("rows_from", [0, 1, 4, 16, 36])
def test_rows_from_anywhere_in_chunks_of_any_size(chunk, rows_from):
    model = stirred("rnope-swa")
    found, new = gathered(EngineProbed(model, chunk=chunk), text(LENGTH), rows_from=rows_from)
    assert new == []
    assert_same(found, slow(model, text(LENGTH))[:, :, rows_from:])


def test_every_kind_of_layer_at_once():
    specs = [
        LayerSpec(position=position, theta=theta, window=window, qk_norm=qk_norm)
        for position, theta in (("rope", 1e4), ("nope", None))
        for window in (1, 7, None)
        for qk_norm in (True, False)
    ]
    model = with_norms(Decoder(tiny_model().config.with_layers(tuple(specs)), seed=2))
    probed = EngineProbed(model, chunk=6)
    assert [(each.index, each.position, each.window) for each in probed.layers] == [
        (i, spec.position, spec.window) for i, spec in enumerate(specs)
    ]
    assert {(each.heads, each.kv_heads) for each in probed.layers} == {(model.config.heads, model.config.kv_heads)}
    assert model.config.heads > model.config.kv_heads
    found, new = gathered(probed, text(LENGTH), rows_from=20, new_tokens=3)
    assert_same(found, slow(model, text(LENGTH) + new[:-1])[:, :, 20:])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("new_tokens", [1, 12])
def test_new_tokens_are_the_engines(variant, new_tokens):
    model = stirred(variant)
    (expected,) = Engine(model).generate([text(20)], new_tokens).tokens
    assert gathered(EngineProbed(model, chunk=7), text(20), rows_from=15, new_tokens=new_tokens)[1] == expected


def test_a_text_is_read_as_if_it_were_the_first():
    """Also where the reader before broke off."""
    model = stirred("rnope-swa")
    probed = EngineProbed(model, chunk=8)
    expected = gathered(probed, text(LENGTH), rows_from=30, new_tokens=2)

    def refuse(captured):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        probed.read(text(LENGTH), rows_from=3, take=refuse)
    assert probed.engine.held_bytes() == 0
    found = gathered(probed, text(LENGTH), rows_from=30, new_tokens=2)
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def test_models_of_16_bits_give_rows_in_float32():
    """Of the model's own queries and keys: rows sum to 1 as bf16 could not."""
    model = stirred("rnope-swa").bfloat16()
    found, _ = gathered(EngineProbed(model, chunk=8), text(LENGTH), rows_from=20)
    assert found.dtype == torch.float32
    assert torch.allclose(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-6)
    assert (found - slow(model, text(LENGTH))[:, :, 20:]).abs().max() < 0.1


def test_a_probe_of_our_own_model():
    model = stirred("rnope-swa")
    marks = Marks(ids=text(LENGTH), spans={"all": ((0, LENGTH),)})
    first = {"first": lambda rows, marks: rows.probabilities[..., rows.columns((0, 1))].sum(-1)}
    readings, _ = probe(EngineProbed(model, chunk=8), marks, first, rows_from=30)
    for reading, expected in zip(readings, slow(model, text(LENGTH))[:, :, 30:].double(), strict=True):
        assert torch.allclose(reading.values["first"], expected[..., 0].mean(1), atol=1e-6)
        assert torch.allclose(reading.distribution, expected.mean((0, 1)), atol=1e-6)


@pytest.mark.parametrize(
    ("ids", "rule"), [([], "there are no tokens"), ([5, 97], "outside the vocabulary"), ([1.5], "flat list of token ids")]
)  # fmt: skip
def test_bad_text(ids, rule):
    with pytest.raises(ConfigError, match=rule):
        EngineProbed(tiny_model()).read(ids, rows_from=0, take=print)


def test_a_chunk_has_a_token():
    with pytest.raises(ConfigError, match="chunk_tokens = 0"):
        EngineProbed(tiny_model(), chunk=0)
