"""What stages make of a model's layers. No torch."""

from collections.abc import Iterable
from dataclasses import replace

from rnope.config import Stage
from rnope.model.spec import LayerSpec, ModelConfig


def layers_in(config_: ModelConfig, stage: Stage) -> tuple[LayerSpec, ...]:
    """The model's layers as `stage` changes them: theta and window of RoPE layers, window of windowed ones (T5)."""

    def changed(spec: LayerSpec) -> LayerSpec:
        theta = stage.theta if stage.theta and spec.theta else spec.theta
        window = stage.window if stage.window and spec.window else spec.window
        if stage.rope_window and spec.position == "rope":
            window = stage.rope_window
        return replace(spec, theta=theta, window=window)

    return tuple(changed(spec) for spec in config_.layers)


def chain_config(config: ModelConfig, stages: Iterable[Stage]) -> ModelConfig:
    """The model as the last of `stages` has it."""
    for stage in stages:
        config = config.with_layers(layers_in(config, stage))
    return config
