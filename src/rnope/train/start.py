"""Models that training goes on from: what a recipe must know of such a folder, and its weights, to each rank its part."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from rnope.config.training import Start, TrainingRecipe
from rnope.errors import ConfigError, UserError, check
from rnope.hf.configs import read_config, read_context_tokens, read_kept, read_provenance
from rnope.hf.folder import load
from rnope.hf.weights import digest
from rnope.model.decoder import Decoder
from rnope.parallel.mesh import Mesh
from rnope.tokenizer import Tokenizer


def opened(recipe: TrainingRecipe, folder: Path | None = None) -> TrainingRecipe:
    """`recipe` with what is in the folder that its models start from; as it is where they are fresh.

    Args:
        folder: over the one that the recipe names.

    Raises:
        UserError: no folder, or one too many; one that holds no model or no tokenizer; stages that do not fit the model.
    """
    if recipe.start is None:
        if folder is not None:
            remedy = 'Leave it out, or use a recipe with start = "", such as uptrain.'
            raise ConfigError("--start", str(folder), f"the models of recipe {recipe.name!r} are fresh", remedy)
        return recipe
    place = str(folder) if folder is not None else recipe.start
    check("start", place, bool(place), "the model's folder is not given", "Give it with --start FOLDER.")
    path = Path(place).expanduser()
    read_kept(path)  # What the trained models are handed on of it is refused now, not when they are saved.
    start = Start(
        config=read_config(path),
        weights=digest(path),
        tokenizer=Tokenizer.load(path).digest,
        context_tokens=read_context_tokens(path),
        provenance=read_provenance(path),
    )
    origins = recipe.origins if folder is None else {**recipe.origins, "start": "given"}
    return replace(recipe, start=str(path), opened=start, origins=origins)


@torch.no_grad()
def fill(model: Decoder, folder: Path, mesh: Mesh) -> None:
    """Give every rank its part of the weights in `folder`, in float32.

    Each reads its own part of the memory-mapped files; the first compares all of them with their digests.

    Raises:
        UserError: as `load`; a weight is not finite, from which no step could be taken.
    """
    source = load(folder, verify=mesh.rank == 0)
    for name, weight in model.named_parameters():
        whole = source.get_parameter(name)
        if mesh.rank == 0 and not all(end.isfinite() for end in whole.aminmax()):
            raise UserError(f"{folder}: {name} has numbers that are not finite. Start from a model that works.")
        if isinstance(weight, DTensor):  # FSDP2 gives ranks equal pieces of the first dimension, the last ones less
            place, rows = weight.device_mesh.get_local_rank(), -(-len(whole) // mesh.ranks)
            weight.to_local().copy_(whole[place * rows : (place + 1) * rows])
        else:
            weight.copy_(whole)
