"""Arms through their stages: what is done stays done, what is damaged is mended, what cannot work is refused first."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import rnope
from rnope.data.rows import validation_rows
from rnope.data.shards import Index, Shards
from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_provenance
from rnope.testing import kills
from rnope.train import loop
from rnope.train import run as runs

SHORT = ("stages.pretrain.steps=6", "stages.extend.steps=4", "stages.tune.steps=2", "execution.log_steps=1")


def bits(folder):
    return {name: weight.clone() for name, weight in rnope.load(folder).state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_stage_leaves_a_model_a_log_and_a_link(run, points):
    out = run(*SHORT)
    for stage, steps, theta in (("pretrain", 6, 1e4), ("extend", 4, 1e6), ("tune", 2, 1e6)):
        folder = out / "rnope-swa" / stage
        assert folder.is_symlink() and folder.resolve().parent == (out / "stages").resolve()
        model = rnope.load(folder / "model")
        assert model.config.thetas == (theta,)
        assert read_provenance(folder / "model")["stage"] == stage
        logged = points(out, stage)
        assert list(logged) == list(range(1, steps + 1))
        wanted = {"step", "context_tokens", "loss", "targets", "by_position", "gradient_norm", "learning_rate",
                  "tokens_per_second", "flops_per_second", "memory_bytes", "skipped", "seconds"}  # fmt: skip
        assert set(logged[1]) == wanted
        assert set(points(out, stage, validation=True)) == {steps}
    # Three short to one long, and the schedule runs on over the joint.
    extend = points(out, "extend")
    assert [extend[i]["context_tokens"] for i in (1, 2, 3, 4)] == [32, 32, 32, 96]
    assert extend[4]["targets"] <= 192 and "48-95" in extend[4]["by_position"]
    rates = [points(out, "pretrain")[i]["learning_rate"] for i in range(1, 7)]
    rates += [extend[i]["learning_rate"] for i in range(1, 5)]
    cosine = [1e-3 + 9e-3 * (0.5 + 0.5 * math.cos(math.pi * i / 7)) for i in range(7)]
    assert np.allclose(rates, [1e-2 / 3, 2e-2 / 3, 1e-2, *cosine])


def test_what_is_learnt_shows(run, points):
    """Random documents hold nothing but that 297 tokens are as likely as each other, and where they end."""
    out = run("stages.pretrain.steps=40", "execution.log_steps=1", "arms.rnope-swa.stages=['pretrain']")
    losses = [point["loss"] for point in points(out, "pretrain").values()]
    assert losses[0] > losses[-1] and abs(losses[-1] - math.log(297)) < 0.3


def test_a_second_run_does_nothing_again(run, monkeypatch):
    out = run(*SHORT)
    monkeypatch.setattr(loop, "fit", None)
    monkeypatch.setattr(runs, "fit", None)
    run(*SHORT, out=out)
    assert run.said.count("done before") == 3


def test_arms_that_agree_up_to_a_stage_share_it(recipe, run, monkeypatch):
    fits = []
    original = runs.fit
    monkeypatch.setattr(runs, "fit", lambda work, *rest: fits.append(work.folder.name) or original(work, *rest))
    changes = (*SHORT, "arms.other.variant='rnope-swa'", "arms.other.stages=['pretrain', 'extend']")
    out = run(*changes, "arms.other.stage.extend.theta=2e6")
    assert sorted(name.partition("-")[0] for name in fits) == ["extend", "extend", "pretrain", "tune"]
    assert (out / "other" / "pretrain").resolve() == (out / "rnope-swa" / "pretrain").resolve()
    assert rnope.load(out / "other" / "extend" / "model").config.thetas == (2e6,)
    assert rnope.load(out / "rnope-swa" / "extend" / "model").config.thetas == (1e6,)


def test_a_damaged_checkpoint_at_a_joint_is_trained_again(run, tmp_path):
    whole = run(*SHORT, "execution.save_steps=2", out=tmp_path / "whole")
    out = run(*SHORT, "execution.save_steps=2", "arms.rnope-swa.stages=['pretrain', 'extend']", out=tmp_path / "b")
    (last,) = (out / "stages").glob("pretrain-*/checkpoints/step-00000006")
    shutil.rmtree(last)
    (folder,) = (out / "stages").glob("extend-*")
    shutil.rmtree(folder)
    out = run(*SHORT, "execution.save_steps=2", out=out)
    assert "lacks its last checkpoint" in run.said
    assert same(bits(whole / "rnope-swa/tune/model"), bits(out / "rnope-swa/tune/model"))


def test_an_altered_checkpoint_is_named_and_the_one_before_goes_on(run, tmp_path, monkeypatch):
    whole = run(*SHORT, "execution.save_steps=2", out=tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(runs._Follow, "step", lambda self, standing, point: _stop_at(standing, 5))
        run(*SHORT, "execution.save_steps=2", out=out)
    (newest,) = (out / "stages").glob("pretrain-*/checkpoints/step-00000004")
    path = next(newest.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    run(*SHORT, "execution.save_steps=2", out=out)
    assert "passed over" in run.said and path.name in run.said and "bytes" in run.said
    assert same(bits(whole / "rnope-swa/tune/model"), bits(out / "rnope-swa/tune/model"))


def _stop_at(standing, step):
    if standing.step == step:
        raise KeyboardInterrupt


@pytest.mark.parametrize("micro", [32, 64, 128])
def test_gradient_accumulation_is_the_same_step(run, points, tmp_path, micro):
    one = points(run(*SHORT, "execution.micro_batch_tokens=128", out=tmp_path / "one"), "pretrain")
    out = run(*SHORT, f"execution.micro_batch_tokens={micro}", out=tmp_path / str(micro))
    for step, point in points(out, "pretrain").items():
        assert math.isclose(point["loss"], one[step]["loss"], rel_tol=1e-5)
        assert math.isclose(point["gradient_norm"], one[step]["gradient_norm"], rel_tol=1e-4)


def test_validation_is_the_plain_loss_of_held_out_rows(run, points, data):
    out = run(*SHORT)
    (found,) = points(out, "pretrain", validation=True).values()
    model = rnope.load(out / "rnope-swa" / "pretrain" / "model")
    rows = validation_rows(Shards.open(data, "validation"), 32, 2)
    ids, targets = torch.from_numpy(rows.ids), torch.from_numpy(rows.targets)
    logits = model(ids, starts=torch.from_numpy(rows.starts))
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert found["validation"]["text"]["tokens"] == int((targets >= 0).sum())
    assert math.isclose(found["validation"]["text"]["loss"], wanted.item(), rel_tol=1e-5)


def poisoned(monkeypatch, steps):
    """Make the losses of some steps, counted over calls in training, not a number."""
    calls = []
    original = rnope.Decoder.loss

    def loss(self, *args, **kwargs):
        total, each = original(self, *args, **kwargs)
        if self.training:
            calls.append(1)
            if len(calls) - 1 in steps:
                return total * math.nan, each * math.nan
        return total, each

    monkeypatch.setattr(rnope.Decoder, "loss", loss)


WHOLE_BATCHES = "execution.micro_batch_tokens=192"


def test_a_step_that_is_not_finite_is_skipped_and_logged(run, points, monkeypatch):
    poisoned(monkeypatch, {2, 4})
    out = run(*SHORT, WHOLE_BATCHES)
    logged = points(out, "pretrain")
    assert [logged[i]["loss"] is None for i in range(1, 7)] == [False, False, True, False, True, False]
    assert [logged[i]["skipped"] for i in range(1, 7)] == [0, 0, 1, 1, 2, 2]
    assert all(w.isfinite().all() for w in bits(out / "rnope-swa/pretrain/model").values())


def test_where_it_repeats_the_run_ends_and_keeps_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poisoned(patch, set(range(3, 99)))
        with pytest.raises(UserError, match=r"3 steps one after another.*step 3, is kept"):
            run(*SHORT, WHOLE_BATCHES, "execution.save_steps=1", "execution.skips=3", out=tmp_path / "bad")
    out = run(*SHORT, WHOLE_BATCHES, "execution.save_steps=1", out=tmp_path / "bad")
    whole = run(*SHORT, WHOLE_BATCHES, out=tmp_path / "good")
    assert same(bits(out / "rnope-swa/tune/model"), bits(whole / "rnope-swa/tune/model"))


def test_tensorboard_has_what_the_log_has(run, points):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = run(*SHORT, "execution.tensorboard=true")
    read = events.EventAccumulator(str(out / "rnope-swa" / "pretrain" / "tensorboard"))
    read.Reload()
    found = {event.step: event.value for event in read.Scalars("loss")}
    wanted = {step: point["loss"] for step, point in points(out, "pretrain").items()}
    assert found.keys() == wanted.keys() and all(math.isclose(found[s], wanted[s], rel_tol=1e-6) for s in wanted)
    assert "validation/text/loss" in read.Tags()["scalars"]


def test_precisions_train(run, points, tmp_path):
    plain = points(run(*SHORT, out=tmp_path / "a"), "pretrain")
    half = points(run(*SHORT, "stages.pretrain.precision='bf16'", out=tmp_path / "b"), "pretrain")
    assert half[1]["loss"] != plain[1]["loss"]
    assert all(math.isclose(half[step]["loss"], plain[step]["loss"], rel_tol=0.02) for step in plain)
    assert rnope.load(tmp_path / "b/rnope-swa/pretrain/model").embedding.weight.dtype == torch.bfloat16


def test_recomputed_activations_change_nothing(run, tmp_path):
    plain = run(*SHORT, out=tmp_path / "a")
    again = run(*SHORT, "execution.checkpoint_activations=true", out=tmp_path / "b")
    assert same(bits(plain / "rnope-swa/tune/model"), bits(again / "rnope-swa/tune/model"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("stages.pretrain.batch_tokens=100", "batch_tokens"),
        ("stages.extend.batch_tokens=160", "batch_tokens"),
        ("stages.pretrain.mixture=[{ source = 'web' }]", "source"),
        ("stages.pretrain.mixture=[{ source = 'text', longer_than = 4096 }]", "mixture"),
        ("stages.pretrain.completions_only=true", "completions_only"),
        ("execution.sequence_parallel=2", "sequence_parallel"),
        ("vocab_size=299", "vocab_size"),
        ("schedules.main.warmup_steps=50", "warmup_steps"),
        ("stages.pretrain.steps=0", "steps"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(run, tmp_path, change, field):
    with pytest.raises(ConfigError) as error:
        run(*SHORT, change)
    assert field in error.value.field
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_folder_says_how_to_get_one(run, tmp_path):
    with pytest.raises(ConfigError, match=r"rnope data build.*--data text=FOLDER"):
        run(*SHORT, sources={})
    with pytest.raises(ConfigError, match="no such source"):
        run(*SHORT, sources={"txt": "x"})


def test_a_shard_cut_short_is_named_before_work_starts(run, data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    path = next((copy / "train").glob("*.ids.npy"))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=path.name):
        run(*SHORT, sources={"text": str(copy)})
    assert not (tmp_path / "out").exists()


def test_sources_of_two_tokenizers_are_refused(run, data, tmp_path):
    other = tmp_path / "other"
    kills.write_data(other)
    index = json.loads((other / "index.json").read_text())
    index["vocabulary"]["digest"] = "another"
    (other / "index.json").write_text(json.dumps(index))
    assert Index.read(other).vocabulary.digest == "another"
    changes = ("sources.more=''", "stages.pretrain.mixture=[{ source = 'text' }, { source = 'more' }]")
    with pytest.raises(ConfigError, match="another tokenizer"):
        run(*SHORT, *changes, sources={"text": str(data), "more": str(other)})


def test_a_disk_without_room_is_refused_first(run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match="free, and checkpoints and models need"):
        run(*SHORT)
    assert not (tmp_path / "out").exists()
