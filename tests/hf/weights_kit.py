"""The tiny model in one file and in four, with lively norms, and looking at what lies in a folder. For tests of weights."""

import json

import torch

from rnope.testing import tiny_model

SHARD = 40_000
"""Splits the tiny model of 135,936 bytes into four files."""


def same(a, b):
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(x == y and s.dtype == t.dtype and torch.equal(s, t) for (x, s), (y, t) in pairs)


def files(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def index(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())


def lively(variant="rnope-swa", **overrides):
    """A tiny model whose norms are not all one."""
    model = tiny_model(variant, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return model
