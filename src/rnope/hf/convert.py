"""A trained model's weights with the layers of another variant: the folder from which training goes on to the hybrid.

As the paper makes RNoPE-10k-swa of RNoPE-10k (2.2.3). Weights pass as they are from one folder, memory-mapped and whoever
wrote it, to another. It trains nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_config, read_context_tokens, read_provenance
from rnope.hf.folder import load, refuse_foreign, save_state
from rnope.hf.mapping import obstacles
from rnope.hf.weights import digest
from rnope.model.spec import ModelConfig

_FLAGS = {"variant": "--to", "window": "--window"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """What becomes of a model's layers."""

    folder: Path
    """Of the model as it is."""
    variant: str
    before: ModelConfig
    after: ModelConfig
    notes: tuple[str, ...]
    """What a reader of the layer tables should know, a sentence each."""


def conversion(folder: str | os.PathLike[str], variant: str, *, window: int | None = None) -> Conversion:
    """What `convert` would do; no weights are looked at.

    Args:
        folder: of a model of type `cohere` or `cohere2`, or of `rnope`'s own.
        variant: one of `rnope.model.spec.VARIANTS`.
        window: of its windowed layers, in tokens, the current one counted; None where it has none.

    Raises:
        UserError: no such model, or one that cannot have these layers: see `ModelConfig.converted`.
    """
    path = Path(folder).expanduser()
    before = read_config(path)
    try:
        after = before.converted(variant, window=window)
    except ConfigError as error:
        if error.field == "num_layers":
            remedy = "Choose a variant whose group divides that."
            raise ConfigError("--to", variant, f"{error.rule}, and the model has {error.value}", remedy) from None
        raise ConfigError(_FLAGS.get(error.field, error.field), error.value, error.rule, error.remedy) from None
    if after == before:
        raise ConfigError("--to", variant, f"the layers of {str(path)!r} are these already", "There is nothing to do.")
    notes, context = [], read_context_tokens(path)
    if window is not None and window >= context:
        notes.append(
            f"The window of {window:,} tokens holds the whole trained context of {context:,}: it cuts off nothing there."
        )
    if obstacles(after):
        notes.append(
            f"No class of transformers can say these layers; only rnope opens the folder. {obstacles(after)[0]}"
        )
    return Conversion(folder=path, variant=variant, before=before, after=after, notes=tuple(notes))


def convert(plan: Conversion, out: str | os.PathLike[str]) -> None:
    """Write the weights of `plan`'s folder with the new layers to `out`, as a folder of its own: no file is shared.

    Tokenizer, generation_config.json and whatever else config.json says go along. The ``rnope`` block says what it was
    converted from: layers, digest of the weights, and the provenance that was there.

    Raises:
        UserError: `out` is the model's own folder, or taken; or the weights cannot be read. Nothing is left then.
    """
    if Path(out).expanduser().resolve() == plan.folder.resolve():
        raise UserError(f"{out} is the model's own folder, and stays as it is. Choose another --out.")
    refuse_foreign(Path(out).expanduser().resolve())  # now, and not when all weights have been read
    source = {
        "layers": [line.strip() for line in plan.before.layer_table().splitlines()],
        "weights": digest(plan.folder),
        "provenance": read_provenance(plan.folder),
    }
    save_state(
        plan.after,
        load(plan.folder).state_dict(),
        out,
        provenance={"converted": {"to": plan.variant, "from": source}},
        like=plan.folder,
    )
