"""Needles: what training rows and evaluation contexts hold, token by token, and that the two never share a pair."""

import numpy as np
import pytest

from rnope.config import Needles
from rnope.data.needles import UNIT_TOKENS, WORDS, Haystack, NeedleTask, held_out
from rnope.data.prepare import SPLITS, prepare
from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES
from rnope.errors import ConfigError
from rnope.evals.needles import ROWS, Prompts
from rnope.tokenizer import Tokenizer

SHAPES = [(20, (2, 25), False), (32, (2, 3), True), (64, (3, 6), True), (256, (12, 25), True), (256, (2, 25), False)]
DEPTHS = [i / 10 for i in range(11)]


@pytest.fixture(scope="module")
def task():
    return NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=1024, whole_words=WORDS))


@pytest.fixture(scope="module")
def text(task):
    """Tokens that no needle uses, each the successor of the one before, so that a slice shows where it was cut."""
    mine = {task.secret, task.recall, task.stop, task.bos, *task.keys, *task.unseen_keys, *task.values}
    others = np.array([i for i in range(1024) if i not in mine])
    return np.tile(others, 20)


def units(task, line):
    """(position, kind, key number, value number) of every fact and question in a row, in order."""
    keys = {int(t): i for i, t in enumerate(task.keys)} | {int(t): -1 - i for i, t in enumerate(task.unseen_keys)}
    values = {int(t): i for i, t in enumerate(task.values)}
    found = []
    for at in np.flatnonzero((line == task.secret) | (line == task.recall)):
        _, a, b, stop = (int(t) for t in line[at : at + UNIT_TOKENS])
        kind, key, value = ("fact", b, a) if line[at] == task.secret else ("question", a, b)
        assert stop == task.stop
        found.append((int(at), kind, keys[key], values[value]))
    return found


