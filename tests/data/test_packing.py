"""Rows against a twin in plain Python, and what must hold of them whatever the documents."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.data.packing import IGNORED, Packing
from rnope.data.shards import Index, Shards, Vocabulary, write_shard
from rnope.errors import ConfigError
from rnope.kernels import IGNORED as IGNORED_BY_LOSS

BOS, EOS, PAD, FIRST = 1, 2, 0, 3


def held(lengths, completions=None):
    """Shards in memory, of documents of these lengths; no token but EOS occurs twice."""
    shards, token = [], FIRST
    for number, counts in enumerate(lengths):
        documents = []
        for count in counts:
            documents.append([*range(token, token + count - 1), EOS])
            token += count - 1
        marks = completions[number] if completions else [0] * len(counts)
        shards.append(
            SimpleNamespace(
                ids=np.array([t for d in documents for t in d], dtype=np.uint32),
                ends=np.cumsum(counts, dtype=np.int64),
                completions=np.array(marks, dtype=np.int64),
                tokens=sum(counts),
                documents=len(counts),
            )
        )
    return SimpleNamespace(shards=tuple(shards), bos_id=BOS, eos_id=EOS, pad_id=PAD)


def read(packing):
    """Every row of a packing: (ids, targets, starts) as lists."""
    rows = []
    for row in range(packing.rows):
        ids, targets, starts = (np.full(packing.row_tokens, -7) for _ in range(3))
        packing.write(row, ids, targets, starts)
        rows.append((ids.tolist(), targets.tolist(), starts.tolist()))
    return rows


def slow_rows(shards, row_tokens, longer_than=0, whole=False, completions_only=False):
    """What `read` must give, one place at a time. A place is (token, document, its index in the document; -1 for BOS)."""
    rows = []
    for shard in shards.shards:
        documents = []
        for number, (start, end) in enumerate(zip([0, *shard.ends], shard.ends, strict=False)):
            line = [(int(token), number, i) for i, token in enumerate(shard.ids[start:end])]
            if len(line) > longer_than and not (whole and len(line) + 1 > row_tokens):
                documents.append([(BOS, number, -1), *line])
        length = {document[0][1]: len(document) - 1 for document in documents}
        stream = [place for document in documents for place in document]
        stretches = []
        if whole:
            for document in documents:
                if not stretches or len(stretches[-1]) + len(document) > row_tokens:
                    stretches.append([])
                stretches[-1] += document
        else:
            for first in range(0, len(stream) - 1, row_tokens - 1):
                stretch = stream[first + 1 : first + row_tokens]
                if first == 0:
                    stretch = stream[:row_tokens]
                elif stretch[0][2] != -1:
                    _, document, index = stretch[0]
                    stretch = [(BOS, document, index - 1), *stretch]
                stretches.append(stretch if stretch[-1][2] != -1 else stretch[:-1])
        following = {place[1:]: place[0] for place in stream if place[2] != -1}
        for stretch in stretches:
            ids, targets, starts = [], [], []
            for at, (token, document, index) in enumerate(stretch):
                ids.append(token)
                new = at == 0 or stretch[at - 1][1] != document
                starts.append(at if new else starts[-1])
                target = following.get((document, index + 1), IGNORED)
                mark = shard.completions[document] if completions_only else 0
                continuing = token == BOS and index >= 0
                targets.append(IGNORED if continuing or index + 1 < mark or index + 1 == length[document] else target)
            missing = row_tokens - len(ids)
            starts += [len(ids)] * missing
            rows.append((ids + [PAD] * missing, targets + [IGNORED] * missing, starts))
    return rows


@st.composite
def sources(draw):
    lengths = draw(st.lists(st.lists(st.integers(1, 23), max_size=12), min_size=1, max_size=3))
    marks = [[draw(st.integers(0, count - 1)) for count in counts] for counts in lengths]
    return held(lengths, marks)


@settings(deadline=None)
@given(sources(), st.integers(3, 17), st.sampled_from((0, 1, 4, 9)), st.booleans(), st.booleans())
def test_equals_the_slow_twin(shards, row_tokens, longer_than, whole, completions_only):
    choice = {"longer_than": longer_than, "whole": whole, "completions_only": completions_only}
    packing = Packing(shards, row_tokens, **choice)
    rows = read(packing)
    assert rows == slow_rows(shards, row_tokens, **choice)
    assert packing.padding() == sum(starts.count(ids.index(PAD)) for ids, _, starts in rows if PAD in ids)


@settings(deadline=None)
@given(sources(), st.integers(3, 17), st.sampled_from((0, 4)))
def test_split_holds_every_token_once_and_predicts_every_token_once(shards, row_tokens, longer_than):
    packing = Packing(shards, row_tokens, longer_than=longer_than)
    rows = read(packing)
    wanted = []
    for shard in shards.shards:
        for document in np.split(shard.ids, shard.ends)[:-1]:
            wanted += document.tolist() if len(document) > longer_than else []
    assert [token for ids, _, _ in rows for token in ids if token not in (BOS, PAD)] == wanted
    assert Counter(t for _, targets, _ in rows for t in targets if t != IGNORED) == Counter(wanted)
    assert packing.tokens == len(wanted) and packing.documents == wanted.count(EOS)


@settings(deadline=None)
@given(sources(), st.integers(3, 17), st.booleans())
def test_one_bos_at_the_start_of_every_row_and_of_every_document_in_it(shards, row_tokens, whole):
    for ids, _, starts in read(Packing(shards, row_tokens, whole=whole)):
        assert ids[0] == BOS and ids[1] not in (BOS, PAD)
        real = ids.index(PAD) if PAD in ids else row_tokens
        assert set(ids[real:]) <= {PAD} and set(starts[real:]) <= {real}
        assert [i for i in range(real) if ids[i] == BOS] == sorted(set(starts[:real]))
        assert all(ids[i - 1] == EOS for i in range(1, real) if ids[i] == BOS)


@settings(deadline=None)
@given(sources(), st.integers(3, 17))
def test_whole_cuts_no_document_and_counts_those_left_out(shards, row_tokens):
    packing = Packing(shards, row_tokens, whole=True)
    rows = read(packing)
    lengths = [int(n) for shard in shards.shards for n in np.diff(shard.ends, prepend=0)]
    found = Counter(n - 1 for _, _, starts in rows for n in Counter(starts).values())
    padding = Counter(starts.count(ids.index(PAD)) - 1 for ids, _, starts in rows if PAD in ids)
    assert found - padding == Counter(n for n in lengths if n < row_tokens)
    assert packing.left_out_documents == sum(n >= row_tokens for n in lengths)


def test_the_drawing():
    """The rows of the module's docstring, token for token."""
    rows = read(Packing(held([[4, 2, 5]]), 5))
    a, b, c = (3, 4, 5, EOS), (6, EOS), (7, 8, 9, 10, EOS)
    assert [ids for ids, _, _ in rows] == [
        [BOS, *a],
        [BOS, *b, PAD, PAD],
        [BOS, *c[:4]],
        [BOS, c[4], PAD, PAD, PAD],
    ]
    assert [targets for _, targets, _ in rows] == [
        [*a, IGNORED],
        [*b, IGNORED, IGNORED, IGNORED],
        [*c],  # the last position too: the document goes on
        [IGNORED] * 5,  # and here its BOS predicts nothing again
    ]
    assert rows[1][2] == [0, 0, 0, 3, 3]


