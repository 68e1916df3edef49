"""Model folders as Hugging Face has them: config.json, safetensors, tokenizer files, a model card. In and out.

A folder is written beside its place and renamed, so that a reader sees the old one or the new one, whole. Nothing is
ever unpickled and no code is taken from a folder. What the fields mean is `mapping`'s business.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rnope.errors import ConfigError, UserError
from rnope.files import beside
from rnope.hf.card import model_card
from rnope.hf.mapping import ARCHITECTURES, from_hf, tensor_names, to_hf
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_DTYPES = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
_OF_A_MODEL = (
    "config.json", "generation_config.json", "README.md", "*.safetensors", INDEX, ".gitattributes", "*.jinja",
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
"""What a model folder may hold and still be replaced: anything else is somebody's, and is not ours to delete."""


class FolderTokenizer(Protocol):
    """What `save` wants of a tokenizer; `rnope.tokenizer.Tokenizer` is one."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    def save(self, folder: Path) -> None: ...


def save(
    model: Decoder,
    folder: str | os.PathLike[str],
    tokenizer: FolderTokenizer | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    context_tokens: int = 8192,
) -> None:
    """Write `model` as a Hugging Face folder; transformers opens it wherever one of its classes can say the layers.

    Args:
        model: any decoder that holds its weights.
        folder: where to. A model folder that is there already is replaced.
        tokenizer: its files go beside the weights and its special ids into config.json.
        provenance: where the model came from (recipe, seed, digests): plain data, kept in config.json and on the card.
        context_tokens: longest trained context, which serving programs take as their limit.

    Raises:
        UserError: the place is taken by something else or cannot be written, or the tokenizer has more tokens than the
            model. Nothing is left behind then, and what was there stays.
    """
    save_state(
        model.config, model.state_dict(), folder, tokenizer, provenance=provenance, context_tokens=context_tokens
    )


def save_state(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    folder: str | os.PathLike[str],
    tokenizer: FolderTokenizer | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    context_tokens: int = 8192,
) -> None:
    """`save` for weights that are not in a `Decoder`, under its names: gathered from several devices, or averaged."""
    names = tensor_names(config)
    missing = sorted(set(names) - set(state))
    if missing:
        raise UserError(f"The weights lack {_some(missing)}. Give the whole state_dict of a Decoder.")
    if any(state[name].is_meta for name in names):
        raise UserError("The model is on the meta device and has no weights to save. Load or initialise it first.")
    ids = {}
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                "vocab_size",
                config.vocab_size,
                f"the tokenizer has {tokenizer.vocab_size} tokens",
                "Save the tokenizer that the model was trained with.",
            )
        ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    dtype = str(state["embedding.weight"].dtype).removeprefix("torch.")
    raw = to_hf(config, dtype=dtype, context_tokens=context_tokens, special_ids=ids, provenance=provenance)
    tensors = {theirs: state[ours].detach().contiguous() for ours, theirs in names.items()}
    with _replacing(Path(folder)) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / "config.json").write_text(json.dumps(raw, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        card = model_card(config, raw, with_tokenizer=tokenizer is not None)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(fresh)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """`files.beside` for a model folder: what is not ours to delete is refused first."""
    folder = folder.expanduser().resolve()
    _refuse_foreign(folder)
    try:
        with beside(folder) as fresh:
            fresh.mkdir()
            yield fresh
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({error}). Free space or choose another place.") from None


def _refuse_foreign(folder: Path) -> None:
    """A folder is overwritten only if it is empty or holds a model and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Choose another place for the model.")
    there = sorted(folder.iterdir())
    foreign = [p.name for p in there if p.is_dir() or not any(p.match(pattern) for pattern in _OF_A_MODEL)]
    if foreign:
        raise UserError(
            f"{folder} holds {_some(foreign)}, which no model folder has. Move that, or choose another place."
        )
    try:
        known = not there or _read_json(folder / "config.json").get("model_type") in ARCHITECTURES
    except UserError:
        known = False
    if not known:
        raise UserError(
            f"{folder} is not empty and holds no model of rnope's kinds. Empty it, or choose another place."
        )


