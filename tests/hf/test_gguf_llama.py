"""llama.cpp opens our GGUF files and computes our logits, ids and text. It is an independent implementation of all three.

It needs llama.cpp itself: ``pip install llama-cpp-python``, built from source in about 15 minutes.
"""

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Regex, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from rnope.generate import Engine
from rnope.hf.gguf import export_gguf
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.testing import tiny_model
from rnope.testing.llama import divergence, llama_logits, opened, our_logits, reading, silenced
from rnope.tokenizer import LLAMA3, QWEN2, Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from weights_kit import lively

pytestmark = pytest.mark.slow

SAID = (
    "rope", "nope", "rnope", "rnope-last", "rnope-10k", "rnope-100k", "rnope-2m", "rnope-4m", "rnope-10k-swa",
    "rnope-swa", "rnope-swa-1to1", "rnope-swa-1to7", "rnope-swa-full-first", "rnope-1to3", "swa-only",
)  # fmt: skip
"""Variants whose layers llama.cpp can say."""


@pytest.fixture(scope="module")
def api():
    with silenced(pytest.importorskip("llama_cpp")) as package:
        yield package


def some_ids(count, vocab_size=97):
    return np.random.default_rng(count).integers(vocab_size, size=count)


WINDOWED, NOPE = LayerSpec(position="rope", theta=1e4, window=5), LayerSpec(position="nope")


@pytest.mark.parametrize("count", [15, 17, 301])
@pytest.mark.parametrize("variant", SAID)
def test_our_logits_in_f32(variant, count, api, tmp_path):
    """At three windows, a little more, and where llama.cpp's cache of windowed layers (256 cells) has gone round."""
    model = lively(variant)
    export_gguf(model, tmp_path / "m.gguf")
    ids = some_ids(count)
    ours, theirs = our_logits(model, ids), llama_logits(api, tmp_path / "m.gguf", ids)
    assert np.abs(ours).max() > 1 and np.abs(ours - theirs).max() < 2e-5
    assert divergence(ours, theirs).max() < 1e-9


@pytest.mark.parametrize("order", ["snnssn", "nnnsn", "ssnss", "nssssssss"])
def test_any_order_of_layers(order, api, tmp_path):
    layers = tuple(NOPE if kind == "n" else WINDOWED for kind in order)
    model = Decoder(tiny_model().config.with_layers(layers), seed=1)
    export_gguf(model, tmp_path / "m.gguf")
    ids = some_ids(301)
    assert np.abs(our_logits(model, ids) - llama_logits(api, tmp_path / "m.gguf", ids, ubatch=33)).max() < 2e-5


@pytest.mark.parametrize("variant", ["rope", "rnope-swa", "swa-only"])
def test_our_logits_token_by_token(variant, api, tmp_path):
    model = lively(variant)
    export_gguf(model, tmp_path / "m.gguf")
    ids = some_ids(300)
    theirs = llama_logits(api, tmp_path / "m.gguf", ids, prefill=231)
    assert np.abs(our_logits(model, ids) - theirs).max() < 2e-5


def test_qk_norm_of_64_layers_and_a_baseline_of_64(api, tmp_path):
    ids = some_ids(17)
    for variant in ("qk-norm", "rope"):
        model = lively(variant, num_layers=64)
        export_gguf(model, tmp_path / "m.gguf")
        ours, theirs = our_logits(model, ids), llama_logits(api, tmp_path / "m.gguf", ids)
        assert np.abs(ours - theirs).max() < 1e-4, variant


@pytest.mark.parametrize("change", ["window", "theta", "pairs"])
def test_the_comparison_sees_a_window_off_by_one_and_a_permuted_head(change, api, tmp_path):
    """All layers are RoPE in a window: NoPE layers would hide a permutation of queries and keys."""
    model = lively("swa-only")
    ids = some_ids(17)
    ours = our_logits(model, ids)
    spec = model.config.layers[0]
    other = {"window": dict(window=6), "theta": dict(theta=1.1e4), "pairs": {}}[change]
    layer = LayerSpec(position="rope", theta=other.get("theta", spec.theta), window=other.get("window", spec.window))
    changed = Decoder(model.config.with_layers((layer,) * 4))
    changed.load_state_dict(model.state_dict())
    if change == "pairs":  # the halves of a head side by side, as rope type NEOX wants them
        with torch.no_grad():
            for block in changed.blocks:
                for matrix in (block.attention.query.weight, block.attention.key.weight):
                    heads = matrix.unflatten(0, (-1, 4, 2))
                    matrix.copy_(heads.transpose(1, 2).flatten(0, 2))
    export_gguf(changed, tmp_path / "m.gguf")
    assert np.abs(ours - llama_logits(api, tmp_path / "m.gguf", ids)).max() > 1e-3


