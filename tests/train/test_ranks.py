"""The same recipe on one rank and on many: the same losses to rounding, and checkpoints that any number can take up."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

import rnope
from rnope import recipes
from rnope.parallel.mesh import joined
from rnope.testing.distributed import run_distributed
from rnope.train import loop
from rnope.train import run as runs

SHORT = ("stages.pretrain.steps=5", "stages.extend.steps=4", "stages.tune.steps=2", "execution.log_steps=1",
         "execution.save_steps=2", "stages.tune.batch_tokens=192")  # fmt: skip


def on_a_rank(recipe_file: str, data: str, out: str, changes: tuple[str, ...], stop: int | None) -> str | None:
    """Train on this rank, and stop in step `stop` of the first stage."""
    if stop is not None:
        original = loop._count

        def count(standing, *, finite):
            original(standing, finite=finite)
            if standing.step == stop:
                raise KeyboardInterrupt

        loop._count = count
    recipe = recipes.load_training(recipe_file, changes)
    try:
        with joined(recipe.execution.sequence_parallel, device="cpu") as mesh:
            runs.train(recipe, (), data={"text": data}, out=Path(out), mesh=mesh, console=Console(file=io.StringIO()))
    except KeyboardInterrupt:
        return "stopped"
    return None


@pytest.fixture(scope="module")
def ranks(recipe_file, data, tmp_path_factory):
    """Trains on some ranks: ``ranks(4, "execution.sequence_parallel=2")``, the folder."""

    def go(count, *changes, out=None, stop=None):
        out = out or tmp_path_factory.mktemp("out")
        given = (str(recipe_file), str(data), str(out), (*SHORT, *changes), stop)
        if count == 1:
            assert on_a_rank(*given) is None
        else:
            run_distributed(on_a_rank, count, *given)
        return out

    return go


@pytest.fixture(scope="module")
def whole(ranks):
    return ranks(1)


STAGES = ("pretrain", "extend", "tune")


def close(points, a, b):
    for stage in STAGES:
        one, other = points(a, stage), points(b, stage)
        assert one.keys() == other.keys()
        for step in one:
            assert one[step]["targets"] == other[step]["targets"]
            assert math.isclose(one[step]["loss"], other[step]["loss"], rel_tol=1e-5), (stage, step)
            assert math.isclose(one[step]["gradient_norm"], other[step]["gradient_norm"], rel_tol=1e-4), (stage, step)
            assert one[step]["by_position"].keys() == other[step]["by_position"].keys()
        (x,) = points(a, stage, validation=True).values()
        (y,) = points(b, stage, validation=True).values()
        assert x["validation"]["text"]["tokens"] == y["validation"]["text"]["tokens"]
        assert math.isclose(x["validation"]["text"]["loss"], y["validation"]["text"]["loss"], rel_tol=1e-5)
    weights = [rnope.load(out / "rnope-swa/tune/model").state_dict() for out in (a, b)]
    # Adam turns a gradient that is all rounding into a step of the full rate: the model as a whole must be near.
    far = sum((weights[0][name] - weights[1][name]).square().sum() for name in weights[0]).sqrt()
    assert far < 1e-3 * sum(weight.square().sum() for weight in weights[0].values()).sqrt()


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, ()),
        (2, ("execution.sequence_parallel=2", "execution.checkpoint_activations=true")),
        (4, ("execution.sequence_parallel=2", "stages.pretrain.batch_tokens=128", "execution.asynchronous=true")),
    ],
    ids=["data", "sequence", "both"],
)
def test_ranks_learn_what_one_learns(ranks, whole, points, count, changes):
    close(points, whole, ranks(count, *changes))


def test_another_number_of_ranks_takes_up_where_some_stopped(ranks, whole, points):
    out = ranks(2, "execution.sequence_parallel=2", stop=3)
    names = sorted(path.name for path in out.glob("stages/*/checkpoints/*"))
    assert names == ["step-00000002"]
    manifest = json.loads(next(out.glob("stages/*/checkpoints/*/manifest.json")).read_text())
    assert len(manifest["files"]) == 2
    close(points, whole, ranks(1, out=out))


def test_weights_begin_alike_whatever_the_ranks(ranks):
    a, b = (ranks(n, "arms.rnope-swa.stages=['pretrain']", "stages.pretrain.steps=1", "execution.save_steps=1",
                  "schedules.main={ peak = 1e-30, shape = 'constant' }") for n in (1, 2))  # fmt: skip
    one, two = (rnope.load(out / "rnope-swa/pretrain/model").state_dict() for out in (a, b))
    assert all(torch.equal(one[name], two[name]) for name in one)
