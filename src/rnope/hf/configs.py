"""What the JSON files of a model folder say, read without its weights and without torch.

Also what of one folder goes along when new weights are saved in its place. What the fields mean is `mapping`'s business.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnope.errors import ConfigError, UserError
from rnope.hf.keys import CODE, context_key
from rnope.hf.mapping import from_hf
from rnope.hf.reading import read_json
from rnope.model.spec import ModelConfig
from rnope.strict import to_plain

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "*.jinja",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a folder says beyond its architecture and its weights."""

    config: Mapping[str, Any]
    """All of config.json."""
    generation: Mapping[str, Any] | None
    """All of generation_config.json, where there is one."""
    tokenizer: Mapping[str, bytes]
    """Its tokenizer's files, name -> content."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """As `read_stop_ids`."""
        return _stop_ids(self.generation or {}, self.config)


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The architecture of a model folder, without its weights.

    Raises:
        UserError: as `load`.
    """
    path = Path(folder).expanduser() / CONFIG
    return config_of(read_json(path), path)


def config_of(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """`from_hf`, its errors named by the file that `raw` was read from."""
    try:
        return from_hf(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.field}", error.value, error.rule, error.remedy) from None


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Where the model of a folder came from, as `save` was told; empty for a model that others wrote."""
    block = read_json(Path(folder).expanduser() / CONFIG).get("rnope")
    found = block.get("provenance") if isinstance(block, dict) else None
    return found if isinstance(found, dict) else {}


def read_context_tokens(folder: str | os.PathLike[str]) -> int:
    """The longest trained context of a model folder, as its config.json has it.

    Raises:
        UserError: the file cannot be read, or has no such number.
    """
    path = Path(folder).expanduser() / CONFIG
    raw = read_json(path)
    return _context_tokens(raw, context_key(raw), path)


def _context_tokens(raw: Mapping[str, Any], key: str, path: Path) -> int:
    found = raw.get(key)
    if type(found) is not int or not 1 <= found < 2**31:
        rule, remedy = "must be a whole number in 1 … 2^31", "Write the longest context it was trained on."
        raise ConfigError(f"{path}: {key}", found, rule, remedy)
    return found


def read_model_type(folder: str | os.PathLike[str]) -> str | None:
    """The ``model_type`` of a folder's config.json, whichever class wrote it."""
    found = read_json(Path(folder).expanduser() / CONFIG).get("model_type")
    return found if isinstance(found, str) else None


def read_stop_ids(folder: str | os.PathLike[str]) -> tuple[int, ...]:
    """Ids of the tokens that end a text: those of generation_config.json where it has some, else of config.json."""
    path = Path(folder).expanduser()
    return _stop_ids(*(read_json(file) for file in (path / GENERATION, path / CONFIG) if file.exists()))


def _stop_ids(*tables: Mapping[str, Any]) -> tuple[int, ...]:
    for table in tables:
        found = table.get("eos_token_id")
        ids = found if isinstance(found, list) else [found]
        if ids and all(type(i) is int for i in ids):
            return tuple(ids)
    return ()


def read_kept(folder: str | os.PathLike[str]) -> Kept:
    """What goes along from `folder`. Nothing of it that names code does.

    Raises:
        UserError: it is no model folder that `rnope` reads.
    """
    path = Path(folder).expanduser()
    raw = read_json(path / CONFIG)
    config_of(raw, path / CONFIG)
    for key in ("max_position_embeddings", "model_max_length"):
        if raw.get(key) is not None:
            _context_tokens(raw, key, path / CONFIG)  # refused here rather than handed on
    found = read_json(path / GENERATION) if (path / GENERATION).exists() else None
    generation = None if found is None else {key: value for key, value in found.items() if key not in CODE}
    _check_writable(path / CONFIG, raw)
    _check_writable(path / GENERATION, generation or {})
    names = sorted({file.name for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()})
    try:
        return Kept(
            config=raw, generation=generation, tokenizer={name: tokenizer_content(path / name) for name in names}
        )
    except OSError as error:
        raise UserError(
            f"{path}: a file of its tokenizer cannot be read ({error}). Mend it, or take it away."
        ) from None


def _check_writable(path: Path, table: Mapping[str, Any]) -> None:
    """Refuse what Python reads from a file and is no JSON in UTF-8: NaN, half a surrogate pair, lists without end."""
    for key, value in table.items():
        try:
            json.dumps(to_plain({key: value}), indent=2, allow_nan=False, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError):
            raise ConfigError(f"{path}: {key}", value, "is no JSON that could be handed on", "Mend it.") from None


def tokenizer_content(path: Path) -> bytes:
    """A file of a tokenizer as it is, or without what would name code."""
    if path.name != TOKENIZER_CONFIG:
        return path.read_bytes()
    raw = read_json(path)
    if not CODE & set(raw):
        return path.read_bytes()
    return json.dumps({k: v for k, v in raw.items() if k not in CODE}, indent=2, ensure_ascii=False).encode()
