"""The rows of a stage: the same whoever reads which part, every row once an epoch, weights in the unit that they name."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.config.stage import Portion, Stage
from rnope.data.packing import IGNORED, Packing
from rnope.data.rows import StageRows, validation_rows
from rnope.errors import ConfigError

BOS, PAD = 1, 0


def held(first_token, *lengths, marks=None):
    """A source of one shard, of documents of these lengths, no token twice."""
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.arange(first_token, first_token + sum(lengths), dtype=np.uint32)
    completions = np.array(marks or [0] * len(lengths), dtype=np.int64)
    shard = SimpleNamespace(ids=ids, ends=ends, completions=completions, tokens=int(ids.size), documents=len(lengths))
    return SimpleNamespace(shards=(shard,), bos_id=BOS, pad_id=PAD, tokens=shard.tokens, documents=shard.documents)


SOURCES = {
    "web": held(1000, *([3, 17, 1, 40, 8, 9] * 6)),
    "code": held(5000, *([30, 2] * 7)),
    "long": held(9000, 90, 70, 130, 61, 3),
}
SHORT_AND_LONG = Stage(
    name="extend",
    steps=40,
    batch_tokens=192,
    context_tokens=96,
    short_context_tokens=16,
    schedule="a",
    mixture=(Portion(source="long", weight=2), Portion(source="web", longer_than=16)),
    short_mixture=(Portion(source="web"), Portion(source="code", weight=0.5)),
)


def source_of(ids):
    """By the first token of the row: no two sources share one."""
    return "web" if ids[1] < 5000 else "code" if ids[1] < 9000 else "long"


def same(one, other):
    assert np.array_equal(one.ids, other.ids) and np.array_equal(one.targets, other.targets)
    assert (one.starts is None) == (other.starts is None)
    assert one.starts is None or np.array_equal(one.starts, other.starts)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 99), st.lists(st.integers(0, 12), max_size=4), st.booleans())
def test_parts_of_a_batch_are_the_batch(step, seed, cuts, across_documents):
    rows = StageRows(replace(SHORT_AND_LONG, across_documents=across_documents), SOURCES, seed=seed)
    whole = rows.batch(step)
    count = rows.rows_in(step)
    assert whole.ids.shape == (count, rows.row_tokens(step)) and whole.ids.dtype == np.int64
    assert (whole.starts is None) == across_documents
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [rows.batch(step, start, stop) for start, stop in pairwise(edges)]
    joined = {
        name: None if whole.starts is None and name == "starts" else np.concatenate([getattr(p, name) for p in parts])
        for name in ("ids", "targets", "starts")
    }
    same(whole, SimpleNamespace(**joined))
    same(rows.batch(step, count - 1), whole.one(count - 1))
    assert len(rows.batch(step, 1, 1).ids) == 0


@pytest.mark.parametrize("whole", [False, True])
def test_every_row_once_an_epoch_through_long_and_short_steps(whole):
    """Of each length and portion, in the order of the steps, each run of as many rows as there are is all of them."""
    stage = replace(SHORT_AND_LONG, whole_documents=whole, interleave_unit="rows", short_to_long=4)
    rows = StageRows(stage, SOURCES, seed=5)
    seen = {}
    for step in range(200):
        batch = rows.batch(step)
        length = batch.ids.shape[1]
        for ids in batch.ids:
            seen.setdefault((length, source_of(ids)), []).append(ids.tobytes())
    assert set(seen) == {(16, "web"), (16, "code"), (96, "web"), (96, "long")}
    for (length, source), found in seen.items():
        packing = Packing(
            SOURCES[source], length, whole=whole, longer_than=16 if (length, source) == (96, "web") else 0
        )
        wanted = Counter()
        for row in range(packing.rows):
            ids, targets = np.empty((2, length), dtype=np.int64)
            packing.write(row, ids, targets)
            wanted[ids.tobytes()] += 1
        size = packing.rows
        epochs = [found[i : i + size] for i in range(0, len(found) - size + 1, size)]
        assert len(epochs) >= 2 and all(Counter(epoch) == wanted for epoch in epochs)
        assert size < 4 or len({tuple(epoch) for epoch in epochs}) > 1


def test_other_seed_stage_or_source_other_order():
    stage = replace(SHORT_AND_LONG, mixture=(Portion(source="web"),), short_context_tokens=None, short_mixture=())
    reference = StageRows(stage, SOURCES, seed=0).batch(0)
    same(reference, StageRows(stage, SOURCES, seed=0).batch(0))
    for other in (StageRows(stage, SOURCES, seed=1), StageRows(replace(stage, name="later"), SOURCES, seed=0)):
        assert not np.array_equal(reference.ids, other.batch(0).ids)


def test_a_source_named_twice_is_not_read_in_step():
    short = replace(
        SHORT_AND_LONG,
        context_tokens=16,
        short_context_tokens=None,
        short_mixture=(),
        mixture=(Portion(source="web"), Portion(source="web")),
    )
    ids = StageRows(short, SOURCES, seed=0).batch(0).ids
    assert len(np.unique(ids, axis=0)) > len(ids) * 0.6


@pytest.mark.parametrize("unit", ["rows", "tokens", "documents"])
def test_weights_are_shares_of_their_unit(unit):
    mixture = (Portion(source="web", weight=3), Portion(source="code"), Portion(source="long", weight=0.5))
    stage = replace(
        SHORT_AND_LONG,
        short_context_tokens=None,
        short_mixture=(),
        mixture=mixture,
        mixture_unit=unit,
        whole_documents=True,
        context_tokens=192,
        batch_tokens=192 * 12,
    )
    rows = StageRows(stage, SOURCES, seed=1)
    found = Counter()
    for step in range(30):
        batch = rows.batch(step)
        for ids in batch.ids:
            real = {"rows": 1, "tokens": np.sum((ids != BOS) & (ids != PAD)), "documents": np.sum(ids == BOS)}
            found[source_of(ids)] += int(real[unit])
    total = sum(found.values())
    for portion in mixture:
        wanted = portion.weight / 4.5
        assert abs(found[portion.source] / total - wanted) < 0.1 * wanted, found


def test_described_counts_what_the_steps_give():
    stage = replace(SHORT_AND_LONG, whole_documents=True)
    rows = StageRows(stage, SOURCES, seed=2)
    taken = Counter()
    for step in range(rows.steps):
        for ids in rows.batch(step).ids:
            taken[len(ids), source_of(ids)] += 1
    lines = {(line["row_tokens"], line["source"]): line for line in rows.described()}
    assert {place: round(line["epochs"] * line["rows"]) for place, line in lines.items()} == taken
    for (length, _), line in lines.items():
        separators = line["documents"]
        assert line["rows"] * length == line["tokens"] + line["padding_tokens"] + separators  # whole: a BOS each
    assert lines[16, "code"]["left_out_documents"] == 7 and lines[16, "code"]["tokens"] == 14
    assert lines[96, "long"]["left_out_documents"] == 1
    assert lines[96, "web"]["longer_than"] == 16 and lines[96, "web"]["documents"] == 12
    assert sum(line["row_share"] for place, line in lines.items() if place[0] == 16) == pytest.approx(1)


def test_an_epoch_is_as_many_tokens_as_the_sources_have():
    stage = replace(SHORT_AND_LONG, steps=None, epochs=2.5, short_context_tokens=None, short_mixture=(),
                    mixture=(Portion(source="web"), Portion(source="web", longer_than=20)),
                    batch_tokens=96)  # fmt: skip
    rows = StageRows(stage, SOURCES, seed=3)

    def tokens(steps):
        ids = np.concatenate([rows.batch(step).ids for step in range(steps)])
        return int(((ids != BOS) & (ids != PAD)).sum())

    total = SOURCES["web"].tokens
    assert tokens(rows.epoch_steps()) >= total - 96 and tokens(rows.epoch_steps() - 1) < total + 96
    assert abs(tokens(rows.steps) - 2.5 * total) < 2 * 96
    assert StageRows(SHORT_AND_LONG, SOURCES, seed=3).steps == 40


def test_an_epoch_of_long_and_short_steps_counts_both():
    rows = StageRows(replace(SHORT_AND_LONG, steps=None, epochs=20), SOURCES, seed=3)
    total = sum(SOURCES[name].tokens for name in ("web", "code", "long"))
    seen = sum(int(((b.ids != BOS) & (b.ids != PAD)).sum()) for b in map(rows.batch, range(rows.steps)))
    assert abs(seen - 20 * total) < 3 * 192


def test_a_tenth_of_ten_steps_is_one():
    """And not two, as it would be by the float that is a little more than a tenth."""
    sources = {"web": held(1000, *([15] * 10))}
    stage = Stage(name="a", epochs=0.1, batch_tokens=16, context_tokens=16, schedule="a", whole_documents=True,
                  mixture=(Portion(source="web"),))  # fmt: skip
    rows = StageRows(stage, sources, seed=0)
    assert rows.epoch_steps() == 10 and rows.steps == 1


def test_completions_only_and_documents_without_a_mark():
    marked = {"chat": held(100, 9, 9, marks=[6, 4]), "web": SOURCES["web"]}
    mixture = (Portion(source="chat"), Portion(source="web"))
    stage = replace(SHORT_AND_LONG, short_context_tokens=None, short_mixture=(), mixture=mixture, completions_only=True)
    rows = StageRows(stage, marked, seed=0)
    ids, targets = (
        np.concatenate([getattr(rows.batch(step), name) for step in range(20)]) for name in ("ids", "targets")
    )
    chat, web = targets[ids[:, 1] == 100], targets[ids[:, 1] >= 1000]
    assert len(chat) and (chat[:, :5] == IGNORED).all() and (chat[:, 6:9] != IGNORED).all()
    assert len(web) and (web != IGNORED).mean() > 0.8
    with pytest.raises(ConfigError, match=r"stages\.extend\.completions_only.*no document of chat, web"):
        StageRows(stage, {"chat": SOURCES["code"], "web": SOURCES["web"]}, seed=0)


@pytest.mark.parametrize(
    ("change", "sources", "words"),
    [
        ({}, {"web": held(1)}, ("web", "is empty", "Build it anew")),
        ({"longer_than": 40}, {"web": SOURCES["web"]}, ("web", "36 documents has more than 40 tokens", "Lower longer")),
        ({"whole": True}, {"web": held(1, 16, 80)}, ("web", "2 documents fits whole into 16 tokens", "longer rows")),
        ({}, {"wab": SOURCES["web"]}, ("web", "no such source", "wab")),
    ],
)
def test_a_portion_without_rows_is_named(change, sources, words):
    portion = Portion(source="web", longer_than=change.get("longer_than", 0))
    stage = Stage(name="first", steps=3, batch_tokens=32, context_tokens=16, schedule="a", mixture=(portion,),
                  whole_documents=change.get("whole", False))  # fmt: skip
    with pytest.raises(ConfigError) as error:
        StageRows(stage, sources, seed=0)
    assert all(word in str(error.value) for word in ("stages.first.mixture", *words)), error.value


def test_validation_rows_are_spread_over_the_split_and_always_the_same():
    web = SOURCES["web"]
    every = validation_rows(web, 16, 10**6)
    assert len(every.ids) == Packing(web, 16).rows
    some = validation_rows(web, 16, 5)
    at = [next(i for i, row in enumerate(every.ids) if np.array_equal(row, ids)) for ids in some.ids]
    gaps = np.diff([*at, len(every.ids)])
    assert at[0] == 0 and gaps.min() >= len(every.ids) // 5 and gaps.max() <= len(every.ids) // 5 + 1
    same(some, validation_rows(web, 16, 5))
    same(some.one(2), SimpleNamespace(ids=every.ids[at[2]][None], targets=every.targets[at[2]][None],
                                      starts=every.starts[at[2]][None]))  # fmt: skip
