"""Recipe files, the ones that ship and the user's: found, merged, overridden, resolved into a `Recipe`.

A file may say ``base = "other"`` and give only what differs. Files are merged first, then come overrides such as
``stages.pretrain.steps=100``, then each arm's own changes to its stages; `rnope.config` checks the result.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rnope.config import Recipe
from rnope.errors import ConfigError, UserError, check, unknown
from rnope.strict import from_plain

Plain = dict[str, Any]


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name (of those that ship) or by path, with ``dotted.key=value`` overrides.

    Raises:
        UserError: no such recipe, no TOML, unknown or impossible values.
    """
    plain = _read(source, ())
    for override in overrides:
        _override(plain, override)
    return resolve(plain)


def resolve(plain: Mapping[str, Any]) -> Recipe:
    """A recipe's table as a `Recipe`: every arm gets its stages in full."""
    data: Plain = {**plain}
    stages = _table(data.pop("stages", {}), "stages")
    arms = _table(data.pop("arms", {}), "arms")
    check("arms", arms, bool(arms), "a comparison needs an arm", "Add [arms.rope] with a variant and stages.")
    if "seeds" not in data:
        raise ConfigError("seeds", None, "is missing", "Write seeds = [0, 1].")
    data["arms"] = [_arm(name, table, stages, data["seeds"]) for name, table in arms.items()]
    try:
        return from_plain(Recipe, data)
    except ConfigError as error:
        place = _as_written(error.field, arms)
        raise ConfigError(place, error.value, error.rule, error.remedy) from None


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(p.name.removesuffix(".toml") for p in files(__name__).iterdir() if p.name.endswith(".toml"))


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


def _arm(name: str, value: object, stages: Plain, seeds: object) -> Plain:
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
        resolved.append({**_table(stages[stage], f"stages.{stage}"), **change, "name": stage})
    return {"seeds": seeds, **arm, "name": name, "stages": resolved}


def _read(source: str, seen: tuple[Path, ...], folder: Path = Path()) -> Plain:
    names = shipped()
    path = folder / source
    if source in names:
        text = files(__name__).joinpath(f"{source}.toml").read_text(encoding="utf-8")
    elif source.endswith(".toml") and _is_file(path):
        path = path.resolve()
        if path in seen:
            raise ConfigError("base", source, "leads back to itself", "Break the circle.")
        seen = (*seen, path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source}: cannot be read ({error}). Give a UTF-8 TOML file.") from None
    else:
        raise unknown("base" if seen else "recipe", source, "recipe, nor a .toml file", names)
    try:
        plain = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise UserError(f"{source}: is not TOML ({error}). Mend that line.") from None
    base = plain.pop("base", None)
    if base is None:
        return plain
    if not isinstance(base, str):
        raise ConfigError("base", base, "must name a recipe", f"One of {', '.join(names)}.")
    return _merged(_read(base, seen, path.parent), plain)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def _merged(base: Plain, change: Plain) -> Plain:
    """`change` over `base`: tables merge, everything else is replaced."""
    both = dict(base)
    for key, value in change.items():
        mine = both.get(key)
        both[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return both


def _override(plain: Plain, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError("--set", text, "must be dotted.key=value", "Write --set stages.pretrain.steps=100.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    except (ValueError, RecursionError) as error:
        raise ConfigError("--set", text, f"cannot be read ({error})", "Use a smaller value.") from None
    *parents, last = key.split(".")
    stages = plain.get("stages")
    if parents[:1] == ["stages"] and isinstance(stages, dict) and parents[1:2] and parents[1] not in stages:
        raise unknown(f"--set {key}", parents[1], "stage", stages)
    table = plain
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError("--set", text, f"{parent!r} is no table", "Name a key inside a table.")
        table = inner
    table[last] = parsed
