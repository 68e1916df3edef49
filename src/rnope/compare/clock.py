"""What reading, going on and training take: every layout in turn, round after round, in one process."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rnope.compare.jobs import Clock, Layout
from rnope.compare.learn.stage import Training, run_stage
from rnope.generate import Engine
from rnope.model.decoder import Decoder

_STEPS = 3
"""Of training: the first of a process is slower, and the last writes a checkpoint; the one between them is timed."""
_DECODED = 8
"""Steps of decoding that are timed together."""


def clock(work: Clock, training: Training, tick: Callable[[int], None]) -> dict[str, Any]:
    """Medians over the rounds: ``training`` seconds by layout, ``prefill`` and ``step`` by length and layout.

    Models have random weights, which take as long as trained ones. The first round is preceded by one that is not
    counted, at the shortest length.

    Args:
        training: what steps are trained on.
        tick: told the number of turns done since it was told last.
    """
    models = [Decoder(layout.model).eval() for layout in work.layouts]
    steps: list[list[float]] = [[] for _ in models]
    reads: dict[int, list[list[tuple[float, float]]]] = {n: [[] for _ in models] for n in work.context_tokens}
    for model in models:
        _read(model, min(work.context_tokens))
    for _ in range(work.rounds):
        for place, (model, layout) in enumerate(zip(models, work.layouts, strict=True)):
            steps[place].append(_step(layout, training))
            for length in work.context_tokens:
                reads[length][place].append(_read(model, length))
            tick(1)
    return {
        "training": [median(found) for found in steps],
        "prefill": {str(n): [median(first for first, _ in found) for found in by] for n, by in reads.items()},
        "step": {str(n): [median(second for _, second in found) for found in by] for n, by in reads.items()},
    }


def _read(model: Decoder, length: int) -> tuple[float, float]:
    """Seconds of a prefill of `length` tokens, and of a token behind it."""
    engine = Engine(model)
    ids = torch.arange(length) % (model.config.vocab_size - 1)
    started = time.perf_counter()
    state = engine.prefill(ids.tolist())
    read = time.perf_counter()
    engine.step([state], [1])  # what is allocated for going on
    going = time.perf_counter()
    for _ in range(_DECODED):
        engine.step([state], [1])
    return read - started, (time.perf_counter() - going) / _DECODED


def _step(layout: Layout, training: Training) -> float:
    """Seconds of one training step of rows at the stage's full length."""
    times: list[float] = []
    stage = replace(
        layout.stage, steps=_STEPS, curriculum=(), short_context_tokens=None, warmup_window=None, warmup_steps=0, decay_steps=0
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        run_stage(
            Decoder(layout.model), stage, training, Path(folder), tick=lambda _: times.append(time.perf_counter())
        )
    return times[2] - times[1]  # the first of them is the start
