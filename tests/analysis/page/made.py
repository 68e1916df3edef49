"""Results of an analysis, made up without a model: numbers follow simple rules, so that a test knows what to find."""

import math
import random
from collections.abc import Mapping, Sequence

from rnope.analysis.results import (
    ALL,
    AnalysedModel,
    AnalysisResults,
    KindResult,
    LayerFacts,
    LayerResult,
    LengthResult,
    Mean,
    Measures,
    Memory,
    RetrievalHead,
    Spread,
)
from rnope.evals.results import ModelFacts

SEGMENTS = ("begin", "needle", "context", "qc")
NEEDLE, QC = 24, 48
"""Tokens."""
KINDS = ("nope", "rope", "nope-window", "rope-window")


def facts(name: str, **changes: object) -> ModelFacts:
    known = dict(
        name=name, kind="rnope", sha256=f"{len(name):064x}", tokenizer_sha256="c0ffee" + "0" * 58, begin_ids=(2,),
        dtype="float32", device="cpu", trained_tokens=8192, windows=(), model_type="cohere2", parameters=12_345_678,
    )  # fmt: skip
    return ModelFacts(**{**known, **changes})  # type: ignore[arg-type]


def model(
    name: str,
    kinds: Sequence[str],
    *,
    window: int = 4096,
    heads: int = 4,
    notes: tuple[str, ...] = (),
    class_name: str = "Decoder",
    **changes: object,
) -> AnalysedModel:
    layers = tuple(
        LayerFacts(
            index=i, kind=kind, window=window if "window" in kind else None, heads=heads, kv_heads=max(1, heads // 4)
        )
        for i, kind in enumerate(kinds)
    )
    return AnalysedModel(facts=facts(name, **changes), class_name=class_name, layers=layers, notes=notes)


def mean(value: float, n: int = 16, half: float = 0.1) -> Mean:
    """With an interval of `half` its value to each side."""
    return Mean(value=value, low=value * (1 - half) if n > 1 else None, high=value * (1 + half) if n > 1 else None, n=n)


def needle_mass(kind: str, length: int) -> float:
    return {"nope": 0.09, "rope": 0.03, "rope-window": 0.02, "nope-window": 0.05, ALL: 0.06}[kind] * 8192 / length


def measures(kind: str, length: int, n: int, reach: bool, extra: Sequence[str] = ()) -> Measures:
    needle = needle_mass(kind, length)
    own = {name: mean(0.05, n) for name in extra}
    begin = 0.3 if kind.startswith("nope") or kind == ALL else 0.05
    rest = 1 - begin - needle - 0.1 - sum(each.value for each in own.values())
    bits = math.log2(length) * (0.5 if kind.startswith("nope") else 0.7)
    mass = {"begin": mean(begin, n), "needle": mean(needle, n), "context": mean(rest, n), "qc": mean(0.1, n), **own}
    return Measures(
        mass={name: None if name in ("begin", "needle") and not reach else value for name, value in mass.items()},
        row_entropy=mean(bits, n, 0.02),
        mean_entropy=mean(bits + 1.5, n, 0.02),
        sink=mean(begin * 0.8, n) if reach else None,
        effective_span=mean(length * (0.8 if kind.startswith("nope") else 0.02), n),
        retrieval=mean(needle * 3, n) if reach else None,
    )


def spread(kind: str, length: int, width: int | None, colour: random.Random) -> Spread:
    """A slope towards the end and a spike in the middle; nothing further back than a window of `width`."""
    first, last = 10, round(length * 0.97)
    places = [first + (last - first) * i / 199 for i in range(200)]
    values = []
    for at in places:
        value = (0.4 + (at / length) ** 4 + 0.05 * colour.random()) / length
        value += needle_mass(kind, length) / 100 * math.exp(-(((at - length / 2) / (length / 150)) ** 2))
        values.append(0.0 if width is not None and at < length - width else value)
    return Spread(
        smoothed_tokens=max(1, round(100 * min(1, length / 8000))), positions=tuple(places), values=tuple(values)
    )


def length_result(
    own: AnalysedModel, length: int, *, n: int = 16, extra: Sequence[str] = (), notes: tuple[str, ...] = ()
) -> LengthResult:
    """Every layer of a kind is alike; heads differ by their number, and one layer's head 1 finds the needle."""
    rng = random.Random(f"{own.facts.name} {length}")  # a text: the same in every process

    def reach(layer: LayerFacts) -> bool:
        return layer.window is None or layer.window > length / 2

    kinds: list[KindResult] = []
    present = [kind for kind in KINDS if any(layer.kind == kind for layer in own.layers)]
    for kind in [*present, *([ALL] if len(present) > 1 else [])]:
        layers = [layer for layer in own.layers if kind in (ALL, layer.kind)]
        window = None if any(layer.window is None for layer in layers) else layers[0].window
        reaches = any(reach(layer) for layer in layers)
        kinds.append(
            KindResult(kind=kind, layers=len(layers), measures=measures(kind, length, n, reaches, extra),
                       spread=spread(kind, length, window, rng))
        )  # fmt: skip
    segments = [*SEGMENTS, *extra]
    found = []
    for layer in own.layers:
        heads: dict[str, tuple[float | None, ...]] = {}
        for name in [
            *(f"mass.{segment}" for segment in segments),
            "row_entropy",
            "sink",
            "effective_span",
            "retrieval",
        ]:
            blank = not reach(layer) and name in ("mass.needle", "mass.begin", "retrieval", "sink")
            finds = name in ("mass.needle", "retrieval") and layer.index % 4 == 3
            heads[name] = tuple(
                None if blank else (0.7 if finds and head == 1 else 0.02 * rng.random() + 0.1 * (name == "sink"))
                for head in range(layer.heads)
            )
        found.append(
            LayerResult(index=layer.index, kind=layer.kind, measures=measures(layer.kind, length, n, reach(layer), extra),
                        heads=heads)
        )  # fmt: skip
    best = [
        RetrievalHead(layer=layer.index, head=1, kind=layer.kind, score=mean(0.7, n), needle_mass=0.7)
        for layer in own.layers
        if layer.index % 4 == 3 and reach(layer)
    ]
    heads = sum(layer.heads for layer in own.layers)
    taken = {"begin": 10, "needle": NEEDLE, "qc": QC} | dict.fromkeys(extra, 30)
    middle = length / 2
    spans = {
        "begin": (0.0, 10.0),
        "needle": (middle, middle + NEEDLE),
        "qc": (length - QC, float(length)),
    } | {name: (length * 0.2 * (i + 1), length * 0.2 * (i + 1) + 30) for i, name in enumerate(extra)}
    return LengthResult(
        model=own.facts.name,
        context_tokens=length,
        n=n,
        rows=float(QC),
        uniform={name: taken.get(name, length - sum(taken.values())) / length for name in segments},
        spans=spans,
        kinds=tuple(kinds),
        layers=tuple(found),
        retrieval_heads=tuple(best[:10]),
        memory=Memory(
            eager_bytes=4 * heads * length**2,
            rows_bytes=4 * heads * length * QC,
            peak_bytes=300_000_000 + 2000 * length,
            peak_is="resident memory of the process, less what it was before the first sample",
        ),
        seconds=tuple(length / 2000 + i % 3 for i in range(n)),
        notes=notes,
    )


def results(
    models: Sequence[AnalysedModel],
    lengths: Sequence[int],
    *,
    n: int = 16,
    extra: Sequence[str] = (),
    notes: Mapping[str, tuple[str, ...]] | None = None,
) -> AnalysisResults:
    """Every model at every length.

    Args:
        extra: segments that the user named.
        notes: by model, for each of its lengths.
    """
    return AnalysisResults(
        models=tuple(models),
        settings={"samples": n, "seed": 42, "generate": 0, "haystack": {"name": "built-in", "sha256": "ab" * 32}},
        versions={"rnope": "1.0", "torch": "2.12"},
        command=f"rnope analyze --model {models[0].facts.name} --out out",
        segments=(*SEGMENTS, *extra),
        lengths=tuple(
            length_result(own, length, n=n, extra=extra, notes=(notes or {}).get(own.facts.name, ()))
            for own in models
            for length in lengths
        ),
    )


def four(lengths: Sequence[int] = (8192, 32768, 131072), *, layers: int = 8, heads: int = 4) -> AnalysisResults:
    """RoPE, NoPE, RNoPE-SWA and a mix of full and windowed RoPE layers."""
    groups = layers // 4
    models = [
        model("rope", ["rope"] * layers, heads=heads),
        model("nope", ["nope"] * layers, heads=heads),
        model("rnope-swa", ["rope-window", "rope-window", "rope-window", "nope"] * groups, heads=heads, windows=(4096,)),
        model("swa-rope", ["rope-window", "rope-window", "rope-window", "rope"] * groups, window=8192, heads=heads,
              notes=("131,072 tokens are past the trained length of 8,192",), windows=(8192,)),
    ]  # fmt: skip
    return results(models, lengths, notes={"rnope-swa": ("the needle was widened by the tokenizer in 3 samples",)})
