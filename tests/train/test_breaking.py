"""What a demanding user met: many ranks that fail as one, folders shared by mistake, steps that teach nothing."""

import functools
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from rich.console import Console
from torch.nn import functional as F

import rnope
from rnope import cli, recipes
from rnope.config.training import TrainingRecipe
from rnope.data.rows import StageRows
from rnope.data.shards import Shards
from rnope.errors import ConfigError, UserError
from rnope.model.decoder import Decoder
from rnope.parallel.mesh import joined
from rnope.testing.distributed import run_distributed
from rnope.train import loop, voice
from rnope.train.checkpoints import Checkpoints
from rnope.train.plan import plan
from rnope.train.run import train
from rnope.train.voice import PAUSE, one_voice

SHORT = ("stages.pretrain.steps=6", "stages.extend.steps=4", "stages.tune.steps=3", "execution.log_steps=1")
PRETRAIN = "arms.rnope-swa.stages=['pretrain']"


@pytest.fixture
def slept(monkeypatch):
    """Seconds that a rank has waited before it spoke."""
    found = []
    monkeypatch.setattr(voice.time, "sleep", found.append)
    return found


@pytest.mark.parametrize(
    ("local", "error", "raised", "seconds"),
    [
        (None, UserError("x"), UserError, []),
        (None, RuntimeError("x"), RuntimeError, []),
        ("0", UserError("x"), UserError, [0]),
        ("1", UserError("x"), UserError, [PAUSE]),
        ("3", OSError(28, "full"), OSError, [PAUSE]),
        ("0", RuntimeError("connection closed by peer"), RuntimeError, [2 * PAUSE]),
        ("1", RuntimeError("connection closed by peer"), RuntimeError, [3 * PAUSE]),
        ("0", KeyboardInterrupt(), KeyboardInterrupt, []),
        ("1", KeyboardInterrupt(), SystemExit, []),
    ],
)
def test_ranks_wait_for_the_one_that_speaks(local, error, raised, seconds, monkeypatch, slept):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    with pytest.raises(raised), one_voice():
        raise error
    assert slept == seconds


def test_a_mistake_in_the_options_waits_too(recipe_file, monkeypatch, slept, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.run(["train", str(recipe_file), "--data", "txt=x"]) == 2
    assert slept == [PAUSE] and "no such source" in capsys.readouterr().err


def test_the_first_rank_prints_the_plan(recipe_file, monkeypatch, capsys):
    found = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert cli.run(["train", str(recipe_file), "--dry-run"]) == 0
        found.append(capsys.readouterr().out)
    assert "stage 1 of 3" in found[0] and found[1] == ""


@pytest.mark.slow
def test_under_torchrun_a_mistake_is_said_once(recipe_file, data, tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rnope", "train",
            str(recipe_file), "--device", "cpu", "--data", f"text={data}", "--out", str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(
        [*line, "--set", "stages.pretrain.batch_tokens=32"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode and done.stderr.count("each of 2 groups of ranks") == 1


def test_two_runs_in_one_folder_are_refused(run, recipe_file, data, tmp_path):
    def nested(self, standing, point):
        if standing.step == 2:
            run(*SHORT, out=tmp_path / "out")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="another run is at work there"):
        patch.setattr("rnope.train.run._Follow.step", nested)
        run(*SHORT)
    run(*SHORT, out=tmp_path / "out")  # the lock went with the run
    assert (tmp_path / "out/rnope-swa/tune/model/config.json").exists()


def test_a_damaged_later_checkpoint_does_not_cost_a_whole_one(tmp_path):
    state = {"weight.a": torch.randn(3, 5)}
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (4, 6):
        checkpoints.save(step, state, {})
    next((tmp_path / "step-00000006").glob("*.safetensors")).unlink()
    again = Checkpoints(tmp_path, keep=1)
    assert again.newest() == (4, {})
    again.save(5, state, {})
    assert again.newest() == (5, {}) and not again.passed_over
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def fill_the_disk(folder: str) -> tuple[str, list[str]]:
    """On each of some ranks: a checkpoint written while training goes on meets a full disk."""
    from torch.distributed.checkpoint import filesystem

    checkpoints = Checkpoints(Path(folder), keep=1, asynchronous=True)
    checkpoints.save(1, {"weight.a": torch.ones(3)}, {})
    checkpoints.finish()

    def full(*_):
        raise OSError(28, "No space left on device")

    filesystem.os.fsync = full
    checkpoints.save(2, {"weight.a": torch.ones(3)}, {})
    try:
        checkpoints.finish()
    except OSError as error:
        said = str(error.strerror)
    torch.distributed.barrier()
    return said, sorted(path.name for path in Path(folder).iterdir())


def test_a_full_disk_on_ranks_leaves_nothing_half_written(tmp_path):
    for said, left in run_distributed(fill_the_disk, 2, str(tmp_path)):
        assert said == "No space left on device" and left == ["step-00000001"]


@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_more_kinds_of_layers_than_torch_compiles_by_itself(recipe):
    torch.compiler.reset()
    made = recipe()
    config = made.model_config(made.arms[0])
    assert len(set(config.layers)) == 2
    with (
        torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True),
        joined(1, device="cpu") as mesh,
    ):
        model = loop.apply(config, mesh, precision="fp32", compile_blocks=True, compiler="eager")
        model.loss(torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.long))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_blocks_stay_compiled_through_stages_and_row_lengths(run, monkeypatch):
    torch.compiler.reset()
    apply = functools.partial(loop.apply, compiler="eager")
    monkeypatch.setattr(loop, "apply", apply)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        run(*SHORT, "execution.compile=true", "execution.validation_steps=2")
    torch.compiler.reset()


def first_step(recipe: TrainingRecipe, data: Path) -> tuple[Decoder, float]:
    """The model after one step of the first stage, and the loss of that, the plainest way: document by document."""
    arm = recipe.arms[0]
    model = Decoder(recipe.stage_configs(arm)[0], seed=recipe.seed)
    batch = StageRows(arm.stages[0], {"text": Shards.open(data)}, seed=recipe.seed).batch(0)
    ids, targets, starts = (torch.from_numpy(array) for array in (batch.ids, batch.targets, batch.starts))
    losses = []
    for row in range(len(ids)):
        for start in starts[row].unique():
            mine = starts[row] == start
            logits = model(ids[row, mine][None])[0]
            losses.append(F.cross_entropy(logits, targets[row, mine], reduction="none", ignore_index=-100))
    loss = torch.cat(losses).sum() / (targets >= 0).sum()
    loss.backward()
    norm = torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm()
    rate, settings = recipe.rates(arm, (1,))[0](0), recipe.optimizer
    matrices = {module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)}
    with torch.no_grad():
        for weight in model.parameters():
            gradient = weight.grad * min(1.0, settings.clip_norm / float(norm))
            if weight in matrices:
                weight *= 1 - rate * settings.weight_decay
            weight -= rate * gradient / (gradient.abs() + settings.eps)  # both moments, freed of their bias
    return model, loss.item()


