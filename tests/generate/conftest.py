"""Models none of whose weights is a constant, and texts."""

from functools import cache

import pytest
import torch

from rnope.generate import cache as caches
from rnope.model.decoder import Decoder
from rnope.model.spec import LayerSpec
from rnope.testing import tiny_model


def with_norms(model, seed):
    """`model`, its norms not all ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.requires_grad_(False)


@cache
def stirred(variant="rnope-swa", seed=0, **overrides):
    return with_norms(tiny_model(variant, seed, **overrides), seed + 1)


@pytest.fixture(scope="session")
def model():
    """Makes models, each once: ``model(variant="rnope-swa", seed=0, **overrides)``. Leave them as they are."""
    return stirred


@pytest.fixture(scope="session")
def every_kind():
    """A model with all kinds of layer: windows, NoPE and RoPE in full, each with QK-Norm and without."""
    specs = [
        LayerSpec(position=position, theta=theta, window=window, qk_norm=qk_norm)
        for position, theta in (("rope", 1e4), ("nope", None))
        for window in (5, None)
        for qk_norm in (True, False)
    ]
    return with_norms(Decoder(stirred().config.with_layers(tuple(specs)), seed=2), 3)


@pytest.fixture(scope="session")
def text():
    """Makes token ids: ``text(length, seed=7)``, a list."""

    def make(length, seed=7):
        return torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    return make


@pytest.fixture
def small_blocks(monkeypatch):
    """Slots in blocks of 8, so that short texts fill several."""
    monkeypatch.setattr(caches, "BLOCK_TOKENS", 8)
    return 8
