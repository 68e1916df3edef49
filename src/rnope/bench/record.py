"""The file of a benchmark: every sample as it comes, so that an interrupted run goes on where it stopped.

It knows plain JSON and no torch; what may be compared with what is the table's business.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rnope.errors import ConfigError, UserError
from rnope.files import write_text

FORMAT = 1


class Record:
    """A results file in memory; each change is written at once.

    Args:
        path: the file; None keeps everything in memory only.
        head: ``plan`` (what two runs must share), ``model`` and ``machine``.
        session: of this run.

    Raises:
        ConfigError: `path` holds measurements of another plan or another machine.
        UserError: `path` is no results file.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {"format": FORMAT, **plain(head), "sessions": [], "rows": []}
        if path is not None and path.exists():
            found = read(path)
            for part in ("plan", "machine"):
                _same(part, found.get(part), self.data[part], path)
            self.data = found
        self.data["sessions"].append(plain(session))

    def contestant(self, row: Mapping[str, Any], name: str, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The entry of contestant `name` in the row that `row` names; made where it is new.

        Args:
            row: ``tokens``, ``threads``, ``dtype``, ``new_tokens``.
            facts: what to write into the entry.
        """
        empty: dict[str, Any] = {"facts": {}, "warm_up_seconds": None, "samples": [], "error": None}
        entry: dict[str, Any] = self._row(row)["contestants"].setdefault(name, empty)
        entry.update(plain(facts or {}))
        return entry

    def note(self, row: Mapping[str, Any], text: str) -> None:
        """Write a sentence beside a row, once."""
        notes = self._row(row)["notes"]
        if text not in notes:
            notes.append(text)

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.data["rows"]
        found = next((each for each in rows if all(each[key] == row[key] for key in row)), None)
        if found is None:
            found = dict(row) | {"notes": [], "contestants": {}}
            rows.append(found)
        return found

    def sample(self, entry: dict[str, Any], seconds: float, parts: Mapping[str, Any]) -> None:
        """Add one measurement and write the file."""
        session = len(self.data["sessions"]) - 1
        entry["samples"].append({"seconds": round(seconds, 7), "parts": plain(parts), "session": session})
        entry["error"] = None
        self.write()

    def write(self) -> None:
        if self.path is not None:
            write_text(self.path, json.dumps(self.data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Name a file that `rnope bench` wrote, or a new one."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not {"plan", "sessions", "rows"} <= set(data):
        raise UserError(f"{path}: is no results file of `rnope bench`, format {FORMAT}. Name another file.")
    return data


def seconds(entry: Mapping[str, Any]) -> float | None:
    """The median over a contestant's samples; None where there are none."""
    return median(sample["seconds"] for sample in entry["samples"]) if entry["samples"] else None


def _same(part: str, found: Any, wanted: Any, path: Path) -> None:
    if found != wanted:
        keys = sorted({*(found or {}), *wanted})
        key = next(key for key in keys if (found or {}).get(key) != wanted.get(key))
        rule = f"{path} was measured with {(found or {}).get(key)!r}"
        raise ConfigError(f"{part}.{key}", wanted.get(key), rule, "Choose another --out, or remove that file.")


def plain(value: Any) -> Any:
    """`value` as JSON has it: keys as text, tuples as lists, floats with 7 digits, and no infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return value
