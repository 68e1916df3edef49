"""What a comparison leaves behind: one versioned, self-describing file that the report only formats.

`docs/results.md` explains every field. No torch, no drawing, no arithmetic but that of intervals.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnope.errors import ConfigError, UserError, check, shown
from rnope.files import write_text
from rnope.strict import from_plain, to_plain

VERSION = 2
READABLE = (1, 2)
"""Version 1 lacks what has a default."""
SEGMENTS = ("begin", "needle", "context", "qc")
"""Parts of a context that attention mass is summed over (paper 2.2.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """One stage as it was run."""

    name: str
    context_tokens: int
    """The longest context of the stage."""
    thetas: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float
    """Wall-clock seconds of training, on one thread."""
    loss: float
    """Loss of the last step."""
    accuracy: float
    """Running accuracy on the needles of the training rows at the end, 0 … 1."""
    promotions: dict[str, int] = field(default_factory=dict)
    """Curriculum: context length in tokens -> step at which it was reached."""
    validation: dict[str, float] = field(default_factory=dict)
    """Cross-entropy (nats per token) on held-out text, ``all`` and by position, for example ``0-63``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One trained model: an arm of the comparison at one seed."""

    arm: str
    variant: str
    seed: int
    layers: tuple[str, ...]
    """One line per layer, as printed in layer tables."""
    parameters: int
    trained_tokens: int
    """The longest context of any of its stages: 1× in every table."""
    cache_bytes: dict[str, int]
    """Context length in tokens -> bytes of keys and values per sequence at 2 bytes a value."""
    prefill_flops: dict[str, int]
    """Context length in tokens -> FLOPs of a prefill."""
    stages: tuple[StageRun, ...]
    setting: str
    """What the sweep chose for this variant, in words; the recipe's own where there was none."""
    folder: str
    """The Hugging Face folder, relative to the results file."""
    model_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One point of a learning curve."""

    arm: str
    seed: int
    stage: str
    step: int
    """Counted from the start of the stage."""
    tokens: int
    """Counted from the start of the first stage."""
    context_tokens: int
    """Length of the rows at that step."""
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Needles of one (length, depth)."""

    depth: float
    """0 (start of the context) … 1 (its end)."""
    n: int
    hits: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NeedleRow:
    """Needles of one model at one length: every depth, several seeds each."""

    arm: str
    seed: int
    row: str
    """``standard``; ``unseen-keys``: keys never seen in training; ``no-needle`` and ``needle-only``: controls."""
    context_tokens: int
    n: int
    hits: int
    score: float
    """0 … 10: ten times the share of needles found."""
    low: float
    """95 % Wilson bounds of `score`. Answers of one context are not independent: read them as a floor on the width."""
    high: float
    guess: float
    """Score of answering any value that stands in the context."""
    haystack_repeats: float
    """How many times the held-out corpus is gone through, 1 where it suffices."""
    cells: tuple[Cell, ...]
    context_hits: tuple[int, ...]
    """Hits per context, in order: contexts are the same for every arm, so that differences can be paired."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MassRow:
    """Attention mass (SPEC A1): the question's and completion's rows over four segments, one layer kind."""

    arm: str
    seed: int
    context_tokens: int
    kind: str
    """``nope``, ``rope``, ``nope-window`` or ``rope-window``; in files of version 1 also with ``+qk-norm``."""
    n: int
    """Samples."""
    mass: dict[str, float | None]
    """begin, needle, context, qc: sums to 1; None where the window cannot reach the segment."""
    uniform: dict[str, float]
    """What each segment would get if every token of the context got the same."""
    best_head_needle: float
    """Needle mass of the head with the most of it, at the row that predicts the value, averaged over samples."""
    low: dict[str, float | None] = field(default_factory=dict)
    """95 % bounds over samples (Student's t) of `mass`, and by their names of the measures below but for `retrieval`; empty in
    files of version 1."""
    high: dict[str, float | None] = field(default_factory=dict)
    row_entropy: float | None = None
    """Bits: the mean over rows, heads, layers and samples of the entropy of each row (SPEC A2)."""
    mean_entropy: float | None = None
    """Bits: the entropy of the distribution averaged over rows and heads; then the mean over layers and samples."""
    sink: float | None = None
    """What the first token and learned sinks take: the mean over rows, heads, layers and samples. None where the window
    cannot reach it."""
    effective_span: float | None = None
    """Tokens, counted back from the query, that 90 % of a row lies in: the mean over rows, heads, layers and samples."""
    retrieval: float | None = None
    """Share of copying rows whose top key is the fact's value or its key: each layer's best head, mean over layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadRow:
    """Attention over positions (SPEC A3): the mean over samples, the layers of a kind, their heads and rows; smoothed."""

    arm: str
    seed: int
    context_tokens: int
    kind: str
    n: int
    """Samples."""
    smoothed_tokens: int
    """Width of the moving average."""
    positions: tuple[int, ...]
    """Where the values stand: at most 80 places, evenly over what the paper shows (without its first 10 tokens and
    last 3 %)."""
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRow:
    """A RULER task put in the words of the needles: one model, one length."""

    arm: str
    seed: int
    task: str
    """RULER's name of the task."""
    context_tokens: int
    n: int
    """Answers asked for."""
    hits: int
    score: float
    """0 … 100, as RULER has it."""
    low: float
    """95 % Wilson bounds of `score`."""
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LossBin:
    """Held-out text between two positions of a context."""

    begin: int
    end: int
    loss: float
    """Nats per token, the mean over windows."""
    low: float
    """95 % bounds over windows (Student's t)."""
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LossRow:
    """Loss on held-out text by position (SPEC T6): one model, windows of one length."""

    arm: str
    seed: int
    context_tokens: int
    n: int
    """Windows."""
    bins: tuple[LossBin, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """What reading and going on takes, on one thread of the run's machine: the medians of `n` rounds in which all arms
    take turns."""

    arm: str
    context_tokens: int
    n: int
    prefill_seconds: float
    step_seconds: float
    """One token behind a context of that length."""
    training_step_seconds: float | None
    """One step of the first stage's batch at its full row length; None where it was not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial of the sweep that every variant gets alike; failures are kept."""

    arm: str
    """The first arm that starts with this model and stage."""
    seed: int
    setting: str
    score: float
    """Development needles at the stage's context length, 0 … 10."""
    accuracy: float
    steps_to_full_context: int | None
    """When the curriculum reached the full context; None: never."""
    chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """One arm against another at one length and seed, on the same contexts."""

    a: str
    b: str
    seed: int
    context_tokens: int
    multiple: int
    """`context_tokens` over the longer of the two trained lengths."""
    difference: float
    """Score of `a` minus score of `b`, 0 … 10 scale."""
    low: float
    high: float
    """95 % bootstrap over contexts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One claim, judged by a rule that was fixed before the run."""

    claim: str
    rule: str
    verdict: str
    """``shown``, ``not shown`` or ``not testable``."""
    because: str
    arms: tuple[str, ...] = ()
    """Arms whose scores at other lengths it compares: the report prints ``not testable`` where no seed has all competent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Everything that a comparison found."""

    version: int = VERSION
    recipe: dict[str, Any]
    """The recipe as resolved, so that the run can be repeated."""
    scale: dict[str, Any]
    """How the paper's sizes were mapped to this scale; each value is a line of the page's scale map."""
    provenance: dict[str, Any]
    """When, where and with which versions; the digest of the corpus; the command."""
    arms: dict[str, str]
    """Arm -> what it is, in one sentence."""
    models: tuple[Model, ...]
    learning: tuple[Point, ...]
    needles: tuple[NeedleRow, ...]
    attention: tuple[MassRow, ...]
    trials: tuple[Trial, ...]
    differences: tuple[PairedDifference, ...]
    verdicts: tuple[Verdict, ...]
    spreads: tuple[SpreadRow, ...] = ()
    tasks: tuple[TaskRow, ...] = ()
    losses: tuple[LossRow, ...] = ()
    costs: tuple[CostRow, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know: seeds that did not learn, helps that were used, limits."""

    def save(self, path: Path) -> None:
        """Write beside and rename."""
        write_text(path, json.dumps(_as_columns(to_plain(self)), ensure_ascii=False, separators=(",", ":")))

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read a results file.

        Raises:
            UserError: no such file, not JSON, a file of another version, or a field that does not belong.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Run `rnope compare` first.") from None
        except ValueError as error:
            raise UserError(f"{path}: is not JSON ({error}). Restore it, or run `rnope compare` again.") from None
        except RecursionError:
            raise UserError(f"{path}: is no results file: it is nested too deeply. Restore it.") from None
        version = data.get("version") if isinstance(data, dict) else None
        if version not in READABLE:
            raise UserError(
                f"{path}: is a results file of version {shown(version)}; this rnope reads versions 1 and {VERSION}. "
                "Run `rnope compare` again into a fresh folder, or use the rnope that wrote it."
            )
        try:
            return from_plain(cls, _as_rows(data))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.field}", error.value, error.rule, error.remedy) from None
        except RecursionError:
            raise UserError(f"{path}: is no results file: it is nested too deeply. Restore it.") from None


def _as_columns(value: Any) -> Any:
    """`value` with every list of two or more tables of the same keys as ``{"columns": keys, "rows": [[…], …]}``, so that
    names are written once."""
    if isinstance(value, dict):
        return {key: _as_columns(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_as_columns(item) for item in value]
    keys = list(value[0]) if value and isinstance(value[0], dict) else []
    if len(items) < 2 or not keys or any(not isinstance(item, dict) or list(item) != keys for item in value):
        return items
    return {"columns": keys, "rows": [[item[key] for key in keys] for item in items]}


def _as_rows(value: Any) -> Any:
    """The other way; lists of tables stay what they are."""
    if isinstance(value, list):
        return [_as_rows(item) for item in value]
    if not isinstance(value, dict):
        return value
    columns, rows = value.get("columns"), value.get("rows")
    if len(value) == 2 and isinstance(columns, list) and isinstance(rows, list):
        for row in rows:
            fits = isinstance(row, list) and len(row) == len(columns)
            check(
                "rows", row, fits, f"must be lists of {len(columns)}, one for each of the columns", "Restore the file."
            )
        return [dict(zip(map(str, columns), map(_as_rows, row), strict=True)) for row in rows]
    return {key: _as_rows(item) for key, item in value.items()}
