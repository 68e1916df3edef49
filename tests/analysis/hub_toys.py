"""Small random models of transformers, and what they attend to: by the probe, by eager attention, by `generate`."""

from functools import cache

import torch
import transformers

from rnope.analysis.rows import rows_by_group

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD, WINDOW, LENGTH = {"head_dim": 8}, {"sliding_window": 7}, 30
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2, "use_mamba_kernels": False}
SCALE = {"query_pre_attn_scalar": 8}
IN_TURN = {"layer_types": ["sliding_attention", "full_attention"] * 2}
SHARED = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97, "num_kv_shared_layers": 2}
MODELS = {
    "cohere": ("Cohere", {}, ["rope"] * 4),
    "cohere, QK-Norm": ("Cohere", {"use_qk_norm": True}, ["rope"] * 4),
    "cohere2": ("Cohere2", WINDOW, ["rope-window"] * 3 + ["nope"]),
    "llama": ("Llama", {}, ["rope"] * 4),
    "llama, one key-value head": ("Llama", {"num_key_value_heads": 1}, ["rope"] * 4),
    "mistral": ("Mistral", WINDOW, ["rope-window"] * 4),
    "qwen3": ("Qwen3", HEAD, ["rope"] * 4),
    "smollm3": ("SmolLM3", {}, ["rope"] * 3 + ["nope"]),
    "gemma2": ("Gemma2", {**HEAD, **WINDOW, **SCALE, "attn_logit_softcapping": 2.0}, ["rope-window", "rope"] * 2),
    "gemma3": ("Gemma3", {**HEAD, **WINDOW, **IN_TURN, **SCALE}, ["rope-window", "rope"] * 2),
    "gemma3n": ("Gemma3n", {**HEAD, **WINDOW, **IN_TURN, **SHARED, "intermediate_size": [48] * 4, "laurel_rank": 4,
                "activation_sparsity_pattern": [0.0] * 4}, ["rope-window", "rope"] * 2),
    "gemma4": ("Gemma4", {**HEAD, **WINDOW, **IN_TURN, **SHARED, "global_head_dim": 8}, ["rope-window", "rope"] * 2),
    "gpt-oss": ("GptOss", {**HEAD, **WINDOW, **EXPERTS}, ["rope-window", "rope"] * 2),
    "llama4": ("Llama4", {**HEAD, **EXPERTS, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
               ["rope-window"] * 3 + ["nope"]),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}, ["rope"] * 4),
    "jamba": ("Jamba", {**MAMBA, "attn_layer_offset": 1, "attn_layer_period": 2}, ["nope"] * 2),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"] * 2}, ["rope"] * 2),
}  # fmt: skip
"""Name -> transformers' classes, their sizes beside `SIZES`, and the kinds of layers that these are."""


def build(name):
    """A model with weights so large that its rows are uneven."""
    house, sizes, _ = MODELS[name]
    return made(house, sizes)


def made(house, sizes):
    parts = "TextConfig" if house in ("Gemma3", "Gemma3n", "Gemma4", "Llama4") else "Config"
    head = "GPT2LMHeadModel" if house == "GPT2" else f"{house}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, head)(getattr(transformers, house + parts)(**{**SIZES, **sizes})).eval()
    generator = torch.Generator().manual_seed(1)
    for part, parameter in model.requires_grad_(False).named_parameters():
        if parameter.dim() > 1:
            parameter *= 12 if any(each in part for each in ("q_proj", "k_proj", "c_attn")) else 2
        else:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return model


built = cache(build)


def text(seed=7, length=LENGTH):
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def dense(captured, tokens):
    """Layer -> its rows [h, r, t], zeros where it had no key; no rows between the pieces are missing."""
    layers = {}
    for each in captured:
        rows = torch.cat([rows.probabilities for rows in rows_by_group(each)])
        whole = rows.new_zeros(*rows.shape[:2], tokens)
        whole[..., each.first_key : each.first_key + rows.shape[-1]] = rows
        layers.setdefault(each.layer, []).append((each.positions, whole))
    places = {tuple(torch.cat([at for at, _ in pieces]).tolist()) for pieces in layers.values()}
    assert len(places) == 1
    assert list(*places) == list(range(min(*places), tokens))
    return {layer: torch.cat([rows for _, rows in pieces], dim=1) for layer, pieces in layers.items()}


def looked(probed, ids, *, rows_from, new_tokens=0):
    captured = []
    new = probed.read(ids, rows_from=rows_from, take=captured.append, new_tokens=new_tokens)
    return dense(captured, len(ids) + max(new_tokens - 1, 0)), new


@torch.no_grad()
def eager(model, ids):
    """Attention outputs [h, t, t] of the whole text, layers without attention left out."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = model(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(before)
    return [rows[0] for rows in found if rows is not None]


def generated(model, ids, tokens):
    """Of transformers' own loop with eager attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    prompt = torch.tensor([ids])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    model.set_attn_implementation(before)
    return found[0, len(ids) :].tolist()
