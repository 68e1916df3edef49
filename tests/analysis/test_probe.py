"""The probe's bookkeeping, on a model that is nothing but queries and keys: pieces, means, distributions."""

import math
import weakref

import pytest
import torch

from rnope.analysis import rows
from rnope.analysis.probe import Layer, Marks, probe
from rnope.analysis.rows import Captured
from rnope.errors import ConfigError, UserError

FULL = Layer(index=0, position="nope", window=None, heads=4, kv_heads=2)
WINDOW = Layer(index=3, position="rope", window=6, heads=6, kv_heads=2)
IDS = list(range(40))
MARKS = Marks(ids=IDS, spans={"a": ((0, 10),), "b": ((10, 40),)})


class Fixed:
    """Hands over random queries and keys, in pieces of the given numbers of rows, layer by layer within each."""

    def __init__(self, pieces, layers=(FULL, WINDOW), sinks=None):
        self.pieces, self.layers, self.sinks = pieces, layers, sinks
        generator = torch.Generator().manual_seed(0)
        self.queries = {each.index: torch.randn(each.heads, 50, 8, generator=generator) for each in layers}
        self.keys = {each.index: torch.randn(each.kv_heads, 50, 8, generator=generator) for each in layers}

    def read(self, ids, *, rows_from, take, new_tokens=0):
        at = rows_from
        for count in self.pieces:
            for layer in self.layers:
                # A window's cache: what the piece's first row sees, and the piece.
                first = 0 if layer.window is None else max(0, at - layer.window + 1)
                take(
                    Captured(
                        layer=layer.index,
                        queries=self.queries[layer.index][:, at : at + count],
                        keys=self.keys[layer.index][:, first : at + count],
                        positions=torch.arange(at, at + count),
                        first_key=first,
                        scale=0.5,
                        window=layer.window,
                        sinks=self.sinks,
                    )
                )
            at += count
        return list(range(new_tokens))

    def dense(self, layer, total):
        """[h, t, t] in float64; with a sink's share left out."""
        group = layer.heads // layer.kv_heads
        q, k = self.queries[layer.index].double(), self.keys[layer.index].double().repeat_interleave(group, 0)
        scores = 0.5 * q[:, :total] @ k[:, :total].mT
        for i in range(total):
            scores[:, i, i + 1 :] = -math.inf
            if layer.window is not None:
                scores[:, i, : max(0, i - layer.window + 1)] = -math.inf
        if self.sinks is not None:
            learned = self.sinks.double()[:, None, None].expand(-1, total, 1)
            return torch.cat((scores, learned), -1).softmax(-1)[..., :-1]
        return scores.softmax(-1)


def share(rows, marks):
    """Of the span ``a``."""
    (span,) = marks.spans["a"]
    return rows.probabilities[..., rows.columns(span)].sum(-1)


def both(rows, marks):
    """A vector for each row."""
    spans = [span for (span,) in marks.spans.values()]
    return torch.stack([rows.probabilities[..., rows.columns(span)].sum(-1) for span in spans], -1)


def even(rows, marks):
    """A number for rows at even positions alone."""
    values = rows.positions.double().expand(len(rows.probabilities), -1).clone()
    values[:, rows.positions % 2 == 1] = math.nan
    return values


def never(rows, marks):
    return torch.full_like(rows.sink, math.nan)


MEASURES = {"first": share, "both": both, "even": even, "never": never}


