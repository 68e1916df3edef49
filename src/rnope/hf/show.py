"""What a configuration is, in words for a terminal: layers, parameters, cache, and the keys that mean nothing here."""

from collections.abc import Sequence
from pathlib import Path

from rnope.errors import shown
from rnope.hf.configs import CONFIG, config_of
from rnope.hf.keys import KEYS, context_key
from rnope.hf.mapping import obstacles
from rnope.hf.reading import read_json
from rnope.model.accounting import cache_bytes, parameters
from rnope.model.spec import ModelConfig

LENGTHS = (8192, 32768, 131072)
_WITHOUT_USE = {
    "unknown": "unknown to rnope",
    "bookkeeping": "changes nothing here",
    "code": "names code, which is never run",
}


def sizes(config: ModelConfig, lengths: Sequence[int] = LENGTHS) -> str:
    """Layer table, parameters, and the cache at each number of tokens."""
    cache = ", ".join(f"{cache_bytes(config, n) / 2**30:.3g} GiB at {n:,}" for n in lengths)
    counted = f"{parameters(config):>13,} parameters; cache of a sequence in 16 bits: {cache} tokens"
    return f"{config.layer_table()}\n{counted}\n"


def file_sizes(path: Path) -> str:
    """`sizes` of a model folder or a config.json at its own context, and what of the file changes nothing of that.

    Raises:
        UserError: the file cannot be read, or says a model that `rnope` cannot compute.
    """
    file = path / CONFIG if path.is_dir() else path
    raw = read_json(file)
    config = config_of(raw, file)
    context = raw.get(context_key(raw))
    lengths = [context] if type(context) is int and 1 <= context < 2**31 else LENGTHS
    lines = [f"{path}: {raw['model_type']}", sizes(config, lengths).rstrip()]
    lines += [f"{'':9}opens in rnope only: {reason}" for reason in obstacles(config)]
    for kind, words in _WITHOUT_USE.items():
        keys = sorted(key for key in raw if KEYS.get(key, "unknown") == kind)
        found = [f"{key if key.isprintable() else shown(key)} = {shown(raw[key])}" for key in keys]
        lines += [f"{'':9}{words}: {', '.join(found)}"] if found else []
    return "\n".join(lines) + "\n"
