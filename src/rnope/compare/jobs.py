"""Pieces of work, as plain values that go to worker processes, and where their results are kept.

What they cost and who needs whom is `plan`'s business.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnope.config import Needles, Optimizer, Stage, TaskName
from rnope.data.corpus import Split
from rnope.model.spec import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Run one stage of `arm`'s chain."""

    recipe: str
    model: ModelConfig
    """At the start of the chain, before any stage changed it."""
    variant: str
    """As the stage to run has it."""
    stages: tuple[Stage, ...]
    """The chain up to the stage to run, which is the last."""
    optimizer: Optimizer
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Needles of one row at one length."""

    arm: str
    seed: int
    row: str
    context_tokens: int
    needles: Needles
    split: Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Attention at one length."""

    arm: str
    seed: int
    context_tokens: int
    samples: int
    needles_seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Solve:
    """RULER's tasks at one length."""

    arm: str
    seed: int
    context_tokens: int
    names: tuple[TaskName, ...]
    answers: int
    needles_seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """Loss on held-out text by position, in windows of one length."""

    arm: str
    seed: int
    context_tokens: int
    windows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A model as far as times depend on it."""

    arms: tuple[str, ...]
    """Those that have it."""
    model: ModelConfig
    """As the last stage has it, its rotary bases aside."""
    stage: Stage
    """The first, a step of which is timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """Times of all layouts, which take turns."""

    layouts: tuple[Layout, ...]
    context_tokens: tuple[int, ...]
    rounds: int
    optimizer: Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One piece of work, on one thread."""

    id: str
    title: str
    needs: str | None
    """Id of the training that must come before."""
    work: Train | Ask | Look | Solve | Predict | Clock
    units: int
    """Steps, contexts, samples, windows or turns: what progress counts."""
    cost: float
    """Seconds it may take."""


def job_file(out: Path, job_id: str) -> Path:
    """Where the result of a job is kept."""
    return out / "jobs" / f"{job_id}.json"


def read_result(path: Path) -> dict[str, Any] | None:
    """A kept result; None where there is none, or a damaged one: its job is then done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
