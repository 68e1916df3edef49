"""Training on many devices: which ranks there are (`mesh`), who has which part of a row (`sequence`), and what is done to
a plain model so that they share its work and its weights (`apply`, `float8`).

PyTorch's own means: torchrun, DeviceMesh, FSDP2. It knows nothing of data, schedules or checkpoints, and `rnope.model`
knows nothing of it.
"""