BOUNDS = {"f32": 1e-9, "f16": 1e-5, "bf16": 1e-3, "q8_0": 5e-3}


@pytest.mark.parametrize("variant", SAID)
def test_the_smaller_the_type_the_further_but_near(variant, api, tmp_path):
    """llama.cpp rounds activations to the type of the weights as well, which random layers of width 64 feel most."""
    model = lively(variant, width=64, head_size=16, ffn_width=128)
    ids = some_ids(301)
    ours = our_logits(model, ids)
    for dtype, bound in BOUNDS.items():
        export_gguf(model, tmp_path / "m.gguf", dtype=dtype)
        found = divergence(ours, llama_logits(api, tmp_path / "m.gguf", ids))
        print(f"{variant:>20} {dtype:>5} {len(ids)} positions: KL mean {found.mean():.1e}, max {found.max():.1e}")
        assert found.mean() < bound


def test_bf16_weights_are_computed_with_as_they_are(api, tmp_path):
    """Activations are rounded, weights not: the file of rounded weights in F32 is as near as BF16 of weights that fit."""
    model = lively("rnope-swa", width=64, head_size=16, ffn_width=128).to(torch.bfloat16)
    ids = some_ids(301)
    export_gguf(model, tmp_path / "f32.gguf", dtype="f32")
    export_gguf(model, tmp_path / "bf16.gguf")
    ours = our_logits(model.float(), ids)
    assert divergence(ours, llama_logits(api, tmp_path / "f32.gguf", ids)).max() < 1e-9
    assert 0 < divergence(ours, llama_logits(api, tmp_path / "bf16.gguf", ids)).mean() < BOUNDS["bf16"]


