"""What recipes say, as frozen dataclasses of plain values: `comparison` for `rnope compare`, `training` for `rnope train`.

No torch, and no files (`rnope.recipes` reads those).
"""

from rnope.config.comparison import (
    Arm,
    Execution,
    Needles,
    Optimizer,
    Pair,
    Pattern,
    Quantity,
    Recipe,
    Setting,
    Stage,
    Sweep,
)
from rnope.config.measured import TASKS, Costs, Losses, Task, TaskName, Tasks

__all__ = [
    "TASKS",
    "Arm",
    "Costs",
    "Execution",
    "Losses",
    "Needles",
    "Optimizer",
    "Pair",
    "Pattern",
    "Quantity",
    "Recipe",
    "Setting",
    "Stage",
    "Sweep",
    "Task",
    "TaskName",
    "Tasks",
]
