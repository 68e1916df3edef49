"""What stages make of a model's layers. No torch."""

from collections.abc import Iterable

from rnope.config import Stage
from rnope.model.spec import LayerSpec, ModelConfig


def layers_in(config_: ModelConfig, stage: Stage) -> tuple[LayerSpec, ...]:
    """The model's layers as `stage` changes them: theta and window of RoPE layers, window of windowed ones (T5)."""
    return tuple(
        spec.staged(theta=stage.theta, window=stage.window, rope_window=stage.rope_window) for spec in config_.layers
    )


def chain_config(config: ModelConfig, stages: Iterable[Stage]) -> ModelConfig:
    """The model as the last of `stages` has it."""
    for stage in stages:
        config = config.with_layers(layers_in(config, stage))
    return config
