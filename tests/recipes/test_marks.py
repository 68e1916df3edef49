"""Marks on values: read, replaced with what they mark, taken off, and refused where they say nothing."""

import pytest

from rnope.errors import ConfigError
from rnope.recipes import marks


def test_marks_come_off_and_leave_their_place():
    table = {
        "a": {"value": 1, "paper": "2.1"},
        "b": {"c": {"value": [0.9, 0.95], "assumed": "usual"}, "d": 3},
        "e": [{"source": "x", "weight": {"value": 2.0, "assumed": "why not"}}, 7],
        "f": {"value": [{"source": {"value": "y", "paper": "4"}}], "assumed": "whole"},
        "g": {"value": 3},  # a table like any other: it has no mark
        "h": {"paper": "8,192 tokens", "here": "256 tokens"},
    }
    bare, origins = marks.take_off(marks.read(table))
    assert bare == {
        "a": 1, "b": {"c": [0.9, 0.95], "d": 3}, "e": [{"source": "x", "weight": 2.0}, 7], "f": [{"source": "y"}],
        "g": {"value": 3}, "h": {"paper": "8,192 tokens", "here": "256 tokens"},
    }  # fmt: skip
    assert origins == {
        "a": "paper: 2.1", "b.c": "assumed: usual", "e[0].weight": "assumed: why not", "f": "assumed: whole",
        "f[0].source": "paper: 4",
    }  # fmt: skip


@pytest.mark.parametrize(
    "mark",
    [
        {"value": 1, "paper": "2.1", "assumed": "usual"},
        {"value": 1, "paper": ""},
        {"value": 1, "assumed": "  "},
        {"value": 1, "paper": 2.1},
        {"value": 1, "paper": "2.1", "note": "x"},
    ],
)
def test_a_mark_that_says_nothing_or_two_things(mark):
    with pytest.raises(ConfigError, match=r"^stages\.sft\.steps = .* a marked value has value, and either"):
        marks.read({"stages": {"sft": {"steps": mark}}})


def test_what_an_override_gives_is_given_leaf_by_leaf():
    bare, origins = marks.take_off({"model": marks.given({"width": 64, "init": {"matrix_gain": 2.0}})})
    assert bare == {"model": {"width": 64, "init": {"matrix_gain": 2.0}}}
    assert origins == {"model.width": "given", "model.init.matrix_gain": "given"}


def test_an_arms_own_changes_never_borrow_the_mark_of_what_they_replace():
    arms = {
        "a": {"variant": "rope", "model": {"width": 8}, "stage": {"sft": {"theta": 2e6, "mixture": [{"source": "x"}]}}}
    }
    arms["b.c"] = {"stage": {"sft": {"theta": {"value": 3e6, "paper": "2.1"}, "betas": [1, 2]}}}
    _, origins = marks.take_off(marks.read({"arms": arms}))
    assert origins == {
        "arms.a.model.width": "", "arms.a.stage.sft.theta": "", "arms.a.stage.sft.mixture": "",
        "arms.b.c.stage.sft.theta": "paper: 2.1", "arms.b.c.stage.sft.betas": "",
    }  # fmt: skip
