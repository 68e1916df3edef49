"""Attention, SwiGLU and cross-entropy as functions of tensors; they know nothing of layers.

`attend` is the one door to attention; behind it a backend is chosen by what it supports.
"""

from rnope.kernels.attend import BACKENDS, attend, check_backend, choose
from rnope.kernels.cross_entropy import IGNORED, cross_entropy
from rnope.kernels.swiglu import swiglu

__all__ = ["BACKENDS", "IGNORED", "attend", "check_backend", "choose", "cross_entropy", "swiglu"]
