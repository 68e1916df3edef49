"""What the work of a row costs at least: FLOPs and bytes, from `rnope.model.accounting`."""

from rnope.generate.cache import BLOCK_TOKENS
from rnope.model.accounting import attention_pairs, cache_bytes, decode_flops, parameters, prefill_flops
from rnope.model.spec import LayerSpec, ModelConfig


def prefill(config: ModelConfig, tokens: int, new_tokens: int = 0) -> int:
    """FLOPs of reading `tokens` and writing `new_tokens` (the first comes with the prompt, the last is not read)."""
    steps = range(tokens + 1, tokens + new_tokens)
    return prefill_flops(config, tokens, skip=True) + sum(decode_flops(config, n) for n in steps)


def by_kind(config: ModelConfig, tokens: int) -> dict[str, int]:
    """FLOPs of a prefill by layer kind, without the head; the last layer computes one position."""
    found: dict[str, int] = {}
    head = 2 * config.width * config.vocab_size
    for index, spec in enumerate(config.layers):
        alone = config.with_layers((spec,))
        flops = prefill_flops(alone, tokens, skip=index == len(config.layers) - 1) - head
        found[spec.kind] = found.get(spec.kind, 0) + flops
    return found


def decode_bytes(config: ModelConfig, tokens: int, *, value_bytes: int, weight_bytes: float) -> int:
    """Bytes that one token behind `tokens` others must read: all weights and the visible cache."""
    return round(parameters(config) * weight_bytes) + cache_bytes(config, tokens, bytes_per_value=value_bytes)


def attention(heads: int, head_size: int, tokens: int, window: int | None, *, queries: int | None = None) -> int:
    """FLOPs of one forward pass of attention; `queries` are the last ones, None for all."""
    spec = LayerSpec(position="nope", window=window)
    pairs = attention_pairs(spec, tokens) - attention_pairs(spec, tokens - (queries or tokens))
    return 4 * heads * head_size * pairs


def context_bytes(config: ModelConfig, tokens: int, value_bytes: int) -> int:
    """Memory of a context of `tokens`: its cache in whole blocks, and one full layer more while it grows."""
    blocks = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
    return (
        cache_bytes(config, blocks, bytes_per_value=value_bytes)
        + 2 * config.kv_heads * config.head_size * value_bytes * blocks
    )
