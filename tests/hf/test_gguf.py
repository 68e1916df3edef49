"""GGUF: what is written is what we hold, and llama.cpp, where it is installed, computes our logits from it."""

import ctypes
import sys
from contextlib import contextmanager

import gguf
import numpy as np
import pytest
import torch

from rnope import cli
from rnope.errors import ConfigError, UserError
from rnope.hf.folder import read_context_tokens, save
from rnope.hf.gguf import FULL_SPAN, architecture, export_gguf, tensor_names
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

SAID = {
    "rope": "command-r", "rnope": "cohere2", "rnope-swa": "cohere2", "rnope-swa-1to1": "cohere2",
    "rnope-swa-1to7": "cohere2", "rnope-swa-full-first": "cohere2", "rnope-1to3": "cohere2", "swa-only": "cohere2",
}  # fmt: skip
"""Variant -> architecture."""


def read(path):
    """Metadata, and tensors as (type, values in float32)."""
    reader = gguf.GGUFReader(path)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return facts, tensors


def lively(variant="rnope-swa", **overrides):
    """A tiny model whose norms are not all one."""
    model = tiny_model(variant, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def with_layers(*layers, **overrides):
    return Decoder(tiny_model(**overrides).config.with_layers(layers))


ROPE, WINDOWED, NOPE = (
    LayerSpec(position="rope", theta=1e4),
    LayerSpec(position="rope", theta=1e4, window=5),
    LayerSpec(position="nope"),
)
NORMED = LayerSpec(position="rope", theta=1e4, qk_norm=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", SAID)
def test_every_tensor_comes_back_bit_for_bit_in_f32(variant, dtype, tmp_path):
    model = lively(variant).to(dtype)
    export_gguf(model, tmp_path / "m.gguf")
    facts, tensors = read(tmp_path / "m.gguf")
    assert facts["general.architecture"] == SAID[variant]
    assert len(tensors) == len(model.state_dict())
    for ours, theirs in tensor_names(model.config).items():
        kind, values = tensors[theirs]
        assert kind == "F32" and np.array_equal(values, model.get_parameter(ours).detach().float().numpy()), theirs
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_the_metadata_says_every_number(tmp_path):
    export_gguf(lively("rnope-swa-full-first"), tmp_path / "first.gguf", dtype="f16", context_tokens=640)
    facts, _ = read(tmp_path / "first.gguf")
    expected = {
        "general.name": "first", "general.file_type": 1, "general.quantization_version": 2,
        "tokenizer.ggml.model": "no_vocab",
        "cohere2.context_length": 640, "cohere2.vocab_size": 97, "cohere2.block_count": 4,
        "cohere2.embedding_length": 32, "cohere2.feed_forward_length": 48,
        "cohere2.attention.head_count": 4, "cohere2.attention.head_count_kv": 2,
        "cohere2.attention.key_length": 8, "cohere2.attention.value_length": 8,
        "cohere2.attention.layer_norm_epsilon": np.float32(1e-5), "cohere2.logit_scale": 0.5,
        "cohere2.rope.freq_base": 1e4, "cohere2.rope.dimension_count": 8,
        "cohere2.attention.sliding_window": 5,
        "cohere2.attention.sliding_window_pattern": [False, True, True, True],
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected


def test_a_full_span_is_no_window_or_one_that_nobody_reaches(tmp_path):
    assert architecture(tiny_model("rope").config) == ("command-r", None)
    assert architecture(tiny_model("rnope").config) == ("cohere2", FULL_SPAN)
    assert FULL_SPAN * 256 + 4096 < 2**32  # llama.cpp's sum for its cache of windowed layers
    export_gguf(tiny_model("rope"), tmp_path / "m.gguf")
    assert not any("sliding" in key for key in read(tmp_path / "m.gguf")[0])


def test_qk_norm_follows_the_number_of_layers():
    """llama.cpp's command-r has QK-Norm from 64 layers on, and only there."""
    assert architecture(tiny_model("qk-norm", num_layers=64).config) == ("command-r", None)
    assert architecture(tiny_model("rope", num_layers=64).config) == ("cohere2", FULL_SPAN)
    for layers in [(NORMED,) * 63, (*[NORMED] * 63, ROPE), (*[NORMED] * 63, NOPE)]:
        with pytest.raises(ConfigError, match=r"layers\[0\]\.qk_norm = True: llama\.cpp has QK-Norm only"):
            architecture(with_layers(*layers).config)


def test_f16_rounds_and_leaves_norms_alone(tmp_path):
    model = lively()
    export_gguf(model, tmp_path / "m.gguf", dtype="f16")
    _, tensors = read(tmp_path / "m.gguf")
    for ours, theirs in tensor_names(model.config).items():
        kind, values = tensors[theirs]
        weight = model.get_parameter(ours).detach().numpy()
        assert kind == ("F32" if "norm" in theirs else "F16")
        assert np.array_equal(values, weight if "norm" in theirs else weight.astype(np.float16).astype(np.float32))


def test_q8_0_stays_within_half_a_step_and_odd_rows_are_f16(tmp_path):
    model = lively()
    export_gguf(model, tmp_path / "m.gguf", dtype="q8_0")
    facts, tensors = read(tmp_path / "m.gguf")
    assert facts["general.file_type"] == 7
    assert {name for name, (kind, _) in tensors.items() if kind == "F16"} == {
        f"blk.{i}.ffn_down.weight" for i in range(4)
    }
    for ours, theirs in tensor_names(model.config).items():
        kind, values = tensors[theirs]
        weight = model.get_parameter(ours).detach().numpy()
        if "norm" in theirs:
            assert kind == "F32" and np.array_equal(values, weight)
        elif kind == "Q8_0":
            step = np.abs(weight.reshape(-1, 32)).max(1, keepdims=True) / 127
            # Half a step, and the step itself rounded to F16: 127 steps, each off by up to 2^-11.
            bound = step * (0.5 + 127 * 2**-11)
            assert (np.abs(values - weight).reshape(-1, 32) <= bound).all(), theirs


REFUSED = {
    "no rope": ((NOPE, NOPE), r"layers\[0\]\.position = 'nope': .* without a RoPE layer"),
    "nope in a window": ((WINDOWED, LayerSpec(position="nope", window=5)), r"layers\[1\]\.window = 5: .* with RoPE"),
    "two windows": ((NOPE, WINDOWED, LayerSpec(position="rope", theta=1e4, window=6)), r"layers\[2\]\.window = 6: .* 5"),
    "full rope among windows": ((WINDOWED, WINDOWED, ROPE), r"layers\[2\]\.window = None: .* layers\[0\] has 5"),
    "two thetas": ((NOPE, WINDOWED, LayerSpec(position="rope", theta=8e6, window=5)), r"layers\[2\]\.theta = .* 10,000"),
    "qk-norm": ((ROPE, NORMED), r"layers\[1\]\.qk_norm = True: .* 64 or more"),
    "a huge window": ((NOPE, LayerSpec(position="rope", theta=1e4, window=2**24)), r"layers\[1\]\.window = 16777216: "),
    "too many": ((NOPE, WINDOWED) * 257, r"layers = 514: .* at most 512"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_llama_cpp_cannot_say_are_refused_by_number(case, tmp_path):
    layers, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        export_gguf(with_layers(*layers), tmp_path / "new" / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_other_mistakes_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "new" / "m.gguf"
    with pytest.raises(ConfigError, match=r"head_size = 4: .* = width, 32"):
        export_gguf(tiny_model(head_size=4), place)
    with pytest.raises(ConfigError, match=r"dtype = 'q4'.* Valid: f16, f32, q8_0"):
        export_gguf(tiny_model(), place, dtype="q4")
    with pytest.raises(ConfigError, match="context_tokens = 0"):
        export_gguf(tiny_model(), place, context_tokens=0)
    with torch.device("meta"), pytest.raises(UserError, match="meta device"):
        export_gguf(Decoder(tiny_model().config), place)
    with pytest.raises(UserError, match="is a folder"):
        export_gguf(tiny_model(), tmp_path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        export_gguf(tiny_model(), place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype, weight", [("f16", 1e5), ("q8_0", 1e7)])
def test_a_weight_that_would_be_infinite_is_refused(dtype, weight, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].attention.key.weight[3, 5] = -weight
    with pytest.raises(ConfigError, match=rf"blk\.1\.attn_k\.weight = {weight:.1f}: {dtype} holds weights up to"):
        export_gguf(model, tmp_path / "m.gguf", dtype=dtype)
    assert not list(tmp_path.iterdir())
    export_gguf(model, tmp_path / "m.gguf")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("no"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(error, tmp_path, monkeypatch):
    place = tmp_path / "m.gguf"
    write, written = gguf.GGUFWriter.write_tensor_data, []

    def failing(self, tensor):
        if len(written) == 7:
            raise error
        written.append(tensor.nbytes)
        write(self, tensor)

    for before in (None, b"what was there"):
        written.clear()
        if before is not None:
            place.write_bytes(before)
        with monkeypatch.context() as patch:
            patch.setattr(gguf.GGUFWriter, "write_tensor_data", failing)
            with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
                export_gguf(tiny_model(), place)
        assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["m.gguf"])
        assert before is None or place.read_bytes() == before


TEXT = [
    "one two three four, it's twenty-one; they'll see what we've done. ",
    "Zahlen wie 1234 und ½, Wörter wie naïve, Ökonomie, 東京, привет.\n\n\tif (a == b) { return x[3]; }\n",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXT * 20, vocab_size=400, whole_words=["orange", "table"])


def test_the_tokenizer_goes_along(tokenizer, tmp_path):
    export_gguf(tiny_model(vocab_size=410), tmp_path / "m.gguf", tokenizer=tokenizer)
    facts, _ = read(tmp_path / "m.gguf")
    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    count = tokenizer.vocab_size
    assert tokens[:count] == [tokenizer.backend.id_to_token(i) for i in range(count)]
    assert len(tokens) == len(set(tokens)) == len(types) == 410
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    assert types == [control if i in special else normal if i < count else unused for i in range(410)]
    assert facts["tokenizer.ggml.pre"] == "command-r" and facts["tokenizer.ggml.model"] == "gpt2"
    assert facts["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert facts["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert facts["tokenizer.ggml.padding_token_id"] == tokenizer.pad_id
    assert facts["tokenizer.ggml.add_bos_token"] is True and facts["tokenizer.ggml.add_eos_token"] is False
    with pytest.raises(ConfigError, match="vocab_size = 97: the tokenizer has"):
        export_gguf(tiny_model(), tmp_path / "new" / "m.gguf", tokenizer=tokenizer)


def test_a_tokenizer_that_llama_cpp_would_not_follow_is_refused(tokenizer, tmp_path):
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    def lowercase(backend):
        backend.normalizer = normalizers.Lowercase()

    def whole_numbers(backend):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def prefixed(backend):
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=True)])

    def dropping(backend):
        backend.model.dropout = 0.1

    def stripping(backend):
        backend.add_tokens([AddedToken("<x>", lstrip=True)])

    parts = {
        lowercase: "normalizer", whole_numbers: "pre_tokenizer", prefixed: "pre_tokenizer", dropping: "model",
        stripping: "added_tokens",
    }  # fmt: skip
    for change, part in parts.items():
        other = Tokenizer(Backend.from_str(tokenizer.backend.to_str()))
        change(other.backend)
        with pytest.raises(ConfigError, match=rf"tokenizer\.{part} = .*without the tokenizer"):
            export_gguf(tiny_model(vocab_size=410), tmp_path / "new" / "m.gguf", tokenizer=other)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_folder(tokenizer, tmp_path, capsys):
    save(tiny_model(vocab_size=410), tmp_path / "m", tokenizer, context_tokens=320)
    place = tmp_path / "m.gguf"
    assert cli.run(["export", str(tmp_path / "m"), "--format", "gguf", "--dtype", "q8_0", "--out", str(place)]) == 0
    assert capsys.readouterr().out == f"{place}\n"
    facts, _ = read(place)
    assert facts["cohere2.context_length"] == read_context_tokens(tmp_path / "m") == 320
    assert facts["general.file_type"] == 7 and facts["tokenizer.ggml.model"] == "gpt2"
    assert cli.run(["export", str(tmp_path / "m"), "--out", str(place), "--no-tokenizer"]) == 0
    facts, _ = read(place)
    assert facts["general.file_type"] == 1 and facts["tokenizer.ggml.model"] == "no_vocab"
    capsys.readouterr()
    assert cli.run(["export", str(tmp_path / "nothing"), "--out", str(place)]) == 2
    assert "no such folder" in capsys.readouterr().err
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 320', '"max_position_embeddings": "long"'))
    assert cli.run(["export", str(tmp_path / "m"), "--out", str(place)]) == 2
    assert "max_position_embeddings = 'long'" in capsys.readouterr().err


# What follows needs llama.cpp itself: pip install llama-cpp-python (built from source, about 15 minutes).


@pytest.fixture(scope="module")
def api():
    """llama.cpp's C interface, silenced."""
    package = pytest.importorskip("llama_cpp")
    silent = package.llama_log_callback(lambda level, text, data: None)
    package.llama_log_set(silent, ctypes.c_void_p(0))
    package.llama_backend_init()
    yield package
    package.llama_log_set(package.llama_log_callback(0), ctypes.c_void_p(0))


@contextmanager
def opened(api, path):
    parameters = api.llama_model_default_params()
    # Plain kernels: those for AMX, in a process where torch uses AMX too, were seen to end in an illegal instruction.
    parameters.use_extra_bufts = False
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    try:
        yield model
    finally:
        api.llama_model_free(model)


def llama_logits(api, path, ids, *, prefill=None, ubatch=64):
    """Next-token logits [t, vocab] of `ids` [t]: float32 cache, no flash attention, one thread.

    The first `prefill` tokens (None: all) go in one batch, cut into `ubatch`; the others follow one by one.
    """
    count = len(ids)
    prefill = count if prefill is None else prefill
    parameters = api.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = 512
    parameters.n_ubatch = ubatch
    parameters.swa_full = False  # the default keeps every key of windowed layers
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
    rows = []
    with opened(api, path) as model:
        width = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        context = api.llama_init_from_model(model, parameters)
        batch = api.llama_batch_init(512, 0, 1)
        for start, end in [(0, prefill), *((i, i + 1) for i in range(prefill, count))]:
            batch.n_tokens = end - start
            for row, position in enumerate(range(start, end)):
                batch.token[row], batch.pos[row], batch.logits[row] = int(ids[position]), position, 1
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
            assert api.llama_decode(context, batch) == 0
            rows.append(np.ctypeslib.as_array(api.llama_get_logits(context), (end - start, width)).copy())
        api.llama_batch_free(batch)
        api.llama_free(context)
    return np.concatenate(rows)


def our_logits(model, ids):
    with torch.no_grad():
        return model(torch.as_tensor(ids)[None])[0].numpy()


def some_ids(count, vocab_size=97):
    return np.random.default_rng(count).integers(vocab_size, size=count)


def divergence(ours, theirs):
    """Mean KL(ours || theirs) over positions, in nats."""
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (ours, theirs))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("count", [15, 17, 301])
@pytest.mark.parametrize("variant", SAID)
def test_llama_cpp_computes_our_logits_in_f32(variant, count, api, tmp_path):
    """At three windows, a little more, and where llama.cpp's cache of windowed layers (256 cells) has gone round."""
    model = lively(variant)
    export_gguf(model, tmp_path / "m.gguf")
    ids = some_ids(count)
    ours, theirs = our_logits(model, ids), llama_logits(api, tmp_path / "m.gguf", ids)
    assert np.abs(ours).max() > 1 and np.abs(ours - theirs).max() < 2e-5


@pytest.mark.parametrize("variant", ["rope", "rnope-swa", "swa-only"])
def test_llama_cpp_decodes_to_our_logits_token_by_token(variant, api, tmp_path):
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
    changed = with_layers(*[layer] * 4)
    changed.load_state_dict(model.state_dict())
    if change == "pairs":  # the halves of a head side by side, as rope type NEOX wants them
        with torch.no_grad():
            for block in changed.blocks:
                for matrix in (block.attention.query.weight, block.attention.key.weight):
                    heads = matrix.unflatten(0, (-1, 4, 2))
                    matrix.copy_(heads.transpose(1, 2).flatten(0, 2))
    export_gguf(changed, tmp_path / "m.gguf")
    assert np.abs(ours - llama_logits(api, tmp_path / "m.gguf", ids)).max() > 1e-3


@pytest.mark.parametrize("dtype, bound", [("f16", 1e-5), ("q8_0", 5e-3)])
@pytest.mark.parametrize("variant", ["rope", "rnope-swa"])
def test_small_types_stay_near(variant, dtype, bound, api, tmp_path):
    """llama.cpp rounds activations to the type of the weights as well, which random layers of width 64 feel most."""
    model = lively(variant, width=64, head_size=16, ffn_width=128)
    export_gguf(model, tmp_path / "m.gguf", dtype=dtype)
    ids = some_ids(65)
    ours, theirs = our_logits(model, ids), llama_logits(api, tmp_path / "m.gguf", ids)
    assert 0 < divergence(ours, theirs) < bound


def llama_ids(api, vocabulary, text, *, special):
    data = text.encode()
    room = (api.llama_token * (len(data) + 8))()
    count = api.llama_tokenize(vocabulary, data, len(data), room, len(room), special, special)
    assert count >= 0
    return list(room[:count])


def test_llama_cpp_splits_text_as_we_do(tokenizer, api, tmp_path):
    export_gguf(tiny_model(vocab_size=410), tmp_path / "m.gguf", tokenizer=tokenizer)
    generator = np.random.default_rng(0)
    pieces = [*" \t\n\r\u00a0\u3000'-.,;()[]{}<>_/\\\"#", *"0123456789½²٣Ⅷ", *"abczéßøあ東😀"]
    pieces += [
        "  ",
        "\n\n",
        "'s",
        "'LL",
        "don't",
        " orange",
        " table",
        "one two",
        "1234",
        "ﬁ",
        "\u0e01\u0e34",
        "x\u200dy",
    ]
    texts = [
        *TEXT,
        "",
        " ",
        "\n",
        "a",
        " 7",
        "  two  spaces ",
        *("".join(generator.choice(pieces, 12)) for _ in range(500)),
    ]
    with opened(api, tmp_path / "m.gguf") as model:
        vocabulary = api.llama_model_get_vocab(model)
        for text in texts:
            text = tokenizer.backend.normalizer.normalize_str(text)
            ids = tokenizer.encode(text)
            assert llama_ids(api, vocabulary, text, special=False) == ids, text
            assert llama_ids(api, vocabulary, text, special=True) == [tokenizer.bos_id, *ids], text
        assert llama_ids(api, vocabulary, "a<EOS_TOKEN>", special=True) == [
            tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.eos_id,
        ]  # fmt: skip


def test_llama_cpp_does_not_normalise(tokenizer, api, tmp_path):
    """What the docstring of `export_gguf` says of text outside NFC; should this fail, say the better news there."""
    export_gguf(tiny_model(vocab_size=410), tmp_path / "m.gguf", tokenizer=tokenizer)
    with opened(api, tmp_path / "m.gguf") as model:
        ids = llama_ids(api, api.llama_model_get_vocab(model), "e\u0301", special=False)
    assert ids != tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")
