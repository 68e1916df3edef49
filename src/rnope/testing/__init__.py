"""Test kit for what is built on `rnope`: models small enough to run anywhere in milliseconds, and many ranks on one
machine. It knows no test framework."""

from typing import Any

from rnope.model.decoder import Decoder
from rnope.model.spec import VARIANTS, ModelConfig
from rnope.testing.distributed import run_distributed

__all__ = ["run_distributed", "tiny_model"]


def tiny_model(variant: str = "rnope-swa", seed: int = 0, **overrides: Any) -> Decoder:
    """A fresh decoder of size ``tiny`` (width 32, window 5, vocabulary 97) in float32 on the CPU.

    Args:
        variant: one of `rnope.model.spec.VARIANTS`. Four layers, or one whole group where that is longer.
        seed: of its weights.
        overrides: as `ModelConfig.variant` takes them.

    Raises:
        ConfigError: as `ModelConfig.variant`.
    """
    if variant in VARIANTS:
        overrides = {"num_layers": max(4, len(VARIANTS[variant].group))} | overrides
    return Decoder(ModelConfig.variant(variant, size="tiny", **overrides), seed=seed)
