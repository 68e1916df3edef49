"""Token ids as people have them (lists, arrays, tensors of any integer type) into int64, checked. Nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rnope.errors import ConfigError, shown

Ids = Sequence[int] | np.ndarray | Tensor
"""Token ids of one sequence."""


def token_ids(ids: Ids, field: str, vocab_size: int) -> Tensor:
    """A copy of `ids`, int64 [tokens], on a tensor's device or on the CPU.

    Raises:
        ConfigError: `field` has none, or they are no token ids of a model with `vocab_size` tokens.
    """
    tokens = ids.detach().clone() if isinstance(ids, Tensor) else _from_array(ids)
    if tokens.dim() == 1 and len(tokens) == 0:
        raise ConfigError(field, "[]", "there are no tokens", "Give at least one, such as the BOS token.")
    whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.dim() != 1 or not whole:
        rule = "must be a flat list of token ids"
        raise ConfigError(field, shown(ids), rule, "Give whole numbers, a list per sequence.")
    tokens = tokens.to(torch.int64)
    low, high = (int(end) for end in tokens.aminmax())
    if low < 0 or high >= vocab_size:
        rule = f"is outside the vocabulary of {vocab_size:,} tokens"
        remedy = "Use the tokenizer that the model was trained with."
        raise ConfigError(field, low if low < 0 else high, rule, remedy)
    return tokens


def _from_array(ids: Sequence[int] | np.ndarray) -> Tensor:
    """As a tensor; what is no array of whole numbers becomes one that is refused."""
    try:
        array = np.array(ids)  # A copy: of views, of read-only memory, of other widths.
    except ValueError:  # rows of several lengths
        return torch.empty(0, 0)
    whole = array.dtype.kind in "iu" or array.size == 0
    return torch.from_numpy(array.astype(np.int64)) if whole else torch.empty(0, 0)
