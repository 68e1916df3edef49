"""What an evaluation leaves behind: one versioned file for a model and a suite, the same bytes however often it was
stopped. Times stand in the log, not here. No torch, no drawing, no arithmetic but that of intervals.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rnope.errors import ConfigError, UserError, shown
from rnope.files import write_text
from rnope.strict import from_plain, to_plain

VERSION = 1
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A number with what it stands for."""

    name: str
    value: float
    low: float | None = None
    """95 % bootstrap interval over samples; None where there is none."""
    high: float | None = None
    n: int
    """Samples that it is made of: errors are not among them."""
    labels: dict[str, Any] = field(default_factory=dict)
    """What it is limited to, for example a length or a group of tasks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellResult:
    """The samples of one cell."""

    name: str
    context_tokens: int
    labels: dict[str, Any]
    samples: int
    """That were to be asked."""
    errors: int
    """Samples without an answer; they are in no figure."""
    answers_cut: int
    """Answers that ended because the cell's new tokens were used up."""
    prompt_tokens: float
    """Mean over samples."""
    prompts_sha256: str
    """Of the samples' prompt digests, in order."""
    figures: tuple[Figure, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """Means of the numbers that were kept beside the answers, for example how often the haystack repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """Which model answered."""

    name: str
    kind: str
    """``rnope``, ``transformers`` or ``server``."""
    sha256: str
    """Of config.json, generation_config.json and weights; for a server what is known of it: address and model name."""
    tokenizer_sha256: str
    begin_ids: tuple[int, ...]
    """Ids that every prompt begins with (BOS)."""
    dtype: str
    device: str
    trained_tokens: int | None = None
    """The longest context that the model says it was trained on."""
    windows: tuple[int, ...] = ()
    """The sliding windows among its layers, in tokens."""
    model_type: str | None = None
    parameters: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteResults:
    """Everything that one suite found about one model."""

    version: int = VERSION
    suite: str
    model: ModelFacts
    settings: dict[str, Any]
    versions: dict[str, str]
    """Package -> version, as of the first run of the folder; the log has every run's."""
    cells: tuple[CellResult, ...]
    """Finished ones."""
    summary: tuple[Figure, ...]

    def save(self, path: Path) -> None:
        """Write beside and rename."""
        write_text(path, json.dumps(to_plain(self), ensure_ascii=False, indent=1, sort_keys=True))

    @classmethod
    def load(cls, path: Path) -> "SuiteResults":
        """Read a results file.

        Raises:
            UserError: no such file, not JSON, a file of another version, or a field that does not belong.
        """
        return load_plain(cls, path, "Restore it, or run `rnope eval report` on its folder.")


def load_plain(cls: type[Any], path: Path, remedy: str, *, version: int = VERSION) -> Any:
    """A dataclass with a `version` from a JSON file; raises as `SuiteResults.load`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}). {remedy}") from None
    found = data.get("version") if isinstance(data, dict) else None
    if found != version:
        rule = f"is a file of version {shown(found)}; this rnope reads version {version}"
        raise UserError(f"{path}: {rule}. Use another folder, or the rnope that wrote it.")
    try:
        return from_plain(cls, data)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.value, error.rule, error.remedy) from None


def mean_figure(name: str, values: Sequence[float], **labels: Any) -> Figure:
    """The mean of `values` and its 95 % percentile bootstrap interval; the same values give the same interval.

    All values being equal, the interval has no width: with few samples read it as a floor.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        return Figure(name=name, value=0.0, n=0, labels=labels)
    rng = np.random.default_rng([len(array), RESAMPLES])
    # Values that occur often are drawn as counts: a resample of n is a multinomial over the distinct ones.
    distinct, counts = np.unique(array, return_counts=True)
    draws = rng.multinomial(len(array), counts / len(array), size=RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(array), [0.025, 0.975])
    return Figure(name=name, value=float(array.mean()), low=float(low), high=float(high), n=len(array), labels=labels)


def mean_of(name: str, parts: Sequence[Figure], *, highest: float, **labels: Any) -> Figure:
    """The plain mean of figures over different samples, on a scale of 0 to `highest`.

    Its interval follows from theirs: half-widths add up as squares. Where most parts are at an end of the scale it is
    too narrow, as theirs are.
    """
    value = sum(part.value for part in parts) / len(parts)
    n = sum(part.n for part in parts)
    ends = [(part.low, part.high) for part in parts if part.low is not None and part.high is not None]
    if len(ends) < len(parts):
        return Figure(name=name, value=value, n=n, labels=labels)
    half = math.hypot(*((high - low) / 2 for low, high in ends)) / len(parts)
    low, high = max(0.0, value - half), min(highest, value + half)
    return Figure(name=name, value=value, low=low, high=high, n=n, labels=labels)
