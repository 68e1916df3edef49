"""A tiny task, text and stage to train on."""

import numpy as np
import pytest

from rnope.compare.learn.stage import Training
from rnope.config import Optimizer, Stage
from rnope.data.needles import WORDS, NeedleTask
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

VOCAB = 1024


@pytest.fixture(scope="session")
def task():
    return NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS))


@pytest.fixture(scope="session")
def text():
    return np.random.default_rng(9).integers(3, VOCAB, size=5000)


@pytest.fixture
def model():
    """Makes models: ``model(variant="rnope-swa", seed=0, **overrides)``."""

    def make(variant="rnope-swa", seed=0, **overrides):
        return tiny_model(variant, seed, vocab_size=VOCAB, **overrides)

    return make


@pytest.fixture
def training(task, text):
    """Makes what a stage is run on: ``training(**optimizer)``."""

    def make(seed=0, learning_rate=1.0, **optimizer):
        return Training(task=task, text=text, optimizer=Optimizer(**optimizer), learning_rate=learning_rate, seed=seed)

    return make


@pytest.fixture
def stage():
    """Makes stages: ``stage(**fields)``."""

    def make(**fields):
        plain = {"name": "pretrain", "steps": 4, "batch_tokens": 128, "context_tokens": 64, "facts": (2, 4)}
        return Stage(**plain | fields)

    return make
