"""Numbers as a reader wants them: scores, lengths, bytes, FLOPs, times. It knows formats, not what they mean."""

import json
from typing import Any


def tokens(count: int) -> str:
    """1,024"""
    return f"{count:,}"


def short_tokens(count: int) -> str:
    """262144 -> 256k, 16384 -> 16k, 256 -> 256."""
    return f"{count // 1024}k" if count >= 1024 and count % 1024 == 0 else f"{count:,}"


def times(ratio: float) -> str:
    """0.5 -> ½×, 16 -> 16×."""
    fractions = {0.5: "½", 0.25: "¼", 0.125: "⅛"}
    return f"{fractions.get(ratio) or f'{ratio:,.3g}' if ratio < 1000 else f'{ratio:,.0f}'}×"


def score(value: float) -> str:
    """A score on the 0 … 10 scale, as the paper prints it."""
    return f"{value:.2f}"


def interval(low: float, high: float) -> str:
    return f"{low:.2f}–{high:.2f}"


def bounds(values: list[float], digits: int = 4) -> str:
    """The lowest and the highest, once if they print alike."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def brief_seconds(value: float) -> str:
    """0.0123 -> 12.3 ms, 3.21 -> 3.21 s."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def signed_interval(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def share(value: float | None) -> str:
    """An attention mass; a blank where a window cannot reach."""
    return "" if value is None else f"{value:.4f}"


def seconds(value: float) -> str:
    """42 -> 42 s, 3600 -> 60 min, 54000 -> 15.0 h."""
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 36_000 else f"{value / 3600:.1f} h"


def plain(value: Any) -> str:
    """Any plain value of a scale map or a provenance block, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return "" if value is None else str(value)


def listed(items: list[str], last: str = "and") -> str:
    """a, b and c"""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def pretty(table: dict[str, Any]) -> str:
    """JSON, a line for each entry of `table` and each item of its lists of tables; what is empty is left out."""
    lines = []
    for key, value in _filled(table).items():
        items = value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None
        head = f"{json.dumps(key, ensure_ascii=False)}: "
        if items is None:
            lines.append(head + json.dumps(value, ensure_ascii=False))
        else:
            lines += [head + "[", *(f"  {json.dumps(item, ensure_ascii=False)}," for item in items), "]"]
    return "\n".join(lines)


def recipe(resolved: dict[str, Any]) -> str:
    """A recipe of a comparison as JSON: what a stage says alike for all arms once, and the rest with each arm."""
    arms = resolved.get("arms", ())
    versions: dict[str, list[dict[str, Any]]] = {}
    for stage in (stage for arm in arms for stage in arm.get("stages", ())):
        versions.setdefault(stage["name"], []).append(stage)
    alike = {
        name: {key: value for key, value in found[0].items() if all(other.get(key) == value for other in found)}
        for name, found in versions.items()
    }
    if not alike:
        return pretty(resolved)
    own = [
        {**arm, "stages": [
            {"name": stage["name"]} | {key: value for key, value in stage.items() if key not in alike[stage["name"]]}
            for stage in arm["stages"]
        ]}
        for arm in arms
    ]  # fmt: skip
    return pretty({**resolved, "stages": list(alike.values()), "arms": own})


def _filled(value: Any) -> Any:
    """`value` without entries of tables that are null or empty."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None and item not in ("", [], {}, ())}
    return [_filled(item) for item in value] if isinstance(value, (list, tuple)) else value
