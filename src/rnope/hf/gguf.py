"""GGUF files for llama.cpp: which of its architectures says our layers, and the file, written tensor by tensor.

Export only: nothing here reads GGUF, chooses a chat template or runs llama.cpp. What llama.cpp computes was read in its
own src/models/cohere2.cpp and command-r.cpp; layers that neither can say are refused before anything is written.
"""

import json
import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from rnope.errors import ConfigError, UserError, check, unknown
from rnope.files import beside
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig

if TYPE_CHECKING:
    import gguf

FULL_SPAN = 2**23
"""The window that tells `cohere2`, where RoPE comes only with one, that RoPE layers see everything.

It is also the largest one that is written: llama.cpp multiplies it by up to 256 sequences in 32 bits, and a cache that
came out too small would be no error there.
"""
DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
"""Our name -> llama.cpp's name for a file of that kind."""
LARGEST = {"f16": 65504, "q8_0": 127 * 65504}
"""What a weight may reach: in Q8_0, a block of 32 shares a scale in F16."""
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


class BpeTokenizer(Protocol):
    """What `export_gguf` wants of a tokenizer; `rnope.tokenizer.Tokenizer` is one."""

    @property
    def backend(self) -> Any: ...  # tokenizers.Tokenizer
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...


def export_gguf(
    model: Decoder,
    path: str | os.PathLike[str],
    *,
    dtype: str = "f32",
    tokenizer: BpeTokenizer | None = None,
    context_tokens: int = 8192,
) -> None:
    """Write `model` as one GGUF file that llama.cpp opens.

    Args:
        model: any decoder that holds its weights and whose layers llama.cpp can say (see `architecture`).
        path: where to. A file that is there already is replaced when the new one is whole.
        dtype: ``f32``, ``f16`` or ``q8_0``, for the matrices; norms stay F32. Rows that are no multiple of 32 long
            cannot be Q8_0 and are F16 in such a file, as llama.cpp's own converter has it.
        tokenizer: written into the file, if llama.cpp can do what it does. Then llama.cpp gives the ids that
            `Tokenizer.encode` gives, BOS before them, for text that is in NFC (llama.cpp does not normalise) and with
            its ``parse_special`` on. Without one the file takes and gives ids only.
        context_tokens: longest trained context, which llama.cpp takes as its limit.

    Raises:
        ConfigError: layers, sizes or a tokenizer that llama.cpp cannot say; a weight too large for `dtype`.
        UserError: the package gguf is missing, or the place cannot be written. Nothing is left behind then, and what
            was there stays.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, "type of weights here", DTYPES)
    check("context_tokens", context_tokens, 1 <= context_tokens < 2**31, "must lie in 1 … 2^31", "Most have 8192.")
    config = model.config
    arch, window = architecture(config)
    if model.embedding.weight.is_meta:
        raise UserError("The model is on the meta device and has no weights to export. Load or initialise it first.")
    place = Path(path).expanduser()
    if place.is_dir():
        raise UserError(f"{place} is a folder. Name a file, such as {place / 'model.gguf'}.")
    gguf = _package()
    writer = gguf.GGUFWriter(None, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(place.stem)
    writer.add_file_type(gguf.LlamaFileType[DTYPES[dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_numbers(writer, config, context_tokens)
    if window is not None:
        # Ours counts the query itself; llama.cpp masks where query - key >= n_swa: the same number.
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([spec.position == "rope" for spec in config.layers])
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, tokenizer, config.vocab_size)
    try:
        with beside(place) as fresh, closing(writer):
            _write(writer, fresh, model, dtype)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error}). Free space or choose another place.") from None


def architecture(config: ModelConfig) -> tuple[str, int | None]:
    """llama.cpp's architecture for `config` and the window of its RoPE layers; None where the architecture has none.

    ``command-r`` is RoPE and full span in every layer. ``cohere2`` is any order of RoPE layers with one window and full
    NoPE layers: there, `sliding_window_pattern` decides window and rotation at once.

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
    first = next((i for i, spec in enumerate(layers) if spec.position == "rope"), None)
    if first is None:
        # cohere2 without a sliding layer fails an assertion in llama.cpp, which ends the process; command-r with a
        # rotation over 0 channels never returns.
        raise ConfigError("layers[0].position", "nope", "llama.cpp has no Cohere model without a RoPE layer", _INSTEAD)
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
    everywhere = window is None and all(spec.position == "rope" for spec in layers)
    if everywhere and len(normed) == (count if count >= QK_NORM_LAYERS else 0):
        return "command-r", None
    if normed:
        rule = f"llama.cpp has QK-Norm only in every layer of {QK_NORM_LAYERS} or more, all RoPE and full span"
        raise ConfigError(f"layers[{normed[0]}].qk_norm", True, rule, _INSTEAD)
    return "cohere2", window or FULL_SPAN


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf. Install it: pip install gguf.") from None
    return gguf


