"""Contestants and how they take turns: one warm-up each, then A B C, A B C, … so that a slow minute hits all alike.

What a contestant computes is its own business; here only seconds, failures and agreement of logits are looked at.
"""

import gc
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rnope.bench.record import Record, plain


class Sample(NamedTuple):
    """One measurement."""

    seconds: float
    parts: dict[str, Any]
    """What it consists of, or what else was seen; plain data."""


class Contestant(ABC):
    """Something that can be timed again and again, with the same work each time."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        """What belongs to no single sample: settings, compile seconds, cache bytes. Read after every measurement."""
        self.logits: Tensor | None = None
        """Next-token logits [vocab] in float32 at a place that all contestants of a layout share."""

    @abstractmethod
    def warm_up(self) -> None: ...

    @abstractmethod
    def measure(self) -> Sample: ...

    def close(self) -> None:  # noqa: B027
        """Give memory back."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant of a row before it is built."""

    who: str
    """``ours``, ``transformers``, ``llama.cpp``, ``torch`` or ``limit``."""
    how: str = ""
    layout: str = ""
    """``hybrid``, ``full``, ``window``; contestants of one layout must agree."""
    dtype: str = ""
    make: Callable[[], Contestant]
    flops: int = 0
    """Of one sample, wasting nothing."""
    bytes: int = 0
    """Memory traffic of one sample, wasting nothing."""
    expected_seconds: float = 0.0
    """A guess, for plans and progress."""
    warm_seconds: float = 0.0
    """A guess at its warm-up: compiling, trying settings."""

    @property
    def name(self) -> str:
        return " ".join(part for part in (self.who, self.how, self.layout) if part)

    def described(self) -> dict[str, Any]:
        """What the results file says of it."""
        return {name: getattr(self, name) for name in ("who", "how", "layout", "dtype", "flops", "bytes")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Contestants that do the same work under the same conditions."""

    tokens: int
    threads: int
    dtype: str
    """Empty where the contestants have several."""
    new_tokens: int = 0
    entries: Sequence[Entry] = ()
    notes: Sequence[str] = field(default=())

    @property
    def key(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tokens", "new_tokens", "threads", "dtype")}

    def __str__(self) -> str:
        new = f" + {self.new_tokens:,}" if self.new_tokens else ""
        dtype = f", {self.dtype}" if self.dtype else ""
        return f"{self.tokens:,}{new} tokens{dtype}, {self.threads} thread{'s' * (self.threads > 1)}"


class OutOfTime(Exception):
    """The next measurement would not end before the time that the user gave."""


class Watch(Protocol):
    """Who follows a run."""

    def before(self, row: Row, entry: Entry, expected_seconds: float) -> None:
        """A measurement begins.

        Raises:
            OutOfTime: it may not.
        """

    def after(self) -> None: ...


def interleave(row: Row, record: Record, repeats: int, watch: Watch) -> None:
    """Measure what `record` lacks of `row`. A contestant that fails is recorded with its error and left out.

    Raises:
        OutOfTime: from `watch`; all that was measured is in the record.
    """
    for note in row.notes:
        record.note(row.key, note)
    open_: dict[str, Contestant] = {}
    reference: dict[str, Tensor] = {}
    try:
        for turn in range(-1, repeats):
            for entry in row.entries:
                place = record.contestant(row.key, entry.name, entry.described())
                lacking = repeats if turn < 0 else turn + 1
                if len(place["samples"]) >= lacking or (turn >= 0 and entry.name not in open_):
                    continue
                guess = entry.warm_seconds if turn < 0 else place.get("wall_seconds") or entry.expected_seconds
                watch.before(row, entry, guess)
                started = time.perf_counter()
                try:
                    if turn < 0:
                        open_[entry.name] = entry.make()
                        place["warm_up_seconds"] = round(_warm(open_[entry.name]), 4)
                    else:
                        sample = open_[entry.name].measure()
                        _agreement(entry, open_[entry.name], reference)
                        place["facts"] = plain(open_[entry.name].facts)
                        place["wall_seconds"] = round(time.perf_counter() - started, 4)
                        record.sample(place, *sample)
                except Exception as error:  # A peer may fail in any way; the others go on.
                    place["error"] = _said(error)
                    record.write()
                    _close(open_.pop(entry.name, None))
                _free()
                watch.after()
    finally:
        for contestant in open_.values():
            _close(contestant)
        if "torch._dynamo" in sys.modules:  # Compiled variants are few per function; the next row has other shapes.
            torch._dynamo.reset()
        _free()


def _warm(contestant: Contestant) -> float:
    started = time.perf_counter()
    contestant.warm_up()
    return time.perf_counter() - started


def _agreement(entry: Entry, contestant: Contestant, reference: dict[str, Tensor]) -> None:
    """How far its logits are from those of the first contestant of its layout and dtype, relative."""
    logits = contestant.logits
    if logits is None or not entry.layout:
        return
    first = reference.setdefault(f"{entry.layout} {entry.dtype}", logits)
    if first is not logits and first.shape == logits.shape:
        contestant.facts["logits_differ_by"] = float((logits - first).norm() / first.norm().clamp_min(1e-30))


def _said(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:300]} … {text[-90:]}"


def _close(contestant: Contestant | None) -> None:
    if contestant is not None:
        with suppress(Exception):
            contestant.close()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sync(device: torch.device) -> None:
    """Wait for `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, to its end on `device`."""
    sync(device)
    started = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - started
