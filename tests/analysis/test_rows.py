"""Rows of attention against whole matrices of scores in float64, with every rule that a layer may have."""

import itertools
import math

import pytest
import torch

from rnope.analysis.rows import Captured, Rows, rows_by_group


def captured(heads=6, groups=2, rows=5, keys=23, size=8, first_key=0, dtype=torch.float32, seed=0, **rules):
    """Queries of the last `rows` of the keys' positions."""
    generator = torch.Generator().manual_seed(seed)
    queries, kept = (
        (1.5 * torch.randn(*shape, generator=generator)).to(dtype)
        for shape in ((heads, rows, size), (groups, keys, size))
    )
    positions = torch.arange(first_key + keys - rows, first_key + keys)
    found = {"layer": 0, "queries": queries, "keys": kept, "positions": positions, "first_key": first_key}
    return Captured(**(found | {"scale": size**-0.5} | rules))


def plain(given):
    """[h, r, k] and the sink's [h, r] in float64, one row at a time."""
    heads, groups = len(given.queries), len(given.keys)
    shares, sinks = [], []
    for head, row in itertools.product(range(heads), range(len(given.positions))):
        keys = given.keys[head // (heads // groups)].double()
        scores = keys @ given.queries[head, row].double() * given.scale
        if given.softcap is not None:
            scores = given.softcap * torch.tanh(scores / given.softcap)
        if given.mask is not None:
            mask = given.mask[head if len(given.mask) > 1 else 0] if given.mask.dim() == 3 else given.mask
            added = mask[row]
            scores = scores + (torch.where(added, 0.0, -math.inf) if added.dtype == torch.bool else added.double())
        else:
            for i in range(len(keys)):
                behind = int(given.positions[row]) - (given.first_key + i)
                if behind < 0 or (given.window is not None and behind >= given.window):
                    scores[i] = -math.inf
        learned = -math.inf if given.sinks is None else float(given.sinks[head])
        weights = torch.cat((scores, torch.tensor([learned], dtype=torch.float64))).softmax(-1)
        shares.append(weights[:-1])
        sinks.append(weights[-1])
    shape = heads, len(given.positions)
    return torch.stack(shares).unflatten(0, shape), torch.stack(sinks).unflatten(0, shape)


def whole(given, **options):
    parts = list(rows_by_group(given, **options))
    assert all(part.first_key == given.first_key and part.positions is given.positions for part in parts)
    return torch.cat([part.probabilities for part in parts]), torch.cat([part.sink for part in parts])


def assert_as_plain(given, block_keys):
    found, sink = whole(given, block_keys=block_keys)
    expected, expected_sink = plain(given)
    assert found.dtype == torch.float32 and sink.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.allclose(sink.double(), expected_sink, rtol=0, atol=1e-6)
    assert torch.allclose(found.sum(-1) + sink, torch.ones_like(sink), atol=1e-5)


def mask(rows, keys, seed=1, heads=None):
    """True about half of the time, and at the first key of all."""
    shape = (rows, keys) if heads is None else (heads, rows, keys)
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5
    seen[..., 0] = True
    return seen


RULES = {
    "causal": {},
    "window": {"window": 4},
    "window of one": {"window": 1},
    "wide window": {"window": 1000},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": torch.linspace(-2, 6, 6)},
    "window, softcap and sinks": {"window": 7, "softcap": 5.0, "sinks": torch.linspace(-2, 6, 6)},
    "bool mask": {"mask": mask(5, 23)},
    "bool mask by head": {"mask": mask(5, 23, heads=6)},
    "bool mask for all heads": {"mask": mask(5, 23, heads=1)},
    "a mask instead of the window": {"mask": mask(5, 23), "window": 1},
    "added mask": {"mask": torch.where(mask(5, 23), 0.0, -math.inf)},
    "added mask of finite numbers": {"mask": torch.where(mask(5, 23), 0.5, torch.finfo(torch.float32).min)},
    "added bf16 mask": {"mask": torch.where(mask(5, 23, heads=6), 0.0, torch.finfo(torch.bfloat16).min).bfloat16()},
    "another scale": {"scale": 0.1},
}


@pytest.mark.parametrize("block_keys", [1, 5, 23, 4096])
@pytest.mark.parametrize("name", RULES)
def test_rows_are_those_of_the_whole_matrix(name, block_keys):
    """Blocks of one key and of five begin with keys that a window or a mask hides from all rows."""
    assert_as_plain(captured(**RULES[name]), block_keys)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 1), (6, 3)])
def test_heads_share_keys_in_their_order(heads, groups):
    given = captured(heads=heads, groups=groups)
    parts = list(rows_by_group(given))
    assert [len(part.probabilities) for part in parts] == [heads // groups] * groups
    assert_as_plain(given, 5)


@pytest.mark.parametrize("window", [None, 6])
def test_keys_of_the_last_tokens_alone(window):
    """A windowed layer hands over what its window needs; positions count from the start of the text."""
    assert_as_plain(captured(first_key=1000, window=window), 5)


def test_rows_need_not_be_the_last():
    given = captured(positions=torch.tensor([0, 3, 4, 11, 22]))
    assert_as_plain(given, 4)
    assert whole(given)[0][:, 0, 0].tolist() == [1.0] * 6


def test_keys_of_16_bits_are_read_exactly():
    """Scores are made in float32 of what the model has: no more rounding on top of its own."""
    assert_as_plain(captured(dtype=torch.bfloat16), 5)


def test_large_scores_do_not_overflow():
    """Scores in the thousands, where float32 has three digits behind the point."""
    given = captured(scale=100.0)
    assert torch.allclose(whole(given, block_keys=5)[0].double(), plain(given)[0], rtol=0, atol=2e-3)


def test_a_row_that_sees_nothing_has_zeros():
    seen = mask(5, 23)
    seen[2] = False
    found, sink = whole(captured(mask=seen), block_keys=5)
    assert found[:, 2].abs().max() == 0 and sink.abs().max() == 0
    assert torch.allclose(found.sum(-1)[:, [0, 1, 3, 4]], torch.ones(6, 4))


def test_a_sink_may_take_all():
    found, sink = whole(captured(sinks=torch.full((6,), 1e4)))
    assert found.max() == 0 and sink.min() == 1


@pytest.mark.parametrize(
    ("span", "columns"), [((0, 100), []), ((90, 103), [0, 1, 2]), ((101, 104), [1, 2, 3]), ((104, 900), [4]), ((105, 109), [])]
)  # fmt: skip
def test_columns_of_a_span(span, columns):
    rows = Rows(
        probabilities=torch.zeros(1, 1, 5), positions=torch.tensor([104]), first_key=100, sink=torch.zeros(1, 1)
    )
    assert list(range(5))[rows.columns(span)] == columns
