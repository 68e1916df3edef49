"""What a model costs, counted from its layers: parameters, FLOPs, cache bytes. Exact, and tested against the real thing.

A multiply-add is two FLOPs. Attention counts the (query, key) pairs that are visible, which is what a kernel that
wastes nothing would compute.
"""

from rnope.model.spec import LayerSpec, ModelConfig


def parameters(config: ModelConfig) -> int:
    """Number of weights, the tied embedding counted once."""
    query = config.width * config.heads * config.head_size
    key = config.width * config.kv_heads * config.head_size
    layer = 2 * query + 2 * key + 3 * config.width * config.ffn_width + config.width
    qk_norm = (config.heads + config.kv_heads) * config.head_size
    return (
        config.vocab_size * config.width + sum(layer + qk_norm * spec.qk_norm for spec in config.layers) + config.width
    )


def attention_pairs(spec: LayerSpec, context_tokens: int) -> int:
    """Visible (query, key) pairs of one head over `context_tokens`: O(L²) for a full layer, O(L·W) for a windowed one."""
    seen = spec.visible(context_tokens)
    return seen * (seen + 1) // 2 + (context_tokens - seen) * seen


def prefill_flops(config: ModelConfig, context_tokens: int, *, logits: int = 1, skip: bool = False) -> int:
    """Forward FLOPs of `context_tokens` with `logits` positions put through the head.

    Args:
        skip: the last layer computes queries, attention and feed-forward for those positions alone, the last ones of
            the context, as `Decoder.hidden` does with ``rows``.
    """
    keys = 2 * config.width * config.kv_heads * config.head_size
    rest = 2 * config.width * config.heads * config.head_size + 3 * config.width * config.ffn_width
    flops = 2 * logits * config.width * config.vocab_size
    for index, spec in enumerate(config.layers):
        queries, pairs = context_tokens, attention_pairs(spec, context_tokens)
        if skip and index == len(config.layers) - 1:
            queries = logits
            pairs -= attention_pairs(spec, context_tokens - logits)
        flops += 2 * (context_tokens * keys + queries * rest) + 4 * config.heads * config.head_size * pairs
    return flops


def training_flops(config: ModelConfig, context_tokens: int) -> int:
    """Forward and backward FLOPs of one sequence with all its logits: three times the forward pass."""
    return 3 * prefill_flops(config, context_tokens, logits=context_tokens)


def decode_flops(config: ModelConfig, context_tokens: int) -> int:
    """FLOPs of the one token that follows `context_tokens` - 1 others."""
    linear = prefill_flops(config, 1) - 4 * config.heads * config.head_size * len(config.layers)
    seen = sum(spec.visible(context_tokens) for spec in config.layers)
    return linear + 4 * config.heads * config.head_size * seen


def cache_bytes(config: ModelConfig, context_tokens: int, *, bytes_per_value: int = 2) -> int:
    """Keys and values that `context_tokens` leave behind, per sequence; a windowed layer keeps its window only (I1)."""
    per_token = 2 * config.kv_heads * config.head_size * bytes_per_value
    return per_token * sum(spec.visible(context_tokens) for spec in config.layers)
