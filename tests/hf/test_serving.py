"""Our folders in transformers: greedy tokens are our engine's, whatever the attention, cache, batch or chunk.

The models are random and choose among many tokens, and no choice is close: the smallest margin between the two best
logits is several times what float32 may differ by. So equal tokens mean equal models, and a window off by one shows.
"""

import json
import sys
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from rnope import Engine, ModelConfig, save
from rnope.hf.mapping import model_type
from rnope.hf.programs import programs
from rnope.model.spec import VARIANTS
from rnope.testing import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
import serving_kit
from serving_kit import MARGIN, NEW, TOLERANCE

WINDOW = 5
LENGTHS = (3, 5, 19)  # prompts shorter than the window, as long as it, and several times longer
IN_CLASSES = [name for name in VARIANTS if model_type(tiny_model(name).config) != "rnope"]
WINDOWED = [name for name in IN_CLASSES if "swa" in VARIANTS[name].group]
MODES = [*product(["eager", "sdpa"], ["dynamic", "static"], [None, 4]), ("eager", None, None), ("sdpa", None, None)]
"""Attention, cache (None recomputes everything at every token), prefill chunk."""


def prompts():
    return serving_kit.prompts(LENGTHS)


@cache
def lively(variant, window=WINDOW):
    return serving_kit.lively(variant, prompts(), window=window)


def opened(folder, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True
    )


