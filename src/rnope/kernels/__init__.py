"""Attention over causal, windowed and packed sequences, by several backends that must agree.

Kernels sit below the model: they know tensors, windows and positions, and nothing about layers, caches or training.
"""

from rnope.kernels.attend import attend, check_backend, choose

__all__ = ["attend", "check_backend", "choose"]
