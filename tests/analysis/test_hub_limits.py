"""The probe through transformers: what it leaves behind, models that are read at the same time, and what it refuses."""

import sys
import threading
from pathlib import Path

import pytest
import torch
import transformers
from transformers.utils import logging

from rnope.analysis.hub import EXAMPLES, HubProbed
from rnope.errors import ConfigError, UserError

sys.path.insert(0, str(Path(__file__).parent))
from hub_toys import SIZES, build, built, looked, made, text

logging.set_verbosity_error()


def implementations(model):
    parts = [part.config for part in model.modules() if isinstance(part, transformers.PreTrainedModel)]
    return [config._attn_implementation for config in parts]


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_a_models_own_attention_and_training_come_back(own):
    model, ids = build("cohere2"), torch.tensor([text()])
    model.set_attn_implementation(own)
    model.model.train()  # but not the whole
    expected, before, modes = model(ids).logits, implementations(model), [part.training for part in model.modules()]
    probed = HubProbed(model, chunk=8)

    def broken(captured):
        assert not model.model.training
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        probed.read(text(), rows_from=20, take=broken)
    probed.read(text(), rows_from=20, take=lambda found: None)
    assert implementations(model) == before
    assert [part.training for part in model.modules()] == modes
    assert torch.equal(model(ids).logits, expected)


def test_parts_with_attention_of_their_own_get_it_back():
    sizes = {**SIZES, "head_dim": 8}
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(text_config=sizes, vision_config={**seeing, "image_size": 28, "patch_size": 14})
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    before = implementations(model)
    assert {"eager", "sdpa"} <= set(before)
    rows, _ = looked(HubProbed(model), text(), rows_from=20)
    assert list(rows) == [0, 1, 2, 3]
    assert implementations(model) == before


def test_two_models_of_one_configuration_keep_their_rows_apart():
    one, other = build("gemma2"), build("gemma2")
    other = type(other)(one.config).eval().requires_grad_(False)  # other weights, and the same object
    assert other.config is one.config
    first, second = HubProbed(one, chunk=6), HubProbed(other, chunk=9)
    expected, _ = looked(second, text(1), rows_from=15)
    inner = []

    def take(captured):
        if len(inner) < 2:
            inner.append(looked(second, text(1), rows_from=15)[0])
        outer.append(captured.queries.clone())

    outer = []
    first.read(text(2), rows_from=15, take=take)
    plain = []
    first.read(text(2), rows_from=15, take=lambda found: plain.append(found.queries.clone()))
    assert len(outer) == len(plain) > 0
    assert all(torch.equal(mine, alone) for mine, alone in zip(outer, plain, strict=True))
    assert all(torch.equal(found[layer], expected[layer]) for found in inner for layer in expected)
    assert set(implementations(one)) == {"eager"}  # of Gemma 2, in transformers


def test_models_in_threads_keep_their_rows_apart():
    names = ["cohere2", "gpt-oss", "smollm3"]
    probes = {name: HubProbed(built(name), chunk=3) for name in names}
    expected = {name: looked(probes[name], text(), rows_from=9)[0] for name in names}
    start, found = threading.Barrier(len(names)), {}

    def work(name):
        start.wait()
        found[name] = looked(probes[name], text(), rows_from=9)[0]

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert all(torch.equal(found[name][layer], expected[name][layer]) for layer in expected[name])


def test_one_model_is_read_by_one_probe_at_a_time():
    probed = HubProbed(built("llama"))
    with pytest.raises(RuntimeError, match="read by another probe"):
        probed.read(text(), rows_from=20, take=lambda found: looked(probed, text(), rows_from=20))
    assert looked(probed, text(), rows_from=20)[0]


def test_attention_that_is_switched_off_meanwhile_is_not_taken_for_none():
    model = build("llama")

    def switch(captured):
        model.config._attn_implementation = "sdpa"

    with pytest.raises(RuntimeError, match="set otherwise"):
        HubProbed(model, chunk=4).read(text(), rows_from=10, take=switch)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("Falcon", {}), ("Bloom", {}), ("GPTJ", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8})],
)
def test_attention_in_code_of_its_own_is_refused(name, sizes):
    sizes = {**SIZES, **sizes, "num_hidden_layers": 2}
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes))
    before = model.config._attn_implementation
    with pytest.raises(
        UserError, match=rf"^{name}ForCausalLM computes its attention in code of its own.*Llama, Mistral"
    ):
        HubProbed(model)
    assert model.config._attn_implementation == before


def test_the_examples_can_be_looked_into():
    for name in EXAMPLES:
        assert getattr(transformers, f"{name}ForCausalLM")._can_set_attn_implementation()


def test_a_model_without_attention_is_refused():
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=2, use_mambapy=False
    )
    with pytest.raises(UserError, match=r"^MambaForCausalLM has no attention"):
        HubProbed(transformers.MambaForCausalLM(config))


def test_attention_that_is_not_followed_is_refused():
    with pytest.raises(UserError, match=r"^DiffLlamaForCausalLM attends more than once in a layer"):
        HubProbed(made("DiffLlama", {}))
    bert = transformers.BertLMHeadModel(transformers.BertConfig(**SIZES))  # no decoder, unless it is told to be one
    with pytest.raises(UserError, match=r"^BertSelfAttention lets tokens see later ones"):
        HubProbed(bert)
    picking = {
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "num_key_value_heads": 4, "first_k_dense_replace": 4, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"^DeepseekV32Attention attends with `indices`"):
        HubProbed(made("DeepseekV32", picking))
    with pytest.raises(
        UserError, match=r"^MiniMaxForCausalLM cannot be read as a causal language model \(MiniMax uses"
    ):
        HubProbed(made("MiniMax", {"head_dim": 8, "num_local_experts": 2, "layer_types": ["full_attention"] * 4}))


def test_wrong_input_is_refused():
    for wrong in (0, True, 2.5):
        with pytest.raises(ConfigError, match=r"^chunk = .*at least 1"):
            HubProbed(built("llama"), chunk=wrong)
    probed = HubProbed(built("llama"))
    for ids in ([], [97], [-1]):
        with pytest.raises(ConfigError, match=r"^ids = "):
            probed.read(ids, rows_from=0, take=lambda found: None)
