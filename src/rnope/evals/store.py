"""Where predictions are kept: a file for each cell, a line for each answer, whole lines whatever kills the process.

OUT/MODEL/SUITE/run.json            which model and settings: a folder holds one kind of prompt
OUT/MODEL/SUITE/predictions/*.jsonl the cell, then a line for each answer, by index
OUT/MODEL/SUITE/results.json        figures of the finished cells, made from these files alone
OUT/MODEL/SUITE/log.jsonl           what happened when, and how long it took
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnope.errors import ConfigError, UserError
from rnope.evals.results import VERSION, ModelFacts, SuiteResults, load_plain
from rnope.evals.suite import Cell, Prediction
from rnope.files import exclusive, write_text
from rnope.strict import from_plain, to_plain

_PATIENCE = 0.5
"""Seconds that an evaluation waits for a report that is just writing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be alike in runs that share a folder."""

    version: int = VERSION
    suite: str
    model: ModelFacts
    settings: dict[str, Any]
    batch: int
    versions: dict[str, str]
    """Package -> version of the first run; later ones may differ, and the log has them."""


class Store:
    """One folder OUT/MODEL/SUITE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results_path = folder / "results.json"
        self._identity = folder / "run.json"
        self._predictions = folder / "predictions"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out.

        Raises:
            UserError: one is at work here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder / ".lock", seconds=_PATIENCE) as ours:
            if not ours:
                raise UserError(
                    f"{self.folder}: another process evaluates into this folder. Wait for it, or choose another --out."
                )
            yield

    def refresh(self, results: SuiteResults) -> None:
        """Write results.json from outside of an evaluation; one that is at work here writes its own."""
        with exclusive(self.folder / ".lock", seconds=0) as ours:
            if ours:
                results.save(self.results_path)

    def identify(self, identity: Identity) -> Identity:
        """Begin the folder, or see that it is of the same model and settings; the folder's own identity.

        Raises:
            ConfigError: it holds answers of another model, or to other prompts.
        """
        if not self._identity.exists():
            if next(self._predictions.glob("*.jsonl"), None) is not None:
                rule = "holds answers, but no run.json that says of which model and settings"
                raise UserError(f"{self.folder}: {rule}. Restore it, remove the folder, or choose another --out.")
            write_text(self._identity, json.dumps(to_plain(identity), ensure_ascii=False, indent=1, sort_keys=True))
            return identity
        there = self.identity()
        before, now = to_plain(replace(there, versions={})), to_plain(replace(identity, versions={}))
        for field, old, new in differences(json.loads(json.dumps(before)), json.loads(json.dumps(now))):
            rule = f"{self.folder} holds answers of {old!r}"
            raise ConfigError(field, new, rule, "Choose another --out, or --name the model otherwise.")
        return there

    def identity(self) -> Identity:
        """Which run the folder holds; raises as `SuiteResults.load`."""
        remedy = "Restore it, remove the folder, or choose another --out."
        found: Identity = load_plain(Identity, self._identity, remedy)
        return found

    def cells(self) -> list[Cell]:
        """The cells that were begun, in the order of their lengths and names."""
        found = [_head(path) for path in sorted(self._predictions.glob("*.jsonl"))]
        return sorted(found, key=lambda cell: (cell.context_tokens, cell.name))

    def read(self, name: str) -> dict[int, Prediction]:
        """The answers of a cell by index; errors are among them. What a kill cut short is not."""
        path = self._path(name)
        return self._read(path)[1] if path.exists() else {}

    def check(self, cell: Cell) -> None:
        """See that the cell, where it was begun, was begun in the same form; it may gain samples.

        Raises:
            ConfigError: it was not.
        """
        path = self._path(cell.name)
        if path.exists():
            there = to_plain(replace(_head(path), samples=cell.samples))
            if there != json.loads(json.dumps(to_plain(cell))):
                raise ConfigError(
                    cell.name, to_plain(cell), f"{path} holds the cell with other settings", "Choose another --out."
                )

    def begin(self, cell: Cell) -> dict[int, Prediction]:
        """Make the cell ready for answers to be added, and return those that it has: errors are dropped, to be asked again.

        Raises:
            ConfigError: as `check`.
        """
        self.check(cell)
        path = self._path(cell.name)
        lines: dict[int, Prediction] = {}
        if path.exists():
            there, lines = self._read(path)
            cell = replace(cell, samples=max(cell.samples, there.samples))
        kept = {index: line for index, line in lines.items() if line.ended != "error"}
        self._write(cell, kept)
        return kept

    def add(self, cell: Cell, lines: Sequence[Prediction]) -> None:
        """Add answers: all of these lines will be read again, or none."""
        text = "".join(_line(to_plain(line)) for line in lines)
        with self._path(cell.name).open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def close(self, cell: Cell) -> None:
        """Put a finished cell's lines into the order of their indices, if they are not."""
        there, lines = self._read(self._path(cell.name))
        if list(lines) != sorted(lines):
            self._write(there, lines)

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the log."""
        append_line(self.folder / "log.jsonl", event, values)

    def read_log(self) -> list[dict[str, Any]]:
        """The whole lines of the log; no figure rests on it, so that what a kill or a full disk cut short is passed over."""
        path = self.folder / "log.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]

    def _path(self, name: str) -> Path:
        assert "/" not in name, name
        return self._predictions / f"{name}.jsonl"

    def _write(self, cell: Cell, lines: Mapping[int, Prediction]) -> None:
        plain = [to_plain(cell), *(to_plain(lines[index]) for index in sorted(lines))]
        text = "".join(map(_line, plain))
        path = self._path(cell.name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def _read(self, path: Path) -> tuple[Cell, dict[int, Prediction]]:
        with _as_predictions(path):
            _, *rest = _whole_lines(path)
            lines = [from_plain(Prediction, line) for line in rest]
        return _head(path), {line.index: line for line in lines}


def append_line(path: Path, event: str, values: Mapping[str, Any]) -> None:
    """Add a line to the log `path`, with the time."""
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill or a full disk left half a line
                file.write(b"\n")
        file.write(_line(line).encode())


def stores(out: Path) -> list[Store]:
    """The folders of all models and suites under `out`, by name."""
    return [Store(path.parent) for path in sorted(out.glob("*/*/run.json"))]


def _head(path: Path) -> Cell:
    """The cell that a file of predictions is of."""
    with _as_predictions(path), path.open("rb") as file:
        return from_plain(Cell, json.loads(file.readline()))


@contextmanager
def _as_predictions(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        remedy = "Restore the file, or remove it: its cell will be asked again."
        raise UserError(f"{path}: is no file of predictions ({error}). {remedy}") from None


def _line(plain: Any) -> str:
    return json.dumps(plain, ensure_ascii=False, sort_keys=True) + "\n"


def _whole_lines(path: Path) -> Iterator[Any]:
    """JSON of each line that ends; a kill may have left half of one at the end."""
    *whole, _ = path.read_bytes().split(b"\n")
    for line in whole:
        yield json.loads(line)


def differences(before: Any, now: Any, field: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What differs between two tables: its dotted name, the old value and the new one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(before.get(key), now.get(key), f"{field}.{key}" if field else key)
    elif before != now:
        yield field, before, now
