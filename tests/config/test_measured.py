"""What a comparison measures beside needles: its rules, and what is asked where nothing is said."""

import pytest

from rnope.config import TASKS, Costs, Losses, Tasks
from rnope.errors import ConfigError
from rnope.strict import from_plain


def test_nothing_is_measured_unless_asked_for():
    assert not (Tasks().context_tokens or Tasks().far_tokens or Losses().context_tokens or Costs().context_tokens)
    assert Tasks().names == tuple(TASKS)


@pytest.mark.parametrize(("answers", "contexts"), [(100, 25), (101, 26), (1, 1)])
def test_contexts_that_answers_take(answers, contexts):
    assert (
        TASKS["niah_multiquery"].contexts(answers) == contexts and TASKS["niah_single_1"].contexts(answers) == answers
    )


@pytest.mark.parametrize(
    ("cls", "table", "words"),
    [
        (Tasks, {"names": ["vt"]}, r"names\[0\] = 'vt': no such choice"),
        (Tasks, {"names": []}, "must be distinct, and some"),
        (Tasks, {"names": ["niah_single_1", "niah_single_1"]}, "must be distinct"),
        (Tasks, {"context_tokens": [133]}, "the tasks' needles and questions need 134 tokens"),
        (Tasks, {"context_tokens": [256, 256]}, "must be distinct"),
        (Tasks, {"context_tokens": [256], "far_tokens": [256]}, "repeats lengths of context_tokens"),
        (Tasks, {"far_tokens": [2**31]}, r"2\^31 are too many"),
        (Tasks, {"answers": 0}, "answers = 0: must be at least 1"),
        (Tasks, {"far_answers": 0}, "far_answers = 0: must be at least 1"),
        (Losses, {"context_tokens": [16]}, "a window has 32 tokens or more"),
        (Losses, {"windows": 1}, "must be at least 2, for an interval"),
        (Costs, {"context_tokens": [0]}, "there must be a token"),
        (Costs, {"rounds": 0}, "rounds = 0: must be at least 1"),
    ],
)
def test_what_does_not_serve_is_refused(cls, table, words):
    with pytest.raises(ConfigError, match=words):
        from_plain(cls, table)


def test_what_just_serves():
    assert Tasks(context_tokens=(134,)).context_tokens == (134,)
    assert Tasks(names=("niah_single_2",), context_tokens=(10,)).context_tokens == (10,)
    assert Losses(context_tokens=(32,), windows=2).windows == 2
