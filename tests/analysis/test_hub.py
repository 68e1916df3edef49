"""The probe through transformers: against eager attention outputs of the whole text and `generate`, class by class."""

import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from rnope.analysis import hub
from rnope.analysis.hub import HubProbed
from rnope.analysis.probe import Marks, probe
from rnope.analysis.rows import rows_by_group

sys.path.insert(0, str(Path(__file__).parent))
from hub_toys import LENGTH, MODELS, build, built, dense, eager, generated, looked, made, text

logging.set_verbosity_error()


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_eager_attention_and_new_tokens_are_those_of_generate(name):
    model, ids = built(name), text()
    expected = generated(model, ids, 4)
    whole = eager(model, ids + expected[:3])
    for chunk, rows_from in ((5, 11), (1, 26), (64, 0)):
        probed = HubProbed(model, chunk=chunk)
        rows, new = looked(probed, ids, rows_from=rows_from, new_tokens=4)
        assert new == expected
        assert list(rows) == [layer.index for layer in probed.layers]
        for mine, theirs in zip(rows.values(), whole, strict=True):
            torch.testing.assert_close(mine, theirs[:, rows_from:], atol=1e-5, rtol=0)


def test_rows_are_uneven():
    """Otherwise the test above would prove little: a wrong key would not show."""
    for name in MODELS:
        last = [rows[:, -1] for rows in eager(built(name), text())]
        assert max(row.max() * (row > 0).sum() for rows in last for row in rows) > 2, name


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_go_by_the_length_are_read_at_once_and_from_the_start(kind):
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0, 5.0, 3.0, 2.0], "original_max_position_embeddings": 16}
    sizes = {"rope_parameters": rope, "max_position_embeddings": 16 if kind == "dynamic" else 64}
    probed = HubProbed(made("Llama", sizes), chunk=5)
    for length in (30, 20, 12):  # what was read before does not matter
        ids = text(length=length)
        rows, _ = looked(probed, ids, rows_from=7)
        for mine, theirs in zip(rows.values(), eager(made("Llama", sizes), ids), strict=True):
            torch.testing.assert_close(mine, theirs[:, 7:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_read_off_what_they_do(name):
    model, layers = built(name), HubProbed(built(name)).layers
    assert [layer.kind for layer in layers] == MODELS[name][2]
    size = 8 if name == "llama4" else 7
    assert {layer.window for layer in layers if layer.window is not None} <= {size}
    assert {layer.heads for layer in layers} == {4}
    expected = 4 if name == "gpt2" else model.config.num_key_value_heads
    assert {layer.kv_heads for layer in layers} == {expected}
    assert [layer.index for layer in layers] == ([1, 3] if name in ("jamba", "lfm2") else [0, 1, 2, 3])


def test_a_padding_token_without_weights_hides_no_rotation():
    model = build("llama")
    model.get_input_embeddings().weight[0] = 0  # its keys are the same at every place
    assert [layer.position for layer in HubProbed(model).layers] == ["rope"] * 4


@pytest.mark.parametrize("name", ["gemma2", "gpt-oss"])
def test_attention_that_torch_lacks_is_the_same_in_blocks_of_any_size(name, monkeypatch):
    expected, _ = looked(HubProbed(built(name)), text(), rows_from=20)
    monkeypatch.setattr(hub, "_BLOCK_SCORES", 100)
    found, _ = looked(HubProbed(built(name), chunk=11), text(), rows_from=20)
    for layer, rows in found.items():
        torch.testing.assert_close(rows, expected[layer], atol=1e-6, rtol=0)


def test_sinks_take_their_share():
    captured = []
    HubProbed(built("gpt-oss")).read(text(), rows_from=20, take=captured.append)
    found = [rows for each in captured for rows in rows_by_group(each)]
    assert max(rows.sink.max().item() for rows in found) > 0.05
    for rows in found:
        torch.testing.assert_close(rows.probabilities.sum(-1) + rows.sink, torch.ones_like(rows.sink))


def test_half_precision_is_read_as_it_is_and_rows_are_exact():
    model = build("cohere2").to(torch.bfloat16)
    captured = []
    HubProbed(model, chunk=8).read(text(), rows_from=10, take=captured.append)
    assert {each.queries.dtype for each in captured} == {each.keys.dtype for each in captured} == {torch.bfloat16}
    assert [layer.kind for layer in HubProbed(model).layers] == MODELS["cohere2"][2]
    for mine, theirs in zip(dense(captured, LENGTH).values(), eager(model, text()), strict=True):
        torch.testing.assert_close(mine.sum(-1), torch.ones(mine.shape[:2]), atol=1e-6, rtol=0)
        torch.testing.assert_close(mine, theirs[:, 10:].float(), atol=0.05, rtol=0)


def test_the_probe_reads_through_it():
    ids = text()
    marks = Marks(ids=ids, spans={"begin": ((0, 10),), "context": ((10, 25),), "qc": ((25, LENGTH),)})
    model = built("cohere2")
    readings, new = probe(
        HubProbed(model, chunk=4), marks, {"begin": lambda rows, marks: rows.probabilities[..., rows.columns((0, 10))].sum(-1)},
        rows_from=25,
    )  # fmt: skip
    assert new == []
    for reading, whole in zip(readings, eager(model, ids), strict=True):
        torch.testing.assert_close(
            reading.values["begin"], whole[:, 25:, :10].sum(-1).mean(-1).double(), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(reading.distribution, whole[:, 25:].mean((0, 1)).double(), atol=1e-5, rtol=0)
