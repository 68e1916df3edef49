"""Optimizers and schedules: who is decayed, who is orthogonalised, and the rate at every step."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon

from rnope.compare.learn.optim import build_optimizers, rate_scale, set_rates, step_if_finite
from rnope.config import Optimizer


def groups_of(optimizers):
    """id of parameter -> (optimizer class, its group); a parameter that stands twice fails."""
    found = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert id(parameter) not in found
                found[id(parameter)] = (type(optimizer), group)
    return found


@pytest.mark.parametrize("variant", ["rnope-swa", "qk-norm"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_has_one_group_and_only_the_layers_matrices_are_decayed(model, name, variant):
    net = model(variant)
    recipe = Optimizer(
        name=name, weight_decay=0.1, learning_rate=1e-3, embedding_learning_rate=5e-3, muon_learning_rate=0.02
    )
    found = groups_of(build_optimizers(net, recipe, scale=2.0))
    assert set(found) == {id(p) for p in net.parameters()}
    matrices = {id(m.weight) for m in net.modules() if isinstance(m, nn.Linear)}
    assert len(matrices) == 4 * 7
    for label, parameter in net.named_parameters():
        kind, group = found[id(parameter)]
        matrix = id(parameter) in matrices
        rate = 5e-3 if label == "embedding.weight" else 0.02 if matrix and name == "muon" else 1e-3
        assert kind is (Muon if matrix and name == "muon" else AdamW), label
        assert group["weight_decay"] == (0.1 if matrix else 0.0), label
        assert group["lr"] == group["peak"] == pytest.approx(2 * rate), label


def test_the_embedding_has_the_common_rate_where_it_has_none_of_its_own(model):
    net = model()
    (optimizer,) = build_optimizers(net, Optimizer(name="adamw", learning_rate=7e-4, betas=(0.8, 0.9)), scale=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {7e-4}
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_rates_warm_up_stay_and_fall(stage):
    plan = stage(steps=100, warmup_steps=10, decay_steps=40, final_scale=0.05, learning_rate_scale=0.5)
    rates = [rate_scale(plan, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (i + 1) for i in range(10)])
    assert rates[9:60] == pytest.approx([0.5] * 51)
    falls = [a - b for a, b in pairwise(rates[59:])]
    assert falls == pytest.approx([falls[0]] * 40) and falls[0] > 0
    assert rates[-1] - falls[0] == pytest.approx(0.5 * 0.05), "one step after the last it would be the final rate"


def test_a_cosine_falls_from_the_peak_to_the_final_rate(stage):
    plan = stage(steps=199, decay_steps=199, decay="cosine", final_scale=0.05)
    rates = [rate_scale(plan, step) for step in range(199)]
    expected = [0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step + 1) / 200)) for step in range(199)]
    assert rates == pytest.approx(expected)
    assert rates == sorted(rates, reverse=True) and rates[99] == pytest.approx(0.525)


def test_warm_up_and_decay_may_meet_and_a_stage_without_either_is_constant(stage):
    assert {rate_scale(stage(steps=50), step) for step in range(50)} == {1.0}
    plan = stage(steps=20, warmup_steps=10, decay_steps=10)
    rates = [rate_scale(plan, step) for step in range(20)]
    assert max(rates) == rates[9] == 1.0 and rates[10] == pytest.approx(10 / 11) and rates[19] == pytest.approx(1 / 11)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_stage_may_go_on_at_the_rate_where_the_one_before_ended(stage, decay):
    one = stage(steps=100, decay_steps=50, decay=decay, final_scale=0.05)
    two = stage(name="cool-down", steps=50, decay_steps=50, decay=decay, learning_rate_scale=0.05)
    rates = [rate_scale(one, step) for step in range(100)] + [rate_scale(two, step) for step in range(50)]
    jumps = [abs(a - b) for a, b in pairwise(rates)]
    assert jumps[99] <= max(jumps[50:99]) + max(jumps[100:]), "no jump at the joint"
    assert all(a >= b for a, b in pairwise(rates[50:]))


def test_rates_are_set_from_the_peak_and_not_from_each_other(model):
    optimizers = build_optimizers(model(), Optimizer(name="muon", embedding_learning_rate=0.1), scale=1.0)
    for _ in range(3):
        set_rates(optimizers, 0.5)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            assert group["lr"] == group["peak"] / 2


def gradients(net, ids, bad=None):
    net(ids).square().mean().backward()
    if bad is not None:
        net.layers[1].feed_forward.up.weight.grad[3, 2] = bad


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_whose_gradient_is_not_finite_changes_nothing(model, name, bad):
    net = model()
    optimizers = build_optimizers(net, Optimizer(name=name), scale=1.0)
    ids = torch.arange(30).view(2, 15)
    gradients(net, ids)
    assert step_if_finite(net, optimizers, 1.0)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    kept = [{k: v.clone() for k, v in s.items()} for o in optimizers for s in o.state.values()]
    gradients(net, ids, bad)
    assert not step_if_finite(net, optimizers, 1.0)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    after = [s for o in optimizers for s in o.state.values()]
    assert all(torch.equal(s[k], v) for s, old in zip(after, kept, strict=True) for k, v in old.items())
    gradients(net, ids)
    assert step_if_finite(net, optimizers, 1.0)
    assert not torch.equal(net.embedding.weight, weights["embedding.weight"])


def test_gradients_are_clipped_by_their_common_norm(model):
    net = model()
    seen = {}

    class Stub:
        def step(self):
            seen.update({k: p.grad.clone() for k, p in net.named_parameters()})

        def zero_grad(self, set_to_none):
            assert set_to_none

    gradients(net, torch.arange(30).view(2, 15))
    before = {k: p.grad.clone() for k, p in net.named_parameters()}
    norm = math.sqrt(sum(g.double().square().sum().item() for g in before.values()))
    assert step_if_finite(net, [Stub()], norm / 4)
    assert all(torch.allclose(4 * seen[k], g, atol=1e-6 * norm, rtol=1e-4) for k, g in before.items())