def _add_numbers(writer: "gguf.GGUFWriter", config: ModelConfig, context_tokens: int) -> None:
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
    writer.add_rope_freq_base(config.thetas[0])
    writer.add_rope_dimension_count(config.head_size)


def _write(writer: "gguf.GGUFWriter", place: Path, model: Decoder, dtype: str) -> None:
    """Metadata, table of tensors, then one tensor after another, so that only one is held twice at a time.

    Queries and keys go as they are: llama.cpp rotates this family over interleaved pairs (rope type NORM), as we do.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    names = tensor_names(model.config)
    kinds = {}
    for ours, theirs in names.items():
        shape = model.get_parameter(ours).shape
        kinds[ours] = GGMLQuantizationType[_kind(ours, shape[-1], dtype).upper()]
        block, size = GGML_QUANT_SIZES[kinds[ours]]
        nbytes = shape.numel() // block * size
        writer.add_tensor_info(theirs, shape, np.dtype(np.float32), nbytes, raw_dtype=kinds[ours])
    writer.write_header_to_file(place)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours, theirs in names.items():
        tensor = model.get_parameter(ours).detach().to("cpu", torch.float32).contiguous()
        kind = kinds[ours].name.lower()
        if kind in LARGEST:
            largest, rule = float(tensor.abs().max()), f"{kind} holds weights up to {LARGEST[kind]:,}"
            check(theirs, largest, not largest > LARGEST[kind], rule, "Export it as f32.")
        writer.write_tensor_data(quants.quantize(tensor.numpy(), kinds[ours]))


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """Our parameter name -> its name in the file, for every tensor of the model; shapes are the same on both sides."""
    names = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _TOP_TENSORS.items()}
    for i, spec in enumerate(config.layers):
        for ours, theirs in (_LAYER_TENSORS | (_QK_NORM_TENSORS if spec.qk_norm else {})).items():
            names[f"layers.{i}.{ours}.weight"] = f"blk.{i}.{theirs}.weight"
    return names


def _kind(name: str, row: int, dtype: str) -> str:
    """The type of one tensor whose rows are `row` long, in a file of `dtype`."""
    if name.endswith("norm.weight"):
        return "f32"
    return "f16" if dtype == "q8_0" and row % 32 else dtype


def _add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: BpeTokenizer, vocab_size: int) -> None:
    """Tokens, types, merges and special ids of `tokenizer`, filled up with unused tokens to `vocab_size`."""
    from gguf import TokenType

    said = json.loads(tokenizer.backend.to_str())
    _refuse_other_tokenizers(said)
    bpe, added = said["model"], said["added_tokens"]
    ids = bpe["vocab"] | {token["content"]: token["id"] for token in added}
    rule = f"the tokenizer has {max(ids.values()) + 1} tokens"
    remedy = "Export the tokenizer that the model was trained with."
    check("vocab_size", vocab_size, max(ids.values()) < vocab_size, rule, remedy)
    tokens, types = [f"[UNUSED_{i}]" for i in range(vocab_size)], [TokenType.UNUSED] * vocab_size
    for token, i in ids.items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for token in added:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("command-r")  # \p{N} one by one, then GPT-2's words: our Digits and ByteLevel
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _refuse_other_tokenizers(said: dict[str, Any]) -> None:
    """Only what llama.cpp's `command-r` does is let through: it would split other text wrongly and not say so."""
    bpe, splits = said["model"], (said["pre_tokenizer"] or {}).get("pretokenizers", [])
    digits, byte_level = splits if len(splits) == 2 else ({}, {})
    holds = {
        "normalizer": said["normalizer"] in (None, {"type": "NFC"}),
        "pre_tokenizer": digits == {"type": "Digits", "individual_digits": True}
        and byte_level.get("type") == "ByteLevel"
        and not byte_level["add_prefix_space"]
        and byte_level["use_regex"],
        "model": bpe["type"] == "BPE"
        and bool(bpe["merges"])
        and not any(
            bpe.get(name)
            for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
        ),
        "added_tokens": not any(
            token[name] for token in said["added_tokens"] for name in ("single_word", "lstrip", "rstrip")
        ),
    }
    for part, fits in holds.items():
        check(
            f"tokenizer.{part}",
            said[part],
            fits,
            "only Command R's byte-level BPE (NFC, single digits) can be written for llama.cpp",
            "Export without the tokenizer and give llama.cpp token ids.",
        )
