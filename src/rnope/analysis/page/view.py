"""The results as the sections ask for them: models with their colours, each one's lengths and kinds of layers; and the
forms that the sections share.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib

from rnope.analysis.results import ALL, KINDS, AnalysedModel, AnalysisResults, KindResult, LengthResult, Mean
from rnope.report import draw
from rnope.report.blocks import Block, Cell
from rnope.results import SEGMENTS

CALLED = {
    "nope": "NoPE", "rope": "RoPE", "nope-window": "windowed NoPE", "rope-window": "windowed RoPE", ALL: "all layers",
}  # fmt: skip
KIND_COLOURS = {"nope": "#0072B2", "rope": "#D55E00", "nope-window": "#56B4E9", "rope-window": "#E69F00"}
PAPER_LENGTHS = {8192: "8k", 8000: "8k", 32768: "32k", 32000: "32k", 131072: "128k", 128000: "128k"}
"""Lengths of ours that stand for one of the paper's, which are given as 8k, 32k and 128k only."""
OUT_OF_REACH = ""
NO_SUCH_LAYERS = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a section adds to the page."""

    blocks: Sequence[Block]
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> PNG; those that no block shows are files only."""
    headline: str = ""
    """Its sentence at the top of the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One model, with all its lengths."""

    name: str
    own: AnalysedModel
    colour: str
    marker: str
    slug: str
    """In names of files."""
    lengths: Mapping[int, LengthResult]
    """Context length -> what was found; shortest first."""

    def cell(self, small: str = "") -> Cell:
        """The name, for a table."""
        return Cell(self.short, small, colour=self.colour)

    @property
    def short(self) -> str:
        """The name: its begin and end, if it is long."""
        return self.name if len(self.name) <= 32 else f"{self.name[:16]}…{self.name[-15:]}"

    @property
    def label(self) -> str:
        """The name, for a figure."""
        return draw.visible(self.short)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of its layers, without `ALL`."""
        has = {layer.kind for layer in self.own.layers}
        return tuple(kind for kind in KINDS if kind in has)

    def windows_of(self, kind: str = ALL) -> tuple[int, ...]:
        """The windows of the layers of a kind."""
        own = (layer.window for layer in self.own.layers if kind in (ALL, layer.kind))
        return tuple(sorted({window for window in own if window is not None}))

    def at(self, length: int, kind: str = ALL) -> KindResult | None:
        """The layers of `kind` at a length. `ALL` is also the one kind of a model whose layers are alike."""
        found = self.lengths.get(length)
        if found is None:
            return None
        if kind == ALL and len(self.kinds) == 1:
            kind = self.kinds[0]
        return next((result for result in found.kinds if result.kind == kind), None)


class View:
    """Everything that the sections look at."""

    def __init__(self, results: AnalysisResults) -> None:
        self.results = results
        names = [model.facts.name for model in results.models]
        styles = draw.styles(names)
        slugs = _slugs(names)
        self.models = tuple(
            Seen(
                name=name,
                own=model,
                colour=styles[name][0],
                marker=styles[name][1],
                slug=slugs[name],
                lengths={
                    found.context_tokens: found
                    for found in sorted(results.lengths, key=lambda found: found.context_tokens)
                    if found.model == name
                },
            )
            for name, model in zip(names, results.models, strict=True)
        )
        self.lengths = tuple(sorted({found.context_tokens for found in results.lengths}))
        self.segments = results.segments
        self.kinds = tuple(kind for kind in KINDS if any(kind in model.kinds for model in self.models))

    @property
    def mixed(self) -> bool:
        """Whether any model has layers of several kinds."""
        return any(len(model.kinds) > 1 for model in self.models)

    @property
    def focus(self) -> str | None:
        """The segment that figures are about: the needle, or else the first that the user named."""
        own = [name for name in self.segments if name not in SEGMENTS]
        return "needle" if "needle" in self.segments else own[0] if own else None

    @property
    def samples(self) -> str:
        """How many, in words."""
        counts = sorted({found.n for found in self.results.lengths})
        if not counts:
            return ""
        said = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        return f"{said} sample{'' if counts == [1] else 's'} a length"

    def shared(self) -> int | None:
        """The longest length that all models have."""
        return next((n for n in reversed(self.lengths) if all(n in model.lengths for model in self.models)), None)


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Name -> what it is called in names of files; no two are alike."""
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        plain = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60]
        taken = {other.casefold() for other in found.values()}
        found[name] = plain if plain and plain.casefold() not in taken else f"{plain or 'model'}-{place + 1}"
    return found


def share(value: float) -> str:
    """A share of attention: four decimals as the paper has them, more for those that would be lost."""
    return f"{value:.4f}" if value >= 0.001 or value < 5e-7 else f"{value:.6f}"


def bits(value: float) -> str:
    return f"{value:.2f}"


def count(value: float) -> str:
    """Tokens."""
    return f"{value:,.0f}"


def number(mean: Mean | None, text: Callable[[float], str]) -> Cell:
    """A mean, and below it half of its interval's width; blank for none."""
    if mean is None:
        return Cell(OUT_OF_REACH)
    return Cell(text(mean.value), "" if mean.high is None else f"±{text(mean.high - mean.value)}")


def shade(every: Sequence[int], length: int) -> Any:
    """The colour of a length: from light to dark along one scale."""
    return matplotlib.colormaps["viridis_r"](0.12 + 0.83 * every.index(length) / max(1, len(every) - 1))


def bars(means: Sequence[Mean]) -> list[list[float]]:
    """Distances of the bounds, for error bars."""
    return [
        [0.0 if mean.low is None else mean.value - mean.low for mean in means],
        [0.0 if mean.high is None else mean.high - mean.value for mean in means],
    ]


def log_axis(axis: Any) -> None:
    """A logarithmic vertical axis of shares, with some round ticks however narrow its range; no formula in its labels."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1,) if high / low > 300 else (1, 3) if high / low > 30 else (1, 2, 5)
    ticks = [step * 10.0**power for power in range(-12, 2) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}".replace("e-0", "e-") for tick in ticks])
    axis.minorticks_off()


def legend(figure: Any, keys: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the figure, on as few lines as there is room for."""
    figure.legend(keys, labels, loc="outside lower center",
                  ncols=min(len(keys), max(1, 100 // (8 + max(map(len, labels))))))  # fmt: skip
