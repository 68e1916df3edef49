"""Plain data (TOML, JSON) into frozen dataclasses, strictly, and back.

Unknown keys and wrong types are `ConfigError`s that name the path and the nearest valid key. It knows dataclasses,
tuples, string-keyed dicts, literals, optionals and scalars, and nothing of what they mean: ranges are checked by each
class in ``__post_init__``.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeVar

from rnope.errors import ConfigError, unknown

T = TypeVar("T")
_SCALARS: dict[type, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


@functools.cache
def _fields(cls: type) -> dict[str, tuple[Any, bool]]:
    """Field name -> (type, required)."""
    hints = typing.get_type_hints(cls)
    absent = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is absent and f.default_factory is absent) for f in dataclasses.fields(cls)
    }


def from_plain(cls: type[T], data: object, path: str = "") -> T:
    """Build dataclass `cls` from a mapping.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a rule that ``__post_init__`` checks.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(path or cls.__name__, data, "must be a table", "Give keys and values.")
    fields = _fields(typing.cast(Hashable, cls))
    for key in data:
        if key not in fields:
            raise unknown(f"{path}.{key}" if path else str(key), key, "key", fields)
    values = {}
    for name, (hint, required) in fields.items():
        where = f"{path}.{name}" if path else name
        if name in data:
            values[name] = _value(hint, data[name], where)
        elif required:
            raise ConfigError(where, None, "is missing", f"Add it ({_described(hint)}).")
    try:
        return cls(**values)
    except ConfigError as error:
        raise error.inside(path) from None


def _value(hint: Any, value: object, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        (inner,) = [a for a in args if a is not type(None)]
        return _value(inner, value, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise unknown(path, value, "choice", map(str, args))
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(path, value, "must be a list", f"Write [{_described(args[0])}, ...].")
        return tuple(_value(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(path, value, "must be a table", "Give keys and values.")
        return {str(k): _value(args[1], item, f"{path}.{k}") for k, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type[Any], hint), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    if hint is Any:
        return value
    if (
        hint in _SCALARS
        and type(value) is hint
        and not (hint is float and not math.isfinite(typing.cast(float, value)))
    ):
        if hint is int and abs(typing.cast(int, value)) >= 2**63:
            raise ConfigError(path, value, "must fit in 64 bits", "Use a smaller number.")
        return value
    raise ConfigError(path, value, f"must be {_described(hint)}", "Change its type.")


def _described(hint: Any) -> str:
    return _SCALARS.get(hint, getattr(hint, "__name__", str(hint)))


def to_plain(value: object) -> Any:
    """Dataclasses, tuples and dicts to dicts, lists and scalars, ready for JSON; fields that are None are kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return value
