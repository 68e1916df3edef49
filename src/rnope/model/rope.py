"""Rotary position embedding over interleaved pairs, as Command R has it. Theta is always an argument: stages change it."""

import torch
from torch import Tensor


def rotary_table(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions` [..., t], each [..., t, head_size / 2], float32.

    Pair i of a head turns by ``position * theta ** (-2 i / head_size)`` (Su et al., 2023, equation 15). The inverse is
    taken first, as Cohere does: at position 100,000 the other order rounds to angles that are 0.008 away from theirs.
    """
    exponents = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions.device) / head_size
    angles = positions[..., None].float() * (1.0 / theta**exponents)  # … t d/2
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `x` [b, h, t, d] by a table of [t, d / 2] or [b, 1, t, d / 2]; in float32, returned in x's dtype."""
    cos, sin = table
    if torch.compiler.is_compiling():  # Compilers write one loop of this; complex numbers they leave alone.
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # b h t d/2
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)
    # The same products and sums, in one pass over neighbours instead of eight over every other number.
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # b h t d/2
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)