def load(
    folder: str | os.PathLike[str], dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Decoder:
    """The model of a folder: of type `cohere` or `cohere2`, whoever wrote it, or `rnope`.

    Args:
        folder: a local folder with config.json and safetensors, in one file or in several with an index.
        dtype: what to convert the weights to; None keeps them as stored, bit for bit.
        device: where to; None is the CPU.

    Raises:
        UserError: the folder or a file in it is missing, damaged or of a kind that is not read here; a tensor is
            missing, left over or has the wrong shape.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError("dtype", dtype, "weights are floating-point numbers", "Use torch.float32 or torch.bfloat16.")
    place = _device(device)
    path = Path(folder).expanduser()
    config = read_config(path)
    with torch.device("meta"):
        model = Decoder(config)
    shapes = {theirs: tuple(model.get_parameter(ours).shape) for ours, theirs in tensor_names(config).items()}
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(path):
        tensors |= _read_tensors(file, shapes)
    missing = sorted(set(shapes) - set(tensors))
    if missing:
        raise UserError(
            f"{path}: the weights lack {_some(missing)}. The folder is incomplete: fetch or write it again."
        )
    head = tensors.pop(HEAD, None)
    if head is not None and not torch.equal(head, tensors[EMBEDDING]):
        raise UserError(f"{path}: {HEAD} differs from {EMBEDDING}; rnope has only tied heads. Use transformers for it.")
    state = {ours: tensors[theirs].to(device=place, dtype=dtype) for ours, theirs in tensor_names(config).items()}
    model.load_state_dict(state, assign=True)
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
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        found = f"this machine has {torch.cuda.device_count()} that PyTorch can use"
        raise ConfigError("device", str(device), found, "Use cpu, or a build of PyTorch for the machine's GPU.")
    return place


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The architecture of a model folder, without its weights.

    Raises:
        UserError: as `load`.
    """
    path = Path(folder).expanduser() / "config.json"
    try:
        return from_hf(_read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.value, error.rule, error.remedy) from None


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Where the model of a folder came from, as `save` was told; empty for a model that others wrote."""
    block = _read_json(Path(folder).expanduser() / "config.json").get("rnope")
    found = block.get("provenance") if isinstance(block, dict) else None
    return found if isinstance(found, dict) else {}


def read_context_tokens(folder: str | os.PathLike[str]) -> int:
    """The longest trained context of a model folder, as its config.json has it.

    Raises:
        UserError: the file cannot be read, or has no such number.
    """
    path = Path(folder).expanduser() / "config.json"
    found = _read_json(path).get("max_position_embeddings")
    if type(found) is not int or found < 1:
        rule, remedy = "must be a whole number above 0", "Write the longest context it was trained on."
        raise ConfigError(f"{path}: max_position_embeddings", found, rule, remedy)
    return found


def read_model_type(folder: str | os.PathLike[str]) -> str | None:
    """The ``model_type`` of a folder's config.json, whichever class wrote it."""
    found = _read_json(Path(folder).expanduser() / "config.json").get("model_type")
    return found if isinstance(found, str) else None


def read_stop_ids(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """Ids of the tokens that end a text: those of generation_config.json where it has some, else of config.json."""
    path = Path(folder).expanduser()
    for file in (path / "generation_config.json", path / "config.json"):
        found = _read_json(file).get("eos_token_id") if file.exists() else None
        ids = found if isinstance(found, list) else [found]
        if ids and all(type(i) is int for i in ids):
            return tuple(ids)
    return ()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder. Give the path of a local model folder.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}, so it is no model folder. Give one that has.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}). Mend it or fetch it again.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: must hold a JSON object. Mend it or fetch it again.")
    return raw


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = _read_json(folder / INDEX).get("weight_map")
        files = sorted({str(name) for name in index.values()}) if isinstance(index, dict) else []
        for name in files:
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{folder / INDEX} names {name!r}, which is not in the folder. Fetch the folder again.")
        if files:
            return [folder / name for name in files]
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if not pickled:
        raise UserError(f"{folder} has no {WEIGHTS}. Give a folder with weights in it.")
    raise UserError(
        f"{folder} has its weights only as {_some(pickled)}: pickles, which can run code and are never opened here. "
        'If you trust them, convert once: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )


def _read_tensors(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of one file, checked against `shapes` before they are read."""
    wanted = {**shapes, HEAD: shapes[EMBEDDING]}
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            extra = sorted(set(names) - set(wanted))
            if extra:
                raise UserError(
                    f"{file} also holds {_some(extra)}, for which config.json has no layer. Do they belong together?"
                )
            for name in names:
                shape = tuple(tensors.get_slice(name).get_shape())
                if shape != wanted[name]:
                    raise UserError(
                        f"{file}: {name} is {shape}, but by config.json it is {wanted[name]}. Mend config.json."
                    )
            read = {name: tensors.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: not readable as safetensors ({error}). It may be cut short: fetch it again."
        ) from None
    for name, tensor in read.items():
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"{file}: {name} is stored as {tensor.dtype}; quantised weights are not read. Convert to bfloat16."
            )
    return read


def _some(names: list[str]) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
