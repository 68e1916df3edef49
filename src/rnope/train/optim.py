"""AdamW over a decoder's weights, and the step that is left out when it is not finite."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from rnope.config import training


def build_optimizer(model: nn.Module, settings: training.AdamW) -> torch.optim.AdamW:
    """AdamW; norms and the embedding are never decayed. Rates are set before every step."""
    # By module and not by shape: QK-Norm's weights are [heads, head_size].
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    decayed = set(matrices)
    rest = [weight for weight in model.parameters() if weight not in decayed]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    beta1, beta2 = settings.betas
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=settings.eps, fused=True)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.AdamW, steps: int | None = None) -> dict[str, Tensor]:
    """Both moments of every weight by name, made where there are none yet.

    Args:
        steps: updates that they have seen, which is set for all weights; None leaves the count.
    """
    weights = dict(model.named_parameters())
    known = {weight for group in optimizer.param_groups for weight in group["params"]}
    assert known == set(weights.values()), "these weights are not the optimizer's"
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state = optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        if steps is not None:
            state["step"].fill_(steps)
        found |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
    return found


@torch.no_grad()
def step_if_finite(
    model: nn.Module, optimizer: torch.optim.AdamW, *, loss: float, targets: int, rate: float, clip_norm: float
) -> float:
    """Divide the summed gradients by the number of `targets`, clip, step and clear them.

    Args:
        loss: the sum over all ranks that the gradients belong to.
        targets: how many tokens, on all ranks, it is the sum of.
        rate: the learning rate.

    Returns:
        the norm of the mean's gradient before clipping. Where it or `loss` is not finite, the step was left out.
    """
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    size = float(norm) / max(targets, 1)
    if math.isfinite(size) and math.isfinite(loss):
        # One multiplication for both: the mean, and the clipping of it.
        scale = min(1.0, clip_norm / (size + 1e-6)) / max(targets, 1)
        for gradient in gradients:
            gradient.mul_(scale)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    else:
        size = math.nan
    optimizer.zero_grad(set_to_none=True)
    return size
