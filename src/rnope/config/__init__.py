"""What recipes say, as frozen dataclasses of plain values: `comparison` for `rnope compare`, `training` for `rnope train`.

No torch, and no files (`rnope.recipes` reads those).
"""

from rnope.config.comparison import Arm, Needles, Optimizer, Pair, Pattern, Quantity, Recipe, Setting, Stage, Sweep

__all__ = ["Arm", "Needles", "Optimizer", "Pair", "Pattern", "Quantity", "Recipe", "Setting", "Stage", "Sweep"]
