"""Model folders as an evaluation identifies them: a digest of all that decides their answers but the tokenizer."""

import hashlib
from pathlib import Path

from rnope.errors import UserError

_PARTS = ("config.json", "generation_config.json", "*.safetensors")
"""generation_config.json has the stop ids."""


def folder_digest(folder: Path) -> str:
    """SHA-256 over config.json, generation_config.json and the weight files of a model folder, by name and content.

    Raises:
        UserError: a file cannot be read.
    """
    whole = hashlib.sha256()
    try:
        for path in sorted({path for part in _PARTS for path in folder.glob(part)}):
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error}). Mend it or fetch it again.") from None
    return whole.hexdigest()
