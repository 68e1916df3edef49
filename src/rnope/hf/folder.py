"""Model folders as Hugging Face has them: config.json, safetensors, tokenizer files, a model card. In and out.

A folder is written beside its place and renamed, so that a reader sees the old one or the new one, whole. Nothing is
ever unpickled and no code is taken from a folder. What the fields mean is `mapping`'s business.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnope.errors import ConfigError, UserError
from rnope.files import beside
from rnope.hf import shards, weights
from rnope.hf.card import model_card
from rnope.hf.configs import (
    CONFIG,
    GENERATION,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    Kept,
    read_config,
    read_kept,
    tokenizer_content,
)  # fmt: skip
from rnope.hf.keys import left_out
from rnope.hf.mapping import ARCHITECTURES, tensor_names, to_hf
from rnope.hf.reading import read_json, some
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.tokenizer import Tokenizer

_OF_A_MODEL = (
    CONFIG, GENERATION, "README.md", "*.safetensors", shards.INDEX, ".gitattributes", *TOKENIZER_FILES,
)  # fmt: skip
"""What a model folder may hold and still be replaced: anything else is somebody's, and is not ours to delete."""


def save(
    model: Decoder,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    context_tokens: int | None = None,
    shard_bytes: int = shards.SHARD_BYTES,
) -> None:
    """Write `model` as a Hugging Face folder; transformers opens it wherever one of its classes can say the layers.

    Args:
        model: any decoder that holds its weights.
        folder: where to. A model folder that is there already is replaced.
        tokenizer: its files go beside the weights, its special ids into config.json and generation_config.json.
        like: the model folder that this one takes the place of. What it says beyond its architecture goes along: unknown
            keys, special ids, context, generation_config.json, and its tokenizer where none is given.
        provenance: where the model came from (recipe, seed, digests): plain data, kept in config.json and on the card.
            That of `like` does not go along.
        context_tokens: longest trained context, which serving programs take as their limit. None is that of `like`, or
            else 8,192.
        shard_bytes: most bytes of weights in one file; more are split into several with an index.

    Raises:
        UserError: the place is taken by something else or cannot be written, or the tokenizer has more tokens than the
            model. Nothing is left behind then, and what was there stays.
    """
    save_state(
        model.config, model.state_dict(), folder, tokenizer, like=like, provenance=provenance,
        context_tokens=context_tokens, shard_bytes=shard_bytes,
    )  # fmt: skip


def save_state(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    like: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    context_tokens: int | None = None,
    shard_bytes: int = shards.SHARD_BYTES,
) -> None:
    """`save` for weights that are not in a `Decoder`, under its names: gathered from several devices, or averaged.

    `state` may make its tensors when asked: each is asked for once, in the model's order, and one file's at a time are
    held.
    """
    names = tensor_names(config)
    missing = sorted(set(names) - set(state))
    if missing:
        raise UserError(f"The weights lack {some(missing)}. Give the whole state_dict of a Decoder.")
    kept = None if like is None else read_kept(like)
    ids = None
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                "vocab_size",
                config.vocab_size,
                f"the tokenizer has {tokenizer.vocab_size} tokens",
                "Save the tokenizer that the model was trained with.",
            )
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    with _replacing(Path(folder)) as fresh:
        found = shards.write(((theirs, state[ours]) for ours, theirs in names.items()), fresh, shard_bytes)
        dtype = str(found).removeprefix("torch.")
        before = None if kept is None else kept.config
        raw = to_hf(
            config, dtype=dtype, context_tokens=context_tokens, special_ids=ids, provenance=provenance, like=before
        )  # fmt: skip
        _write_json(fresh / CONFIG, raw)
        generation = _generation(kept, tokenizer)
        if generation is not None:
            _write_json(fresh / GENERATION, generation)
        if tokenizer is not None:
            tokenizer.save(fresh)
            path = fresh / TOKENIZER_CONFIG
            path.write_bytes(tokenizer_content(path))  # it may have come from a folder that names code
        elif kept is not None:
            for name, content in kept.tokenizer.items():
                (fresh / name).write_bytes(content)
        card = model_card(
            config, raw, with_tokenizer=bool(tokenizer or (kept and kept.tokenizer)),
            left_out=left_out(before or {}, tuple(ARCHITECTURES.values())),
        )  # fmt: skip
        (fresh / "README.md").write_text(card, encoding="utf-8")


