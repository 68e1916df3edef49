"""A line of a table, and what a results file says of one row: medians, rates, the fastest of several. No judgement."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from rnope.bench.record import seconds

Data = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One comparison."""

    figure: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    unit: str = "×"
    """``×``, ``%`` for a share, or nothing."""
    target: float | None = None
    most: bool = False
    """Whether `target` is the most that `ratio` may be, and not the least."""

    @property
    def met(self) -> bool | None:
        if self.target is None or self.ratio is None:
            return None
        return self.ratio <= self.target if self.most else self.ratio >= self.target

    def cells(self) -> list[str]:
        ratio = "" if self.ratio is None else self._shown(self.ratio)
        target = "" if self.target is None else f"{'≤' if self.most else '≥'} {self._shown(self.target)}"
        return [self.figure, self.ours, self.peer, ratio, target, {None: "", True: "yes", False: "no"}[self.met]]

    def _shown(self, value: float) -> str:
        return f"{100 * value:.0f} %" if self.unit == "%" else f"{value:.2f}{self.unit}"


def took(entry: Data) -> float:
    """The median of a contestant that has samples."""
    found = seconds(entry)
    assert found is not None
    return found


def part(entry: Data, *path: str) -> float:
    """The median over samples of one of their parts, in seconds."""
    found = []
    for sample in entry["samples"]:
        value = sample["parts"]
        for key in path:
            value = value[key]
        found.append(value)
    return median(found)


def measured(row: Data, **wanted: str) -> dict[str, Data]:
    """Contestants of a row that have samples, by name; `wanted` are fields and their values."""
    return {
        name: entry
        for name, entry in row["contestants"].items()
        if entry["samples"] and all(entry[key] == value for key, value in wanted.items())
    }


def fastest(entries: Mapping[str, Data]) -> str | None:
    """The name of the contestant with the smallest median."""
    return min(entries, key=lambda name: took(entries[name]), default=None)


def rate(row: Data, work: str = "flops") -> float | None:
    """The best rate (FLOP/s, or with ``bytes`` bytes/s) among the limits of a row."""
    found = [each[work] / took(each) for each in measured(row, who="limit").values() if each[work]]
    return max(found, default=None)


def where(row: Data) -> str:
    """A row in words."""
    new = f" + {row['new_tokens']:,}" if row["new_tokens"] else ""
    dtype = f", {row['dtype']}" if row["dtype"] else ""
    return f"{row['tokens']:,}{new} tokens{dtype}, {row['threads']} thread{'s' * (row['threads'] > 1)}"


def time(value: float) -> str:
    """Seconds for a reader."""
    if value < 1e-3:
        return f"{1e6 * value:.0f} µs"
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
