"""Our folders in vLLM, on a CPU: windows one token wider than ours, and otherwise our engine's tokens and probabilities.

vLLM lives in an environment of its own (docs/serving.md says how to make it); elsewhere these tests are skipped.
"""

import dataclasses
import gc
import importlib.util
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from rnope import Decoder, Engine, ModelConfig, save
from rnope.hf.programs import programs
from rnope.model.spec import VARIANTS
from rnope.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import serving_kit
from serving_kit import NEW, TOLERANCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
    pytest.mark.filterwarnings("default"),  # its own
]

WINDOW = 19
LENGTHS = (7, 19, 57, 230)  # the last through several blocks, the first of which are freed
SHAPE = {"width": 64, "heads": 2, "kv_heads": 1, "head_size": 32}  # a head that its CPU kernels take
VOCABULARY = 97
OPENED = [name for name in VARIANTS if programs(ModelConfig.variant(name))[1].architecture]


def prompts():
    return serving_kit.prompts(LENGTHS)


@cache
def lively(variant, **overrides):
    return serving_kit.lively(variant, prompts(), **({"window": WINDOW} | SHAPE | overrides))


def span(model):
    """The window of the model's RoPE layers; None where they see everything."""
    return next((spec.window for spec in model.config.layers if spec.window), None)


def ours(model):
    """What vLLM must be told to see what our layers see."""
    return {"hf_overrides": {"sliding_window": span(model) - 1}} if span(model) else {}


def widened(model, tokens):
    """The same weights behind windows longer by `tokens`."""
    layers = tuple(
        dataclasses.replace(spec, window=spec.window + tokens) if spec.window else spec for spec in model.config.layers
    )
    other = Decoder(dataclasses.replace(model.config, layers=layers), seed=0)
    other.load_state_dict(model.state_dict())
    return other


@pytest.fixture
def opened(monkeypatch):
    """`LLM` of a folder, in this process and on one thread; closed at the end."""
    settings = {"CPU_KVCACHE_SPACE": 1, "CPU_OMP_THREADS_BIND": "nobind", "ENABLE_V1_MULTIPROCESSING": 0}
    for name, value in (settings | {"NO_USAGE_STATS": 1, "LOGGING_LEVEL": "ERROR"}).items():
        monkeypatch.setenv(f"VLLM_{name}", str(value))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    made = []

    def make(folder, **options):
        options = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "enforce_eager": True} | options
        options = {"enable_prefix_caching": False, "skip_tokenizer_init": True, "max_num_seqs": 8} | options
        made.append(LLM(str(folder), max_logprobs=VOCABULARY, seed=0, **options))
        return made[-1]

    yield make
    for llm in made:
        llm.llm_engine.engine_core.shutdown()
    made.clear()
    cleanup_dist_env_and_memory()
    gc.collect()


def asked(llm, rows, prompt_logprobs=VOCABULARY):
    """Its greedy answers to all prompts at once, with the log-probabilities of every token of the vocabulary."""
    from vllm import SamplingParams

    wanted = SamplingParams(
        temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, logprobs=VOCABULARY,
        prompt_logprobs=prompt_logprobs,
    )  # fmt: skip
    return llm.generate([{"prompt_token_ids": row} for row in rows], wanted, use_tqdm=False)


def tokens(outputs):
    return [list(output.outputs[0].token_ids) for output in outputs]


@torch.no_grad()
def difference(model, outputs):
    """Largest difference of a log-probability, over all positions and all tokens of the vocabulary."""
    largest = 0.0
    for output in outputs:
        ids = output.prompt_token_ids + list(output.outputs[0].token_ids)
        logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        theirs = output.prompt_logprobs[1:] + output.outputs[0].logprobs
        assert len(theirs) == len(ids) - 1 and all(len(row) >= VOCABULARY for row in theirs)
        for mine, row in zip(logs, theirs, strict=False):
            given = torch.tensor([row[token].logprob for token in range(VOCABULARY)])
            largest = max(largest, (given - mine).abs().max().item())
    return largest


@pytest.mark.parametrize("variant", OPENED)
def test_every_variant_is_served_token_for_token(variant, opened, tmp_path):
    model, answers = lively(variant)
    save(model, tmp_path / "m")
    outputs = asked(opened(tmp_path / "m", **ours(model)), prompts())
    assert tokens(outputs) == answers
    assert difference(model, outputs) < TOLERANCE


@pytest.mark.parametrize("variant", ["rnope-swa", "swa-only"])
def test_windows_are_one_token_wider_unless_told(variant, opened, tmp_path):
    """Since 0.29. Where this fails, vLLM's window is ours again, and the override of docs/serving.md must go."""
    model, answers = lively(variant)
    save(model, tmp_path / "m")
    outputs = asked(opened(tmp_path / "m"), prompts())
    assert tokens(outputs) != answers and difference(model, outputs) > 1
    wider = widened(model, 1)
    assert tokens(outputs) == Engine(wider).generate(prompts(), NEW).tokens
    assert difference(wider, outputs) < TOLERANCE


