"""Attention of a comparison's model (SPEC A1-A3): samples read through the probe, folded by layer kind."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rnope.analysis.measures import MEASURES, mean_entropy, reach, smoothed
from rnope.analysis.ours import EngineProbed
from rnope.analysis.probe import Marks, Reading, probe
from rnope.analysis.rows import Rows
from rnope.analysis.samples import Sample, task_sample
from rnope.data.needles import Haystack, NeedleTask
from rnope.intervals import student
from rnope.model.decoder import Decoder
from rnope.results import SEGMENTS, MassRow, SpreadRow

PLACES = 80
"""Of a distribution over positions, at most."""
_ASKED = "asked"
_MEANS = ("row_entropy", "sink", "effective_span")
"""Measures with one value for each row."""


def needle_when_asked(rows: Rows, marks: Marks) -> Tensor:
    """Needle mass of the rows that copy from it, [h, r]; NaN for the others."""
    ((begin, end),) = marks.spans["needle"]
    copies = torch.tensor([position in marks.copied for position in rows.positions.tolist()])
    found = rows.probabilities[..., rows.columns((begin, end))].sum(-1)
    return found.masked_fill(~copies.to(found.device), torch.nan)


def look(
    model: Decoder,
    task: NeedleTask,
    haystack: Haystack,
    *,
    arm: str,
    seed: int,
    needles_seed: int,
    context_tokens: int,
    samples: int,
    tick: Callable[[int], None] = lambda samples: None,
) -> tuple[list[MassRow], list[SpreadRow]]:
    """A row of each per layer kind: one needle at half depth, one question with its answer, `samples` contexts.

    Args:
        needles_seed: of the contexts, which are the same for every model.
        tick: told the number of samples done since it was told last.
    """
    probed = EngineProbed(model)
    measures = {**MEASURES, _ASKED: needle_when_asked}
    found: list[tuple[Sample, list[Reading]]] = []
    for index in range(samples):
        rng = np.random.default_rng([needles_seed, 77, context_tokens, index])
        sample = task_sample(task, haystack, rng, context_tokens=context_tokens)
        found.append((sample, probe(probed, sample.marks, measures, rows_from=sample.rows_from)[0]))
        tick(1)
    sample = found[0][0]  # segments lie alike in every sample of one length
    masses, spreads = [], []
    for kind, layers in _by_kind([readings for _, readings in found]):
        masses.append(_mass_row(layers, sample, kind, arm, seed))
        average = torch.stack([reading.distribution for same in layers for reading in same]).mean(0)
        places, values, width = smoothed(average, context_tokens=context_tokens)
        shown = np.unique(np.linspace(0, len(places) - 1, min(PLACES, len(places))).astype(int))
        spreads.append(
            SpreadRow(
                arm=arm,
                seed=seed,
                context_tokens=context_tokens,
                kind=kind,
                n=samples,
                smoothed_tokens=width,
                positions=tuple(round(float(places[i])) for i in shown),
                values=tuple(float(values[i]) for i in shown),
            )
        )
    return masses, spreads


def _by_kind(samples: Sequence[Sequence[Reading]]) -> list[tuple[str, list[list[Reading]]]]:
    """Kind -> for each sample its layers, in the order of the first layer of a kind."""
    kinds = dict.fromkeys(reading.layer.kind for reading in samples[0])
    return [(kind, [[r for r in readings if r.layer.kind == kind] for readings in samples]) for kind in kinds]


def _mass_row(samples: list[list[Reading]], sample: Sample, kind: str, arm: str, seed: int) -> MassRow:
    """From readings by sample and layer, all of one kind; `sample` is any of them."""
    names = list(sample.marks.spans)
    values: dict[str, list[float]] = {name: [] for name in (*names, *_MEANS, "mean_entropy")}
    for layers in samples:
        shares = torch.stack([r.values["mass"] for r in layers]).mean((0, 1))  # over layers and heads
        for name, share in zip(names, shares.tolist(), strict=True):
            values[name].append(share)
        for name in _MEANS:
            values[name].append(float(torch.stack([r.values[name] for r in layers]).mean()))
        values["mean_entropy"].append(float(np.mean([mean_entropy(r.distribution) for r in layers])))
    seen = frozenset[str]().union(*(reach(r.layer, sample.marks, sample.rows_from) for r in samples[0]))
    blank = {*SEGMENTS} - seen
    if "begin" in blank:
        blank.add("sink")
    value = {name: None if name in blank else float(np.mean(found)) for name, found in values.items()}
    bounds = {name: (None if name in blank else student(found)) or (None, None) for name, found in values.items()}
    hits = torch.stack([torch.stack([r.values["retrieval"] for r in layers]) for layers in samples])  # n layers h
    return MassRow(
        arm=arm,
        seed=seed,
        context_tokens=sample.context_tokens,
        kind=kind,
        n=len(samples),
        mass={name: value[name] for name in SEGMENTS},
        uniform={
            name: sum(end - begin for begin, end in sample.marks.spans[name]) / sample.context_tokens
            for name in SEGMENTS
        },
        best_head_needle=float(np.mean([float(r.values[_ASKED].max()) for layers in samples for r in layers])),
        low={name: low for name, (low, _) in bounds.items()},
        high={name: high for name, (_, high) in bounds.items()},
        row_entropy=value["row_entropy"],
        mean_entropy=value["mean_entropy"],
        sink=value["sink"],
        effective_span=value["effective_span"],
        retrieval=float(hits.mean(0).amax(-1).mean()) if "needle" in seen else None,
    )
