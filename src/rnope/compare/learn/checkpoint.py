"""Checkpoints of a stage: weights, optimizer state and a few numbers in one file, written beside and renamed.

Read with ``weights_only``: nothing is unpickled.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer

from rnope.errors import UserError
from rnope.files import beside
from rnope.model.decoder import Decoder


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a stage stands; with the weights and the optimizer state, all that a resumed run needs."""

    step: int = 0
    """Steps done."""
    phase: int = 0
    """Index into the stage's curriculum, its full length last."""
    phase_steps: int = 0
    running: float = 0.0
    """Running needle accuracy of the training rows."""
    skipped: int = 0
    """Steps left out because their gradient was not finite."""
    seconds: float = 0.0
    loss: float = 0.0
    promotions: dict[str, int] = field(default_factory=dict)
    """Row length -> step at which it began."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry every few steps: step, context_tokens, loss, accuracy."""


def save_checkpoint(path: Path, model: Decoder, optimizers: list[Optimizer], progress: Progress) -> None:
    """Write everything to `path`, whole or not at all."""
    state = {
        "format": 1,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "progress": {name: getattr(progress, name) for name in Progress.__dataclass_fields__},
    }
    try:
        with beside(path) as place, place.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch's writer hides a full disk behind an error of its own
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote.

    Raises:
        UserError: the file is damaged, or not a checkpoint.
    """
    remedy = "Delete it: the stage then starts over."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of another kind, which are refused in any case
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly anything, KeyError and EOFError too
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a checkpoint ({why}). {remedy}") from None
    if not isinstance(state, Mapping) or state.get("format") != 1:
        raise UserError(f"{path}: is no checkpoint of this version. {remedy}")
    return cast(dict[str, Any], state)


def restore(state: Mapping[str, Any], model: Decoder, optimizers: list[Optimizer]) -> Progress:
    """Put a checkpoint's weights and optimizer state into place."""
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])
