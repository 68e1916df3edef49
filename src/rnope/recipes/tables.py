"""Recipe files as tables: found by name or path, merged with what they inherit, changed by overrides."""

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from rnope.errors import ConfigError, UserError, unknown
from rnope.recipes import marks

Plain = dict[str, Any]
Kind = Literal["comparison", "training"]
COMMANDS: dict[str, str] = {"comparison": "compare", "training": "train"}
"""What a recipe may be, and the command that takes it."""
INSTEAD = {"steps": "epochs", "epochs": "steps"}
"""Keys of a stage of which it has one: a file or an override that gives the other means that instead."""


def shipped(kind: Kind = "comparison") -> list[str]:
    """Names of the recipes in the package that are of `kind`."""
    return sorted(name for name in _names() if tomllib.loads(_text(name)).get("kind", "comparison") == kind)


def read(source: str, kind: Kind, overrides: Sequence[str] = ()) -> tuple[Plain, dict[str, str]]:
    """The table of a recipe of `kind`, and the origins of its values; see `marks.take_off`.

    Args:
        source: a name of those that ship, or a path.
        overrides: ``dotted.key=value``.

    Raises:
        UserError: no such recipe, no TOML, a recipe of another kind.
    """
    plain = _read(source, kind, ())
    found = plain.pop("kind", "comparison")
    if not isinstance(found, str) or found not in COMMANDS:
        raise unknown("kind", found, "kind of recipe", COMMANDS)
    if found != kind:
        raise ConfigError("recipe", source, f"is a {found} recipe", f"Use `rnope {COMMANDS[found]} {source}`.")
    for override in overrides:
        _override(plain, override)
    return marks.take_off(plain)


def _names() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in files(__package__).iterdir() if p.name.endswith(".toml"))


def _text(name: str) -> str:
    return files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8")


def _read(source: str, kind: Kind, seen: tuple[Path, ...], folder: Path = Path()) -> Plain:
    path = folder / source
    if source in _names():
        text = _text(source)
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
        raise unknown("base" if seen else "recipe", source, "recipe, nor a .toml file", shipped(kind))
    try:
        plain: Plain = marks.read(tomllib.loads(text))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise UserError(f"{source}: is not TOML ({error}). Mend that line.") from None
    base = plain.pop("base", None)
    if base is None:
        return plain
    if not isinstance(base, str):
        raise ConfigError("base", base, "must name a recipe", f"One of {', '.join(shipped(kind))}.")
    return merged(_read(base, kind, seen, path.parent), plain)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def merged(base: Plain, change: Plain) -> Plain:
    """`change` over `base`: tables merge, everything else is replaced; a stage's `epochs` by its `steps`, too."""
    both = dict(base)
    for key, value in change.items():
        mine = both.get(key)
        _put(both, key, merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value)
    if "steps" in change and "epochs" in change:  # Both at once are the user's mistake, and must be seen.
        both |= {key: change[key] for key in INSTEAD}
    return both


def _put(table: Plain, key: str, value: object) -> None:
    """Set a value; of two that exclude each other the later takes the place of the earlier."""
    table.pop(INSTEAD.get(key, ""), None)
    table[key] = value


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
    _put(table, last, marks.given(parsed))
