"""Cross-entropy of a tied head in chunks of positions: the logits of a vocabulary of 256,000 are never held all at once."""

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""A target where nothing is to be predicted."""


def cross_entropy(states: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """``-log softmax(scale * states @ weight.T)[target]``, summed.

    Args:
        states: [n, width].
        weight: of the head, [vocab, width].
        targets: int64 [n]; `IGNORED` where there is none.
        scale: of the logits.

    Returns:
        the sum, a float32 scalar to differentiate, and each position's loss [n], float32 and detached, 0 where it is
        ignored.
    """
    logits = (states @ weight.T).float() * scale
    each = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return each.sum(), each.detach()
