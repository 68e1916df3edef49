"""JSON files of a model folder, and how a message names a few of many. It knows no field of any of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rnope.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        UserError: there is no such folder or file, or it holds something else.
    """
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


def some(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