def _generation(kept: Kept | None, tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """generation_config.json: that of the folder before, with the ids of the tokenizer that is given now.

    What else ended a text before still does, if the tokenizer's EOS was among it: then the two have one vocabulary.
    """
    before = None if kept is None or kept.generation is None else dict(kept.generation)
    if tokenizer is None:
        return before
    others = kept.stop_ids if kept is not None and tokenizer.eos_id in kept.stop_ids else ()
    stops = list(dict.fromkeys((*tokenizer.stop_ids, *others)))
    return (before or {}) | {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops if len(stops) > 1 else tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(path: Path, raw: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(raw, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """`files.beside` for a model folder: what is not ours to delete is refused first."""
    folder = folder.expanduser().resolve()
    refuse_foreign(folder)
    try:
        with beside(folder) as fresh:
            fresh.mkdir()
            yield fresh
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}). Free space or choose another place.") from None


def refuse_foreign(folder: Path) -> None:
    """A folder is overwritten only if it is empty or holds a model and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Choose another place for the model.")
    there = sorted(folder.iterdir())
    foreign = [p.name for p in there if p.is_dir() or not any(p.match(pattern) for pattern in _OF_A_MODEL)]
    if foreign:
        raise UserError(
            f"{folder} holds {some(foreign)}, which no model folder has. Move that, or choose another place."
        )
    try:
        known = not there or read_json(folder / CONFIG).get("model_type") in ARCHITECTURES
    except UserError:
        known = False
    if not known:
        raise UserError(
            f"{folder} is not empty and holds no model of rnope's kinds. Empty it, or choose another place."
        )


def load(
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    verify: bool = True,
) -> Decoder:
    """The model of a folder: of type `cohere` or `cohere2`, whoever wrote it, or `rnope`.

    Args:
        folder: a local folder with config.json and safetensors, in one file or in several with an index.
        dtype: what to convert the weights to; None keeps them as stored, bit for bit. Then, on the CPU, they are private
            views of the files (`weights.read`).
        device: where to; None is the CPU.
        verify: compare the weights with the digests that were written with them, where there are some.

    Raises:
        UserError: the folder or a file in it is missing, damaged, altered or of a kind that is not read here; a tensor
            is missing, left over or has the wrong shape.
    """
    if dtype is not None and dtype not in shards.TYPES.values():
        raise ConfigError("dtype", dtype, "weights are floating-point numbers", "Use torch.float32 or torch.bfloat16.")
    place = _device(device)
    path = Path(folder).expanduser()
    config = read_config(path)
    with torch.device("meta"):
        model = Decoder(config)
    names = tensor_names(config)
    shapes = {theirs: tuple(model.get_parameter(ours).shape) for ours, theirs in names.items()}
    tensors = weights.read(path, shapes, dtype=dtype, device=place, verify=verify)
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)
    return model


def _device(device: str | torch.device | None) -> torch.device:
    """`device`, or the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        place = torch.device(device or "cpu")
    except RuntimeError:
        raise ConfigError("device", str(device), "is not the name of a device", "Use cpu, cuda or cuda:N.") from None
    remedy = "Use cpu, or a build of PyTorch for the machine's GPU."
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = f"this machine has {torch.cuda.device_count()} that PyTorch can use"
        raise ConfigError("device", str(device), found, remedy)
    try:
        torch.empty(0, device=place)
    except Exception:  # the kinds of device differ in what they raise where they are not there
        raise ConfigError("device", str(device), "PyTorch cannot use it on this machine", remedy) from None
    return place
