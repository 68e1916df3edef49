"""A folder of Hugging Face's opened: its tokenizer, its weights, and what bounds its positions. It asks the model nothing.

Only safetensors are read, and no code is taken from a folder.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rnope.errors import ConfigError, UserError
from rnope.hf.weights import converting
from rnope.tokenizer import Tokenizer

_POSITIONS = re.compile(r"(.*\.)?(wpe|\w*position\w*)")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of `folder`, converted where it has no tokenizer.json.

    Raises:
        UserError: there is none that can be read.
    """
    if (folder / "tokenizer.json").exists():
        return Tokenizer.load(folder)
    remedy = "Give a folder with a tokenizer.json."
    try:
        with quiet(), TemporaryDirectory() as converted:
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).save_pretrained(
                converted
            )
            tokenizer = Tokenizer.load(Path(converted))
    except Exception as error:  # whatever its many classes raise; a slow one has written no tokenizer.json
        raise UserError(f"{folder}: no tokenizer can be read ({error}). {remedy}") from None
    # Without any file some classes make an empty one.
    if "needle" not in tokenizer.decode_answer(tokenizer.encode("the needle")):
        raise UserError(f"{folder}: no tokenizer can be read (it does not know the letters). {remedy}")
    return tokenizer


def read_model(folder: Path, dtype: torch.dtype | None, device: str | None) -> Any:
    """The causal language model of `folder`; `dtype` is that of the weights and `device` the CPU, if None.

    Raises:
        UserError: transformers cannot open it, it has no safetensors, weights are missing, or it does not fit into memory.
    """
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} has no safetensors; other weight files are pickles, which can run code and are never opened here. "
            f"If you trust them, convert once: {converting(folder)}"
        )
    place = device or "cpu"
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("device", place, f"cannot be used here ({error})", "Use cpu, cuda or cuda:N.") from None
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # whatever its many classes raise
        remedy = "Fetch the folder again, or convert the model to a class that this transformers has."
        raise UserError(
            f"{folder}: transformers cannot open it as a causal language model ({error}). {remedy}"
        ) from None
    if missing := sorted(found["missing_keys"]):
        rule = f"the weights lack {len(missing)} tensors, such as {missing[0]}"
        raise UserError(f"{folder}: {rule}. The folder is incomplete: fetch or write it again.")
    with telling_memory():
        return model.to(place).eval()


def learned_positions(model: nn.Module, config: Any) -> int | None:
    """How many positions a model has learned, if it has learned any: there is no going beyond them."""
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.fullmatch(name)
    ]
    # GPT-J and its kin look their sines up in a table of that length.
    tables += [len(table) for name, table in model.named_buffers() if name.endswith("embed_positions")]
    stated = getattr(config, "max_position_embeddings", None)
    return min(tables if stated is None else [*tables, stated]) if tables else None


def rope_types(plain: Any) -> Iterator[str]:
    """The ``rope_type`` of every part of a configuration."""
    if isinstance(plain, dict):
        if isinstance(plain.get("rope_type"), str):
            yield plain["rope_type"]
        for value in plain.values():
            yield from rope_types(value)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers tells its own users: load reports, bars, advice on settings that are not in use."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def telling_memory() -> Iterator[None]:
    """Memory that runs out, in words for people."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        remedy = "Use shorter contexts, a narrower --dtype, or a machine with more memory."
        raise UserError(f"The model and its prompt do not fit into memory ({error}). {remedy}") from None
