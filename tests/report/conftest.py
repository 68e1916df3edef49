"""A plausible results file, made up, and two reports of it: all learned, and one seed of the control on the plateau."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from rnope.intervals import wilson
from rnope.report import draw, write_report
from rnope.results import (
    Cell,
    CostRow,
    LossBin,
    LossRow,
    MassRow,
    Model,
    NeedleRow,
    PairedDifference,
    Point,
    Results,
    SpreadRow,
    StageRun,
    TaskRow,
    Trial,
    Verdict,
)  # fmt: skip

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FAR = (65536, 262144)
SEEDS = (0, 1)
DEPTHS = tuple(i / 7 for i in range(8))
ARMS = {
    "rope": "every layer RoPE, full span: the paper's baseline, as pretrained",
    "rope-extended": "the baseline after context extension at 1,024 tokens, θ raised",
    "rnope-swa": "three windowed RoPE layers, then one full NoPE layer",
    "swa-rope": "control C1: the hybrid's windows, with RoPE in the full layer",
}
TRAINED = {"rope": 256, "rope-extended": 1024, "rnope-swa": 256, "swa-rope": 256}
SWA = ("rope θ 10,000, window 8",) * 3
LAYERS = {
    "rope": ("    0–3  rope θ 10,000, full",),
    "rope-extended": ("    0–3  rope θ 1,000,000, full",),
    "rnope-swa": ("    0–2  rope θ 10,000, window 8", "      3  nope, full"),
    "swa-rope": ("    0–2  rope θ 10,000, window 8", "      3  rope θ 10,000, full"),
}
KINDS = {"rope": ("rope",), "rope-extended": ("rope",), "rnope-swa": ("nope", "rope-window"),
         "swa-rope": ("rope", "rope-window")}  # fmt: skip
VARIANT = {"rope-extended": "rope"}
_FALL = {"rope": 1.3, "swa-rope": 1.05, "rope-extended": 0.35, "rnope-swa": 0.0}


def needle(
    arm: str, seed: int, row: str, length: int, share: float, contexts: int = 60, repeats: float = 1.0
) -> NeedleRow:
    draw = random.Random(f"{row} {arm} {seed} {length}")
    hits = [[draw.random() < share for _ in DEPTHS] for _ in range(contexts)]
    total, n = sum(map(sum, hits)), contexts * len(DEPTHS)
    low, high = wilson(total, n)
    return NeedleRow(
        arm=arm, seed=seed, row=row, context_tokens=length, n=n, hits=total, score=10 * total / n, low=10 * low,
        high=10 * high, guess=1.25, haystack_repeats=repeats,
        cells=tuple(Cell(depth=d, n=contexts, hits=sum(h[i] for h in hits)) for i, d in enumerate(DEPTHS)),
        context_hits=tuple(map(sum, hits)), seconds=1.0 + length / 1000,
    )  # fmt: skip


def _share(arm: str, length: int) -> float:
    over = math.log2(max(1, length / TRAINED[arm]))
    return 0.998 if not over else max(0.1, min(0.998, 1.05 - 0.11 * over * _FALL[arm] - 0.02 * _FALL[arm] * over**2))


def _model(arm: str, seed: int) -> Model:
    stages = [
        StageRun(
            name="pretrain", context_tokens=256, thetas=(1e4,), steps=800 + 60 * seed, tokens=(800 + 60 * seed) * 1024,
            seconds=48.5, loss=1.91, accuracy=0.99, promotions={"64": 330, "128": 410, "256": 500 + 20 * seed},
            validation={"all": 4.31, "0-63": 4.52, "64-255": 4.27},
        )
    ]  # fmt: skip
    if arm == "rope-extended":
        stages.append(StageRun(
            name="extend", context_tokens=1024, thetas=(1e6,), steps=80, tokens=80 * 4096, seconds=30.2, loss=1.85,
            accuracy=1.0, promotions={"1024": 0},
        ))  # fmt: skip
    lengths = LENGTHS + FAR
    full = 1 if arm in ("rnope-swa", "swa-rope") else 4
    return Model(
        arm=arm, variant=VARIANT.get(arm, arm), seed=seed, layers=LAYERS[arm], parameters=295_488,
        trained_tokens=TRAINED[arm],
        cache_bytes={str(n): 256 * (full * n + (4 - full) * 8) for n in lengths},
        prefill_flops={str(n): 330_000 * n + 256 * (full * n * n // 2 + (4 - full) * n * 8) for n in lengths},
        stages=tuple(stages), setting="learning rate × 1", folder=f"{arm}/seed-{seed}/model",
        model_type="rnope" if arm == "swa-rope" else "cohere2",
    )  # fmt: skip


def _learning(model: Model, learned: bool = True) -> list[Point]:
    points, tokens = [], 0
    for stage in model.stages:
        promotions = sorted((at, int(length)) for length, at in stage.promotions.items())
        for step in range(20, stage.steps + 1, 20):
            tokens += 20 * stage.tokens // stage.steps
            length = 32 if stage.name == "pretrain" else stage.context_tokens
            start = 0
            for at, longer in promotions:
                if learned and step >= at:
                    length, start = longer, at
            accuracy = 0.5 / (1 + math.exp(-(step - 60) / 20)) + (0.49 * (step > 280) if learned else 0.0)
            if start and stage.name == "pretrain":
                accuracy = 0.99 - 0.4 * math.exp(-(step - start) / 25)
            points.append(Point(
                arm=model.arm, seed=model.seed, stage=stage.name, step=step, tokens=tokens, context_tokens=length,
                loss=6 - 4 * accuracy, accuracy=accuracy,
            ))  # fmt: skip
    return points


def _masses(arm: str, seed: int) -> list[MassRow]:
    rows = []
    for times in (1, 4, 16):
        length = TRAINED[arm] * times
        uniform = {"begin": 10 / length, "needle": 4 / length, "context": 1 - 20 / length, "qc": 6 / length}
        for kind in KINDS[arm]:
            needle = 0.52 - 0.01 * times if kind == "nope" else 0.11 / times
            mass: dict[str, float | None] = {"begin": 0.02, "needle": needle, "qc": 0.4, "context": 0.58 - needle}
            if kind == "rope-window":
                mass = {"begin": None, "needle": None, "qc": 0.77, "context": 0.23}
            rows.append(MassRow(
                arm=arm, seed=seed, context_tokens=length, kind=kind, n=16, mass=mass, uniform=uniform,
                best_head_needle=0.0 if kind == "rope-window" else min(1.0, 2 * needle + 0.01 * seed),
                low={s: None if v is None else 0.9 * v for s, v in mass.items()},
                high={s: None if v is None else 1.1 * v for s, v in mass.items()},
                row_entropy=2.5 + 0.25 * seed, mean_entropy=5.5, sink=0.01, effective_span=0.4 * length, retrieval=0.5,
            ))  # fmt: skip
    return rows


def _spreads(masses: list[MassRow]) -> tuple[SpreadRow, ...]:
    return tuple(
        SpreadRow(
            arm=r.arm, seed=r.seed, context_tokens=r.context_tokens, kind=r.kind, n=16, smoothed_tokens=3,
            positions=(10, r.context_tokens // 2, r.context_tokens - 12),
            values=(0.0 if r.kind == "rope-window" else 1e-3, r.mass["needle"] or 0.0, 0.02),
        )
        for r in masses
    )  # fmt: skip


def _tasks(models: list[Model]) -> tuple[TaskRow, ...]:
    rows = []
    for model in models:
        for task, hits in (("niah_single_1", 90 - model.seed), ("niah_multikey_1", 60)):
            for tokens in (256, 1024, 16384):
                low, high = wilson(hits, 100)
                rows.append(TaskRow(arm=model.arm, seed=model.seed, task=task, context_tokens=tokens, n=100, hits=hits,
                                    score=float(hits), low=100 * low, high=100 * high))  # fmt: skip
    return tuple(rows)


def _losses(models: list[Model]) -> tuple[LossRow, ...]:
    edges = (0, 64, 256, 1024, 4096)
    bins = [(begin, end, 5.0 - math.log2(end) / 20) for begin, end in pairwise(edges)]
    return tuple(
        LossRow(
            arm=m.arm, seed=m.seed, context_tokens=4096, n=16,
            bins=tuple(LossBin(begin=a, end=b, loss=v + m.seed / 8, low=v - 0.1, high=v + 0.3) for a, b, v in bins),
        )
        for m in models
    )  # fmt: skip


def synthesised() -> Results:
    """Two seeds of four arms, all of which learned the task."""
    models = [_model(arm, seed) for arm in ARMS for seed in SEEDS]
    masses = [row for arm in ARMS for seed in SEEDS for row in _masses(arm, seed)]
    needles: list[NeedleRow] = []
    for arm in ARMS:
        for seed in SEEDS:
            needles += [needle(arm, seed, "standard", n, _share(arm, n)) for n in LENGTHS]
            if arm == "rnope-swa":
                needles += [needle(arm, seed, "standard", n, 0.985, contexts=16, repeats=n / 40_000) for n in FAR]
            one = TRAINED[arm]
            needles.append(needle(arm, seed, "no-needle", one, 0.01))
            needles.append(needle(arm, seed, "needle-only", 32, 0.999))
            needles += [needle(arm, seed, "unseen-keys", n, 0.6 * _share(arm, n)) for n in (one, 4 * one)]
    at = {(r.arm, r.seed, r.context_tokens): r for r in needles if r.row == "standard"}
    differences = tuple(
        PairedDifference(
            a="rnope-swa", b=b, seed=seed, context_tokens=256 * times, multiple=times, low=gap - 0.4, high=gap + 0.4,
            difference=gap,
        )
        for b in ARMS if b != "rnope-swa" for seed in SEEDS for times in (1, 2, 4, 16, 64)
        for gap in [at["rnope-swa", seed, 256 * times].score - at[b, seed, 256 * times].score]
    )  # fmt: skip
    return Results(
        recipe={"name": "cpu", "size": "cpu", "stages": [{"name": "pretrain"}], "seeds": list(SEEDS)},
        scale={
            "context in pretraining": {"paper": "8,192", "here": 256, "kept": "no"},
            "window / pretraining context": {"paper": "4,096 / 8,192 = 1/2", "here": "8 / 256 = 1/32", "kept": "no"},
            "longest trained context": {"paper": "128k, 16×", "here": "1,024, 4×", "kept": "in part"},
            "layers": {"paper": 32, "here": 4, "kept": "ratio 3:1"},
        },
        provenance={
            "date": "2025-11-22T16:40:00Z", "command": "rnope compare cpu --out out/cpu", "rnope": "0.1.0",
            "versions": {"python": "3.11.2", "torch": "2.13.0+cpu"}, "machine": "2 cores", "corpus_sha256": "ab" * 32,
        },
        arms=ARMS, models=tuple(models), learning=tuple(p for m in models for p in _learning(m)),
        needles=tuple(needles),
        attention=tuple(masses), spreads=_spreads(masses), tasks=_tasks(models), losses=_losses(models),
        costs=tuple(
            CostRow(arm=arm, context_tokens=16384, n=3, prefill_seconds=3.25, step_seconds=0.0042, training_step_seconds=None)
            for arm in ARMS
        ),
        trials=tuple(
            Trial(arm=v, seed=100, setting=f"learning rate × {rate:g}", score=9.9 if rate < 2 else 1.3,
                  accuracy=0.98 if rate < 2 else 0.3, chosen=rate == 1.0,
                  steps_to_full_context=500 if rate < 2 else None)
            for v in ("rope", "rnope-swa", "swa-rope") for rate in (0.5, 1.0, 2.0)
        ),
        differences=differences,
        verdicts=(
            Verdict(claim="The hybrid extrapolates further than the baseline", verdict="shown",
                    rule="paired difference at 2× and at 16× above 0 at every seed, lower bound included",
                    because="+0.4 and +6.8 at seed 0; +0.5 and +7.0 at seed 1", arms=("rnope-swa", "rope")),
            Verdict(claim="NoPE, not the window, carries it", verdict="shown", arms=("rnope-swa", "swa-rope"),
                    rule="paired difference to the control C1 at 16× above 0 at every seed", because="+5.1; +5.3"),
            Verdict(claim="The baseline collapses after context extension", verdict="not shown",
                    rule="rope-extended below 5 of 10 at 2× of its trained length", because="9.8 and 9.7",
                    arms=("rope-extended",)),
            Verdict(claim="The cache of the hybrid is at most 30 % of the baseline's at 64×", verdict="shown",
                    rule="exact count of bytes", because="25.0 %"),
        ),
        notes=("The tied initialisation of queries and keys was offered to every arm.",
               "Haystacks above 40,000 tokens repeat the held-out text."),
    )  # fmt: skip


def with_failure(results: Results, arm: str = "swa-rope", seed: int = 1, share: float = 0.5) -> Results:
    """The same, but one seed of one arm stayed on the plateau."""
    (model,) = [m for m in results.models if (m.arm, m.seed) == (arm, seed)]

    def mended(row: NeedleRow) -> NeedleRow:
        if (row.arm, row.seed, row.row) != (arm, seed, "standard"):
            return row
        return needle(arm, seed, "standard", row.context_tokens, share)

    kept = [p for p in results.learning if (p.arm, p.seed) != (arm, seed)]
    return replace(
        results, needles=tuple(map(mended, results.needles)), learning=(*kept, *_learning(model, learned=False))
    )


@pytest.fixture(scope="session", autouse=True)
def small_figures() -> Iterator[None]:
    """Figures as the page has them, of fewer dots, for the time it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "DPI", 80)
        yield


@pytest.fixture(scope="session")
def results() -> Results:
    return synthesised()


@pytest.fixture(scope="session")
def report(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_report(results, out)
    return out


@pytest.fixture(scope="session")
def failing() -> Callable[..., Results]:
    return with_failure


@pytest.fixture(scope="session")
def failed(results: Results) -> Results:
    return with_failure(results)


@pytest.fixture(scope="session")
def failed_report(failed: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("failed-report")
    write_report(failed, out)
    return out
