"""Where an analysis is kept: a file for each sample, whole or not there, whatever kills the process.

OUT/run.json                                  how the texts were made: a folder holds one kind of them
OUT/samples/MODEL/model.json                  which model
OUT/samples/MODEL/LENGTH/INDEX.safetensors    a text's measures and distributions
OUT/arrays/MODEL/LENGTH.safetensors           the same of all samples, for people's own plots
OUT/log.jsonl                                 what happened when, and how long it took

It knows no torch, and not what the arrays mean.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rnope.analysis.results import VERSION, AnalysedModel
from rnope.errors import ConfigError, UserError, check
from rnope.evals.results import load_plain
from rnope.evals.store import append_line, differences
from rnope.files import beside, exclusive, write_text
from rnope.strict import from_plain, to_plain

Arrays = dict[str, np.ndarray]
_PATIENCE = 0.5
"""Seconds that a run waits for another that is just ending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunIdentity:
    """What must be alike in runs that share a folder."""

    version: int = VERSION
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelIdentity:
    """What must be alike in samples of one model."""

    version: int = VERSION
    model: AnalysedModel
    frame: dict[str, Any]
    """What stands around its prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A sample that was looked at: all that is not an array."""

    identity: str
    """Of what it was made from: model, settings, length, index, format."""
    name: str
    length: int
    """The length that it counts for."""
    index: int
    context_tokens: int
    rows_from: int
    rows: int
    segments: dict[str, tuple[tuple[int, ...], ...]]
    """Segment -> its stretches [begin, end) of tokens."""
    seconds: float
    peak_bytes: int
    peak_is: str
    notes: tuple[str, ...] = ()
    new_ids: tuple[int, ...] = ()
    """Tokens that the model went on with."""


class Store:
    """One folder OUT."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def check_place(self) -> None:
        """Refuse a folder that cannot be written; nothing is made.

        Raises:
            ConfigError: it is no folder, or not the user's to write.
        """
        place = next(path for path in (self.out, *self.out.absolute().parents) if path.exists())
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        rule = f"{place} is no folder that can be written"
        check("--out", str(self.out), writable, rule, "Name another folder.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out.

        Raises:
            UserError: one is at work here, or there can be no such folder.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--out {self.out}: cannot be made ({error.strerror}). Mend it, or name another folder."
            ) from None
        with exclusive(self.out / ".lock", seconds=_PATIENCE) as ours:
            if not ours:
                raise UserError(
                    f"{self.out}: another process analyses into this folder. Wait for it, or choose another --out."
                )
            yield

    def identify(self, run: RunIdentity, models: Mapping[str, ModelIdentity]) -> None:
        """Begin the folder, or see that it is of the same settings and models; nothing is written if it is not.

        Raises:
            ConfigError: it holds samples of other texts, or of another model with one of these names.
        """
        new: list[tuple[Path, RunIdentity | ModelIdentity]] = [(self.out / "run.json", run)]
        new += [(self._model(name), model) for name, model in models.items()]
        for path, identity in new:
            if path.exists():
                there = load_plain(type(identity), path, "Restore it, or choose another --out.", version=VERSION)
                remedy = "Choose another --out" + (", or --name the model otherwise." if identity is not run else ".")
                for field, old, now in differences(_bare(there), _bare(identity)):
                    raise ConfigError(field, now, f"{self.out} holds samples of {old!r}", remedy)
        for path, identity in new:
            if not path.exists():
                write_text(path, json.dumps(to_plain(identity), ensure_ascii=False, indent=1, sort_keys=True))

    def run(self) -> RunIdentity:
        found: RunIdentity = load_plain(RunIdentity, self.out / "run.json", "Restore it.", version=VERSION)
        return found

    def models(self) -> dict[str, ModelIdentity]:
        """The models of the folder by name, as they came."""
        paths = sorted(self.out.glob("samples/*/model.json"), key=lambda path: (path.stat().st_mtime_ns, path))
        return {path.parent.name: load_plain(ModelIdentity, path, "Restore it.", version=VERSION) for path in paths}

    def lengths(self, model: str) -> list[int]:
        """Lengths of which there are samples, in order."""
        folder = self.out / "samples" / model
        return sorted({int(path.parent.name) for path in folder.glob("*/*.safetensors") if path.parent.name.isdigit()})

    def indices(self, model: str, length: int) -> list[int]:
        """Of the samples of a length, in order."""
        found = (path.stem for path in (self.out / "samples" / model / str(length)).glob("*.safetensors"))
        return sorted(int(stem) for stem in found if stem.isdecimal())

    def has(self, model: str, length: int, index: int, identity: str) -> bool:
        """Whether a sample is there.

        Raises:
            UserError: the file cannot be read, or it is of something else.
        """
        path = self._sample(model, length, index)
        if not path.exists():
            return False
        if _unit(path).identity != identity:
            raise UserError(f"{path}: was made from another model or text. Remove it, or choose another --out.")
        return True

    def add(self, model: str, unit: Unit, arrays: Arrays) -> None:
        """Write a sample."""
        metadata = {"sample": json.dumps(to_plain(unit), ensure_ascii=False)}
        with beside(self._sample(model, unit.length, unit.index)) as place:
            place.write_bytes(save(arrays, metadata))

    def read(self, model: str, length: int, index: int) -> tuple[Unit, Arrays]:
        """A sample.

        Raises:
            UserError: the file cannot be read.
        """
        path = self._sample(model, length, index)
        unit = _unit(path)
        with _readable(path), safe_open(path, framework="numpy") as file:
            return unit, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping

    def write_arrays(self, model: str, length: int, arrays: Arrays, metadata: Mapping[str, Any]) -> Path:
        """Write what people plot; returns where."""
        path = self.out / "arrays" / model / f"{length}.safetensors"
        with beside(path) as place:
            place.write_bytes(save(arrays, {name: json.dumps(value) for name, value in metadata.items()}))
        return path

    def log(self, event: str, **values: Any) -> None:
        """Add a line to the log."""
        append_line(self.out / "log.jsonl", event, values)

    def _model(self, name: str) -> Path:
        return self.out / "samples" / name / "model.json"

    def _sample(self, model: str, length: int, index: int) -> Path:
        return self.out / "samples" / model / str(length) / f"{index:04d}.safetensors"


def digest(*parts: Any) -> str:
    """SHA-256 over plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _bare(identity: RunIdentity | ModelIdentity) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(to_plain(identity)))


def _unit(path: Path) -> Unit:
    with _readable(path), safe_open(path, framework="numpy") as file:
        return from_plain(Unit, json.loads((file.metadata() or {})["sample"]))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: is no sample of an analysis ({error}). Remove it: it will be looked at again."
        ) from None
