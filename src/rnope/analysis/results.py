"""What an analysis leaves behind for people and for its page: one versioned file, made from the arrays of its samples.

`docs/analysis.md` explains every measure. No torch, no drawing, no arithmetic but that of intervals.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnope.evals.results import ModelFacts, load_plain
from rnope.files import write_text
from rnope.intervals import student
from rnope.strict import to_plain

VERSION = 1
FILE = "analysis.json"
KINDS = ("nope", "rope", "nope-window", "rope-window")
"""Of layers, in the order of tables."""
ALL = "all"
"""The kind that stands for all layers of a model; only in models with layers of several kinds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean:
    """A mean over samples."""

    value: float
    low: float | None = None
    """95 % interval over samples (Student's t); None for a single one."""
    high: float | None = None
    n: int
    """Samples that it is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerFacts:
    """One attention layer, as read off the model."""

    index: int
    """The decoder's, from 0; layers without attention are left out."""
    kind: str
    """``nope``, ``rope``, ``nope-window`` or ``rope-window``."""
    window: int | None
    """Visible keys, the query's own included; None: all before it."""
    heads: int
    kv_heads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysedModel:
    """A model that was looked into."""

    facts: ModelFacts
    class_name: str
    """Of its code: `Decoder` for rnope's own engine, otherwise transformers' class."""
    layers: tuple[LayerFacts, ...]
    notes: tuple[str, ...] = ()
    """For example that some of its layers have no attention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """The same measures for a layer or for a kind of layers: means over samples of the mean over rows, heads and layers."""

    mass: dict[str, Mean | None]
    """Segment -> attention that it gets; they sum to 1, less learned sinks. None where no window reaches it."""
    row_entropy: Mean | None
    """Bits: of each row, then the mean. None where no row has one (a learned sink took all)."""
    mean_entropy: Mean | None
    """Bits: of a layer's mean distribution over rows and heads, then the mean over layers."""
    sink: Mean | None
    """What the first token and a learned sink get. None where a window cannot reach the first token, and none is learned."""
    effective_span: Mean | None
    """Tokens counted back from the query that hold 90 % of a row."""
    retrieval: Mean | None
    """Share of copying rows whose top key is the copied token. None where nothing is copied, or it is out of reach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Attention over positions (SPEC A3): the mean over samples, layers, heads and rows; smoothed."""

    smoothed_tokens: int
    """Width of the moving average."""
    positions: tuple[float, ...]
    """Middles of the windows, at most 400, evenly and closely around the needle, in what the paper shows: without the
    first 10 tokens and the last 3 %."""
    values: tuple[float, ...]
    """Attention of one token there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindResult:
    """The layers of one kind."""

    kind: str
    """A layer's kind, or `ALL`."""
    layers: int
    measures: Measures
    spread: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """One layer."""

    index: int
    kind: str
    measures: Measures
    heads: dict[str, tuple[float | None, ...]]
    """Measure -> one value per head, the mean over samples: ``mass.begin``, ``mass.needle`` … for every segment,
    ``row_entropy``, ``sink``, ``effective_span``, ``retrieval``. None as in `Measures`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalHead:
    """A head that finds the copied token often."""

    layer: int
    head: int
    kind: str
    score: Mean
    """Share of copying rows, 0 … 1."""
    needle_mass: float | None
    """What it gives to segment ``needle``; None where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a sample took, against what it would have taken."""

    eager_bytes: int
    """Attention outputs of transformers' eager attention for one sample: layers × heads × tokens² in float32."""
    rows_bytes: int
    """The rows asked for, all layers together, in float32; a part of one layer at a time is ever held."""
    peak_bytes: int
    """The most that any sample took beside the model's weights."""
    peak_is: str
    """How `peak_bytes` was found, in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthResult:
    """A model at one length."""

    model: str
    """`ModelFacts.name`"""
    context_tokens: int
    n: int
    """Samples."""
    rows: float
    """Queries that were measured, the mean over samples."""
    uniform: dict[str, float]
    """Segment -> what it would get if every token of the text got the same: its share of the tokens (mean over samples)."""
    spans: dict[str, tuple[float, ...]]
    """Segment of one stretch -> [begin, end), the mean over samples: where to mark it. ``context`` is not here."""
    kinds: tuple[KindResult, ...]
    """In the order nope, rope, nope-window, rope-window, all; those that the model has."""
    layers: tuple[LayerResult, ...]
    retrieval_heads: tuple[RetrievalHead, ...]
    """The best ones, best first; at most ten."""
    memory: Memory
    seconds: tuple[float, ...]
    """Of each sample."""
    notes: tuple[str, ...] = ()
    """For example that the length is past the trained one, or that a needle was widened by the tokenizer; with how many
    samples it is true of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalysisResults:
    """Everything that an analysis found."""

    version: int = VERSION
    models: tuple[AnalysedModel, ...]
    """In the order in which they were given first."""
    settings: dict[str, Any]
    """How the texts were made: ``texts``, needles or the file's name, and its digest, seed, new tokens, chat."""
    versions: dict[str, str]
    """Package -> version, of the last run that wrote here."""
    command: str
    segments: tuple[str, ...]
    """Names of all segments: begin, needle, context, qc, as far as there are, then the user's."""
    lengths: tuple[LengthResult, ...]
    """By model, then by length."""

    def save(self, path: Path) -> None:
        """Write beside and rename."""
        write_text(path, json.dumps(to_plain(self), ensure_ascii=False, separators=(",", ":"), allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> "AnalysisResults":
        """Read a results file.

        Raises:
            UserError: no such file, not JSON, a file of another version, or a field that does not belong.
        """
        found: AnalysisResults = load_plain(cls, path, "Restore it, or run `rnope analyze` again.", version=VERSION)
        return found


def mean(values: Sequence[float]) -> Mean:
    """The mean of some numbers and its 95 % interval; at least one is needed."""
    low, high = student(values) or (None, None)
    return Mean(value=float(np.mean(values)), low=low, high=high, n=len(values))