TEXT = [
    "one two three four, it's twenty-one; they'll see what we've done. ",
    "Zahlen wie 1234 und ½, Wörter wie naïve, Ökonomie, 東京, привет.\n\n\tif (a == b) { return x[3]; }\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT * 20, vocab_size=400, whole_words=["orange", "table"])


def llama_ids(api, vocabulary, text, *, special):
    data = text.encode()
    room = (api.llama_token * (len(data) + 8))()
    count = api.llama_tokenize(vocabulary, data, len(data), room, len(room), special, special)
    assert count >= 0
    return list(room[:count])


def llama_text(api, vocabulary, ids):
    room = ctypes.create_string_buffer(64 * len(ids))
    count = api.llama_detokenize(vocabulary, (api.llama_token * len(ids))(*ids), len(ids), room, len(room), True, False)
    assert count >= 0
    return room.raw[:count].decode("utf-8", "replace")


def taught(variant, tokenizer):
    """A tiny model that has learned `TEXT` by heart, in half a second: an untrained one says one token again and again."""
    model = lively(variant, vocab_size=410)
    corpus = torch.tensor(tokenizer.encode("".join(TEXT) * 40))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        starts = torch.randint(len(corpus) - 49, (4, 1), generator=generator)
        rows = corpus[starts + torch.arange(49)]
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("variant", SAID)
def test_text_in_text_out(variant, tokenizer, api, tmp_path):
    """From a prompt to 96 tokens of greedy text, all through llama.cpp; the window (5) is long past, and its cache full."""
    model = taught(variant, tokenizer)
    export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    prompt = "".join(TEXT) * 5
    ids = tokenizer.encode_prompt(prompt)
    assert len(ids) > 256
    ours = Engine(model).generate([ids], max_new_tokens=96).tokens[0]
    with opened(api, tmp_path / "m.gguf") as opened_model, reading(api, opened_model) as read:
        vocabulary = api.llama_model_get_vocab(opened_model)
        theirs = llama_ids(api, vocabulary, prompt, special=True)
        assert theirs == ids
        logits = read(theirs, 0)
        for _ in range(96):
            theirs.append(int(logits[-1].argmax()))
            logits = read(theirs[-1:], len(theirs) - 1)
        assert theirs[len(ids) :] == ours and len(set(ours)) > 10
        known = [token for token in ours if token < tokenizer.vocab_size]
        assert llama_text(api, vocabulary, known) == tokenizer.decode_answer(known)


AWKWARD = [
    *" \t\n\r\u00a0\u3000'-.,;()[]{}<>_/\\\"#", *"0123456789½²٣Ⅷ", *"abczéßøあ東😀AZ", "  ", "\n\n", "\r\n", "'s", "'LL", "'Re",
    "don't", " orange", " table", "one two", "1234", "12345678", "ﬁ", "\u0e01\u0e34", "x\u200dy", " camelCase", "!?", " --",
]  # fmt: skip
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITS = {
    "command-r": (pre_tokenizers.Digits(individual_digits=True), WORDS), "gpt-2": (WORDS,),
    "smaug-bpe": (pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES),
    "llama-bpe": (pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES),
    "qwen2": (pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_llama_cpp_splits_text_as_the_tokenizer_does(name, api, tmp_path):
    tokenizer = Tokenizer.train(TEXT, vocab_size=260)
    tokenizer.backend.pre_tokenizer = pre_tokenizers.Sequence(list(SPLITS[name]))
    special, alphabet = ["<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>"], sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.backend.train_from_iterator([*TEXT, "".join(AWKWARD), "12 123 1234 don't we'LL \r\n\r\n"] * 20, trainer)
    if name == "llama-bpe":
        tokenizer = without_a_merge(tokenizer)
    export_gguf(tiny_model(vocab_size=610), tmp_path / "m.gguf", tokenizer=tokenizer)
    generator = np.random.default_rng(0)
    mixed = ["".join(generator.choice(AWKWARD, 12)) for _ in range(1000)]
    with opened(api, tmp_path / "m.gguf") as model:
        vocabulary = api.llama_model_get_vocab(model)
        for text in (*TEXT, "", " ", "\n", "a", " 7", "  two  spaces ", *mixed):
            text = tokenizer.backend.normalizer.normalize_str(text)
            ids = tokenizer.encode(text)
            assert llama_ids(api, vocabulary, text, special=False) == ids, text
            assert llama_ids(api, vocabulary, text, special=True) == [tokenizer.bos_id, *ids], text
        assert llama_ids(api, vocabulary, "a<EOS_TOKEN>", special=True) == [
            tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.eos_id,
        ]  # fmt: skip


def without_a_merge(tokenizer):
    """The same words and one merge fewer: " orange" is a token that no merge leads to, and is taken whole all the same."""
    said = json.loads(tokenizer.backend.to_str())
    said["model"]["merges"] = [merge for merge in said["model"]["merges"] if "".join(merge) != "Ġorange"]
    said["model"]["ignore_merges"] = True
    ignoring = Tokenizer(Backend.from_str(json.dumps(said)))
    said["model"]["ignore_merges"] = False
    assert len(Tokenizer(Backend.from_str(json.dumps(said))).encode(" orange")) > len(ignoring.encode(" orange")) == 1
    return ignoring


def test_llama_cpp_does_not_normalise(tokenizer, api, tmp_path):
    """What the docstring of `export_gguf` says of text outside NFC; should this fail, say the better news there."""
    export_gguf(tiny_model(vocab_size=410), tmp_path / "m.gguf", tokenizer=tokenizer)
    with opened(api, tmp_path / "m.gguf") as model:
        ids = llama_ids(api, api.llama_model_get_vocab(model), "e\u0301", special=False)
    assert ids != tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


CONVERSATION = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "  What is 3 + 4, friend?\n"},
    {"role": "assistant", "content": "Seven."},
    {"role": "user", "content": "Danke, Ökonomie!"},
]


@pytest.mark.parametrize("answering", [True, False])
def test_a_conversation_is_the_same_text_and_ids(answering, api, tmp_path):
    """Three renderings of the template that is in the file: ours, llama-cpp-python's in Jinja, llama.cpp's own in C++."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    chat = Tokenizer.train(TEXT * 20, vocab_size=400, chat=True)
    export_gguf(tiny_model(vocab_size=410), tmp_path / "m.gguf", tokenizer=chat)
    ours = chat.render_chat(CONVERSATION, add_generation_prompt=answering)
    with opened(api, tmp_path / "m.gguf") as model:
        vocabulary = api.llama_model_get_vocab(model)
        template = api.llama_model_chat_template(model, None)
        bos, eos = (
            api.llama_vocab_get_text(vocabulary, token).decode()
            for token in (api.llama_vocab_bos(vocabulary), api.llama_vocab_eos(vocabulary))
        )
        formatter = Jinja2ChatFormatter(template.decode(), eos, bos, add_generation_prompt=answering)
        assert formatter(messages=CONVERSATION).prompt == ours
        messages = (api.llama_chat_message * len(CONVERSATION))(
            *(api.llama_chat_message(m["role"].encode(), m["content"].encode()) for m in CONVERSATION)
        )
        room = ctypes.create_string_buffer(4096)
        count = api.llama_chat_apply_template(template, messages, len(messages), answering, room, len(room))
        assert bos + room.raw[:count].decode() == ours
        ids = llama_ids(api, vocabulary, ours.removeprefix(bos), special=True)
        assert ids == chat.encode_chat(CONVERSATION, add_generation_prompt=answering)
        ends = [i for i in range(410) if api.llama_vocab_is_eog(vocabulary, i)]
        assert set(ends) == {*chat.stop_ids, chat.pad_id}  # llama.cpp takes any <PAD> for an end
        assert api.llama_vocab_eot(vocabulary) == chat.stop_ids[1]
