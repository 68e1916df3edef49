"""Times: whose turn it is, and what of a stage is timed."""

import numpy as np
import pytest

from rnope.compare import clock as clocks
from rnope.compare.clock import clock
from rnope.compare.jobs import Clock, Layout
from rnope.compare.learn.stage import Training
from rnope.config import Optimizer, Stage
from rnope.data.needles import WORDS, NeedleTask
from rnope.model.spec import ModelConfig
from rnope.tokenizer import Tokenizer


@pytest.fixture
def work():
    stage = Stage(
        name="pretrain", steps=100, batch_tokens=128, context_tokens=64, curriculum=(32,), warmup_window=4, decay_steps=50
    )  # fmt: skip
    layouts = tuple(
        Layout(arms=(name,), model=ModelConfig.variant(name, size="tiny", vocab_size=1024), stage=stage)
        for name in ("rope", "rnope-swa")
    )
    return Clock(layouts=layouts, context_tokens=(96, 48), rounds=3, optimizer=Optimizer())


@pytest.fixture(scope="module")
def training():
    task = NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=1024, whole_words=WORDS))
    text = np.random.default_rng(0).integers(3, 1024, size=5000)
    return Training(task=task, text=text, optimizer=Optimizer(), learning_rate=1.0, seed=0)


def test_every_layout_is_timed(work, training):
    ticks = []
    found = clock(work, training, ticks.append)
    assert ticks == [1] * 6 and len(found["training"]) == 2 and min(found["training"]) > 0
    for kind in ("prefill", "step"):
        assert list(found[kind]) == ["96", "48"]
        assert all(len(times) == 2 and 0 < min(times) < 10 for times in found[kind].values())


def test_they_take_turns_and_the_median_counts(work, training, monkeypatch):
    turns, seconds = [], iter(range(100))

    def read(model, length):
        turns.append((str(model.config.layers[0].window), length))
        return float(next(seconds)), 0.5

    monkeypatch.setattr(clocks, "_read", read)
    monkeypatch.setattr(clocks, "_step", lambda layout, training: 0.25)
    found = clock(work, training, lambda turns: None)
    window = str(work.layouts[1].model.layers[0].window)
    once = [(w, n) for w in ("None", window) for n in (96, 48)]
    assert turns == [("None", 48), (window, 48), *once * 3], "the first readings are not counted"
    # Counted readings are numbers 2, 3, 4 … in the order of turns, four a round.
    assert found["prefill"] == {"96": [6.0, 8.0], "48": [7.0, 9.0]}
    assert found["training"] == [0.25, 0.25] and found["step"] == {"96": [0.5, 0.5], "48": [0.5, 0.5]}


def test_a_step_is_one_of_the_stage_at_full_length(work, training, monkeypatch):
    seen = []

    def run_stage(model, stage, training, folder, *, tick):
        seen.append(stage)
        for steps in (0, 1, 1, 1):
            tick(steps)

    moments = iter([0.0, 10.0, 12.5, 100.0])
    monkeypatch.setattr(clocks, "run_stage", run_stage)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(moments))
    assert clocks._step(work.layouts[0], training) == 2.5
    (stage,) = seen
    assert stage.steps == 3 and stage.row_lengths == (64,) and stage.batch_tokens == 128
