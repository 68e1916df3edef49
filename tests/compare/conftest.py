"""A micro recipe, a corpus of made-up text, and one whole comparison of them that the tests share."""

import copy
import io
import random
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rnope import recipes
from rnope.compare.run import compare

MICRO = """
name = "micro"
summary = "four arms that learn nothing"
size = "cpu"
vocab_size = 1024
seeds = [0]
baseline = "rope"
attention_tokens = [128, 256]
attention_samples = 2
tasks = { context_tokens = [256], answers = 6, far_tokens = [512], far_answers = 2 }
losses = { context_tokens = [64], windows = 3 }

[model]
width = 16
head_size = 8
ffn_width = 16
logit_scale = 0.25

[optimizer]
name = "muon"

[stages.pretrain]
context_tokens = 128
curriculum = [32, 64]
steps = 24
batch_tokens = 128
warmup_window = 4
decay_steps = 10

[stages.extend]
context_tokens = 256
short_context_tokens = 128
steps = 8
batch_tokens = 256
learning_rate_scale = 0.5

[arms.rope]
variant = "rope"
summary = "the baseline"
stages = ["pretrain"]

[arms.rope-extended]
variant = "rope"
summary = "the baseline, extended"
stages = ["pretrain", "extend"]
stage.extend.theta = 1e6

[arms.rnope-swa]
variant = "rnope-swa"
summary = "the hybrid"
stages = ["pretrain"]

[arms.swa-rope]
variant = "swa-rope"
summary = "the control"
stages = ["pretrain"]

[needles]
depths = 4
contexts = 2
context_tokens = [128, 256, 512]
control_tokens = [128]
far_tokens = [1024]
far_arms = ["rnope-swa"]

[[pairs]]
a = "rnope-swa"
b = "rope"
claim = "The hybrid outlasts the baseline."

[[pairs]]
a = "rnope-swa"
b = "rope-extended"
claim = "The hybrid outlasts the extended baseline."
"""


SWEEP = """
[sweep]
settings = [{ learning_rate = 1.0 }, { learning_rate = 0.5 }]
"""


@pytest.fixture
def plain():
    """The micro recipe's table with a sweep, to change."""
    return tomllib.loads(MICRO + SWEEP)


@pytest.fixture
def recipe(plain):
    """Makes recipes: ``recipe(("stages", "pretrain", "steps", 31), …)`` changes the micro recipe at those paths."""

    def make(*changes):
        table = copy.deepcopy(plain)
        for *parents, last, value in changes:
            inner = table
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        return recipes.resolve(table)

    return make


def run(place, out, recipe=None, workers=2):
    """The comparison, in this process and its workers."""
    said = io.StringIO()
    results = compare(
        recipe or recipes.load(str(place.recipe)), corpus=str(place.corpus), out=out, workers=workers,
        console=Console(file=said, width=100), command="the tests",
    )  # fmt: skip
    return results, said.getvalue()


@pytest.fixture(scope="session")
def again():
    """`run`, for tests."""
    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A recipe file and a corpus of 80 documents."""
    root = tmp_path_factory.mktemp("compare")
    (root / "micro.toml").write_text(MICRO)
    (root / "corpus").mkdir()
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(400)]
    for i in range(80):
        (root / "corpus" / f"{i}.txt").write_text(" ".join(draw.choices(words, k=100)) + ".")
    return SimpleNamespace(recipe=root / "micro.toml", corpus=root / "corpus", root=root)


@pytest.fixture(scope="session")
def done(place):
    """The micro recipe, compared: its folder, results and what was said."""
    out = Path(place.root) / "out"
    results, said = run(place, out)
    return SimpleNamespace(out=out, results=results, said=said)