def test_the_first_step_by_hand(run, recipe, points, data):
    changes = (PRETRAIN, "stages.pretrain.steps=1", "schedules.main.warmup_steps=1")
    out = run(*changes)
    model, loss = first_step(recipe(*changes), data)
    assert math.isclose(points(out, "pretrain")[1]["loss"], loss, rel_tol=1e-5)
    found = rnope.load(out / "rnope-swa/pretrain/model").state_dict()
    for name, weight in model.state_dict().items():
        # Where a gradient is all rounding, its sign is too.
        far = ((found[name] - weight).abs() > 1e-4).float().mean()
        assert far < 0.01, name


def test_a_step_without_a_target_has_no_loss(run, points, tmp_path, data, monkeypatch):
    original = StageRows.batch

    def batch(self, step, *span):
        rows = original(self, step, *span)
        if step == 1:
            rows.targets[:] = -100
        return rows

    monkeypatch.setattr(StageRows, "batch", batch)
    logged = points(run(*SHORT, PRETRAIN), "pretrain")
    assert logged[2]["targets"] == 0 and logged[2]["loss"] is None and logged[2]["skipped"] == 0
    assert all(logged[step]["loss"] > 1 for step in (1, 3, 6))


def test_what_runs_is_what_was_planned(tmp_path, recipe_file, data):
    text = recipe_file.read_text().replace("steps = 24", "epochs = 0.1")
    (tmp_path / "epochs.toml").write_text(text)
    recipe = recipes.load_training(str(tmp_path / "epochs.toml"), ("execution.log_steps=1",))
    planned = plan(recipe, recipe.arms[0], ranks=1, data={"text": str(data)})
    with joined(1, device="cpu") as mesh:
        train(recipe, (), data={"text": str(data)}, out=tmp_path, mesh=mesh, console=Console(file=io.StringIO()))
    assert planned.stages[0].steps != 24
    for stage in planned.stages:
        log = tmp_path / "stages" / f"{stage.name}-{stage.key}" / "log.jsonl"
        steps = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, stage.steps + 1))
        assert math.isclose(steps[0]["learning_rate"], stage.rates.first)
        assert math.isclose(steps[-1]["learning_rate"], stage.rates.last)
        for row in stage.rows:
            assert sum(line["context_tokens"] == row.row_tokens for line in steps) == row.steps