@pytest.mark.parametrize("pieces", [(11,), (1,) * 11, (4, 7), (10, 1), (2, 3, 6)])
def test_any_split_of_the_rows_gives_the_same_reading(pieces):
    model = Fixed(pieces)
    readings, new = probe(model, MARKS, MEASURES, rows_from=29)
    assert new == [] and [reading.layer for reading in readings] == [FULL, WINDOW]
    for reading in readings:
        dense = model.dense(reading.layer, 40)[:, 29:]  # h 11 t
        a, b = dense[..., :10].sum(-1).mean(1), dense[..., 10:].sum(-1).mean(1)
        assert reading.rows == 11 and list(reading.values) == list(MEASURES)
        assert torch.allclose(reading.values["first"], a, rtol=0, atol=1e-6)
        assert torch.allclose(reading.values["both"], torch.stack((a, b), -1), rtol=0, atol=1e-6)
        assert reading.values["even"].tolist() == [34.0] * reading.layer.heads  # 30, 32, 34, 36, 38
        assert reading.values["never"].shape == (reading.layer.heads,) and reading.values["never"].isnan().all()
        assert reading.distribution.dtype == torch.float64 and len(reading.distribution) == 40
        assert torch.allclose(reading.distribution, dense.mean((0, 1)), rtol=0, atol=1e-7)
        assert reading.distribution.sum().item() == pytest.approx(1, abs=1e-6)
    windowed = readings[1]
    assert windowed.distribution[: 29 - 5].abs().max() == 0 and windowed.distribution[29 - 5] > 0


def test_a_row_that_counts_in_one_piece_alone():
    """Pieces have rows each; a mean of the pieces' means would weigh them wrongly."""

    def late(rows, marks):
        values = rows.positions.double().expand(len(rows.probabilities), -1).clone()
        values[:, rows.positions < 32] = math.nan
        return values

    for pieces in ((3, 1, 7), (11,)):
        reading = probe(Fixed(pieces), MARKS, {"late": late}, rows_from=29)[0][0]
        assert reading.values["late"].tolist() == [35.5] * 4


def test_what_a_sink_takes_is_missing_from_the_distribution():
    model = Fixed((3, 8), layers=(FULL,), sinks=torch.tensor([-1.0, 0.0, 1.0, 3.0]))
    readings, _ = probe(model, MARKS, {"sink": lambda rows, marks: rows.sink}, rows_from=29)
    dense = model.dense(FULL, 40)[:, 29:]
    assert torch.allclose(readings[0].values["sink"], 1 - dense.sum(-1).mean(1), rtol=0, atol=1e-6)
    total = readings[0].distribution.sum().item()
    assert total < 0.95 and total == pytest.approx(1 - readings[0].values["sink"].mean().item(), abs=1e-6)


def test_new_tokens_are_rows_and_keys_too():
    """The last of them is not read."""
    model = Fixed((11, 1, 1))
    readings, new = probe(model, MARKS, {"first": share}, rows_from=29, new_tokens=3)
    assert new == [0, 1, 2]
    for reading in readings:
        dense = model.dense(reading.layer, 42)[:, 29:]
        assert reading.rows == 13 and len(reading.distribution) == 42
        assert torch.allclose(reading.distribution, dense.mean((0, 1)), rtol=0, atol=1e-7)
        assert torch.allclose(reading.values["first"], dense[..., :10].sum(-1).mean(1), rtol=0, atol=1e-6)


def test_rows_of_one_group_are_gone_when_the_next_are_made(monkeypatch):
    make, made = rows._rows, []

    def watched(*args):
        assert all(each() is None for each in made)
        found = make(*args)
        made.append(weakref.ref(found.probabilities))
        return found

    monkeypatch.setattr(rows, "_rows", watched)
    probe(Fixed((5, 6)), MARKS, MEASURES, rows_from=29)
    assert len(made) == 2 * 2 * 2


@pytest.mark.parametrize("rows_from", [-1, 40, 41, 3.0, True])
def test_rows_must_begin_inside_the_text(rows_from):
    with pytest.raises(ConfigError, match=r"rows_from = .*: must be a place in the text of 40 tokens"):
        probe(Fixed((1,)), MARKS, {}, rows_from=rows_from)


def test_the_kind_of_a_layer():
    assert (FULL.kind, WINDOW.kind) == ("nope", "rope-window")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_attention_that_is_no_number_is_the_weights_fault(wrong):
    model = Fixed([3])
    model.keys[3][1, 20] = wrong
    with pytest.raises(UserError, match=r"attention of layer 3 is not a number.*dtype"):
        probe(model, MARKS, {}, rows_from=20)
