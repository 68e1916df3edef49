"""GGUF: what is written is what we hold, and what llama.cpp cannot say is refused. (`test_gguf_llama` runs it.)"""

import os
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from rnope import cli
from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_context_tokens
from rnope.hf.folder import save
from rnope.hf.gguf import FULL_SPAN, architecture, export_gguf, tensor_names
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from weights_kit import lively

SAID = {
    "rope": "command-r", "nope": "command-r", "rnope": "cohere2", "rnope-swa": "cohere2", "rnope-swa-1to1": "cohere2",
    "rnope-swa-1to7": "cohere2", "rnope-swa-full-first": "cohere2", "rnope-1to3": "cohere2", "swa-only": "cohere2",
}  # fmt: skip
"""Variant -> architecture."""


def read(path):
    """Metadata, and tensors as (type, values in float32)."""
    reader = gguf.GGUFReader(path)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    return facts, tensors


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
    export_gguf(model, tmp_path / "m.gguf", dtype="f32")
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
        "general.type": "model", "general.name": "first", "general.size_label": "34K",
        "general.file_type": 1, "general.quantization_version": 2,
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


def test_no_rope_is_a_rotation_by_nothing(tmp_path):
    assert architecture(tiny_model("nope").config) == ("command-r", None)
    export_gguf(tiny_model("nope"), tmp_path / "m.gguf")
    facts, _ = read(tmp_path / "m.gguf")
    assert facts["command-r.rope.scaling.type"] == "linear" and "command-r.rope.freq_base" not in facts
    # The first pair turns by the position itself; the last position that llama.cpp can have is far below 2^40.
    angle = np.float32(2**40) * (np.float32(1) / np.float32(facts["command-r.rope.scaling.factor"]))
    assert 0 < angle < 2e-18 and np.cos(angle) == 1 and np.float32(1) - np.sin(angle) == 1


def test_qk_norm_follows_the_number_of_layers():
    """llama.cpp's command-r has QK-Norm from 64 layers on, and only there."""
    assert architecture(tiny_model("qk-norm", num_layers=64).config) == ("command-r", None)
    assert architecture(tiny_model("rope", num_layers=64).config) == ("cohere2", FULL_SPAN)
    for layers in [(NORMED,) * 63, (*[NORMED] * 63, ROPE), (*[NORMED] * 63, NOPE)]:
        with pytest.raises(ConfigError, match=r"layers\[0\]\.qk_norm = True: llama\.cpp has QK-Norm only"):
            architecture(with_layers(*layers).config)


STORED = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}


@pytest.mark.parametrize("dtype", STORED)
def test_by_default_matrices_stay_as_they_are_bit_for_bit(dtype, tmp_path):
    model = lively().to(dtype)
    with torch.no_grad():  # the smallest and largest that there are, and those that are none
        ends = [torch.finfo(dtype).smallest_normal / 2, -torch.finfo(dtype).max, 0.0, -0.0, torch.inf, -torch.inf]
        model.blocks[1].attention.key.weight[0, :6] = torch.tensor(ends, dtype=torch.float64)
    export_gguf(model, tmp_path / "m.gguf")
    facts, tensors = read(tmp_path / "m.gguf")
    kind, number = STORED[dtype]
    assert facts["general.file_type"] == number
    for ours, theirs in tensor_names(model.config).items():
        found, values = tensors[theirs]
        assert found == ("F32" if "norm" in theirs else kind)
        expected = model.get_parameter(ours).detach().float().numpy()
        assert np.array_equal(values.view(np.int32), expected.view(np.int32)), theirs


