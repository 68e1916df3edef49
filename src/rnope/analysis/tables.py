"""From the kept samples of a model at one length to its tables: means over rows, heads, layers and samples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rnope.analysis import room
from rnope.analysis.measures import smoothed
from rnope.analysis.probe import Layer
from rnope.analysis.results import (
    ALL,
    KINDS,
    AnalysedModel,
    KindResult,
    LayerFacts,
    LayerResult,
    LengthResult,
    Mean,
    Measures,
    Memory,
    RetrievalHead,
    Spread,
    mean,
)
from rnope.analysis.store import Arrays, Store, Unit
from rnope.results import SEGMENTS

SPREAD_POINTS, TOP_HEADS, NOTES = 400, 10, 5
NEEDLE_POINTS = 60
"""Of the SPREAD_POINTS: even steps through 131,072 tokens would pass over a needle."""
_PER_HEAD = ("row_entropy", "sink", "effective_span", "retrieval")


def length_result(store: Store, described: AnalysedModel, length: int) -> LengthResult | None:
    """The tables of the samples that are there; None where there are none. Writes ``arrays/MODEL/LENGTH.safetensors`` too."""
    name = described.facts.name
    found = _Samples(described.layers)
    for index in store.indices(name, length):
        found.add(*store.read(name, length, index))
    if not found.units:
        return None
    store.write_arrays(name, length, found.arrays(), found.metadata())
    return found.result(name, length)


@dataclass(slots=True)
class _Samples:
    """Samples of one length, all but their distributions in full: of these a sum and the smoothed means are kept."""

    layers: Sequence[LayerFacts]
    units: list[Unit] = field(default_factory=list)
    kept: list[Arrays] = field(default_factory=list)
    total: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """[layers, t], the sum of the samples' distributions."""
    reaching: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """[t], how many samples are that long."""
    spreads: dict[str, list[tuple[np.ndarray, np.ndarray, int]]] = field(default_factory=dict)

    def add(self, unit: Unit, arrays: Arrays) -> None:
        distribution = arrays.pop("distribution").astype(np.float64)  # l t
        self.units.append(unit)
        self.kept.append(arrays)
        missing = distribution.shape[1] - len(self.reaching)
        if missing > 0:
            self.reaching = np.append(self.reaching, np.zeros(missing))
            grown = np.zeros((len(self.layers), len(self.reaching)))
            if self.total.size:
                grown[:, : self.total.shape[1]] = self.total
            self.total = grown
        self.total[:, : distribution.shape[1]] += distribution
        self.reaching[: distribution.shape[1]] += 1
        for kind, where in self.kinds().items():
            places, values, width = smoothed(
                torch.from_numpy(distribution[where].mean(0)), context_tokens=unit.context_tokens
            )
            self.spreads.setdefault(kind, []).append((places.numpy(), values.numpy(), width))

    def kinds(self) -> dict[str, list[int]]:
        """Kind -> places of its layers."""
        found = {kind: [i for i, each in enumerate(self.layers) if each.kind == kind] for kind in KINDS}
        found = {kind: where for kind, where in found.items() if where}
        return found if len(found) == 1 else {**found, ALL: list(range(len(self.layers)))}

    def segments(self) -> tuple[str, ...]:
        there = {name for unit in self.units for name in unit.segments}
        return (*(name for name in SEGMENTS if name in there), *sorted(there.difference(SEGMENTS)))

    def arrays(self) -> Arrays:
        """For people's own plots; see docs/analysis.md. NaN: nothing to measure, or a segment that the text has not."""
        segments = self.segments()
        found: Arrays = {name: np.stack([each[name] for each in self.kept]) for name in (*_PER_HEAD, "mean_entropy")}
        found["mass"] = np.stack([self._by_segment(i, "mass", segments, np.nan) for i in range(len(self.units))])
        reached = [self._by_segment(i, "reached", segments, False) for i in range(len(self.units))]
        found["reached"] = np.stack(reached).astype(bool)
        found["distribution"] = (self.total / self.reaching).astype(np.float32)
        return found

    def metadata(self) -> dict[str, Any]:
        return {
            "segments": self.segments(),
            "samples": [unit.name for unit in self.units],
            "layers": [each.index for each in self.layers],
            "kinds": [each.kind for each in self.layers],
            "windows": [each.window for each in self.layers],
            "heads": [each.heads for each in self.layers],
        }

    def result(self, model: str, length: int) -> LengthResult:
        units, segments = self.units, self.segments()
        arrays = self.arrays()
        blanked = self._blanked(arrays, segments)
        kinds = tuple(
            KindResult(
                kind=kind,
                layers=len(where),
                measures=self._measures(arrays, blanked, segments, where),
                spread=self._spread(kind),
            )
            for kind, where in self.kinds().items()
        )
        heads = self._heads(blanked, segments)
        layers = tuple(
            LayerResult(
                index=each.index,
                kind=each.kind,
                measures=self._measures(arrays, blanked, segments, [place]),
                heads=heads[place],
            )
            for place, each in enumerate(self.layers)
        )
        plain = [Layer(index=i, position="rope", window=each.window, heads=each.heads, kv_heads=each.kv_heads)
                 for i, each in enumerate(self.layers)]  # fmt: skip
        tokens = max(unit.context_tokens for unit in units)
        rows = max(unit.rows for unit in units)
        most = max(units, key=lambda unit: unit.peak_bytes)
        return LengthResult(
            model=model,
            context_tokens=length,
            n=len(units),
            rows=float(np.mean([unit.rows for unit in units])),
            uniform={name: float(np.mean(_shares(units, name))) for name in segments},
            spans=_spans(units, segments),
            kinds=kinds,
            layers=layers,
            retrieval_heads=self._best(blanked, heads),
            memory=Memory(
                eager_bytes=room.eager_bytes(plain, context_tokens=tokens),
                rows_bytes=4 * rows * sum(each.heads * min(tokens, (each.window or tokens) + rows) for each in plain),
                peak_bytes=most.peak_bytes,
                peak_is=most.peak_is,
            ),
            seconds=tuple(unit.seconds for unit in units),
            notes=_notes(units),
        )  # fmt: skip

    def _by_segment(self, place: int, name: str, segments: Sequence[str], absent: float) -> np.ndarray:
        """An array [..., segments of the sample] in the order of `segments`."""
        own, values = list(self.units[place].segments), self.kept[place][name]
        whole = np.full((*values.shape[:-1], len(segments)), absent, dtype=np.float32)
        for at, segment in enumerate(segments):
            if segment in own:
                whole[..., at] = values[..., own.index(segment)]
        return whole

    def _blanked(self, arrays: Arrays, segments: Sequence[str]) -> Arrays:
        """Values with NaN for what no row of a layer can reach: the needle, the first token."""
        reached = arrays["reached"]  # n l s
        mass = np.where(reached[:, :, None], arrays["mass"], np.nan)
        retrieval = arrays["retrieval"]
        if "needle" in segments:
            retrieval = np.where(reached[:, :, None, segments.index("needle")], retrieval, np.nan)
        sink = arrays["sink"].copy()
        for i, unit in enumerate(self.units):
            for place, layer in enumerate(self.layers):
                out = layer.window is not None and unit.rows_from - (layer.window - 1) > 0
                if out and not np.nan_to_num(sink[i, place]).any():  # a learned sink is always in reach
                    sink[i, place] = np.nan
        return {**arrays, "mass": mass, "retrieval": retrieval, "sink": sink}

    def _measures(self, arrays: Arrays, blanked: Arrays, segments: Sequence[str], where: list[int]) -> Measures:
        """Of the layers `where`; a mass counts as 0 in those of them that cannot reach what others can."""
        mass: dict[str, Mean | None] = {}
        for at, segment in enumerate(segments):
            seen = arrays["reached"][:, where, at].any(1)  # n
            values = arrays["mass"][..., at][:, where]  # n l h
            mass[segment] = _mean([_known(each) for each in values[seen]])
        found = {name: _mean([_known(each[where]) for each in blanked[name]]) for name in (*_PER_HEAD, "mean_entropy")}
        return Measures(mass=mass, **found)

    def _spread(self, kind: str) -> Spread:
        parts = self.spreads[kind]
        kept = self._kept(parts)
        picked = [(kept * (len(places) - 1)).round().astype(int) for places, _, _ in parts]
        places = np.mean([part[0][pick] for part, pick in zip(parts, picked, strict=True)], 0)
        values = np.mean([part[1][pick] for part, pick in zip(parts, picked, strict=True)], 0)
        width = max(part[2] for part in parts)
        return Spread(smoothed_tokens=width, positions=_short(places), values=_short(values))

    def _kept(self, parts: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> np.ndarray:
        """Where values are kept, as shares 0 … 1 of the places: evenly, and closely around the needle."""
        shortest = min(len(places) for places, _, _ in parts)
        span = _spans(self.units, self.segments()).get("needle")
        if shortest <= SPREAD_POINTS or span is None:
            return np.linspace(0, 1, min(shortest, SPREAD_POINTS))
        reach = 5 * max(width for _, _, width in parts)
        near = np.linspace(span[0] - reach, span[1] + reach, NEEDLE_POINTS) - parts[0][0][0]
        even = np.linspace(0, 1, SPREAD_POINTS - NEEDLE_POINTS)
        return np.sort(np.concatenate((even, (near / (shortest - 1)).clip(0, 1))))

    def _heads(self, blanked: Arrays, segments: Sequence[str]) -> list[dict[str, tuple[float | None, ...]]]:
        """By layer: means over samples of each head."""
        names = {f"mass.{segment}": blanked["mass"][..., at] for at, segment in enumerate(segments)}
        names |= {name: blanked[name] for name in _PER_HEAD}
        means = {name: _mean_over_samples(values) for name, values in names.items()}  # l h
        return [
            {
                name: tuple(None if np.isnan(value) else _rounded(value) for value in values[place, : layer.heads])
                for name, values in means.items()
            }
            for place, layer in enumerate(self.layers)
        ]

    def _best(self, blanked: Arrays, heads: Sequence[dict[str, tuple[float | None, ...]]]) -> tuple[RetrievalHead, ...]:
        scores = blanked["retrieval"]  # n l h
        means = np.nan_to_num(_mean_over_samples(scores))
        order = np.argsort(-means, axis=None, kind="stable")[:TOP_HEADS]
        found = []
        for place, head in zip(*np.unravel_index(order, means.shape), strict=True):
            if means[place, head] > 0:
                layer, values = self.layers[place], scores[:, place, head]
                found.append(
                    RetrievalHead(
                        layer=layer.index,
                        head=int(head),
                        kind=layer.kind,
                        score=mean([float(value) for value in values[~np.isnan(values)]]),
                        needle_mass=heads[place]["mass.needle"][head] if "mass.needle" in heads[place] else None,
                    )
                )
        return tuple(found)


def _known(values: np.ndarray) -> float:
    """The mean over heads, then over layers, of what is known in [l, h] or [l]; NaN where nothing is."""
    if values.ndim > 1:
        values = np.array([_known(layer) for layer in values])
    there = values[~np.isnan(values)]
    return float(there.mean(dtype=np.float64)) if there.size else float("nan")


def _mean(values: Sequence[float]) -> Mean | None:
    known = [value for value in values if not np.isnan(value)]
    return mean(known) if known else None


def _mean_over_samples(values: np.ndarray) -> np.ndarray:
    """[n, ...] to [...]: NaN where no sample has a value."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(0, dtype=np.float64) / there.sum(0)


def _shares(units: Sequence[Unit], segment: str) -> list[float]:
    """Of the texts' tokens, in those that have the segment."""
    return [
        sum(end - begin for begin, end in unit.segments[segment]) / unit.context_tokens
        for unit in units
        if segment in unit.segments
    ]


def _spans(units: Sequence[Unit], segments: Sequence[str]) -> dict[str, tuple[float, ...]]:
    found = {}
    for name in segments:
        spans = [unit.segments[name] for unit in units if name in unit.segments]
        if name != "context" and all(len(stretches) == 1 for stretches in spans):
            found[name] = tuple(float(value) for value in np.mean([stretches[0] for stretches in spans], 0))
    return found


def _notes(units: Sequence[Unit]) -> tuple[str, ...]:
    counts = Counter(note for unit in units for note in unit.notes)
    lines = [
        note if count == len(units) else f"{note} ({count} of {len(units)} samples)" for note, count in counts.items()
    ]
    more = len(lines) - NOTES
    return tuple(lines if more <= 0 else [*lines[:NOTES], f"and {more} more notes like these"])


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _short(values: np.ndarray) -> tuple[float, ...]:
    return tuple(_rounded(value) for value in values)
