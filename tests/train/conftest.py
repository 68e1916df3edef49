"""Random documents as token shards, a recipe of three small stages, and runs of it."""

import io
import json

import pytest
from rich.console import Console

from rnope import recipes
from rnope.testing import kills


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder as ``rnope data build`` leaves it."""
    folder = tmp_path_factory.mktemp("data") / "text"
    kills.write_data(folder)
    return folder


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "kills.toml"
    path.write_text(kills.RECIPE)
    return path


@pytest.fixture
def recipe(recipe_file):
    """Makes recipes: ``recipe("stages.pretrain.steps=3", …)``."""

    def make(*changes):
        return recipes.load_training(str(recipe_file), changes)

    return make


@pytest.fixture
def run(recipe, data, tmp_path):
    """Trains: ``run(*changes, out=…)``; the folder, and the console's text as its ``said``."""
    from rnope.parallel.mesh import joined
    from rnope.train.run import train

    def go(*changes, out=None, arms=(), sources=None):
        out = out or tmp_path / "out"
        text = io.StringIO()
        with joined(1, device="cpu") as mesh:
            given = {"text": str(data)} if sources is None else sources
            train(recipe(*changes), arms, data=given, out=out, mesh=mesh, console=Console(file=text, width=400))
        go.said = text.getvalue()
        return out

    return go


@pytest.fixture(scope="session")
def points():
    """Reads logs: ``points(out, "pretrain")``, what was logged of steps by step; ``validation=True``: of validations."""

    def read(out, stage, *, validation=False):
        (path,) = (out / "stages").glob(f"{stage}-*/log.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return {line["step"]: line for line in lines if ("validation" in line) == validation}

    return read
