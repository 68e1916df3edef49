"""Optimizers and learning-rate schedules, from a recipe's `Optimizer` and `Stage`."""

import math

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from rnope import config
from rnope.model.attention import LayerNorm
from rnope.model.decoder import Decoder


def build_optimizers(model: Decoder, recipe: config.Optimizer, scale: float) -> list[Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest; peak rates times `scale`.

    Norms and the embedding are never decayed. Every group keeps its peak rate under ``peak``.
    """
    # By module and not by shape: QK-Norm's weights are [heads, head_size].
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    norms = [module.weight for module in model.modules() if isinstance(module, LayerNorm)]
    embedding_rate = recipe.embedding_learning_rate or recipe.learning_rate
    beta1, beta2 = recipe.betas
    groups = [
        {"params": [model.embedding.weight], "lr": embedding_rate * scale, "weight_decay": 0.0},
        {"params": norms, "lr": recipe.learning_rate * scale, "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = []
    if recipe.name == "muon":
        optimizers.append(Muon(matrices, lr=recipe.muon_learning_rate * scale, weight_decay=recipe.weight_decay))
    else:
        decayed = {"params": matrices, "lr": recipe.learning_rate * scale, "weight_decay": recipe.weight_decay}
        groups.append(decayed)
    optimizers.append(AdamW(groups, betas=(beta1, beta2)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate_scale(stage: config.Stage, step: int) -> float:
    """Learning rate at `step` (from 0) over its peak: warm-up, constant, then linear or cosine decay to `final_scale`."""
    warm = min(1.0, (step + 1) / stage.warmup_steps) if stage.warmup_steps else 1.0
    left = stage.steps - step
    if left > stage.decay_steps:
        return stage.learning_rate_scale * warm
    share = left / (stage.decay_steps + 1)  # 1 just before the decay, 0 one step after the last
    if stage.decay == "cosine":
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return stage.learning_rate_scale * warm * (stage.final_scale + (1 - stage.final_scale) * share)


def set_rates(optimizers: list[Optimizer], scale: float) -> None:
    """Every group's rate to its peak times `scale`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale


@torch.no_grad()
def step_if_finite(model: Decoder, optimizers: list[Optimizer], clip_norm: float) -> bool:
    """Clip, step and clear gradients; a step whose gradient is not finite is left out, and False returned."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    finite = bool(torch.isfinite(norm))
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return finite
