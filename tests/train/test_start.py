"""Training that goes on from a model's folder: the same weights on any number of ranks, and what is refused first."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import rnope
from rnope import recipes
from rnope.cli import run as command
from rnope.data.shards import Index, Shards
from rnope.errors import UserError
from rnope.hf.configs import read_config, read_context_tokens, read_provenance
from rnope.hf.convert import conversion, convert
from rnope.hf.folder import save
from rnope.hf.weights import digest
from rnope.parallel.apply import apply, full_state
from rnope.parallel.mesh import joined
from rnope.testing import tiny_model
from rnope.testing.distributed import run_distributed
from rnope.tokenizer import Tokenizer
from rnope.train import run as runs
from rnope.train.start import fill, opened

RECIPE = """
kind = "training"
name = "again"
summary = "goes on"
start = ""
[schedules]
main = { peak = 1e-2, end = 1e-3, warmup_steps = 2 }
[sources]
text = ""
[stages.heal]
steps = 5
batch_tokens = 128
context_tokens = 32
schedule = "main"
precision = "fp32"
mixture = [{ source = "text" }]
[stages.extend]
steps = 3
batch_tokens = 192
context_tokens = 96
schedule = "main"
precision = "fp32"
window = 7
mixture = [{ source = "text" }]
[arms.healed]
stages = ["heal", "extend"]
[execution]
save_steps = 2
log_steps = 1
validation_rows = 2
"""
STILL = ("schedules.main.peak=1e-30", "schedules.main.end=0.0", "stages.heal.steps=2")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "again.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """The random documents, under the name of the tokenizer that lies beside them."""
    folder = tmp_path_factory.mktemp("source") / "text"
    shutil.copytree(data, folder)
    index = Index.read(folder)
    replace(index, vocabulary=replace(index.vocabulary, digest=Tokenizer.load(folder).digest)).write(folder)
    return folder


@pytest.fixture(scope="module")
def hybrid(source, tmp_path_factory):
    """A model with the tokenizer of the data, converted."""
    folder = tmp_path_factory.mktemp("model")
    save(tiny_model("rope", vocab_size=320), folder / "m", Tokenizer.load(source), provenance={"recipe": "before"},
         context_tokens=64)  # fmt: skip
    raw = json.loads((folder / "m" / "config.json").read_text())
    (folder / "m" / "config.json").write_text(json.dumps(raw | {"somebody_knows": 3}))
    convert(conversion(folder / "m", "rnope-swa", window=5), folder / "h")
    return folder / "h"


def train(recipe_file, start, source, out, *changes, stop=None):
    """Train on this rank, or end in step `stop`."""

    def step(self, standing, point):
        if standing.step == stop:
            raise KeyboardInterrupt

    original = runs._Follow.step
    if stop is not None:
        runs._Follow.step = step
    try:
        recipe = opened(recipes.load_training(str(recipe_file), changes), Path(start))
        with joined(1, device="cpu") as mesh:
            data = {"text": str(source)}
            runs.train(recipe, (), data=data, out=Path(out), mesh=mesh, console=Console(file=io.StringIO()))
    except KeyboardInterrupt:
        assert stop is not None
    finally:
        runs._Follow.step = original
    return Path(out) / "healed"


def on_a_rank(recipe_file: str, start: str, source: str, out: str) -> None:
    train(recipe_file, start, source, out + "/still", *STILL, "arms.healed.stages=['heal']")
    train(recipe_file, start, source, out + "/moved")


def filled(folder: str) -> dict[str, np.ndarray]:
    with joined(1, device="cpu") as mesh:
        model = apply(read_config(folder), mesh, seed=None)
        fill(model, Path(folder), mesh)
        return {name: tensor.numpy() for name, tensor in full_state(model, mesh).items()}


def state(folder):
    return rnope.load(folder).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(recipe_file, hybrid, source, tmp_path_factory):
    return train(recipe_file, hybrid, source, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_begins_with_the_folders_weights(recipe_file, hybrid, source, tmp_path, dtype):
    start = tmp_path / "start"
    save(rnope.load(hybrid, dtype=dtype), start, Tokenizer.load(source))
    out = train(recipe_file, start, source, tmp_path / "out", *STILL, "arms.healed.stages=['heal']")
    wanted = {name: tensor.float() for name, tensor in state(start).items()}
    found = state(out / "heal" / "model")
    assert same(found, wanted) and all(tensor.dtype == torch.float32 for tensor in found.values())


def test_ranks_have_the_weights_that_one_has(recipe_file, hybrid, source, whole, tmp_path):
    run_distributed(on_a_rank, 2, *map(str, (recipe_file, hybrid, source, tmp_path)))
    assert same(state(tmp_path / "still" / "healed" / "heal" / "model"), state(hybrid))
    one, two = state(whole / "extend/model"), state(tmp_path / "moved" / "healed" / "extend" / "model")
    far = sum((one[name] - two[name]).square().sum() for name in one).sqrt()
    moved = sum((one[name] - tensor).square().sum() for name, tensor in state(hybrid).items()).sqrt()
    assert far < 1e-3 * moved


def test_pieces_of_unequal_size_are_the_right_rows(tmp_path):
    """Of 97, 48 and 32 rows five ranks have unequal parts, and of 4 one has none."""
    model = tiny_model("rnope-swa", kv_heads=1, head_size=4)
    save(model, tmp_path / "m")
    found = run_distributed(filled, 5, str(tmp_path / "m"))[0]
    assert found.keys() == model.state_dict().keys()
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in model.state_dict().items())


def test_a_stopped_run_ends_with_the_same_bits(recipe_file, hybrid, source, whole, tmp_path):
    train(recipe_file, hybrid, source, tmp_path, stop=3)
    out = train(recipe_file, hybrid, source, tmp_path)
    assert len(list(tmp_path.glob("stages/heal-*"))) == 1
    for stage in ("heal", "extend"):
        assert same(state(out / stage / "model"), state(whole / stage / "model"))


def test_a_start_that_changed_is_another_run(recipe_file, hybrid, source, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(hybrid, start)
    short = ("stages.heal.steps=2", "arms.healed.stages=['heal']")
    train(recipe_file, start, source, tmp_path / "out", *short, stop=2)
    start = start.rename(tmp_path / "moved")
    train(recipe_file, start, source, tmp_path / "out", *short)
    (first,) = (tmp_path / "out").glob("stages/*")  # another place, the same weights
    shutil.rmtree(start)
    model = rnope.load(hybrid)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    save(model, start, Tokenizer.load(source))
    train(recipe_file, start, source, tmp_path / "out", *short)
    assert len(list((tmp_path / "out").glob("stages/*"))) == 2
    assert not same(state(first / "model"), state(tmp_path / "out" / "healed" / "heal" / "model"))


def test_what_a_trained_model_says_of_its_start(whole, hybrid, source):
    heal, extend = whole / "heal" / "model", whole / "extend" / "model"
    assert (read_context_tokens(heal), read_context_tokens(extend)) == (64, 96)
    found = read_provenance(extend)
    assert found["start"]["weights"] == digest(hybrid) and found["recipe"] == "again"
    assert found["start"]["provenance"]["converted"]["from"]["provenance"] == {"recipe": "before"}
    raw = json.loads((extend / "config.json").read_text())
    assert raw["somebody_knows"] == 3 and raw["sliding_window"] == 7 and raw["model_type"] == "cohere2"
    assert Tokenizer.load(extend).digest == Shards.open(source).tokenizer_digest


def test_a_start_that_cannot_be_handed_on_is_refused_first(recipe_file, hybrid, source, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(hybrid, start)
    (start / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config"):
        train(recipe_file, start, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(recipe_file, hybrid, source, tmp_path):
    model = rnope.load(hybrid)
    with torch.no_grad():
        model.layers[1].feed_forward.up.weight[3, 4] = float("nan")
    save(model, tmp_path / "start", like=hybrid)
    with pytest.raises(UserError, match=r"layers\.1\.feed_forward\.up\.weight has numbers that are not finite"):
        train(recipe_file, tmp_path / "start", source, tmp_path / "out")
    with torch.no_grad():
        model.layers[1].feed_forward.up.weight[3, 4] = 3e38
    save(model, tmp_path / "start", like=hybrid)
    with pytest.raises(UserError, match=r"Stage 'heal': 5 steps .* There is no checkpoint"):  # fewer than `skips`
        train(recipe_file, tmp_path / "start", source, tmp_path / "out")


def test_a_dry_run_prints_where_it_starts(recipe_file, hybrid, source, capsys):
    words = ["train", str(recipe_file), "--start", str(hybrid), "--data", f"text={source}", "--dry-run"]
    assert command(words) == 0
    out = capsys.readouterr().out
    for said in (
        digest(hybrid),
        "from.converted.to",
        "rnope-swa",
        "rope θ 10,000, window 5",
        "window 7",
        "5 steps",
        "given",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "start = '': the model's folder is not given. Give it with --start"),
        (["--start", "nowhere"], "no such folder"),
        (["--start", "HYBRID", "--set", "size=tiny"], "size = 'tiny': is given beside start"),
        (["--start", "HYBRID", "--set", "vocab_size=320"], "vocab_size = 320: is given beside start"),
        (["--start", "HYBRID", "--set", "model.width=32"], "model = {'width': 32}: is given beside start"),
        (["--start", "HYBRID", "--set", "arms.healed.variant=rope"], "arms.healed.variant = 'rope': is given beside"),
        (["--start", "HYBRID", "--set", "arms.healed.model.window=3"], "arms.healed.model = {'window': 3}: is given"),
        (["--start", "HYBRID", "--set", "opened=1"], "opened = 1: is made of the folder"),
        (["--start", "ROPE"], "stages.extend.window = 7: "),
        (["--start", "HYBRID", "--data", "text=DATA"], "another tokenizer than the model's"),
        (["--start", "HYBRID", "--data", "text=DATA"], "--tokenizer"),
    ],
)
def test_each_mistake_is_one_line(words, said, recipe_file, hybrid, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"HYBRID": str(hybrid), "ROPE": str(hybrid.parent / "m"), "text=DATA": f"text={data}"}
    words = [places.get(word, word) for word in words]
    assert command(["train", str(recipe_file), "--device", "cpu", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_a_recipe_with_a_model_of_its_own_takes_no_start(hybrid, capsys):
    assert command(["train", "cpu-train", "--start", str(hybrid)]) == 2
    assert "the models of recipe 'cpu-train' are fresh" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_is_no_start(recipe_file, hybrid, tmp_path):
    save(rnope.load(hybrid), tmp_path / "bare")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        opened(recipes.load_training(str(recipe_file)), tmp_path / "bare")


def test_the_shipped_recipe_heals(hybrid, source, tmp_path, capsys):
    changes = [f"stages.heal.{text}" for text in ("steps=2", "batch_tokens=128", "context_tokens=32")]
    changes += ["schedules.heal.warmup_steps=1", "execution.micro_batch_tokens=128"]
    words = ["train", "uptrain", "--start", str(hybrid), "--data", f"web={source}", "--out", str(tmp_path / "h")]
    assert command([*words, "--device", "cpu", *(word for text in changes for word in ("--set", text))]) == 0
    model = Path(capsys.readouterr().out.strip())
    assert rnope.load(model).config == rnope.load(hybrid).config
    assert read_provenance(model)["recipe"] == "uptrain"
