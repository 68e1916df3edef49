"""Tiny model folders of several classes, all with one tokenizer, and answers as token ids. For tests of what reads them."""

from pathlib import Path

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rnope.hf.folder import save
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "the needle in the hay is a red apple and the law of the land is a long list of rules. "
TOKENIZER = Tokenizer.train([TEXT * 20], vocab_size=320)
VOCABULARY = 320
_SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": _SMALL,
    "cohere2": _SMALL | {"sliding_window": 7, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "gemma3_text": _SMALL | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "smollm3": _SMALL | {"no_rope_layers": [1, 1, 1, 0]},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "bos_token_id": 1, "eos_token_id": 2},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
              "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "phi3": _SMALL | {"original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}},
    "lfm2": _SMALL | {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "dynamic": _SMALL | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
}  # fmt: skip


def write(folder: Path, kind: str, *, tokenizer: bool = True, **changes) -> Path:
    """A model of the class `kind` with weights that make it say something; `changes` go into its configuration."""
    config = CONFIG_MAPPING["llama" if kind == "dynamic" else kind](**CONFIGS[kind] | changes)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8)  # as initialised, they are so small that the last token decides alone
    model.save_pretrained(folder)
    if tokenizer:
        TOKENIZER.save(folder)
    return folder


def write_ours(folder: Path, variant: str = "rnope-swa", seed: int = 0, **changes) -> Path:
    """A model of rnope's, window 5."""
    model = tiny_model(variant, seed, vocab_size=VOCABULARY, **changes)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    save(model, folder, TOKENIZER, context_tokens=64)
    return folder


class Spelling(Tokenizer):
    """Its texts are its ids, so that two answers are the same where their tokens are."""

    def decode_answer(self, ids):
        return " ".join(map(str, ids))


def spelling(model):
    """`model`, answering in ids."""
    model.tokenizer = Spelling(model.tokenizer.backend, model.tokenizer.companions)
    return model


def spelt(answers):
    """The token ids of answers that a model with `spelling` gave."""
    return [[int(token) for token in answer.text.split()] for answer in answers]


def random_ids(length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCABULARY, size=length)


def siblings():
    """Two pairs of prompts: all share a beginning, and each pair more of it."""
    head, one, other = random_ids(20), random_ids(19, 1), random_ids(18, 2)
    return [np.concatenate((head, more, [last])) for more in (one, other) for last in (5, 6)]
