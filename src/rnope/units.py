"""Quantities as people read and write them: bytes and FLOPs with their prefixes, lengths in thousands of tokens."""

import re

from rnope.errors import ConfigError


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.3g} {unit}"
        value /= base
    return f"{value:,.3g} {units[-1]}"


def size(count: int) -> str:
    """Bytes, with binary prefixes."""
    return _scaled(float(count), 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def flops(count: int) -> str:
    return _scaled(float(count), 1000.0, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def token_counts(text: str, field: str = "lengths") -> tuple[int, ...]:
    """Token counts: ``"2k, 8192, 1m"``. k is 1,024 behind a power of two (8k = 8,192) and 1,000 else (132k = 132,000).

    Raises:
        ConfigError: something that is no count.
    """
    parts = (part.strip() for part in text.split(","))
    return tuple(_token_count(part, field) for part in parts if part and part != "none")


def _token_count(part: str, field: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([km]?)", part.casefold().replace("_", ""))
    if found is None:
        raise ConfigError(field, part, "is no number of tokens", "Write 8192, 8k or 1m, with commas between.")
    count, unit = int(found[1]), found[2]
    base = 1024 if count and count & (count - 1) == 0 else 1000
    return count * base ** " km".index(unit or " ")
