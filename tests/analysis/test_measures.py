"""Measures against loops over every row and key in float64, on rows with sinks, windows and keys that do not begin at 0."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.analysis import measures
from rnope.analysis.measures import MEASURES, mean_entropy, reach, smoothed
from rnope.analysis.probe import Layer, Marks
from rnope.analysis.rows import Rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(measures, "_BLOCK", 7)


def made(seed, *, heads=3, positions=(20, 21, 22, 30, 39), total=40, window=None, sinks=False, sharp=3.0):
    """Rows of random scores; the keys that no row sees are left out in front, as a layer with a window does."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(heads, len(positions), total, generator=generator) * sharp
    behind = torch.tensor(positions)[:, None] - torch.arange(total)
    unseen = (behind < 0) | (behind >= (window or total))
    scores = torch.cat((scores.masked_fill(unseen, -torch.inf), torch.randn(heads, len(positions), 1)), -1)
    if not sinks:
        scores[..., -1] = -torch.inf
    shares = scores.softmax(-1)
    first = 0 if window is None else max(0, positions[0] - window + 1)
    return Rows(
        probabilities=shares[..., first:-1], positions=torch.tensor(positions), first_key=first, sink=shares[..., -1]
    )


MARKS = Marks(
    ids=range(40),
    spans={
        "begin": ((0, 3),),
        "needle": ((9, 15),),
        "context": ((3, 9), (15, 31)),
        "qc": ((33, 40),),
        "x": ((31, 33),),
    },
    copied={20: (9,), 22: (10, 31), 39: (25,)},
)
KINDS = {
    "full": {},
    "sinks": {"sinks": True},
    "window": {"window": 12},
    "window and sinks": {"window": 12, "sinks": True},
    "sharp": {"sharp": 40.0},  # most keys have exactly 0
    "one key": {"positions": (0,), "total": 1},
}


def each(rows):
    """Every head and row as (h, r, position of the query, {position of a key: share})."""
    for h, head in enumerate(rows.probabilities.double().numpy()):
        for r, row in enumerate(head):
            yield h, r, int(rows.positions[r]), {rows.first_key + i: float(p) for i, p in enumerate(row)}


def slow(name, rows, marks):
    found = {}
    for h, r, position, row in each(rows):
        total = sum(row.values())
        if name == "mass":
            found[h, r] = [
                sum(p for k, p in row.items() if any(a <= k < b for a, b in s)) for s in marks.spans.values()
            ]
        elif name == "row_entropy":
            found[h, r] = -sum(p / total * math.log2(p / total) for p in row.values() if p)
        elif name == "retrieval":
            top = max(row, key=lambda k: (row[k], -k))
            found[h, r] = float(top in marks.copied[position]) if position in marks.copied else math.nan
        elif name == "sink":
            found[h, r] = row.get(0, 0.0) + float(rows.sink[h, r])
        else:
            tokens, held = 0, 0.0
            while held < 0.9 * total:
                held += row.get(position - tokens, 0.0)
                tokens += 1
            found[h, r] = tokens
    return np.array([[found[h, r] for r in range(len(rows.positions))] for h in range(len(rows.probabilities))])


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [7, 40, 1024])
def test_measures_are_what_a_loop_over_keys_finds(name, kind, block, monkeypatch):
    monkeypatch.setattr(measures, "_BLOCK", block)
    for seed in range(3):
        rows = made(seed, **KINDS[kind])
        found = MEASURES[name](rows, MARKS)
        assert found.shape[:2] == rows.sink.shape
        np.testing.assert_allclose(found.double().numpy(), slow(name, rows, MARKS), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.integers(1, 50), window=st.integers(1, 40), sinks=st.booleans())
def test_spans_end_where_the_share_is_reached_whatever_the_blocks(seed, block, window, sinks):
    rows = made(seed, window=window, sinks=sinks, sharp=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "_BLOCK", block)
        found = measures.effective_span(rows, MARKS)
    assert found.tolist() == slow("effective_span", rows, MARKS).tolist()


def planted(row):
    shares = torch.tensor(row)[None, None]
    return Rows(
        probabilities=shares, positions=torch.tensor([len(row) - 1]), first_key=0, sink=1 - shares.sum(-1)
    )  # fmt: skip


def test_the_ends_of_the_scales():
    marks = Marks(ids=range(8), spans={"needle": ((2, 3),)}, copied={7: (2,)})
    even, needle, self_only = planted([1 / 8] * 8), planted([0.0, 0, 1, 0, 0, 0, 0, 0]), planted([0.0] * 7 + [1])
    half = planted([0.0, 0, 0.25, 0, 0, 0, 0, 0.25])  # the other half is the learned sink's
    expected = {
        "row_entropy": (3, 0, 0, 1),
        "retrieval": (0, 1, 0, 1),  # of two equal keys the first counts
        "sink": (1 / 8, 0, 0, 0.5),
        "effective_span": (8, 6, 1, 6),
        "mass": (1 / 8, 1, 0, 0.25),
    }
    assert set(expected) == set(MEASURES)
    for name, values in expected.items():
        found = [MEASURES[name](rows, marks).item() for rows in (even, needle, self_only, half)]
        assert found == pytest.approx(values, abs=1e-6), name


