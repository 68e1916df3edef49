"""AdamW over a decoder: which weights decay, the mean over targets, clipping, and steps that are left out."""

import math

import pytest
import torch

from rnope.config.training import AdamW
from rnope.testing import tiny_model
from rnope.train.optim import build_optimizer, optimizer_tensors, step_if_finite


def test_matrices_decay_and_norms_and_embedding_do_not():
    model = tiny_model("qk-norm")
    optimizer = build_optimizer(model, AdamW(weight_decay=0.25))
    decays = {id(w): group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
    found = {name: decays[id(weight)] for name, weight in model.named_parameters()}
    assert len(decays) == len(found)
    for name, decay in found.items():
        plain = name == "embedding.weight" or "norm" in name
        assert decay == (0.0 if plain else 0.25), name
    assert any("query_norm" in name for name in found)


def gradients(model, scale=1.0):
    for i, weight in enumerate(model.parameters()):
        weight.grad = scale * torch.full_like(weight, 0.01 * (i + 1))


@pytest.mark.parametrize("clip_norm", [1e-3, 900.0])
def test_a_step_is_adamw_on_the_clipped_mean(clip_norm):
    settings = AdamW(weight_decay=0.1, clip_norm=clip_norm)
    ours, theirs = tiny_model(), tiny_model()
    optimizer = build_optimizer(ours, settings)
    peer = torch.optim.AdamW(
        [
            {"params": [m.weight for m in theirs.modules() if isinstance(m, torch.nn.Linear)], "weight_decay": 0.1},
            {"params": [w for n, w in theirs.named_parameters() if "norm" in n or "embed" in n], "weight_decay": 0.0},
        ],
        lr=0.02,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for _ in range(3):
        gradients(ours, scale=17.0)
        norm = step_if_finite(ours, optimizer, loss=5.0, targets=17, rate=0.02, clip_norm=clip_norm)
        gradients(theirs)
        wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        peer.step()
        assert math.isclose(norm, float(wanted), rel_tol=1e-5)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)
        assert a.grad is None


@pytest.mark.parametrize(("loss", "bad"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_step_that_is_not_finite_changes_nothing(loss, bad):
    model = tiny_model()
    optimizer = build_optimizer(model, AdamW())
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    gradients(model)
    model.norm.weight.grad[3] = bad
    assert math.isnan(step_if_finite(model, optimizer, loss=loss, targets=3, rate=0.1, clip_norm=1.0))
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert not optimizer.state and model.norm.weight.grad is None
    gradients(model)
    assert step_if_finite(model, optimizer, loss=1.0, targets=3, rate=0.1, clip_norm=1.0) > 0
    assert not torch.equal(before["norm.weight"], model.norm.weight)


def test_moments_can_be_put_back():
    settings = AdamW(weight_decay=0.1)
    whole, resumed = tiny_model(), tiny_model()
    a, b = build_optimizer(whole, settings), build_optimizer(resumed, settings)
    for _ in range(2):
        gradients(whole)
        step_if_finite(whole, a, loss=1.0, targets=1, rate=0.01, clip_norm=1.0)
    resumed.load_state_dict(whole.state_dict())
    places = optimizer_tensors(resumed, b, 2)
    for name, tensor in optimizer_tensors(whole, a).items():
        places[name].copy_(tensor)
    for model, optimizer in ((whole, a), (resumed, b)):
        gradients(model, 3.0)
        step_if_finite(model, optimizer, loss=1.0, targets=1, rate=0.01, clip_norm=1.0)
    for name, weight in whole.named_parameters():
        assert torch.equal(weight, resumed.get_parameter(name)), name
