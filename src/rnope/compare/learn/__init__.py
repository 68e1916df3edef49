"""How the comparison's small models learn to find needles: one process, a curriculum that follows their accuracy.

Training on text, at any size and over many ranks, is `rnope.train`.
"""