def test_a_row_that_the_sink_takes_whole_has_no_entropy_and_no_span():
    rows, marks = planted([0.0] * 5), Marks(ids=range(5), spans={"context": ((0, 5),)})
    assert measures.row_entropy(rows, marks).isnan().all() and measures.effective_span(rows, marks).isnan().all()
    assert measures.sink(rows, marks).item() == 1 and measures.mass(rows, marks).item() == 0


def test_segments_without_a_stretch_and_behind_the_keys_have_nothing():
    marks = Marks(ids=range(40), spans={"context": (), "later": ((40, 60),), "all": ((0, 40),)})
    assert measures.mass(made(0), marks)[0, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_measures_copy_a_block_of_the_rows_and_not_the_rows(monkeypatch):
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Allocated(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
            for leaf in tree_leaves(out):
                if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in known:
                    self.most = max(self.most, leaf.untyped_storage().nbytes())
            return out

    monkeypatch.setattr(measures, "_BLOCK", 64)
    rows = made(0, positions=(8190, 8191), total=8192)
    rows = Rows(
        probabilities=rows.probabilities.contiguous(), positions=rows.positions, first_key=0, sink=rows.sink
    )  # fmt: skip
    marks = Marks(ids=range(8192), spans={"context": ((0, 8192),)}, copied={8191: (3,)})
    for name, measure in MEASURES.items():
        with Allocated() as watch:
            measure(rows, marks)
        assert 0 < watch.most < rows.probabilities.nbytes / 4, name
    with Allocated() as watch:
        torch.special.entr(rows.probabilities)
    assert watch.most == rows.probabilities.nbytes, "the watch does see such a copy"


@pytest.mark.parametrize("window", [*range(1, 42), None])
def test_a_window_reaches_the_segments_of_the_keys_that_its_rows_see(window):
    layer = Layer(index=0, position="rope", window=window, heads=1, kv_heads=1)
    visible = range(0 if window is None else max(0, 33 - window + 1), 40)
    expected = {name for name, spans in MARKS.spans.items() if any(a <= k < b for a, b in spans for k in visible)}
    assert reach(layer, MARKS, 33) == expected
    assert reach(layer, Marks(ids=[], spans={"context": ()}), 33) == frozenset()


def test_entropy_of_the_mean_is_that_of_its_shares():
    assert mean_entropy(torch.full((1024,), 1 / 1024)) == pytest.approx(10)
    assert mean_entropy(torch.tensor([0.25, 0.0, 0.25])) == pytest.approx(1), "a sink took half: scaled"
    assert mean_entropy(torch.tensor([0.0, 3.0])) == 0
    assert math.isnan(mean_entropy(torch.zeros(4)))


def test_the_mean_of_sharp_rows_has_more_entropy_than_they_have():
    """Why the two ways of A2 are not the same: heads that look at one key each, another one every time."""
    rows = Rows(
        probabilities=torch.eye(16)[:, None], positions=torch.tensor([15]), first_key=0, sink=torch.zeros(16, 1)
    )  # fmt: skip
    assert measures.row_entropy(rows, MARKS).tolist() == [[0.0]] * 16
    assert mean_entropy(rows.probabilities.mean((0, 1))) == pytest.approx(4)


@pytest.mark.parametrize(
    ("tokens", "width"), [(11, 1), (100, 1), (256, 3), (4000, 50), (8000, 100), (8192, 100), (20_000, 100)]
)
def test_distributions_are_cut_and_averaged_as_in_the_paper(tokens, width):
    distribution = np.random.default_rng(tokens).random(tokens)
    places, values, used = smoothed(torch.from_numpy(distribution), context_tokens=tokens)
    kept = distribution[10 : tokens - round(0.03 * tokens)]
    assert used == width and len(values) == len(places) == len(kept) - width + 1
    np.testing.assert_allclose(values, np.convolve(kept, np.ones(width) / width, mode="valid"), rtol=1e-9)
    assert places[0] == 10 + (width - 1) / 2 and places[-1] == tokens - round(0.03 * tokens) - 1 - (width - 1) / 2


def test_a_spike_is_smoothed_around_its_own_place():
    distribution = torch.zeros(8000)
    distribution[4000] = 1.0
    places, values, _ = smoothed(distribution, context_tokens=8000)
    assert (places * values).sum() / values.sum() == pytest.approx(4000) and values.max() == pytest.approx(0.01)


def test_a_text_too_short_to_smooth_gives_nothing():
    assert all(len(found) == 0 for found in smoothed(torch.ones(10), context_tokens=10)[:2])
