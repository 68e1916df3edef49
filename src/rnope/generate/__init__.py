"""Inference: caches of the size that each layer needs, an engine over them, sampling. Token ids in, token ids out; no text."""

from rnope.generate.engine import Engine, Generation
from rnope.generate.sampling import Greedy, Sample

__all__ = ["Engine", "Generation", "Greedy", "Sample"]
