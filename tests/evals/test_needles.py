"""Needles asked of a model: the counting of answers, against a naive reading, an oracle and a guesser."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnope.config import Needles
from rnope.data.needles import WORDS, Haystack, NeedleTask
from rnope.evals import needles
from rnope.evals.needles import ROWS, Prompts, answers, needle_row
from rnope.intervals import wilson
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

VOCAB = 1024


@pytest.fixture(scope="module")
def task():
    return NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS))


@pytest.fixture(scope="module")
def prompts(task):
    """Contexts whose haystack holds no word of a needle."""
    mine = {task.secret, task.recall, task.stop, task.bos, *task.keys, *task.unseen_keys, *task.values}
    others = np.array([i for i in range(VOCAB) if i not in mine])
    rng = np.random.default_rng(0)
    return Prompts(
        task=task,
        haystack=Haystack([rng.choice(others, size=90) for _ in range(6)]),
        settings=Needles(depths=6, contexts=12),
    )


class Oracle:
    """Answers a question by the fact that stands before it; knows nothing else. Called as a `Decoder` is."""

    embedding = torch.nn.Embedding(1, 1)  # says the device

    def __init__(self, task, wrong_at=()):
        self.task, self.wrong_at, self.asked = task, wrong_at, []

    def answer(self, line, row):
        for at in np.flatnonzero(line[:row] == self.task.secret):
            if line[at + 2] == line[row]:
                return int(line[at + 1])
        return self.task.stop

    def __call__(self, ids, *, rows):
        self.asked.append(len(ids))
        logits = torch.zeros(*ids.shape[:1], len(rows), VOCAB)
        for b, line in enumerate(ids.numpy()):
            for r, row in enumerate(rows.tolist()):
                logits[b, r, self.answer(line, row)] = 1.0
        return logits


class Guesser(Oracle):
    """Answers with any value that was stated."""

    rng = np.random.default_rng(5)

    def answer(self, line, row):
        stated = np.flatnonzero(line[:row] == self.task.secret) + 1
        return int(self.rng.choice(line[stated])) if len(stated) else int(self.rng.choice(self.task.values))


def ask(model, prompts, row, length=128):
    return needle_row(model, prompts, arm="a", seed=4, row=row, context_tokens=length)


@pytest.mark.parametrize("length", [49, 128, 700])
def test_an_oracle_finds_every_needle_and_none_that_is_not_there(task, prompts, length):
    assert ask(Oracle(task), prompts, "standard", length).score == 10
    assert ask(Oracle(task), prompts, "unseen-keys", length).score == 10
    assert ask(Oracle(task), prompts, "no-needle", length).score == 0
    only = ask(Oracle(task), prompts, "needle-only", length)
    assert only.score == 10 and only.context_tokens == 49


def test_a_guesser_scores_the_guess_level(task, prompts):
    many = replace(prompts, settings=Needles(depths=6, contexts=100))
    row = ask(Guesser(task), many, "standard")
    assert row.guess == 10 / 6 and row.low < row.guess < row.high
    nothing = ask(Guesser(task), many, "no-needle")
    assert nothing.guess == 10 / len(task.values) and nothing.score < 0.5


def test_a_row_counts_by_depth_by_context_and_in_all(task, prompts):
    model = tiny_model(vocab_size=VOCAB)
    oracle = Oracle(task)

    class Half(Oracle):
        """Right at even depths in the first half of the text."""

        def answer(self, line, row):
            at = np.flatnonzero(line[:row] == task.secret)
            depth = next(int(i) for i in at if line[i + 2] == line[row])
            return super().answer(line, row) if depth < 60 else task.stop

    for asked in (Half(task), oracle, model):
        row = ask(asked, prompts, "standard")
        assert (row.arm, row.seed, row.row, row.context_tokens) == ("a", 4, "standard", 128)
        assert row.n == 72 == sum(cell.n for cell in row.cells)
        assert row.hits == sum(cell.hits for cell in row.cells) == sum(row.context_hits)
        assert len(row.context_hits) == 12 and all(0 <= hits <= 6 for hits in row.context_hits)
        assert [cell.depth for cell in row.cells] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
        low, high = wilson(row.hits, 72)
        assert (row.low, row.high) == (10 * low, 10 * high) and row.score == 10 * row.hits / 72
        assert row.seconds > 0
    hits = [cell.hits for cell in ask(Half(task), prompts, "standard").cells]
    assert hits == [12, 12, 12, 0, 0, 0]


def test_repeats_count_how_often_the_haystack_is_gone_through(task, prompts):
    assert prompts.haystack.tokens == 540
    assert ask(Oracle(task), prompts, "standard", 540).haystack_repeats == 1
    assert ask(Oracle(task), prompts, "standard", 49 + 1080).haystack_repeats == pytest.approx(2)
    assert ask(Oracle(task), prompts, "no-needle", 25 + 1080).haystack_repeats == pytest.approx(2)
    assert ask(Oracle(task), prompts, "needle-only", 540).haystack_repeats == 0


@pytest.mark.parametrize("variant", ["rope", "rnope-swa", "swa-rope", "rnope-swa-full-first"])
def test_answers_are_the_most_likely_next_tokens(prompts, variant):
    """Half of the gold answers are replaced by what a naive reading of all logits finds: those count, the others not."""
    model = tiny_model(variant, vocab_size=VOCAB)
    contexts, expected = [], []
    for index in range(5):
        context = prompts.context("standard", 100, index)
        logits = model(torch.from_numpy(context.ids)[None])[0]
        best = np.array([int(logits[row].argmax()) for row in context.rows])
        mine = (np.arange(6) + index) % 2 == 0
        gold = np.where(mine, best, context.answers)
        contexts.append(replace(context, answers=gold))
        expected.append([bool(hit) for hit in best == gold])
    assert 15 <= sum(map(sum, expected)) < 30
    assert answers(model, contexts) == expected


@pytest.mark.parametrize("variant", ["rope", "rnope-swa", "swa-rope", "rnope-swa-full-first"])
def test_rows_in_order_as_gpus_want_them_change_no_answer(prompts, variant):
    model = tiny_model(variant, vocab_size=VOCAB)
    contexts = [prompts.context("standard", 100, index) for index in range(5)]
    ids, rows = np.stack([context.ids for context in contexts]), np.sort(contexts[0].rows)
    with torch.inference_mode():
        few, all_of_them = (needles.likeliest(model, ids, rows, in_order=ordered) for ordered in (False, True))
        naive = model(torch.from_numpy(ids)).argmax(-1).numpy()[:, rows]
    assert few.shape == (5, 6) and np.array_equal(few, naive) and np.array_equal(all_of_them, naive)
    assert len(np.unique(naive)) > 5


def test_batches_change_no_answer(task, prompts, monkeypatch):
    model, ticks = tiny_model("rnope", vocab_size=VOCAB), []
    contexts = [prompts.context("standard", 128, index) for index in range(7)]
    gold = [
        replace(c, answers=model(torch.from_numpy(c.ids)[None])[0, torch.from_numpy(c.rows)].argmax(-1).numpy())
        for c in contexts
    ]
    for tokens in (1, 128, 300, 10**6):
        monkeypatch.setattr(needles, "BATCH_TOKENS", tokens)
        assert answers(model, gold) == [[True] * 6] * 7
        oracle = Oracle(task)
        row = needle_row(oracle, prompts, arm="a", seed=0, row="standard", context_tokens=128, tick=ticks.append)
        assert row.hits == 72 and sum(oracle.asked) == 12 and max(oracle.asked) <= max(1, tokens // 128)
    assert sum(ticks) == 4 * 12


def test_prompts_are_the_same_for_every_model_and_independent_between_lengths_and_rows(task, prompts):
    again = Prompts(task=task, haystack=Haystack(prompts.haystack.documents), settings=prompts.settings)
    other = replace(prompts, settings=replace(prompts.settings, seed=1))
    seen = {}
    for row in ROWS:
        for length in (128, 256):
            for index in range(3):
                context = prompts.context(row, length, index)
                twin = again.context(row, length, index)
                assert (context.ids == twin.ids).all() and (context.answers == twin.answers).all()
                assert context.answers.tolist() != other.context(row, length, index).answers.tolist()
                seen[row, length, index] = tuple(context.answers.tolist())
    assert len(set(seen.values())) == len(seen)
