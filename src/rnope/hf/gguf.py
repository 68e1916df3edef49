"""GGUF files for llama.cpp: which of its architectures says our layers, and the file, written tensor by tensor.

Export only: nothing here reads GGUF or runs llama.cpp, and tokenizers are `gguf_tokenizer`'s business. What llama.cpp
computes was read in its own src/models/cohere2.cpp and command-r.cpp; layers that neither can say are refused before
anything is written.
"""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rnope.errors import ConfigError, UserError, check, unknown
from rnope.files import beside
from rnope.hf.gguf_tokenizer import add_tokenizer
from rnope.hf.mapping import CONTEXT_TOKENS
from rnope.model.accounting import parameters
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

FULL_SPAN = 2**23
"""The window that tells `cohere2`, where RoPE comes only with one, that RoPE layers see everything.

It is also the largest one that is written: llama.cpp multiplies it by up to 256 sequences in 32 bits, and a cache that
came out too small would be no error there.
"""
DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""Our name -> llama.cpp's name for a file of that kind."""
_TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_STORED = {dtype: name for name, dtype in _TORCH.items()}
LARGEST = {name: torch.finfo(dtype).max for name, dtype in _TORCH.items()} | {"q8_0": 127 * 65504.0}
"""What a weight may reach: in Q8_0, a block of 32 shares a scale in F16."""
_PIECE = 2**22
"""Weights that are converted at a time, so that a large tensor is not held in float32 as a whole."""
STILL = 1e30
"""Positions are divided by this where no layer has RoPE: every angle is then too small to change a number."""
QK_NORM_LAYERS = 64
"""`command-r` has QK-Norm exactly where it has this many layers or more (Command R+): no field of the file says it."""
MOST_LAYERS = 512

