"""What a model costs, counted from its layers: parameters, FLOPs, cache bytes. Exact, and tested against the real thing.

A multiply-add is two FLOPs. Attention counts the (query, key) pairs that are visible, which is what a kernel that
wastes nothing would compute.
"""

from rnope.model.spec import LayerSpec, ModelConfig

LOGITS_BYTES, BLOCK_VALUES = 2**31, 2**26
"""As `rnope.kernels.cross_entropy` has them for GPUs."""


def layer_parameters(config: ModelConfig, spec: LayerSpec) -> int:
    """Number of weights of one layer."""
    query = config.width * config.heads * config.head_size
    key = config.width * config.kv_heads * config.head_size
    qk_norm = (config.heads + config.kv_heads) * config.head_size
    return 2 * query + 2 * key + 3 * config.width * config.ffn_width + config.width + qk_norm * spec.qk_norm


def parameters(config: ModelConfig) -> int:
    """Number of weights, the tied embedding counted once."""
    return (config.vocab_size + 1) * config.width + sum(layer_parameters(config, spec) for spec in config.layers)


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


def training_flops_by_part(config: ModelConfig, context_tokens: int) -> dict[str, int]:
    """`training_flops` of the layers' matrices, of attention and of the head: they may run in different precisions."""
    pairs = sum(attention_pairs(spec, context_tokens) for spec in config.layers)
    attention = 3 * 4 * config.heads * config.head_size * pairs
    head = 3 * 2 * context_tokens * config.width * config.vocab_size
    layers = training_flops(config, context_tokens) - attention - head
    return {"layers": layers, "attention": attention, "head": head}


def decode_flops(config: ModelConfig, context_tokens: int) -> int:
    """FLOPs of the one token that follows `context_tokens` - 1 others."""
    linear = prefill_flops(config, 1) - 4 * config.heads * config.head_size * len(config.layers)
    seen = sum(spec.visible(context_tokens) for spec in config.layers)
    return linear + 4 * config.heads * config.head_size * seen


def cache_bytes(config: ModelConfig, context_tokens: int, *, bytes_per_value: int = 2) -> int:
    """Keys and values that `context_tokens` leave behind, per sequence; a windowed layer keeps its window only (I1)."""
    per_token = 2 * config.kv_heads * config.head_size * bytes_per_value
    return per_token * sum(spec.visible(context_tokens) for spec in config.layers)


def layer_activation_bytes(
    config: ModelConfig, spec: LayerSpec, rows: int, row_tokens: int, *, value_bytes: int, ranks: int = 1
) -> int:
    """What one layer keeps for its backward pass on each of `ranks` that share `rows` of `row_tokens`, uncompiled.

    Read from `Block` and `Attention`: the norm keeps its input in float32 and two numbers a token, and its output is
    kept once for all five products; attention keeps what fused kernels do, queries, keys, values, output and a float32
    log-sum; SwiGLU keeps gate, up and their product. Rotations keep a table each, QK-Norm its input and
    result in float32. Over ranks a full layer keeps the keys of its heads over the whole row, at least one head, and a
    windowed layer the W - 1 positions before its share.

    Args:
        value_bytes: of an activation: 2 in bf16, and in fp8, where products keep what they were given; 4 in fp32.
    """
    share = row_tokens // ranks
    tokens, queries, keys = rows * share, config.heads * config.head_size, config.kv_heads * config.head_size
    if spec.window is None:
        kept_keys = tokens * max(config.kv_heads, ranks if ranks > 1 else 0) * config.head_size
    else:
        kept_keys = (tokens + rows * min(spec.window - 1, row_tokens - share)) * keys
    values = tokens * (config.width + 2 * queries + 3 * config.ffn_width) + 2 * kept_keys
    floats = tokens * (config.width + 2 + config.heads)
    if spec.qk_norm:
        floats += 2 * tokens * (queries + keys + config.heads + config.kv_heads)
    if spec.theta is not None:
        floats += 2 * share * config.head_size
    return value_bytes * values + 4 * floats


def activation_bytes(
    config: ModelConfig, rows: int, row_tokens: int, *, value_bytes: int, checkpoint: bool, ranks: int = 1
) -> int:
    """What the model keeps for a backward pass, and at its fullest moment; the loss apart.

    With `checkpoint` every layer keeps its input, and one layer at a time all that `layer_activation_bytes` counts.
    Besides the layers there are token ids, the input of the last norm, and its result or the gradient of that.
    """
    tokens = rows * row_tokens // ranks
    layers = [
        layer_activation_bytes(config, spec, rows, row_tokens, value_bytes=value_bytes, ranks=ranks)
        for spec in config.layers
    ]
    inputs = len(layers) * tokens * config.width * value_bytes
    ends = tokens * (8 + 8 + (4 + value_bytes) * config.width)
    return ends + (inputs + max(layers) if checkpoint else sum(layers))


def state_bytes(config: ModelConfig, ranks: int, *, value_bytes: int, checkpoint: bool) -> dict[str, int]:
    """What each of `ranks` holds of weights, gradients and AdamW's two moments, in float32, an equal part on each.

    ``"working"`` are copies for the products, as `rnope.parallel.apply` makes them. Over ranks: the embedding with the
    last norm, the layer at work and the next one, gradients of embedding and layer, and those of the layer in float32 to
    be summed. On one rank alone: weights cast to `value_bytes`, which wait for the backward pass, of the embedding and
    all layers, or with `checkpoint` of one.
    """
    shard = 4 * -(-parameters(config) // ranks)
    layers = [layer_parameters(config, spec) for spec in config.layers]
    ends, largest = (config.vocab_size + 1) * config.width, max(layers)
    if ranks > 1:
        working = value_bytes * (2 * ends + 3 * largest) + 4 * largest
    else:
        cast = config.vocab_size * config.width + (largest if checkpoint else sum(layers))
        working = 0 if value_bytes == 4 else value_bytes * cast
    return {"weights": shard, "gradients": shard, "moments": 2 * shard, "working": working}


def loss_bytes(config: ModelConfig, tokens: int, *, value_bytes: int) -> int:
    """What `rnope.kernels.cross_entropy` holds on a GPU for `tokens` positions: a chunk of logits, part of it in float32
    and as probabilities, the head's gradient in float32, and what a chunk adds to that."""
    logits, head = tokens * config.vocab_size, config.vocab_size * config.width
    chunk = min(logits * value_bytes, LOGITS_BYTES) + 2 * 4 * min(logits, BLOCK_VALUES)
    return chunk + 4 * head + (value_bytes * head if value_bytes < 4 else 0)