def padded(rows):
    """Ids and mask of a batch, padded on the left with id 0, which is also an ordinary token here."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def generated(theirs, rows, kind=None, chunk=None, **options):
    """Their greedy answers to a batch."""
    ids, mask = padded(rows)
    options |= {"cache_implementation": kind} if kind else {"use_cache": False}
    options |= {"prefill_chunk_size": chunk} if chunk else {}
    out = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options
    )  # fmt: skip
    return out[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("variant", "mode"), [(name, MODES[i % len(MODES)]) for i, name in enumerate(IN_CLASSES)], ids=str
)
def test_every_variant_is_served_token_for_token(variant, mode, tmp_path):
    """Three prompts as one left-padded batch, through and far beyond the window."""
    attention, kind, chunk = mode
    model, answers = lively(variant)
    save(model, tmp_path / "m")
    assert generated(opened(tmp_path / "m", attention), prompts(), kind, chunk) == answers


@pytest.mark.parametrize("mode", MODES[:8], ids=str)
def test_the_hybrid_is_served_in_every_mode(mode, tmp_path):
    attention, kind, chunk = mode
    model, answers = lively("rnope-swa")
    save(model, tmp_path / "m")
    assert generated(opened(tmp_path / "m", attention), prompts(), kind, chunk) == answers


@pytest.mark.slow
@pytest.mark.parametrize("variant", IN_CLASSES)
def test_every_variant_in_every_mode_alone_and_in_a_batch(variant, tmp_path):
    model, answers = lively(variant)
    save(model, tmp_path / "m")
    for attention in ("eager", "sdpa"):
        theirs = opened(tmp_path / "m", attention)
        for _, kind, chunk in (mode for mode in MODES if mode[0] == attention):
            assert generated(theirs, prompts(), kind, chunk) == answers, (attention, kind, chunk)
            for prompt, answer in zip(prompts(), answers, strict=True):
                assert generated(theirs, [prompt], kind, chunk) == [answer], (attention, kind, chunk, len(prompt))


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 3, 19, 30, 64])
@pytest.mark.parametrize("variant", WINDOWED)
def test_every_window_in_every_mode(variant, window, tmp_path):
    """Windows that the longest prompt fills exactly, that fill while tokens are generated, and that never do."""
    model, answers = lively(variant, window)
    save(model, tmp_path / "m")
    for attention in ("eager", "sdpa"):
        theirs = opened(tmp_path / "m", attention)
        for _, kind, chunk in (mode for mode in MODES if mode[0] == attention):
            assert generated(theirs, prompts(), kind, chunk) == answers, (attention, kind, chunk)


def test_a_stop_id_ends_rows_alike(tmp_path):
    """A row that has ended is padded there while the others go on; ours ends with the stop id."""
    model, answers = lively("rnope-swa")
    save(model, tmp_path / "m")
    stop = answers[1][NEW // 2]
    ours = Engine(model).generate(prompts(), NEW, stop_ids=[stop]).tokens
    theirs = generated(opened(tmp_path / "m"), prompts(), "dynamic", eos_token_id=stop)
    assert len({len(answer) for answer in ours}) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert other[: len(mine)] == mine and not any(other[len(mine) :])


MISTAKES = {
    "window one more": {"sliding_window": WINDOW + 1},
    "window one less": {"sliding_window": WINDOW - 1},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 8e3}},
    "full layer first": {"layer_types": ["full_attention"] + ["sliding_attention"] * 3},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_show_in_the_tokens(mistake, tmp_path):
    model, answers = lively("rnope-swa")
    save(model, tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw | MISTAKES[mistake]))
    assert generated(opened(tmp_path / "m"), prompts(), "dynamic") != answers


@torch.no_grad()
def stepped(theirs, ids, mask, kept, first):
    """Logits of every position, cached: the `first` tokens at once, the others one by one, as when serving."""
    ends = [first, *range(first + 1, ids.shape[1] + 1)]
    parts, start = [], 0
    for end in ends:
        out = theirs(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=kept, use_cache=True)
        parts.append(out.logits)
        start = end
    return torch.cat(parts, 1)


@pytest.mark.parametrize(("attention", "kind"), [("eager", "dynamic"), ("sdpa", "static")])
@pytest.mark.parametrize(
    "variant",
    [name if name in ("rope", "rnope-swa") else pytest.param(name, marks=pytest.mark.slow) for name in IN_CLASSES],
)
@torch.no_grad()
def test_logits_of_decoding_steps_are_those_of_our_whole_forward(variant, attention, kind, tmp_path):
    model, answers = lively(variant)
    save(model, tmp_path / "m")
    rows = [prompt + answer for prompt, answer in zip(prompts(), answers, strict=True)]
    ids, mask = padded(rows)
    starts = (mask == 0).sum(1, keepdim=True).expand(-1, ids.shape[1]).contiguous()
    logits = model(ids, starts=starts)
    assert logits.std() > 0.5
    theirs = opened(tmp_path / "m", attention)
    kept = DynamicCache(config=theirs.config)
    if kind == "static":
        kept = StaticCache(config=theirs.config, max_cache_len=ids.shape[1])
    difference = (stepped(theirs, ids, mask, kept, max(LENGTHS)) - logits)[mask.bool()]
    assert difference.abs().max() < TOLERANCE < MARGIN / 5


def held(kept):
    """Tokens that each layer of a cache of theirs holds."""
    return [layer.keys.shape[-2] for layer in kept.layers]


@torch.no_grad()
def test_their_caches_save_what_the_windows_promise(tmp_path):
    model, _ = lively("rnope-swa")
    save(model, tmp_path / "m")
    theirs = opened(tmp_path / "m")
    ids = torch.arange(60)[None]
    dynamic, static = DynamicCache(config=theirs.config), StaticCache(config=theirs.config, max_cache_len=64)
    for kept in (dynamic, static):
        stepped(theirs, ids, torch.ones_like(ids), kept, 30)
    assert held(dynamic) == [WINDOW - 1] * 3 + [60]
    assert held(static) == [WINDOW] * 3 + [64]


@torch.no_grad()
def test_their_dynamic_cache_is_wrong_at_a_window_of_one(tmp_path):
    """An exception of docs/serving.md, shown against their own computation without a cache: a slice that ends at -0.

    Where this fails, transformers has mended it, and the paragraph can go.
    """
    model, answers = lively("rnope-swa", 1)
    save(model, tmp_path / "m")
    theirs = opened(tmp_path / "m")
    ids = torch.tensor([prompts()[-1] + answers[-1]])
    whole = theirs(ids, use_cache=False).logits
    assert (whole - model(ids)).abs().max() < TOLERANCE
    mask, dynamic = torch.ones_like(ids), DynamicCache(config=theirs.config)
    assert (stepped(theirs, ids, mask, dynamic, 8) - whole).abs().max() > 100 * TOLERANCE
    static = StaticCache(config=theirs.config, max_cache_len=ids.shape[1])
    assert (stepped(theirs, ids, mask, static, 8) - whole).abs().max() < TOLERANCE
    assert generated(theirs, prompts(), "static") == answers


RUN = {"transformers": "run here", "vLLM": "run here", "llama.cpp": "run here"}
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def row(variant):
    cells = [
        f"`{opens.architecture}`, {RUN[opens.program]}" if opens.architecture else "impossible"
        for opens in programs(ModelConfig.variant(variant))
    ]
    return f"| `{variant}` | {' | '.join(cells)} |"


def test_the_matrix_of_the_docs_is_what_programs_say():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and "vLLM" not in line]
    assert rows[: len(VARIANTS)] == [row(variant) for variant in VARIANTS]
    for variant in VARIANTS:
        for opens in programs(ModelConfig.variant(variant)):
            assert bool(opens.architecture) != bool(opens.reasons)
            assert all(reason in PAGE for reason in opens.reasons), opens


def test_a_head_that_is_not_width_over_heads():
    """Opens where `head_dim` is read."""
    theirs, vllm, llama = programs(ModelConfig.variant("rnope-swa", "tiny", head_size=14))
    assert theirs.architecture == vllm.architecture == "Cohere2ForCausalLM"
    assert llama.architecture is None and "head_size = 14" in llama.reasons[0]


def test_a_window_that_vllm_alone_refuses():
    theirs, vllm, _ = programs(ModelConfig.variant("rnope-swa", "tiny", window=1))
    assert theirs.architecture == "Cohere2ForCausalLM"
    assert vllm.architecture is None and "window of 1 token" in vllm.reasons[0]


def test_layers_that_llama_cpp_alone_refuses():
    theirs, vllm, llama = programs(ModelConfig.variant("qk-norm"))
    assert theirs.architecture == vllm.architecture == "CohereForCausalLM"
    assert llama.architecture is None and "64 or more" in llama.reasons[0]
    assert programs(ModelConfig.variant("qk-norm", num_layers=64))[2].architecture == "command-r"