_TOP_TENSORS = {"embedding": "token_embd", "norm": "output_norm"}  # the head is tied: without `output`, both are one
_LAYER_TENSORS = {
    "norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
_QK_NORM_TENSORS = {"attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm"}
_INSTEAD = "Run this model with rnope or export one that has it."


def export_gguf(
    model: Decoder,
    path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    tokenizer: Tokenizer | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `model` as one GGUF file that llama.cpp opens.

    Args:
        model: any decoder that holds its weights and whose layers llama.cpp can say (see `architecture`).
        path: where to. A file that is there already is replaced when the new one is whole.
        dtype: ``f32``, ``f16``, ``bf16`` or ``q8_0``, for the matrices; None keeps each as it is, bit for bit. Norms are
            F32 always. Rows that are no multiple of 32 long cannot be Q8_0 and are F16 in such a file, as llama.cpp's own
            converter has it.
        tokenizer: written into the file, its chat template too, if llama.cpp can do what it does. Then llama.cpp gives
            the ids that `Tokenizer.encode_prompt` gives for text that is in NFC (llama.cpp does not normalise) and with
            its ``parse_special`` on. Without one the file takes and gives ids only.
        context_tokens: longest trained context, which llama.cpp takes as its limit.
        progress: told the bytes of weights that are written, and how many there are in all.

    Raises:
        ConfigError: layers, sizes or a tokenizer that llama.cpp cannot say; a weight too large for `dtype`.
        UserError: the package gguf is missing, or the place cannot be written. Nothing is left behind then, and what
            was there stays.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, "type of weights here", DTYPES)
    check("context_tokens", context_tokens, 1 <= context_tokens < 2**31, "must lie in 1 … 2^31", "Most have 8192.")
    config = model.config
    arch, window = architecture(config)
    if model.embedding.weight.is_meta:
        raise UserError("The model is on the meta device and has no weights to export. Load or initialise it first.")
    place = Path(path).expanduser()
    if place.is_dir():
        raise UserError(f"{place} is a folder. Name a file, such as {place / 'model.gguf'}.")
    if place.exists() and not place.is_file():
        raise UserError(f"{place} is no plain file, and stays as it is. Name a file, such as model.gguf.")
    gguf = _package()
    writer = gguf.GGUFWriter(None, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(place.stem)
    writer.add_size_label(gguf.size_label(parameters(config), 0, 0, 0))
    writer.add_file_type(gguf.LlamaFileType[DTYPES[dtype or _STORED.get(model.embedding.weight.dtype, "f32")]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_numbers(writer, config, context_tokens)
    if window is not None:
        # Ours counts the query itself; llama.cpp masks where query - key >= n_swa: the same number.
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([spec.position == "rope" for spec in config.layers])
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        add_tokenizer(writer, tokenizer, config.vocab_size)
    try:
        with beside(place) as fresh, closing(writer):
            _write(writer, fresh, model, dtype, progress)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error}). Free space or choose another place.") from None


def architecture(config: ModelConfig) -> tuple[str, int | None]:
    """llama.cpp's architecture for `config` and the window of its RoPE layers; None where the architecture has none.

    ``command-r`` is RoPE and full span in every layer; or NoPE in every layer, as a rotation by nothing (`STILL`).
    ``cohere2`` is any order of RoPE layers with one window and full NoPE layers: there, `sliding_window_pattern` decides
    window and rotation at once.

    Raises:
        ConfigError: names the first layer, or the size, that neither can say.
    """
    layers = config.layers
    count = len(layers)
    check("layers", count, count <= MOST_LAYERS, f"llama.cpp has at most {MOST_LAYERS} layers", _INSTEAD)
    check(
        "head_size",
        config.head_size,
        config.heads * config.head_size == config.width,
        f"llama.cpp wants heads x head_size = width, {config.width}, in this family",
        _INSTEAD,
    )
    first = next((i for i, spec in enumerate(layers) if spec.position == "rope"), 0)
    theta, window = layers[first].theta, layers[first].window
    for i, spec in enumerate(layers):
        here = f"layers[{i}]"
        if spec.position == "nope":
            rule = "llama.cpp gives a window only to layers with RoPE"
            check(f"{here}.window", spec.window, spec.window is None, rule, _INSTEAD)
            continue
        rule = f"llama.cpp has one for all RoPE layers, and layers[{first}] has"
        check(f"{here}.theta", spec.theta, spec.theta == theta, f"{rule} {theta:,.10g}", _INSTEAD)
        check(f"{here}.window", spec.window, spec.window == window, f"{rule} {window}", _INSTEAD)
    rule = f"windows are written up to {FULL_SPAN:,}, so that llama.cpp's sizes do not overflow"
    check(f"layers[{first}].window", window, (window or 0) < FULL_SPAN, rule, "Leave it out: that is full span.")
    normed = [i for i, spec in enumerate(layers) if spec.qk_norm]
    everywhere = window is None and len({spec.position for spec in layers}) == 1
    if everywhere and len(normed) == (count if count >= QK_NORM_LAYERS else 0):
        return "command-r", None
    if normed:
        rule = f"llama.cpp has QK-Norm only in every layer of {QK_NORM_LAYERS} or more, all of one kind and full span"
        raise ConfigError(f"layers[{normed[0]}].qk_norm", True, rule, _INSTEAD)
    if not config.thetas:  # cohere2 without a sliding layer fails an assertion in llama.cpp, which ends the process
        rule = f"llama.cpp has no Cohere model of {QK_NORM_LAYERS} or more layers with neither RoPE nor QK-Norm"
        raise ConfigError("layers[0].position", "nope", rule, _INSTEAD)
    return "cohere2", window or FULL_SPAN


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf. Install it: pip install gguf.") from None
    return gguf


def _add_numbers(writer: "gguf.GGUFWriter", config: ModelConfig, context_tokens: int) -> None:
    from gguf import RopeScalingType

    writer.add_context_length(context_tokens)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(len(config.layers))
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_logit_scale(config.logit_scale)
    if config.thetas:
        writer.add_rope_freq_base(config.thetas[0])
    else:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(STILL)
    writer.add_rope_dimension_count(config.head_size)


def _write(
    writer: "gguf.GGUFWriter", place: Path, model: Decoder, dtype: str | None, progress: Callable[[int, int], None]
) -> None:
    """Metadata, table of tensors, then one tensor after another, so that only one is held twice at a time.

    Queries and keys go as they are: llama.cpp rotates this family over interleaved pairs (rope type NORM), as we do.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    kinds, sizes = {}, {}
    names = tensor_names(model.config)
    for ours, theirs in names.items():
        weight = model.get_parameter(ours)
        kinds[ours] = _kind(ours, weight, dtype)
        raw = GGMLQuantizationType[kinds[ours].upper()]
        block, size = GGML_QUANT_SIZES[raw]
        sizes[ours] = weight.numel() // block * size
        writer.add_tensor_info(theirs, weight.shape, np.dtype(np.float32), sizes[ours], raw_dtype=raw)
    writer.write_header_to_file(place)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(sizes.values()), 0
    for ours, theirs in names.items():
        writer.write_tensor_data(_converted(theirs, model.get_parameter(ours).detach(), kinds[ours], sizes[ours]))
        done += sizes[ours]
        progress(done, total)


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> its name in the file, for every tensor of the model; shapes are the same on both sides."""
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _TOP_TENSORS.items()}
    for i, spec in enumerate(config.layers):
        for ours, theirs in (_LAYER_TENSORS | (_QK_NORM_TENSORS if spec.qk_norm else {})).items():
            names[f"layers.{i}.{ours}.weight"] = f"blk.{i}.{theirs}.weight"
    return names


def _kind(name: str, weight: Tensor, dtype: str | None) -> str:
    """The type of one tensor in a file of `dtype`."""
    if name.endswith("norm.weight"):
        return "f32"
    if dtype is None:
        return _STORED.get(weight.dtype, "f32")
    return "f16" if dtype == "q8_0" and weight.shape[-1] % 32 else dtype


def _converted(name: str, weight: Tensor, kind: str, nbytes: int) -> np.ndarray:
    """The `nbytes` of `weight` as type `kind`; those of the weight itself where it is of that type.

    Raises:
        ConfigError: a weight is larger than any number of that type.
    """
    weight = weight.to("cpu").contiguous()
    if _STORED.get(weight.dtype) == kind:
        return weight.view(torch.uint8).numpy()
    largest = max(abs(float(end)) for end in weight.aminmax())
    rule = f"{kind} holds weights up to {LARGEST[kind]:,.7g}"
    check(name, largest, not largest > LARGEST[kind], rule, "Export it as f32.")
    rows = weight.reshape(-1, weight.shape[-1])
    out = np.empty((len(rows), nbytes // len(rows)), np.uint8)
    step = max(1, _PIECE // rows.shape[-1])
    for start in range(0, len(rows), step):
        out[start : start + step] = _piece(rows[start : start + step], kind)
    return out


def _piece(rows: Tensor, kind: str) -> np.ndarray:
    if kind in _TORCH:
        return rows.to(_TORCH[kind]).view(torch.uint8).numpy()
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(rows.to(torch.float32).numpy(), GGMLQuantizationType[kind.upper()])
