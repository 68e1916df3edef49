"""Marks: where a value in a recipe file comes from, taken off before anything reads the value.

A leaf may be written bare, or as ``{ value = 7e-3, paper = "2.1" }`` or ``{ value = 0.1, assumed = "usual" }``. While
files are merged a marked value is one thing, so that what replaces the value replaces the mark.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rnope.errors import check

Plain = dict[str, Any]
GIVEN = "given"
"""Origin of what an override set."""
_KINDS = ("paper", "assumed")


@dataclass(frozen=True, slots=True)
class Marked:
    """A value and where it is from."""

    value: Any
    origin: str


def read(value: Any, path: str = "") -> Any:
    """`value` with every table that is a mark as `Marked`.

    Raises:
        ConfigError: a mark that says nothing, or two things.
    """
    if isinstance(value, dict):
        kinds = [kind for kind in _KINDS if kind in value]
        if "value" in value and kinds:
            said = value[kinds[0]]
            ok = len(value) == 2 and isinstance(said, str) and bool(said.strip())
            rule = "a marked value has value, and either paper (the section) or assumed (the reason)"
            check(path, value, ok, rule, 'Write { value = 0.1, assumed = "usual" }.')
            return Marked(read(value["value"], path), f"{kinds[0]}: {said}")
        return {key: read(item, _joined(path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [read(item, f"{path}[{i}]") for i, item in enumerate(value)]
    return value


def given(value: Any) -> Any:
    """The value of an override, every leaf marked so."""
    if isinstance(value, dict):
        return {key: given(item) for key, item in value.items()}
    return Marked(value, GIVEN)


def take_off(plain: Plain) -> tuple[Plain, dict[str, str]]:
    """`plain` without marks, and the origin of each value that had one, by its dotted path.

    What an arm changes has an origin in any case, if an empty one: the mark of what it replaces is not its own.
    """
    origins: dict[str, str] = {}
    bare = _bare(plain, "", origins)
    for path in _leaves(bare, ""):
        if re.match(r"arms\..+\.(stage|model)\.", path):
            origins.setdefault(path, "")
    return bare, origins


def _bare(value: Any, path: str, origins: dict[str, str]) -> Any:
    if isinstance(value, Marked):
        origins[path] = value.origin
        return _bare(value.value, path, origins)
    if isinstance(value, dict):
        return {key: _bare(item, _joined(path, key), origins) for key, item in value.items()}
    if isinstance(value, list):
        return [_bare(item, f"{path}[{i}]", origins) for i, item in enumerate(value)]
    return value


def _leaves(value: Any, path: str) -> Iterator[str]:
    """Paths of all that is no table."""
    if not isinstance(value, dict):
        yield path
        return
    for key, item in value.items():
        yield from _leaves(item, _joined(path, key))


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
