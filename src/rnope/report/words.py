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


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def signed_interval(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def share(value: float | None) -> str:
    """An attention mass; a blank where a window cannot reach."""
    return "" if value is None else f"{value:.4f}"


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


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


def pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