@pytest.mark.parametrize(("row_tokens", "facts", "dense"), SHAPES)
def test_a_training_row_asks_only_what_it_has_stated(task, text, row_tokens, facts, dense):
    batch = task.training_rows(np.random.default_rng(3), text, rows=40, row_tokens=row_tokens, facts=facts, dense=dense)
    assert batch.ids.shape == batch.answers.shape == (40, row_tokens)
    assert (batch.ids[:, 0] == task.bos).all() and (batch.ids[:, 1:] != task.bos).all()
    most = min(facts[1], (row_tokens - 1) // (2 * UNIT_TOKENS))
    for line, mask in zip(batch.ids, batch.answers, strict=True):
        stated = {}
        asked_at = []
        for at, kind, key, value in units(task, line):
            assert key >= 0, "a key of the unseen ones"
            assert not held_out(np.array([key]), np.array([value]))[0]
            if kind == "fact":
                assert key not in stated
                stated[key] = value
            else:
                assert stated[key] == value
                asked_at.append(at + 1)
        assert np.flatnonzero(mask).tolist() == asked_at != []
        # A short dense row draws its facts with repetition, so that one fact can fill it.
        assert (1 if dense else min(facts[0], most)) <= len(stated) <= most
        filler = line[1:][~np.isin(line[1:], [*task.keys, *task.values, task.secret, task.recall, task.stop])]
        assert len(filler) == row_tokens - 1 - UNIT_TOKENS * (len(stated) + len(asked_at))
        start = int(np.flatnonzero(text == filler[0])[0]) if len(filler) else 0
        assert (filler == text[start : start + len(filler)]).all(), "the text of a row is one piece of the corpus"


def shape_of(task, line):
    """(facts, questions, whether all questions stand at the end)."""
    kinds = [(at, kind) for at, kind, _, _ in units(task, line)]
    asked = [at for at, kind in kinds if kind == "question"]
    at_end = asked == list(range(len(line) - UNIT_TOKENS * len(asked), len(line), UNIT_TOKENS))
    return len(kinds) - len(asked), len(asked), at_end


def test_half_of_the_rows_ask_at_the_end_and_the_other_half_anywhere(task, text):
    for dense in (False, True):
        rows = task.training_rows(
            np.random.default_rng(4), text, rows=60, row_tokens=256, facts=(4, 20), dense=dense
        ).ids
        for facts, asked, at_end in (shape_of(task, line) for line in rows[::2]):
            assert at_end and asked == facts
        anywhere = [shape_of(task, line) for line in rows[1::2]]
        assert not any(at_end for _, _, at_end in anywhere)
        if dense:
            assert {facts + asked for facts, asked, _ in anywhere} == {int(255 * 0.85) // UNIT_TOKENS}
        else:
            assert all(facts == asked for facts, asked, _ in anywhere)
        counts = [facts for facts, _, _ in (shape_of(task, line) for line in rows)]
        assert 4 <= min(counts) < max(counts) <= 20


def test_rows_are_a_function_of_the_generator(task, text):
    def rows(seed):
        return task.training_rows(
            np.random.default_rng(seed), text, rows=4, row_tokens=128, facts=(2, 9), dense=False
        ).ids

    assert (rows([0, 7]) == rows([0, 7])).all()
    assert (rows([0, 7]) != rows([0, 8])).any() and (rows([0, 7]) != rows([1, 7])).any()


def test_every_key_and_every_value_has_pairs_on_both_sides():
    keys, values = np.meshgrid(np.arange(len(KEYS)), np.arange(len(VALUES)), indexing="ij")
    kept = held_out(keys, values)
    assert kept.any(0).all() and kept.any(1).all() and 0.08 < kept.mean() < 0.12
    assert not set(KEYS) & set(UNSEEN_KEYS) and not (set(KEYS) | set(UNSEEN_KEYS)) & set(VALUES)
    assert len(set(WORDS)) == len(WORDS)


@pytest.fixture(scope="module")
def haystack(text):
    return Haystack([text[i * 131 : i * 131 + 40 + i] for i in range(30)])


def contexts(task, haystack, length, **more):
    for seed in range(20):
        yield task.context(np.random.default_rng(seed), haystack, context_tokens=length, depths=DEPTHS, **more)


@pytest.mark.parametrize("unseen_keys", [False, True])
def test_development_and_evaluation_share_no_pair_and_neither_runs_out_of_values(task, haystack, unseen_keys):
    pairs = {True: set(), False: set()}
    for seed in range(400):
        for development, found in pairs.items():
            context = task.context(
                np.random.default_rng(seed), haystack, context_tokens=97, depths=[0.5] * 12,
                development=development, unseen_keys=unseen_keys,
            )  # fmt: skip
            facts = [pair[2:] for pair in units(task, context.ids)[:12]]
            assert len({value for _, value in facts}) == 12
            found |= set(facts)
    assert not pairs[True] & pairs[False]
    keys = len(UNSEEN_KEYS if unseen_keys else KEYS)
    assert {key for key, _ in pairs[True]} == {key for key, _ in pairs[False]} and len(pairs[True]) > 2 * keys
    every = np.array([(k if k >= 0 else -1 - k, v) for k, v in pairs[True] | pairs[False]])
    assert held_out(every[:, 0], every[:, 1]).all()


@pytest.mark.parametrize("length", [89, 90, 128, 1000, 3000])
def test_a_context_holds_its_needles_where_it_says_and_asks_each_once(task, haystack, length):
    for context in contexts(task, haystack, length):
        assert len(context.ids) == length and context.haystack_tokens == length - 1 - 88
        assert context.ids[0] == task.bos and (context.ids[1:] != task.bos).all()
        found = units(task, context.ids)
        facts, asked = found[:11], found[11:]
        assert [kind for _, kind, _, _ in found] == ["fact"] * 11 + ["question"] * 11
        assert [(at, at + UNIT_TOKENS) for at, *_ in facts] == list(context.spans)
        assert [task.values[v] for *_, v in facts] == context.answers.tolist()
        assert len({key for *_, key, _ in facts}) == len({value for *_, value in facts}) == 11
        assert sorted(pair[2:] for pair in facts) == sorted(pair[2:] for pair in asked)
        assert all(key >= 0 and held_out(np.array([key]), np.array([value]))[0] for *_, key, value in facts)
        assert [at for at, *_ in asked] == list(range(length - 44, length, 4)), "the questions are the end"
        for depth, (start, _), row, value in zip(DEPTHS, context.spans, context.rows, context.answers, strict=True):
            before = start - 1 - UNIT_TOKENS * DEPTHS.index(depth)
            assert abs(before - depth * context.haystack_tokens) <= 0.5
            assert context.ids[row - 1] == task.recall and context.ids[row] == context.ids[start + 2]
            assert context.ids[row + 1] == value


def test_the_questions_come_in_a_random_order(task, haystack):
    orders = {tuple(np.argsort(context.rows)) for context in contexts(task, haystack, 200)}
    assert len(orders) == 20


def test_a_context_without_needles_states_nothing(task, haystack):
    for context in contexts(task, haystack, 500, leave_out="needles"):
        assert len(context.ids) == 500 and context.haystack_tokens == 500 - 1 - 44
        body = context.ids[: context.rows.min() - 1]
        assert len(body) == 500 - 44
        assert not np.isin(body, [task.secret, task.recall, *task.keys, *task.values]).any()
        assert all(start == end for start, end in context.spans)
        assert [kind for _, kind, _, _ in units(task, context.ids)] == ["question"] * 11
        assert (context.ids[context.rows + 1] == context.answers).all()


def test_a_context_of_needles_alone_has_no_haystack(task, haystack):
    for context in contexts(task, haystack, 500, leave_out="haystack"):
        assert len(context.ids) == 1 + 88 and context.haystack_tokens == 0
        assert len(units(task, context.ids)) == 22
        assert (context.ids[context.rows + 1] == context.answers).all()


def test_unseen_keys_are_asked_for_in_their_row_only(task, haystack):
    for context in contexts(task, haystack, 300, unseen_keys=True):
        assert all(key < 0 for *_, key, _ in units(task, context.ids))
        assert len({key for *_, key, _ in units(task, context.ids)}) == 11


def test_needles_that_do_not_fit_are_refused(task, haystack):
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="cannot hold 11 needles"):
        task.context(rng, haystack, context_tokens=88, depths=DEPTHS)
    with pytest.raises(ConfigError, match="more needles than the 12 keys"):
        task.context(rng, haystack, context_tokens=500, depths=[0.5] * 13, unseen_keys=True)


def test_a_haystack_is_whole_documents_and_none_again_before_all_were_there():
    documents = [np.arange(10 + i) + 1000 * i for i in range(8)]
    haystack = Haystack([*documents, np.empty(0, dtype=np.int64)])
    assert haystack.tokens == sum(map(len, documents)) == 108
    orders = set()
    for seed in range(10):
        drawn = haystack.draw(np.random.default_rng(seed), 3 * 108 + 5)
        assert len(drawn) == 329
        at, order = 0, []
        while at < len(drawn):
            index = int(drawn[at]) // 1000
            whole = documents[index][: len(drawn) - at]
            assert (drawn[at : at + len(whole)] == whole).all()
            at += len(whole)
            order.append(index)
        for start in (0, 8, 16):
            assert sorted(order[start : start + 8]) == list(range(8))
        orders.add(tuple(order[:8]))
    assert len(orders) > 5
    assert len(haystack.draw(np.random.default_rng(0), 0)) == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = [*WORDS, *"the of and to in a is that it was for on are with as his they be at one have this".split()]
    for i in range(60):
        (root / f"{i}.txt").write_text(" ".join(rng.choice(words, size=120)) + f" {i}.")
    return prepare(str(root), vocab_size=1024, folder=root / "data", least_tokens=512)


def test_no_document_stands_in_two_splits(prepared):
    held = {split: {tuple(d.tolist()) for d in prepared.documents(split)} for split in SPLITS}
    assert sum(map(len, held.values())) == 60 and all(held.values())
    assert len(set.union(*held.values())) == 60


def test_no_pair_that_is_asked_for_was_ever_trained(prepared):
    """Even where the corpus itself is full of the needles' words, as this one is."""
    task = NeedleTask(prepared.tokenizer())
    text = prepared.text("train")
    trained = set()
    for step in range(200):
        batch = task.training_rows(
            np.random.default_rng(step), text, rows=4, row_tokens=256, facts=(2, 25), dense=step % 2 == 0
        )
        rows, at = np.nonzero(batch.answers)
        trained |= set(zip(batch.ids[rows, at].tolist(), batch.ids[rows, at + 1].tolist(), strict=True))
    assert len(trained) > 1000
    prompts = Prompts(task=task, haystack=Haystack(prepared.documents("eval")), settings=Needles(depths=11, contexts=8))
    asked = set()
    for row in ROWS:
        for index in range(8):
            context = prompts.context(row, 512, index)
            asked |= set(zip(context.ids[context.rows].tolist(), context.answers.tolist(), strict=True))
    assert len(asked) > 100 and not asked & trained
