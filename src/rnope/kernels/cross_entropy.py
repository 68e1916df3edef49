"""Cross-entropy of a tied head in chunks of positions: the logits of a vocabulary of 256,000 are never held all at once.

Gradients are made where the logits are, in the forward pass, so that no product is computed twice: at the beginning of
the backward pass they are only scaled. They cannot be differentiated again. It knows nothing of models or batches.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
"""A target where nothing is to be predicted."""
LOGITS_BYTES = {"cpu": 2**27}
"""Device -> logits of one chunk: enough that products are large and their sums are few."""
LOGITS_BYTES_ELSEWHERE = 2**31
BLOCK_VALUES = {"cpu": 2**20}
"""Device -> logits that become float32, and probabilities, at one time: on a CPU they should stay in its cache."""
BLOCK_VALUES_ELSEWHERE = 2**26


def cross_entropy(states: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """``-log softmax(scale * states @ weight.T)[target]``, summed.

    Products are computed in the states' dtype, softmax and sums in float32 (float64 for float64). Positions without a
    target cost nothing.

    Args:
        states: [n, width].
        weight: of the head, [vocab, width].
        targets: int64 [n]; `IGNORED` where there is none.
        scale: of the logits.

    Returns:
        the sum, a float32 scalar to differentiate, and each position's loss [n], float32 and detached, 0 where it is
        ignored.
    """
    grad = torch.is_grad_enabled()
    wanted = (grad and states.requires_grad, grad and weight.requires_grad)
    total, each = Chunked.apply(states, weight, targets, scale, wanted)
    return total, each


class Chunked(torch.autograd.Function):
    """``Chunked.apply(states, weight, targets, scale, wanted)``; `wanted` says whose gradients are."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, scale: float, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        (n, width), vocab, kind = states.shape, len(weight), states.dtype
        precise = torch.promote_types(kind, torch.float32)
        places = (targets != IGNORED).nonzero()[:, 0]
        every = len(places) == n
        rows, answers = (states, targets) if every else (states[places], targets[places])
        matrix = weight.to(kind)
        losses = states.new_empty(len(rows), dtype=precise)
        drows = torch.empty_like(rows) if wanted[0] else None
        dweight = weight.new_zeros(vocab, width, dtype=precise) if wanted[1] else None
        step = _positions(len(rows), vocab, kind.itemsize, states.device.type)
        logits = states.new_empty(step, vocab)
        for i in range(0, len(rows), step):
            chunk = slice(i, i + step)
            x = rows[chunk]
            y = torch.mm(x, matrix.T, out=logits[: len(x)])  # n v
            _losses(y, answers[chunk], losses[chunk], scale, any(wanted))  # Now y holds the gradient of the logits.
            if drows is not None:
                torch.mm(y, matrix, out=drows[chunk])
            if dweight is None:
                continue
            if kind == precise:
                dweight.addmm_(y.T, x)
            else:
                dweight += y.T @ x
        ctx.shape, ctx.kind, ctx.wanted = states.shape, weight.dtype, wanted
        ctx.save_for_backward(drows, dweight, None if every else places)
        each = losses if every else losses.new_zeros(n).index_copy_(0, places, losses)
        ctx.mark_non_differentiable(each)
        ctx.set_materialize_grads(False)
        return losses.sum(), each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        drows, dweight, places = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None
        if drows is not None:  # The factor may be 1 / 1,000,003: 16 bits would change it, and with it every gradient.
            drows = (drows.to(grad.dtype) * grad).to(drows.dtype)
            if places is not None:
                drows = drows.new_zeros(ctx.shape).index_copy_(0, places, drows)
        if dweight is not None:
            dweight = torch.mul(dweight, grad, out=torch.empty_like(dweight, dtype=ctx.kind))
        return drows, dweight, None, None, None


def _losses(logits: Tensor, targets: Tensor, losses: Tensor, scale: float, differentiate: bool) -> None:
    """Fill `losses` [n] from `logits` [n, vocab], which become their own gradient where that is wanted."""
    step = max(1, BLOCK_VALUES.get(logits.device.type, BLOCK_VALUES_ELSEWHERE) // logits.shape[1])
    for i in range(0, len(logits), step):
        block, target = logits[i : i + step], targets[i : i + step, None]
        chances = F.log_softmax(block.to(losses.dtype).mul_(scale), dim=-1)  # As logarithms, at first. n v
        right = chances.gather(1, target)
        losses[i : i + step] = -right[:, 0]
        if differentiate:
            block.copy_(chances.exp_().scatter_(1, target, right.expm1()).mul_(scale))


def _positions(n: int, vocab: int, itemsize: int, device: str) -> int:
    """Positions of a chunk: chunks are of about equal size."""
    most = max(1, LOGITS_BYTES.get(device, LOGITS_BYTES_ELSEWHERE) // (vocab * itemsize))
    return -(-n // max(1, -(-n // most))) or 1
