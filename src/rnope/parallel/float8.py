"""Products of a decoder's matrices in 8 bits, by torchao, which is an extra. It knows no mesh.

Scales are one a tensor and found anew for every product; weights stay as they are and are cast where they are used.
Embedding and head stay in 16 bits, and so does attention. On a CPU float8 is emulated: the same rounding, no gain.
"""

import importlib.metadata

import torch
from torch import nn

from rnope.errors import ConfigError, check
from rnope.model.decoder import Decoder

TORCHAO, TORCH = (0, 14), (2, 11)
"""The oldest versions that this was tried with. torchao's package names no torch, and with one that does not fit it leaves
out parts of itself with no more than a warning."""
CAPABILITY = (8, 9)
"""Of the first GPUs with float8 products."""
MULTIPLE = 16
"""Sizes of a float8 product are multiples of this."""


def use_float8(model: Decoder, device: torch.device) -> None:
    """Have the matrices of all blocks whose sizes allow it compute in float8.

    Raises:
        ConfigError: torchao is missing, it or torch is too old, the GPU has no float8, or no matrix allows it.
    """
    _check(device)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    fitting = {id(module) for module in model.modules() if isinstance(module, nn.Linear) and _fits(module)}
    if not fitting:
        rule = f"no matrix of this model has two sizes that are multiples of {MULTIPLE}"
        raise ConfigError("precision", "fp8", rule, "Use bf16, or other widths.")
    convert_to_float8_training(
        model,
        module_filter_fn=lambda module, _name: id(module) in fitting,
        config=Float8LinearConfig(emulate=device.type == "cpu"),
    )


def _fits(module: nn.Linear) -> bool:
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _check(device: torch.device) -> None:
    try:
        version = importlib.metadata.version("torchao")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "precision",
            "fp8",
            "needs torchao, which is not installed",
            "Run: pip install 'rnope[float8]', or use bf16.",
        ) from None
    for name, found, least in (("torchao", version, TORCHAO), ("torch", torch.__version__, TORCH)):
        wanted = f"{name} {least[0]}.{least[1]} or newer"
        ok = tuple(int(part) for part in found.split(".")[:2]) >= least
        check("precision", "fp8", ok, f"needs {wanted}, and here is {found}", f"Install {wanted}, or use bf16.")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError("precision", "fp8", f"{name} has no float8 products", "Use bf16, or an H100 or newer.")