def test_completions_only():
    shards = held([[5, 4, 1]], [[2, 3, 0]])
    (_, targets, _), *_ = read(Packing(shards, 13, completions_only=True))
    prompt = IGNORED
    assert targets == [prompt, prompt, 5, 6, EOS, IGNORED, prompt, prompt, prompt, EOS, IGNORED, EOS, IGNORED]


def test_filtered_documents_read_their_own_tokens_and_marks():
    """The first document, one in the middle and the last are left out: numbers in the shard and in the rows differ."""
    shards = held([[2, 6, 3, 7, 2]], [[1, 4, 1, 5, 1]])
    rows = read(Packing(shards, 20, longer_than=4, completions_only=True))
    assert rows == slow_rows(shards, 20, longer_than=4, completions_only=True)
    (ids, targets, _), *_ = rows
    second, fourth = [*range(4, 9), EOS], [*range(11, 17), EOS]
    assert ids == [BOS, *second, BOS, *fourth, *[PAD] * 5]
    assert [t for t in targets if t != IGNORED] == second[4:] + fourth[5:]


def test_on_disk_equals_in_memory(tmp_path):
    lengths = [[7, 1, 30, 2], [1, 1, 44]]
    memory = held(lengths, [[3, 0, 11, 1], [0, 0, 43]])
    entries = tuple(
        write_shard(
            tmp_path / "train" / f"shard-{number:05d}",
            [shard.ids],
            np.array(lengths[number]),
            shard.completions,
            vocab_size=300,
        )
        for number, shard in enumerate(memory.shards)
    )
    vocabulary = Vocabulary(digest="x", vocab_size=300, bos_id=BOS, eos_id=EOS, pad_id=PAD)
    Index(vocabulary=vocabulary, train=entries).write(tmp_path)
    disk = Shards.open(tmp_path)
    assert disk.shards[0].ids.dtype == np.uint16
    for choice in ({}, {"longer_than": 1}, {"whole": True}, {"completions_only": True}):
        assert read(Packing(disk, 9, **choice)) == read(Packing(memory, 9, **choice))


def test_nothing_is_opened_to_count_the_rows_of_a_whole_source():
    class Closed:
        tokens, documents = 10**12, 10**9

        def __getattr__(self, name):
            raise AssertionError(name)

    packing = Packing(SimpleNamespace(shards=(Closed(),), bos_id=BOS, pad_id=PAD), 8192)
    assert packing.rows == -(-(10**12 + 10**9 - 1) // 8191)


def test_ignored_is_what_the_loss_ignores():
    assert IGNORED == IGNORED_BY_LOSS


def test_rows_too_short_to_learn_from():
    with pytest.raises(ConfigError, match="row_tokens"):
        Packing(held([[3]]), 2)
