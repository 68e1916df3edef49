"""What a probe holds in memory, counted before it starts, and what eager attention outputs would hold. No torch here."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnope.errors import UserError
from rnope.units import size

if TYPE_CHECKING:
    import torch

    from rnope.analysis.probe import Layer

WORK_BYTES = 2**16
"""Of one head's row while keys are gone through in blocks: what making it and each of our measures takes, rounded up."""


def cache_bytes(layers: Sequence["Layer"], *, head_size: int, value_bytes: int, context_tokens: int) -> int:
    """Keys and values of a text, at `value_bytes` each; a windowed layer keeps its window."""
    return 2 * head_size * value_bytes * sum(each.kv_heads * _visible(each, context_tokens) for each in layers)


def rows_bytes(layers: Sequence["Layer"], *, context_tokens: int, rows: int) -> int:
    """Attention of `rows` queries of one key-value head's group, of the layer where that is most, and the work on it."""
    return max(
        each.heads // each.kv_heads * rows * (4 * min(_visible(each, context_tokens) + rows, context_tokens) + WORK_BYTES)
        for each in layers
    )  # fmt: skip


def probe_bytes(layers: Sequence["Layer"], *, head_size: int, value_bytes: int, context_tokens: int, rows: int) -> int:
    """What a probe holds beside the model and one chunk's activations: cache, rows, and each layer's distribution."""
    cache = cache_bytes(layers, head_size=head_size, value_bytes=value_bytes, context_tokens=context_tokens)
    distributions = 8 * context_tokens * (len(layers) + 2)
    return cache + distributions + rows_bytes(layers, context_tokens=context_tokens, rows=rows)


def eager_bytes(layers: Sequence["Layer"], *, context_tokens: int) -> int:
    """Attention outputs as transformers' eager attention returns them: every layer's [heads, t, t] together, in float32."""
    return 4 * context_tokens**2 * sum(each.heads for each in layers)


def check_rows(
    layers: Sequence["Layer"], *, head_size: int, value_bytes: int, context_tokens: int, rows: int, chunk: int,
    device: "torch.device | str" = "cpu",
) -> None:  # fmt: skip
    """Refuse a probe that does not fit into what is free on `device`.

    Args:
        layers: of the model, as `Probed.layers`.
        head_size: values of a key.
        value_bytes: of one value in the model's dtype.
        context_tokens: of the text, new tokens included.
        rows: queries of question and completion; as many as a chunk has are held at once.
        chunk: tokens that are read at once.

    Raises:
        UserError: says how many rows would fit.
    """
    import torch

    from rnope.generate.room import free_bytes

    free = free_bytes(torch.device(device))
    if free is None:
        return

    def needed(held: int) -> int:
        return probe_bytes(
            layers, head_size=head_size, value_bytes=value_bytes, context_tokens=context_tokens, rows=held
        )

    held = min(rows, chunk)
    if needed(held) <= free:
        return
    fit = bisect_right(range(1, held + 1), free, key=needed)
    remedy = f"Read in chunks of {fit:,}, or look at fewer rows." if fit else "Shorten the text, or use a 16-bit dtype."
    raise UserError(
        f"{held:,} rows of attention at {context_tokens:,} tokens need {size(needed(held))} with keys and values, and "
        f"{size(free)} are free: at most {fit:,} rows fit at once at this length. {remedy}"
    )


def _visible(layer: "Layer", context_tokens: int) -> int:
    return context_tokens if layer.window is None else min(layer.window, context_tokens)
