"""RULER's tasks in the words of the needles: what their contexts hold, and the counting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rnope.compare.tasks import UNREAD, noise, task_context, task_rows
from rnope.config import TASKS
from rnope.data.needles import WORDS, Haystack, NeedleTask, for_choosing, held_out
from rnope.data.words import KEYS, VALUES
from rnope.evals.ruler.tasks import NOISE
from rnope.evals.ruler.tasks import TASKS as RULER
from rnope.intervals import wilson
from rnope.tokenizer import Tokenizer

VOCAB = 1024


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS)


@pytest.fixture(scope="module")
def task(tokenizer):
    return NeedleTask(tokenizer)


@pytest.fixture(scope="module")
def text(task):
    """A haystack that holds no word of a needle."""
    mine = {task.secret, task.recall, task.stop, task.bos, *task.keys, *task.unseen_keys, *task.values}
    others = np.array([i for i in range(VOCAB) if i not in mine])
    return Haystack([np.random.default_rng(i).choice(others, size=90) for i in range(6)])


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [140, 300])
def test_a_context_hides_and_asks_as_the_original_does(name, length, task, text, tokenizer):
    form, original = TASKS[name], RULER[name]
    hay = noise(tokenizer) if form.noise else text
    places = []
    for index in range(8):
        context = task_context(name, task, hay, seed=5, context_tokens=length, index=index)
        ids = context.ids.tolist()
        assert len(ids) == length and ids[0] == task.bos
        facts = {ids[i + 2]: (ids[i + 1], i) for i in range(length) if ids[i] == task.secret}
        questions = [ids[i + 1 : i + 3] for i in range(length) if ids[i] == task.recall]
        assert len(facts) == form.needles and len(questions) == form.asked == original.num_queries
        assert ids[-4 * form.asked] == task.recall, "the questions are the end"
        for (key, value), row, answer, (begin, end) in zip(
            questions, context.rows, context.answers, context.spans, strict=True
        ):
            assert (
                facts[key] == (value, begin)
                and end == begin + 4
                and ids[row] == key
                and ids[row + 1] == answer == value
            )
        assert list(context.rows) == sorted(context.rows)
        pairs = [(task.keys.tolist().index(k), task.values.tolist().index(v)) for k, (v, _) in facts.items()]
        assert all(held_out(np.array(k), np.array(v)) and not for_choosing(np.array(k), np.array(v)) for k, v in pairs)
        places += [begin / length for begin, _ in context.spans]
    assert min(places) < 0.35 and max(places) > 0.5 and len(set(places)) > len(places) / 2, "depths are random"
    if original.haystack == "essay" and form.asked == 1:
        assert form.needles == original.num_keys
    assert form.noise == (original.haystack == "noise")


def test_as_many_needles_as_keys():
    assert TASKS["niah_multikey_2"].needles == len(KEYS) < len(VALUES)


def test_every_task_of_the_original_is_read_or_said_to_be_unreadable():
    unread = {name for names in UNREAD for name in names.split(", ")}
    assert unread | set(TASKS) == set(RULER) and not unread & set(TASKS)


def test_noise_is_the_sentence_over_and_over(task, tokenizer):
    context = task_context("niah_single_1", task, noise(tokenizer), seed=0, context_tokens=400, index=0)
    ids = context.ids.tolist()
    (begin, end) = context.spans[0]
    left = ids[1:begin] + ids[end:-4]
    once = tokenizer.encode(" " + NOISE)
    assert left == (once * 40)[: len(left)] and len(left) > 2 * len(once)


def test_contexts_follow_from_seed_length_and_index(task, text):
    def ids(**changes):
        given = {"seed": 1, "context_tokens": 300, "index": 0, **changes}
        return task_context("niah_multikey_1", task, text, **given).ids[:290].tolist()

    assert (
        ids() == ids() and len({tuple(ids(**c)) for c in ({}, {"seed": 2}, {"index": 1}, {"context_tokens": 301})}) == 4
    )
    one, other = (
        task_context(name, task, text, seed=1, context_tokens=300, index=0).ids.tolist()
        for name in ("niah_multikey_1", "niah_multiquery")
    )
    assert one[:280] != other[:280], "tasks share no draws"


@pytest.mark.parametrize("name", TASKS)
def test_the_shortest_context_holds_it_and_a_shorter_one_does_not(name, task, text):
    least = TASKS[name].least_tokens
    assert len(task_context(name, task, text, seed=0, context_tokens=least, index=0).ids) == least
    with pytest.raises(ValueError, match="cannot hold"):
        task_context(name, task, text, seed=0, context_tokens=least - 2, index=0)


class Oracle:
    """Answers a question by the fact that stands before it, every third one wrongly. Called as a `Decoder` is."""

    def __init__(self, task):
        self.task, self.asked = task, 0
        self.embedding = SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, ids, *, rows):
        found = torch.zeros(*ids.shape[:1], len(rows), VOCAB)
        for line, out in zip(ids.tolist(), found, strict=True):
            facts = {line[i + 2]: line[i + 1] for i in range(len(line) - 2) if line[i] == self.task.secret}
            for row, place in zip(rows.tolist(), out, strict=True):
                self.asked += 1
                place[facts.get(line[row], 0) if self.asked % 3 else 0] = 1
        return found


@pytest.mark.parametrize(("name", "asked", "n"), [("niah_single_2", 9, 9), ("niah_multiquery", 6, 8)])
def test_answers_are_counted(name, asked, n, task, text):
    ticks = []
    (row,) = task_rows(
        Oracle(task), task, {False: text}, [name], arm="a", seed=2, needles_seed=1, context_tokens=200, asked=asked,
        tick=ticks.append,
    )  # fmt: skip
    hits = n - n // 3
    assert (row.arm, row.seed, row.task, row.context_tokens, row.n, row.hits) == ("a", 2, name, 200, n, hits)
    assert row.score == pytest.approx(100 * hits / n) and sum(ticks) == TASKS[name].contexts(asked)
    assert (row.low, row.high) == pytest.approx(tuple(100 * end for end in wilson(hits, n)))
