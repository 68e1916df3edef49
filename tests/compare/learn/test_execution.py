"""What a GPU's runs need of the loop: the loss in chunks and in bf16, stopping at any step, checkpoints by the clock."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnope.compare.learn import stage as loop
from rnope.compare.learn.checkpoint import load_checkpoint
from rnope.compare.learn.stage import run_stage, validation_loss
from rnope.config import Execution
from rnope.parallel.apply import apply
from rnope.parallel.mesh import joined

BF16 = Execution(precision="bf16")


@pytest.fixture
def made(model):
    """``made("bf16")``: a tiny decoder in that precision, with the weights of `model`."""

    def make(precision, variant="rnope-swa"):
        return apply(model(variant).config, joined(device="cpu"), seed=0, precision=precision)

    return make


@pytest.fixture
def batch(task, text):
    rng = np.random.default_rng(1)
    return task.training_rows(rng, text, rows=3, row_tokens=64, facts=(2, 5), dense=False)


def gradients(net, loss_of, batch, plan):
    loss, hits, asked = loss_of(net, batch, np.random.default_rng(2), plan)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in net.named_parameters()}
    net.zero_grad()
    return loss.item(), hits, asked, found


@pytest.mark.parametrize(("weight", "share"), [(0.0, 0.15), (0.3, 0.4), (1.0, 1.0)])
def test_the_loss_in_chunks_is_the_loss(made, batch, stage, weight, share):
    net, plan = made("fp32"), stage(text_weight=weight, text_share=share)
    loss, hits, asked, expected = gradients(net, loop._loss, batch, plan)
    ours, hits_in_chunks, asked_in_chunks, found = gradients(net, loop._loss_in_chunks, batch, plan)
    assert ours == pytest.approx(loss, rel=1e-5) and (hits_in_chunks, asked_in_chunks) == (hits, asked)
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


def test_in_bf16_it_is_the_loss_but_for_rounding(made, batch, stage):
    plan = stage(text_weight=1.0, text_share=1.0)
    loss, _, asked, expected = gradients(made("fp32"), loop._loss, batch, plan)
    ours, _, asked_in_bf16, found = gradients(made("bf16"), loop._loss_in_chunks, batch, plan)
    assert 0 < abs(ours - loss) < 0.01 * loss and asked_in_bf16 == asked
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32, "master weights and their gradients"
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_a_stage_in_bf16_trains_float32_weights_and_is_checked_on_held_out_text(made, training, stage, tmp_path, text):
    ends = {}
    for precision, execution in (("fp32", Execution()), ("bf16", BF16)):
        net = made(precision)
        what = replace(training(name="muon"), execution=execution)
        run_stage(net, stage(steps=6, text_weight=1.0, text_share=1.0), what, tmp_path / precision)
        state = load_checkpoint(tmp_path / precision / "checkpoint.pt")
        assert {weight.dtype for weight in state["model"].values()} == {torch.float32}
        ends[precision] = state["progress"]["loss"], validation_loss(net, text, bos=1, context_tokens=32)["all"]
    assert ends["bf16"] != ends["fp32"]
    assert ends["bf16"] == pytest.approx(ends["fp32"], rel=0.02)


@pytest.mark.parametrize("execution", [Execution(), BF16])
def test_stopped_at_every_step_it_ends_as_if_it_had_not_been(made, training, stage, tmp_path, execution):
    what = replace(training(seed=3, name="muon"), execution=execution)
    plan = stage(steps=5, context_tokens=64, short_context_tokens=32, batch_tokens=128)
    run_stage(made(execution.precision), plan, what, tmp_path / "whole")
    for step in range(1, 6):
        progress = run_stage(made(execution.precision), plan, what, tmp_path / "parts", stop=lambda: True)
        assert progress.step == step
    whole, parts = (load_checkpoint(tmp_path / which / "checkpoint.pt") for which in ("whole", "parts"))
    assert all(torch.equal(parts["model"][name], weight) for name, weight in whole["model"].items())
    assert parts["progress"]["history"][-1]["loss"] == whole["progress"]["history"][-1]["loss"]
    again = run_stage(made(execution.precision), plan, what, tmp_path / "parts", stop=lambda: 1 / 0)
    assert again.step == 5, "a finished stage asks nobody"


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [2, 4, 6, 7]), (1e5, [7])])
def test_checkpoints_come_no_sooner_than_asked(model, training, stage, tmp_path, monkeypatch, seconds, expected):
    saved, save = [], loop.save_checkpoint
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 2)
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: (saved.append(args[-1].step), save(*args)))
    what = replace(training(), execution=Execution(save_seconds=seconds))
    run_stage(model(), stage(steps=7), what, tmp_path)
    assert saved == expected