@pytest.mark.parametrize("window", [2, 3, 31, 32, 33, 64])
def test_every_window(window, opened, tmp_path):
    """Around a block of 32 tokens, and the smallest that it takes."""
    model, answers = lively("rnope-swa", window=window)
    save(model, tmp_path / "m")
    outputs = asked(opened(tmp_path / "m", **ours(model)), prompts())
    assert tokens(outputs) == answers and difference(model, outputs) < TOLERANCE


MODES = {
    "compiled": {"enforce_eager": False},
    "chunks of 32 tokens": {"max_num_batched_tokens": 32},
    "one at a time": {"max_num_seqs": 1},
    "no hybrid cache manager": {"disable_hybrid_kv_cache_manager": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_hybrid_is_served_in_every_mode(mode, opened, tmp_path):
    model, answers = lively("rnope-swa")
    save(model, tmp_path / "m", shard_bytes=40_000)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    outputs = asked(opened(tmp_path / "m", **MODES[mode], **ours(model)), prompts())
    assert tokens(outputs) == answers and difference(model, outputs) < TOLERANCE


def test_prefixes_that_are_kept(opened, tmp_path):
    model, answers = lively("rnope-swa")
    save(model, tmp_path / "m")
    llm = opened(tmp_path / "m", enable_prefix_caching=True, **ours(model))
    asked(llm, prompts(), prompt_logprobs=None)  # asking for those of the prompt reads all of it again
    outputs = asked(llm, prompts(), prompt_logprobs=None)
    assert outputs[-1].num_cached_tokens > 200
    assert tokens(outputs) == answers


@pytest.mark.parametrize("variant", ["rope", "rnope-swa"])
def test_a_head_that_is_not_width_over_heads(variant, opened, tmp_path):
    """Since 0.29, which reads `head_dim`."""
    model, answers = lively(variant, head_size=64)
    save(model, tmp_path / "m")
    outputs = asked(opened(tmp_path / "m", **ours(model)), prompts())
    assert tokens(outputs) == answers and difference(model, outputs) < TOLERANCE


def test_a_chat_is_written_and_ended_as_ours(opened, tmp_path):
    """The template's ids, BOS once, and an answer that ends with the end of a turn, which generation_config.json names."""
    from vllm import SamplingParams

    tokenizer = Tokenizer.train(["What is a window, and how long is it? Be short."] * 3, vocab_size=280, chat=True)
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How long is it?"}]
    ids = tokenizer.encode_chat(talk, add_generation_prompt=True)
    model, (answer,) = serving_kit.lively(
        "rnope-swa", [ids], vocab_size=tokenizer.vocab_size, window=WINDOW, **SHAPE
    )  # fmt: skip
    save(model, tmp_path / "m", tokenizer)
    llm = opened(tmp_path / "m", skip_tokenizer_init=False, **ours(model))
    (output,) = llm.chat(talk, SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True), use_tqdm=False)
    assert list(output.prompt_token_ids) == ids
    assert tokens([output]) == [answer]
    assert llm.get_tokenizer().encode("short") == [tokenizer.bos_id, *tokenizer.encode("short")]


def test_generation_stops_where_ours_does(opened, tmp_path):
    """config.json names EOS alone; the end of a turn is in generation_config.json."""
    from vllm import SamplingParams

    tokenizer = Tokenizer.train(["What is a window, and how long is it?"] * 3, vocab_size=280, chat=True)
    end = tokenizer.stop_ids[1]
    shape = SHAPE | {"vocab_size": tokenizer.vocab_size, "window": WINDOW}
    model, (answer,) = serving_kit.lively("rnope-swa", [[5, 6, 7]], **shape)
    # The token that it chooses in the middle changes places with the end of a turn.
    token = next(token for token in answer[5:] if token > max(tokenizer.stop_ids) and token not in (5, 6, 7))
    with torch.no_grad():
        model.embedding.weight[[token, end]] = model.embedding.weight[[end, token]]
    (mine,) = Engine(model).generate([[5, 6, 7]], NEW, stop_ids=tokenizer.stop_ids).tokens
    assert mine[-1] == end and 1 < len(mine) < NEW
    save(model, tmp_path / "m", tokenizer)
    llm = opened(tmp_path / "m", skip_tokenizer_init=False, **ours(model))
    wanted = SamplingParams(temperature=0, max_tokens=NEW)
    (output,) = llm.generate([{"prompt_token_ids": [5, 6, 7]}], wanted, use_tqdm=False)
    assert tokens([output]) == [mine] and output.outputs[0].finish_reason == "stop"


def test_float32_becomes_16_bits_unless_told(opened, tmp_path):
    save(lively("rope")[0], tmp_path / "m")
    llm = opened(tmp_path / "m", dtype="auto")
    assert llm.llm_engine.vllm_config.model_config.dtype == torch.bfloat16


def test_a_window_of_one_token_is_refused(opened, tmp_path):
    model, _ = lively("rnope-swa", window=1)
    assert programs(model.config)[1].reasons
    save(model, tmp_path / "m")
    with pytest.raises(TypeError, match=r"unsupported operand"):
        opened(tmp_path / "m", **ours(model))
