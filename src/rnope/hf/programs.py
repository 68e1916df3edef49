"""What opens a model besides `rnope`: transformers, vLLM and llama.cpp, each with its name for the model or why not.

It asks `mapping` and `gguf` what their formats can say and adds what is vLLM's own. It runs none of the programs: what was
run, and in which versions, stands in docs/serving.md.
"""

from dataclasses import dataclass

from rnope.errors import ConfigError, shown
from rnope.hf.mapping import ARCHITECTURES, model_type, obstacles
from rnope.model.spec import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Opens:
    """One program and one configuration."""

    program: str
    architecture: str | None
    """The program's name for the model; None where it cannot open it."""
    reasons: tuple[str, ...] = ()
    """Why it cannot, a sentence each."""
    options: str = ""
    """What the program must be told on its command line to compute the same."""


def programs(config: ModelConfig) -> tuple[Opens, ...]:
    """transformers and vLLM for the folder of `config`, llama.cpp for its GGUF file."""
    return _transformers(config), _vllm(config), _llama_cpp(config)


def _transformers(config: ModelConfig) -> Opens:
    reasons = obstacles(config)
    architecture = None if reasons else ARCHITECTURES[model_type(config)]
    return Opens(program="transformers", architecture=architecture, reasons=reasons)


def _vllm(config: ModelConfig) -> Opens:
    """As its model_executor/models/commandr.py has it since 0.29: one class for both architectures, windows one wider."""
    theirs = _transformers(config)
    reasons, window = theirs.reasons, max((spec.window or 0 for spec in config.layers), default=0)
    if window == 1:
        reasons += ("It has a window of 1 token; vLLM adds one to the window of the folder, which must be 1 or more.",)
    if reasons:
        return Opens(program="vLLM", architecture=None, reasons=reasons)
    options = f"--hf-overrides '{{\"sliding_window\": {window - 1}}}'" if window else ""
    return Opens(program="vLLM", architecture=theirs.architecture, options=options)


def _llama_cpp(config: ModelConfig) -> Opens:
    from rnope.hf.gguf import architecture  # loads torch

    try:
        name, _ = architecture(config)
    except ConfigError as error:
        reason = f"{error.field} = {shown(error.value)}: {error.rule}."
        return Opens(program="llama.cpp", architecture=None, reasons=(reason,))
    return Opens(program="llama.cpp", architecture=name)
