"""Hybrid attention done right: RoPE in sliding windows, full attention without positions, compared fairly.

Importing this package loads no torch; the names below do, on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnope.generate import Engine as Engine
    from rnope.generate import Greedy as Greedy
    from rnope.generate import Sample as Sample
    from rnope.hf.folder import load as load
    from rnope.hf.folder import save as save
    from rnope.model.decoder import Decoder as Decoder
    from rnope.model.spec import LayerSpec as LayerSpec
    from rnope.model.spec import ModelConfig as ModelConfig

__version__ = "0.1.0"
_PUBLIC = {
    "Decoder": "rnope.model.decoder",
    "Engine": "rnope.generate",
    "Greedy": "rnope.generate",
    "LayerSpec": "rnope.model.spec",
    "ModelConfig": "rnope.model.spec",
    "Sample": "rnope.generate",
    "load": "rnope.hf.folder",
    "save": "rnope.hf.folder",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'rnope' has no attribute {name!r}")
