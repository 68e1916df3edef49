"""What stages make of a model. No torch."""

from collections.abc import Iterable

from rnope.config import Stage
from rnope.model.spec import ModelConfig


def chain_config(config: ModelConfig, stages: Iterable[Stage]) -> ModelConfig:
    """The model as the last of `stages` has it."""
    for stage in stages:
        config = stage.changed(config)
    return config


def chain_variant(variant: str, stages: Iterable[Stage]) -> str:
    """Whose layers a model that began as `variant` has after `stages`."""
    return [variant, *(stage.variant for stage in stages if stage.variant)][-1]
