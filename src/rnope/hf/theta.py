"""The rotary base of a config.json, wherever its time put it: a number, a table, or a table per layer type."""

from collections.abc import Mapping
from typing import Any

from rnope.errors import ConfigError, shown

_PLAIN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_LAYER_TYPES = ("sliding_attention", "full_attention")


def theta(raw: Mapping[str, Any], *, per_type: bool = False) -> float:
    """θ from ``rope_parameters`` (transformers 5), ``rope_scaling`` or ``rope_theta`` (before).

    Args:
        raw: the whole file.
        per_type: a table per layer type is read too, as what it means. The class of transformers 5.23 keeps such tables
            and cannot compute with them. Full layers of `cohere2` have no rotation, so that they must have null there
            or what the sliding ones have.

    Raises:
        ConfigError: no θ, two of them, or a RoPE that is scaled or partial.
    """
    given: dict[str, object] = {}
    for name in ("rope_parameters", "rope_scaling"):
        where, table = _table(name, raw.get(name), per_type)
        scaling = table.get("rope_type", table.get("type", "default"))
        if scaling != "default" or table.get("partial_rotary_factor", 1.0) != 1.0 or set(table) - _PLAIN:
            rule = "rnope has only plain RoPE on whole heads"
            raise ConfigError(where, dict(table), rule, "Use transformers for this model.")
        given[f"{where}.rope_theta"] = table.get("rope_theta")
    given["rope_theta"] = raw.get("rope_theta")
    given = {where: value for where, value in given.items() if value is not None}
    if not given:
        raise ConfigError("rope_theta", None, "is missing", "The class's default has changed over time: write it.")
    numbers = {where: _number(where, value) for where, value in given.items()}
    if len(set(numbers.values())) > 1:
        pairs = " but ".join(f"{where} = {value:g}" for where, value in numbers.items())
        raise ConfigError("rope_theta", raw.get("rope_theta"), f"the file contradicts itself: {pairs}", "Mend one.")
    return next(iter(numbers.values()))


def _table(name: str, value: object, per_type: bool) -> tuple[str, Mapping[str, Any]]:
    """Where a table of RoPE parameters stands, and what it holds; of one per layer type that of the sliding layers."""
    if value is None:
        return name, {}
    if not isinstance(value, Mapping):
        raise ConfigError(name, value, "must be a table", "Give it rope_type and rope_theta.")
    if not per_type or not set(value) & set(_LAYER_TYPES):
        return name, value
    sliding, full = (value.get(kind) for kind in _LAYER_TYPES)
    where = f"{name}.sliding_attention"
    if set(value) - set(_LAYER_TYPES) or not isinstance(sliding, Mapping):
        raise ConfigError(where, sliding, "must be a table, with nothing beside it but full_attention", "Mend it.")
    if full is not None and full != sliding:
        rule = f"full layers of cohere2 have no rotation, and sliding ones say {shown(dict(sliding))}"
        raise ConfigError(f"{name}.full_attention", full, rule, "Write null.")
    return where, sliding


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < 1e30:
        raise ConfigError(where, value, "must be a number above 1", "The paper pretrains with 10000.")
    return float(value)
