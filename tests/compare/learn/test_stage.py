"""The loop of one stage: its loss, its rows, its windows, and what it takes over from the stage before."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from rnope.compare.learn import stage as loop
from rnope.compare.learn.checkpoint import Progress, load_checkpoint
from rnope.compare.learn.optim import build_optimizers
from rnope.compare.learn.stage import run_stage, step_generator, validation_loss
from rnope.model.spec import LayerSpec


def naive_loss(net, batch, mask, text_weight):
    """The definition, position by position, over the logits of everything."""
    chances = net(torch.from_numpy(batch.ids)).log_softmax(-1)
    answers, text, hits = [], [], 0
    for row, line in enumerate(batch.ids):
        for at in range(len(line) - 1):
            cost = -chances[row, at, line[at + 1]]
            if batch.answers[row, at]:
                answers.append(cost)
                hits += int(chances[row, at].argmax()) == line[at + 1]
            elif mask[row, at]:
                text.append(cost)
    loss = torch.stack(answers).mean()
    if text_weight:
        loss = loss + text_weight * torch.stack(text).mean()
    return loss, hits, len(answers)


@pytest.mark.parametrize("text_weight", [0.0, 0.3])
def test_the_loss_is_that_of_its_definition_and_so_is_its_gradient(model, training, stage, text_weight):
    net, plan = model(), stage(text_weight=text_weight, text_share=0.4)
    batch = training().task.training_rows(
        np.random.default_rng(1), training().text, rows=3, row_tokens=64, facts=(2, 5), dense=False
    )
    loss, hits, asked = loop._loss(net, batch, np.random.default_rng(2), plan)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    mask = np.random.default_rng(2).random(batch.ids.shape) < 0.4
    expected, hits_expected, asked_expected = naive_loss(net, batch, mask, text_weight)
    expected.backward()
    assert (hits, asked) == (hits_expected, asked_expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, p in net.named_parameters():
        assert torch.allclose(ours[name], p.grad, rtol=1e-3, atol=1e-6), name


def test_a_step_without_any_text_position_has_the_loss_of_its_answers(model, training, stage):
    """A small batch may draw none; the mean of nothing is not a number."""
    batch = training().task.training_rows(
        np.random.default_rng(1), training().text, rows=2, row_tokens=64, facts=(2, 5), dense=False
    )
    net = model()
    loss, *_ = loop._loss(net, batch, np.random.default_rng(2), stage(text_share=1e-9, text_weight=0.3))
    plain, *_ = loop._loss(net, batch, np.random.default_rng(2), stage(text_weight=0.0))
    assert loss.item() == plain.item()


class Keep:
    """An optimizer that keeps the gradient it is shown."""

    def __init__(self, net):
        self.net, self.grads, self.param_groups = net, [], []

    def step(self):
        self.grads.append({name: p.grad.clone() for name, p in self.net.named_parameters()})

    def zero_grad(self, set_to_none):
        self.net.zero_grad(set_to_none=set_to_none)


def test_accumulated_micro_batches_give_the_mean_of_their_gradients(model, training, stage):
    net, what = model(), training(seed=3, clip_norm=999.0)
    plan = stage(batch_tokens=256, accumulate=2)
    kept = Keep(net)
    loss, accuracy = loop._step(net, [kept], plan, what, Progress(step=5), 64)
    grads, losses, right, asked = [], [], 0, 0
    for micro in (0, 1):
        rng = step_generator(3, "pretrain", 5, 64, micro)
        batch = what.task.training_rows(rng, what.text, rows=2, row_tokens=64, facts=(2, 4), dense=False)
        net.zero_grad()
        each, hits, count = loop._loss(net, batch, rng, plan)
        each.backward()
        grads.append({name: p.grad.clone() for name, p in net.named_parameters()})
        losses.append(each.item())
        right, asked = right + hits, asked + count
    assert loss == pytest.approx(np.mean(losses)) and accuracy == right / asked
    assert abs(losses[0] - losses[1]) > 1e-4, "the micro-batches differ"
    for name, ours in kept.grads[0].items():
        assert torch.allclose(ours, (grads[0][name] + grads[1][name]) / 2, rtol=1e-4, atol=1e-7), name


def test_a_generator_belongs_to_one_micro_batch_alone():
    base = (0, "pretrain", 3, 64, 0)
    others = [(1, *base[1:]), (0, "extend", 3, 64, 0), (0, "pretrain", 4, 64, 0), (0, "pretrain", 3, 128, 0),
              (0, "pretrain", 3, 64, 1)]  # fmt: skip
    drawn = {tuple(step_generator(*which).integers(0, 2**60, 4)) for which in (base, base, *others)}
    assert len(drawn) == 6


def test_a_step_that_is_not_finite_is_counted_and_training_goes_on(model, training, stage, tmp_path):
    net, calls = model(), []

    def spoil(grad):
        calls.append(1)
        return grad * float("nan") if len(calls) == 3 else grad

    net.layers[2].feed_forward.down.weight.register_hook(spoil)
    weights = [net.embedding.weight.detach().clone()]
    progress = run_stage(
        net, stage(steps=5), training(name="muon"), tmp_path,
        tick=lambda n: weights.append(net.embedding.weight.detach().clone()),
    )  # fmt: skip
    assert progress.skipped == 1 and progress.step == 5
    moved = [not torch.equal(a, b) for a, b in pairwise(weights[1:])]
    assert moved == [True, True, False, True, True]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["skipped"] == 1


def test_a_stage_changes_theta_of_rotated_layers_and_windows_of_windowed_ones(model, stage):
    config = model("rnope-swa").config
    assert stage().changed(config) == config
    swa, nope = LayerSpec(position="rope", theta=5e5, window=9), LayerSpec(position="nope")
    assert stage(theta=5e5, window=9).changed(config).layers == (swa, swa, swa, nope)
    both = model("qk-norm").config
    (only,) = set(stage(theta=2e6, window=9).changed(both).layers)
    assert only == LayerSpec(position="rope", theta=2e6, qk_norm=True)


def test_a_stage_gives_the_layers_of_another_variant(model, stage):
    config = model("rope").config
    hybrid = stage(variant="rnope-swa", window=3)
    swa, nope = LayerSpec(position="rope", theta=1e4, window=3), LayerSpec(position="nope")
    assert hybrid.changed(config).layers == (swa, swa, swa, nope)
    swa = LayerSpec(position="rope", theta=1e4, window=30)
    assert stage(variant="rnope", rope_window=30).changed(config).layers == (nope, swa, nope, swa)
    assert {layer.theta for layer in stage(variant="swa-rope", window=3, theta=9.0).changed(config).layers} == {9.0}


def test_a_stage_without_steps_hands_on_the_weights_of_the_one_before(model, training, stage, tmp_path):
    run_stage(model("rope"), stage(), training(), tmp_path / "one")
    convert = stage(name="convert", variant="rnope-swa", window=3, steps=0)
    net = model("rope", seed=1)
    hybrid = model("rnope-swa", seed=2, window=3)
    assert hybrid.config == convert.changed(net.config)
    for _ in range(2):  # again, as after a kill
        ticks = []
        progress = run_stage(
            hybrid, convert, training(), tmp_path / "two", before=tmp_path / "one" / "checkpoint.pt", tick=ticks.append
        )
        assert (progress.step, sum(ticks), progress.history) == (0, 0, [])
    one, two = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert one["model"].keys() == two["model"].keys()
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    moments = [state["optimizers"][-1]["state"][0]["exp_avg"] for state in (one, two)]
    assert torch.equal(*moments) and moments[0].any(), "what reset_optimizer = false carries over goes through it too"
    heal = stage(name="heal", steps=2)
    run_stage(hybrid, heal, training(), tmp_path / "three", before=tmp_path / "two" / "checkpoint.pt")
    naive = model("rnope-swa", seed=3, window=3)
    run_stage(naive, heal, training(), tmp_path / "straight", before=tmp_path / "one" / "checkpoint.pt")
    assert all(torch.equal(a, b) for a, b in zip(hybrid.parameters(), naive.parameters(), strict=True))


def windows(net):
    return [block.attention.spec.window for block in net.blocks]


@pytest.mark.parametrize(("variant", "warm", "own"), [
    ("rope", [4, 4, 4, None], [None] * 4),
    ("rnope-swa", [4, 4, 4, None], [5, 5, 5, None]),
    ("rnope-swa-full-first", [4, 4, 4, 5], [None, 5, 5, 5]),
])  # fmt: skip
def test_the_curriculum_lengthens_rows_and_the_warm_up_window_lasts_for_the_first_length(
    model, training, stage, tmp_path, monkeypatch, variant, warm, own
):
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    monkeypatch.setattr(loop, "_learned", lambda stage, progress: progress.phase_steps == 2)
    net, seen = model(variant), []
    net.embedding.register_forward_pre_hook(lambda *_: seen.append(windows(net)))
    plan = stage(steps=6, curriculum=(32, 64), context_tokens=128, batch_tokens=128, warmup_window=4)
    progress = run_stage(net, plan, training(), tmp_path)
    assert seen == [warm, warm, own, own, own, own] and windows(net) == own
    assert [spec.window for spec in net.config.layers] == own
    assert progress.promotions == {"64": 2, "128": 4}
    assert [point["context_tokens"] for point in progress.history] == [32, 32, 64, 64, 128, 128]


def test_a_stage_that_never_leaves_the_first_length_still_gives_the_spans_back(model, training, stage, tmp_path):
    net = model("rope")
    plan = stage(steps=2, curriculum=(32,), warmup_window=3)
    assert run_stage(net, plan, training(), tmp_path).promotions == {}
    assert windows(net) == [None] * 4


def test_a_warm_up_window_is_not_wider_than_the_layers_own(model, training, stage, tmp_path):
    net, seen = model("rnope-swa"), []
    net.embedding.register_forward_pre_hook(lambda *_: seen.append(windows(net)))
    run_stage(net, stage(steps=1, curriculum=(32,), warmup_window=16), training(), tmp_path)
    assert seen == [[5, 5, 5, None]]


def test_promotion_needs_more_than_twenty_steps_and_the_accuracy_asked_for(stage):
    plan = stage(promote_accuracy=0.9)
    assert loop._learned(plan, Progress(phase_steps=21, running=0.91))
    assert not loop._learned(plan, Progress(phase_steps=20, running=1.0))
    assert not loop._learned(plan, Progress(phase_steps=500, running=0.9))


def test_short_and_long_rows_come_three_to_one(model, training, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    plan = stage(steps=9, context_tokens=128, batch_tokens=128, short_context_tokens=32, short_batches=3)
    progress = run_stage(model(), plan, training(), tmp_path)
    lengths = [point["context_tokens"] for point in progress.history]
    assert lengths == [32, 32, 32, 128, 32, 32, 32, 128, 32]
    only_long = stage(steps=3, context_tokens=128, batch_tokens=128, short_context_tokens=32, short_batches=0)
    progress = run_stage(model(), only_long, training(), tmp_path / "long")
    assert {point["context_tokens"] for point in progress.history} == {128}


def steps_counted(path):
    """Steps that the AdamW of a checkpoint has seen."""
    state = load_checkpoint(path)
    return {int(s["step"]) for o in state["optimizers"] for s in o["state"].values() if "step" in s}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_next_stage_takes_over_weights_and_keeps_or_resets_the_optimizer(model, training, stage, tmp_path, name):
    what, one = training(name=name), tmp_path / "one"
    run_stage(model(), stage(steps=3), what, one)
    first = load_checkpoint(one / "checkpoint.pt")
    ends = {}
    for reset in (False, True):
        folder, net, started = tmp_path / str(reset), model(seed=7), []
        plan = stage(name="extend", steps=2, reset_optimizer=reset)
        run_stage(
            net, plan, what, folder, before=one / "checkpoint.pt",
            tick=lambda n, net=net, started=started: started.append({k: v.clone() for k, v in net.state_dict().items()}),
        )  # fmt: skip
        assert all(torch.equal(started[0][k], v) for k, v in first["model"].items())
        assert steps_counted(folder / "checkpoint.pt") == {2 if reset else 5}
        assert load_checkpoint(folder / "checkpoint.pt")["progress"]["step"] == 2
        ends[reset] = net.state_dict()
    assert not torch.equal(ends[True]["embedding.weight"], ends[False]["embedding.weight"])
    # By hand: the first stage's optimizers, kept, and two steps more.
    net = model(seed=7)
    optimizers = build_optimizers(net, what.optimizer, what.learning_rate)
    net.load_state_dict(first["model"])
    for optimizer, state in zip(optimizers, first["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    for step in range(2):
        loop._step(net, optimizers, stage(name="extend", steps=2), what, Progress(step=step), 64)
    assert all(torch.equal(v, ends[False][k]) for k, v in net.state_dict().items())


def test_the_logs_last_line_is_the_last_step(model, training, stage, tmp_path):
    progress = run_stage(model(), stage(steps=23), training(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 23] and lines == progress.history
    assert lines[-1]["loss"] == progress.loss and lines[-1]["accuracy"] == progress.running


def test_every_variant_sees_the_same_rows_at_every_step(model, training, stage, tmp_path, monkeypatch):
    seen = []
    real = loop._loss
    monkeypatch.setattr(
        loop, "_loss", lambda net, batch, rng, plan: (seen.append(batch.ids), real(net, batch, rng, plan))[1]
    )
    for variant in ("rope", "rnope-swa", "qk-norm"):
        run_stage(model(variant), stage(steps=2, accumulate=2), training(), tmp_path / variant)
    assert len(seen) == 12
    for a, b, c in zip(seen[:4], seen[4:8], seen[8:], strict=True):
        assert (a == b).all() and (a == c).all()
    assert (seen[0] != seen[1]).any() and (seen[0] != seen[2]).any()


def test_validation_loss_is_the_mean_over_rows_and_by_quarter(model, text):
    net = model()
    found = validation_loss(net, text, bos=1, context_tokens=33, rows=5)
    per_position = []
    for offset in (0, 1241, 2483, 3725, 4967):
        ids = [1, *text[offset : offset + 32].tolist()]
        chances = net(torch.tensor([ids])).double().log_softmax(-1)[0]
        per_position.append([-chances[at, ids[at + 1]].item() for at in range(32)])
    expected = np.array(per_position).mean(0)
    assert list(found) == ["all", "0-7", "8-15", "16-23", "24-31"]
    assert found["all"] == pytest.approx(expected.mean(), rel=1e-5)
    for i, name in enumerate(list(found)[1:]):
        assert found[name] == pytest.approx(expected[8 * i : 8 * i + 8].mean(), rel=1e-5)
