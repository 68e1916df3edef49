"""Which kind of model a name on the command line is, and opening it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from rnope.errors import ConfigError, UserError
from rnope.evals.models.model import EvalModel
from rnope.evals.models.transport import Address
from rnope.hf.configs import read_model_type
from rnope.hf.mapping import ARCHITECTURES

FORCED = "transformers:"
"""Before a folder: through transformers, even where rnope has an engine for it."""
_ADDRESS = "https?://"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """How models are opened; the same for all models of a run."""

    dtype: str | None = None
    """Of the weights, as stored if None."""
    device: str = "cpu"
    chunk: int = 2048
    """Tokens of a prompt that rnope's engine reads at once."""
    tokenizer: Path | None = None
    """For servers, which have none of their own here: a folder with the tokenizer.json of the served model."""
    timeout_seconds: float = 600.0
    """For servers: of one request."""
    send_text: bool = False
    """For servers that take no token ids: send the prompt's text."""
    concurrency: int = 1
    """For servers: requests that are out at the same time."""


def check_model(given: str) -> None:
    """Refuse what `open_model` cannot open for sure, without opening it: several models can be checked before the first.

    Raises:
        UserError: no such folder, or one without config.json; an address with a user, a password or a query in it, which
            it does not repeat.
    """
    if is_server(given):
        Address.parse(given, key="")
    elif not model_folder(given).is_dir():
        remedy = "Give a model folder, transformers:FOLDER, or the address of a server (http://HOST:PORT/v1#MODEL)."
        raise ConfigError("--model", given, "there is no such folder", remedy)
    else:
        read_model_type(model_folder(given))


def open_model(given: str, name: str, options: ModelOptions) -> EvalModel:
    """The model that `given` names: a folder, ``transformers:FOLDER``, or ``http://HOST/v1#MODEL``.

    Raises:
        UserError: no such folder, a kind that nothing here reads, or a server without a tokenizer.
    """
    check_model(given)
    if is_server(given):
        from rnope.evals.models.server import ServerModel

        return ServerModel(given, name=name, options=options)
    import torch

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    folder = model_folder(given)
    if not given.startswith(FORCED) and read_model_type(folder) in ARCHITECTURES:
        from rnope.evals.models.ours import EngineModel

        try:
            return EngineModel(folder, name=name, dtype=dtype, device=options.device, chunk=options.chunk)
        except UserError as error:
            here = isinstance(error, ConfigError) and error.field == "device"
            if here or read_model_type(folder) == "rnope":  # transformers would be of no help
                raise
            raise UserError(f"{error} (Or evaluate it through transformers: --model {FORCED}{given})") from None
    from rnope.evals.models.hub import TransformersModel

    return TransformersModel(folder, name=name, dtype=dtype, device=options.device)


def default_name(given: str) -> str:
    """What reports call a model when the user does not say: the last parts of its path, or the served name.

    Raises:
        UserError: an address that `check_model` refuses.
    """
    if is_server(given):
        address = Address.parse(given, key="")
        return _plain(address.model or re.sub(_ADDRESS, "", address.shown))
    path = Path(os.path.abspath(model_folder(given)))  # as written: a link's target may be called anything
    parts = [part for part in path.parts[-3:] if part != "/"]
    return _plain("-".join(parts[-1:] if parts[-1:] != ["model"] else parts))


def is_server(given: str) -> bool:
    """Whether `given` is an address and no folder."""
    return re.match(_ADDRESS, given) is not None


def model_folder(given: str) -> Path:
    """The folder that `given` names, if it names one."""
    return Path(os.path.expanduser(given.removeprefix(FORCED)))


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
