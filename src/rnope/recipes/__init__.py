"""Recipes, the ones that ship and the user's, resolved: a `Recipe` for `rnope compare`, a `TrainingRecipe` for `rnope train`.

A file may say ``base = "other"`` and give only what differs. Files are merged first (`tables`), then come overrides
such as ``stages.pretrain.steps=100``, then each arm's own changes to its stages; `rnope.config` checks the result.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from rnope.config import Recipe
from rnope.config.training import TrainingRecipe
from rnope.errors import ConfigError, check, unknown
from rnope.recipes.tables import Plain, merged, read, shipped
from rnope.strict import from_plain

__all__ = ["load", "load_training", "resolve", "resolve_training", "shipped"]
R = TypeVar("R", Recipe, TrainingRecipe)


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A comparison by name (of those that ship) or by path, with ``dotted.key=value`` overrides.

    Raises:
        UserError: no such recipe, no TOML, unknown or impossible values.
    """
    plain, _ = read(source, "comparison", overrides)
    return resolve(plain)


def load_training(source: str, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """A training recipe, as `load`; a file says that it is one by ``kind = "training"``.

    Raises:
        UserError: as `load`.
    """
    return resolve_training(*read(source, "training", overrides))


def resolve(plain: Mapping[str, object]) -> Recipe:
    """A comparison's table as a `Recipe`: every arm gets its stages in full."""
    data, arms = _with_arms(plain, "comparison")
    if "seeds" not in data:
        raise ConfigError("seeds", None, "is missing", "Write seeds = [0, 1].")
    data["arms"] = [{"seeds": data["seeds"], **arm} for arm in data["arms"]]
    return _built(Recipe, data, arms)


def resolve_training(plain: Mapping[str, object], origins: Mapping[str, str] | None = None) -> TrainingRecipe:
    """A training recipe's table, without its marks, as a `TrainingRecipe`: every arm gets its stages in full."""
    for name, made in (("origins", "the marks of values"), ("opened", "the folder that start names")):
        check(name, plain.get(name), name not in plain, f"is made of {made}", "Leave it out.")
    data, arms = _with_arms(plain, "training recipe")
    return _built(TrainingRecipe, {**data, "origins": origins or {}}, arms)


def _with_arms(plain: Mapping[str, object], noun: str) -> tuple[Plain, Plain]:
    """`plain` with a list of arms in full instead of its stages and arms, and the arms as the file has them."""
    data: Plain = {**plain}
    stages = _table(data.pop("stages", {}), "stages")
    arms = _table(data.pop("arms", {}), "arms")
    check("arms", arms, bool(arms), f"a {noun} needs an arm", "Add [arms.rope] with a variant and stages.")
    data["arms"] = [_arm(name, table, stages) for name, table in arms.items()]
    return data, arms


def _built(cls: type[R], data: Plain, arms: Plain) -> R:
    try:
        return from_plain(cls, data)
    except ConfigError as error:
        place = _as_written(error.field, arms)
        raise ConfigError(place, error.value, error.rule, error.remedy) from None


def _as_written(field_name: str, arms: Plain) -> str:
    """``arms[0].stages[1].steps`` by the names that the recipe's file uses."""
    found = re.match(r"arms\[(\d+)\](?:\.stages\[(\d+)\]\.([^.\[]+))?", field_name)
    if found is None:
        return field_name
    name = list(arms)[int(found[1])]
    rest = field_name[found.end() :]
    if found[2] is None:
        return f"arms.{name}{rest}"
    stage, key = arms[name]["stages"][int(found[2])], found[3]
    mine = key in arms[name].get("stage", {}).get(stage, {})
    return f"arms.{name}.stage.{stage}.{key}{rest}" if mine else f"stages.{stage}.{key}{rest}"


def _table(value: object, path: str) -> Plain:
    if not isinstance(value, Mapping):
        raise ConfigError(path, value, "must be a table", "Give keys and values.")
    return {str(key): item for key, item in value.items()}


def _arm(name: str, value: object, stages: Plain) -> Plain:
    path = f"arms.{name}"
    arm = _table(value, path)
    listed = arm.get("stages")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path}.stages", listed, "must be a list of stage names", 'Write ["pretrain"].')
    changes = _table(arm.pop("stage", {}), f"{path}.stage")
    for changed in changes:
        if changed not in listed:
            raise unknown(f"{path}.stage.{changed}", changed, "stage of this arm", map(str, listed))
    resolved = []
    for stage in listed:
        if not isinstance(stage, str) or stage not in stages:
            raise unknown(f"{path}.stages", stage, "stage", stages)
        change = _table(changes.get(stage, {}), f"{path}.stage.{stage}")
        resolved.append({**merged(_table(stages[stage], f"stages.{stage}"), change), "name": stage})
    return {**arm, "name": name, "stages": resolved}