ROUNDED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_another_type_rounds_to_the_nearest_and_leave_norms_alone(dtype, stored, tmp_path):
    model = lively().to(stored)
    export_gguf(model, tmp_path / "m.gguf", dtype=dtype)
    _, tensors = read(tmp_path / "m.gguf")
    for ours, theirs in tensor_names(model.config).items():
        kind, values = tensors[theirs]
        weight = model.get_parameter(ours).detach()
        assert kind == ("F32" if "norm" in theirs else dtype.upper())
        expected = weight.float() if "norm" in theirs else weight.to(ROUNDED[dtype]).float()
        assert np.array_equal(values, expected.numpy())


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_tensor_in_pieces_is_the_tensor(dtype, tmp_path, monkeypatch):
    model = lively(vocab_size=101).to(torch.float16 if dtype == "f32" else torch.float32)
    export_gguf(model, tmp_path / "whole.gguf", dtype=dtype)
    monkeypatch.setattr("rnope.hf.gguf._PIECE", 7 * 32)  # the last piece of the embedding has three rows
    export_gguf(model, tmp_path / "pieces.gguf", dtype=dtype)
    whole, pieces = (read(tmp_path / f"{name}.gguf")[1] for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys()
    assert all(np.array_equal(values, pieces[name][1]) for name, (_, values) in whole.items())


@pytest.mark.parametrize(
    "stored, dtype, share", [("bfloat16", None, 0.03), ("bfloat16", "q8_0", 0.2), ("float32", "f16", 0.1)]
)
def test_no_second_copy_of_the_model_is_held(stored, dtype, share, tmp_path, monkeypatch):
    """What is written as it is costs nothing, of the rest one tensor is held. (This is numpy's memory; torch has a piece.)"""
    monkeypatch.setattr("rnope.hf.gguf._PIECE", 2**14)
    model = tiny_model(num_layers=16, width=128, head_size=32, ffn_width=512, vocab_size=997).to(getattr(torch, stored))
    told = []
    tracemalloc.start()
    try:
        export_gguf(model, tmp_path / "m.gguf", dtype=dtype, progress=lambda done, total: told.append((done, total)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    sizes = {tensor.name: tensor.data.nbytes for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert peak < share * sum(sizes.values())
    written = np.cumsum([sizes[name] for name in tensor_names(model.config).values()])
    assert told == [(done, sum(sizes.values())) for done in written]


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
    "64 without rope": ((NOPE,) * 64, r"layers\[0\]\.position = 'nope': .* of 64 or more layers with neither"),
    "nope in a window, alone": ((LayerSpec(position="nope", window=5),) * 2, r"layers\[0\]\.window = 5: .* with RoPE"),
    "nope in a window": ((WINDOWED, LayerSpec(position="nope", window=5)), r"layers\[1\]\.window = 5: .* with RoPE"),
    "two windows": ((NOPE, WINDOWED, LayerSpec(position="rope", theta=1e4, window=6)), r"layers\[2\]\.window = 6: .* 5"),
    "full rope among windows": ((WINDOWED, WINDOWED, ROPE), r"layers\[2\]\.window = None: .* layers\[0\] has 5"),
    "two thetas": ((NOPE, WINDOWED, LayerSpec(position="rope", theta=8e6, window=5)), r"layers\[2\]\.theta = .* 10,000"),
    "qk-norm": ((ROPE, NORMED), r"layers\[1\]\.qk_norm = True: .* 64 or more"),
    "a huge window": ((NOPE, LayerSpec(position="rope", theta=1e4, window=2**24)), r"layers\[1\]\.window = 16777216: "),
    "too many": ((NOPE, WINDOWED) * 257, r"layers = 514: .* at most 512"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_layers_that_llama_cpp_cannot_say_are_refused_by_number(case):
    layers, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        architecture(tiny_model().config.with_layers(layers))


def test_nothing_is_left_of_a_model_that_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"layers\[1\]\.qk_norm"):
        export_gguf(with_layers(ROPE, NORMED), tmp_path / "new" / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_other_mistakes_are_refused(tmp_path, monkeypatch):
    place = tmp_path / "new" / "m.gguf"
    with pytest.raises(ConfigError, match=r"head_size = 4: .* = width, 32"):
        export_gguf(tiny_model(head_size=4), place)
    with pytest.raises(ConfigError, match=r"dtype = 'q4'.* Valid: bf16, f16, f32, q8_0"):
        export_gguf(tiny_model(), place, dtype="q4")
    with pytest.raises(ConfigError, match="context_tokens = 0"):
        export_gguf(tiny_model(), place, context_tokens=0)
    with pytest.raises(UserError, match="meta device"):
        export_gguf(tiny_model().to("meta"), place)
    with pytest.raises(UserError, match="is a folder"):
        export_gguf(tiny_model(), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no plain file"):
        export_gguf(tiny_model(), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "pipe").unlink()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        export_gguf(tiny_model(), place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype, weight", [("f16", 1e5), ("q8_0", 1e7), ("bf16", 3.4e38)])
def test_a_weight_that_would_be_infinite_is_refused(dtype, weight, tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].attention.key.weight[3, 5] = -weight
    with pytest.raises(ConfigError, match=rf"blk\.1\.attn_k\.weight = [\d.e+]+: {dtype} holds weights up to"):
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


def test_the_command_takes_a_folder(tmp_path, capsys):
    tokenizer = Tokenizer.train(["one two three, "] * 20, vocab_size=300)
    save(tiny_model(vocab_size=310), tmp_path / "m", tokenizer, context_tokens=320)
    place = tmp_path / "m.gguf"
    assert cli.run(["export", str(tmp_path / "m"), "--format", "gguf", "--dtype", "q8_0", "--out", str(place)]) == 0
    assert capsys.readouterr().out == f"{place}\n"
    facts, _ = read(place)
    assert facts["cohere2.context_length"] == read_context_tokens(tmp_path / "m") == 320
    assert facts["general.file_type"] == 7 and facts["tokenizer.ggml.model"] == "gpt2"
    save(tiny_model(vocab_size=310).to(torch.bfloat16), tmp_path / "m", tokenizer, context_tokens=320)
    assert cli.run(["export", str(tmp_path / "m"), "--out", str(place), "--no-tokenizer"]) == 0
    facts, _ = read(place)
    assert facts["general.file_type"] == 32 and facts["tokenizer.ggml.model"] == "no_vocab"
    capsys.readouterr()
    assert cli.run(["export", str(tmp_path / "nothing"), "--out", str(place)]) == 2
    assert "no such folder" in capsys.readouterr().err
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"max_position_embeddings": 320', '"max_position_embeddings": "long"'))
    assert cli.run(["export", str(tmp_path / "m"), "--out", str(place)]) == 2
    assert "max_position_embeddings = 'long'" in capsys.readouterr().err


def test_layers_are_refused_before_the_weights_are_opened(tmp_path, capsys):
    save(tiny_model("swa-rope"), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not weights")
    assert cli.run(["export", str(tmp_path / "m"), "--out", str(tmp_path / "m.gguf")]) == 2
    assert "layers[3].window = None: llama.cpp has one for all RoPE layers" in capsys.readouterr().err
