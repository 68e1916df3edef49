"""Plain data into dataclasses: what each kind of field takes, and what it says to anything else."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rnope import recipes
from rnope.config import Recipe
from rnope.errors import ConfigError
from rnope.strict import from_plain, to_plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ConfigError("size", self.size, "must not be negative", "Use 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    name: str
    kind: Literal["oak", "elm"] = "oak"
    height: float = 1.0
    tall: bool = False
    age: int | None = None
    leaves: tuple[Leaf, ...] = ()
    best: Leaf | None = None
    rings: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


WHOLE = {
    "name": "a",
    "kind": "elm",
    "height": 2.5,
    "tall": True,
    "age": 3,
    "leaves": [{"size": 1}, {"size": 2}],
    "best": {"size": 0},
    "rings": {"1": 1},
    "notes": {"x": [None, {"y": 1.5}]},
}


def test_there_and_back():
    tree = from_plain(Tree, WHOLE)
    assert tree.leaves == (Leaf(size=1), Leaf(size=2)) and tree.best == Leaf(size=0)
    assert to_plain(tree) == WHOLE
    assert from_plain(Tree, to_plain(Tree(name="b"))) == Tree(name="b")
    assert to_plain(Tree(name="b"))["age"] is None


@pytest.mark.parametrize("name", recipes.shipped())
def test_every_shipped_recipe_there_and_back(name):
    recipe = recipes.load(name)
    assert from_plain(Recipe, to_plain(recipe)) == recipe


def test_a_whole_number_is_a_number_and_stays_exact():
    height = from_plain(Tree, {"name": "a", "height": 3}).height
    assert height == 3.0 and type(height) is float


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heigth": 1}, ["heigth", "no such key", "Did you mean 'height'?", "Valid: age, best,"]),
        ({"name": None}, ["name = None: must be a string"]),
        ({"name": 1}, ["name = 1: must be a string"]),
        ({"kind": "oka"}, ["kind = 'oka': no such choice", "Did you mean 'oak'?"]),
        ({"kind": True}, ["kind = True: no such choice"]),
        ({"kind": ["oak"]}, ["kind = ['oak']: no such choice"]),
        ({"height": "1"}, ["height = '1': must be a number"]),
        ({"height": True}, ["height = True: must be a number"]),
        ({"height": None}, ["height = None: must be a number"]),
        ({"height": math.nan}, ["height = nan"]),
        ({"height": math.inf}, ["height = inf"]),
        ({"height": 2**63}, ["height = 9223372036854775808"]),
        ({"tall": 1}, ["tall = 1: must be true or false"]),
        ({"age": 1.0}, ["age = 1.0: must be a whole number"]),
        ({"age": True}, ["age = True: must be a whole number"]),
        ({"age": -(2**63)}, ["age", "64 bits"]),
        ({"leaves": {"size": 1}}, ["leaves = {'size': 1}: must be a list. Write [Leaf, ...]."]),
        ({"leaves": "ab"}, ["leaves = 'ab': must be a list"]),
        ({"leaves": [{"size": 1}, 2]}, ["leaves[1] = 2: must be a table"]),
        ({"leaves": [{"size": 1}, {}]}, ["leaves[1].size = None: is missing. Add it (a whole number)."]),
        ({"leaves": [{"size": -1}]}, ["leaves[0].size = -1: must not be negative. Use 0."]),
        ({"best": {"sise": 1}}, ["best.sise", "Did you mean 'size'?"]),
        ({"rings": [1]}, ["rings = [1]: must be a table"]),
        ({"rings": {"a": "b"}}, ["rings.a = 'b': must be a whole number"]),
        ({"notes": 5}, ["notes = 5: must be a table"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_by_its_path(change, words):
    with pytest.raises(ConfigError) as caught:
        from_plain(Tree, WHOLE | change, "tree")
    message = str(caught.value)
    assert message.startswith("tree.") and all(word in message for word in words), message


@pytest.mark.parametrize("data", [None, [], "x", 3])
def test_a_table_is_a_table(data):
    with pytest.raises(ConfigError, match=r"Tree = .*must be a table"):
        from_plain(Tree, data)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"name = None: is missing. Add it \(a string\)"):
        from_plain(Tree, {})
