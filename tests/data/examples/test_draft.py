"""Filling a length: what is taken, what is said when the material is short, and that no example is ever too long."""

from random import Random

import pytest

from rnope.data.examples.draft import FULL, SPECIAL_TOKENS, Counter, Draft, make, take
from rnope.errors import ConfigError


def lengths(block):
    return [len(text) for text in block]


def test_candidates_are_taken_in_order_until_one_does_not_fit():
    words = ["aaaa", "bb", "cccccc", "d"]
    assert take(words, lengths, 12, what="corpus") == ["aaaa", "bb", "cccccc"]
    assert take(words, lengths, 11, what="corpus") == ["aaaa", "bb"]
    assert take(words, lengths, 11, what="corpus", misses=1) == ["aaaa", "bb", "d"]
    assert take(words, lengths, 13, what="corpus") == words
    assert take(iter(words * 1000), lengths, 1300, what="corpus") == words * 100


@pytest.mark.parametrize("budget", [14, 1000])
def test_material_that_is_too_short_is_named_with_its_tokens(budget):
    with pytest.raises(ConfigError, match=rf"^corpus = '13 tokens': .*too few to fill {budget:,}\."):
        take(["aaaa", "bb", "cccccc", "d"], lengths, budget, what="corpus", misses=9)


def test_a_budget_that_holds_nothing():
    with pytest.raises(ConfigError, match=r"^tokens = 0: is too short"):
        take(["a"], lengths, 0, what="corpus")


def test_counts_are_those_of_the_tokenizer(tokenizer):
    counter = Counter(tokenizer)
    texts = [" the", "zq1q don't\n\n", "", " the", "naïve 1984"]
    for _ in range(2):
        assert counter.each(texts) == [len(tokenizer.encode(text)) for text in texts]
    draft = Draft(task="x", prompt="the of", completion=" and 12")
    assert counter.exact(draft) == len(tokenizer.encode("the of")) + len(tokenizer.encode(" and 12")) + SPECIAL_TOKENS
    assert counter.parts() == 0


class Words:
    """A task whose parts, counted one by one, are `error` tokens too many or too few each."""

    kind = "words"
    digest = ""

    def __init__(self, error, least=0):
        self.error, self.least, self.drafts = error, least, 0

    def draft(self, rng, counter, budget_tokens):
        self.drafts += 1
        budget_tokens -= 1
        words = (" " + rng.choice(("the", "of", "and")) for _ in range(10**6))
        taken = take(words, lambda block: [n + self.error for n in counter.each(block)], budget_tokens, what="corpus")
        return Draft(task="x", prompt="".join(taken + [" of"] * self.least), completion=" of")


@pytest.mark.parametrize("error", [0, 1, 3, -0.5, -0.9])
@pytest.mark.parametrize("tokens", [133, 400, 2001])
def test_an_example_is_never_too_long_and_seldom_short(counter, error, tokens):
    task = Words(error)
    example = make(task, counter, seed=3, number=5, tokens=tokens)
    assert FULL * tokens <= example.tokens <= tokens
    again = Draft(task="", prompt=example.prompt, completion=example.completion)
    assert counter.exact(again) == example.tokens
    assert task.drafts == 1 or error


def test_an_example_that_can_only_be_too_long(counter):
    with pytest.raises(ConfigError, match=r"^tokens = 50: is too short"):
        make(Words(0, least=60), counter, seed=0, number=0, tokens=50)


def test_what_follows_from_kind_seed_and_number(counter):
    def prompt(seed, number):
        return make(Words(0), counter, seed=seed, number=number, tokens=60).prompt

    assert prompt(1, 2) == prompt(1, 2)
    assert len({prompt(seed, number) for seed in range(3) for number in range(3)}) == 9
    state = Random(0).getstate()
    assert Random("words/1/2").getstate() != Random("words/1/3").getstate() != state
