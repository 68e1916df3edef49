"""What a run says of itself while it goes: ``log.jsonl``, TensorBoard, and the loss by position in the context."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnope.errors import UserError
from rnope.files import write_text
from rnope.memory import status_bytes

BUCKETS = 8
"""Ranges of positions, each but the first twice as long as the one before."""
Point = dict[str, Any]


def position_edges(row_tokens: int) -> list[int]:
    """Ends of the ranges of positions in a row: ``T / 128, T / 64, …, T``, without those that would be empty."""
    return sorted({max(1, row_tokens >> shift) for shift in range(BUCKETS)})


def by_position(each: Tensor, counted: Tensor, positions: Tensor, edges: list[int]) -> Tensor:
    """Sums of losses, and counts, by range of positions: float64 [2, ranges].

    Args:
        each: losses [n, t].
        counted: which of them have a target [n, t].
        positions: of the columns [t].
        edges: as `position_edges` gives them.
    """
    places = torch.bucketize(positions, torch.tensor(edges, device=positions.device), right=True)
    sums = torch.zeros(2, len(edges), dtype=torch.float64, device=each.device)
    sums[0].index_add_(0, places, each.double().sum(0))
    sums[1].index_add_(0, places, counted.double().sum(0))
    return sums


def position_losses(sums: Tensor, edges: list[int]) -> dict[str, float]:
    """Mean loss by range, ``"0-63"`` and so on; ranges without a target are left out."""
    ranges = [f"{a}-{b - 1}" for a, b in pairwise([0, *edges])]
    return {
        name: total / count
        for name, total, count in zip(ranges, sums[0].tolist(), sums[1].tolist(), strict=True)
        if count
    }


class Log:
    """``log.jsonl`` of a stage, one object a line, and with it TensorBoard's events where they are asked for.

    Args:
        folder: of the stage.
        step: of the checkpoint that the run goes on from: what a killed run wrote beyond it is dropped.
        tensorboard: whether to write events to ``folder/tensorboard``.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        self.path = folder / "log.jsonl"
        kept = [line for line in _lines(self.path) if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "TensorBoard is not installed. Run `pip install tensorboard`, or leave it out."
                ) from None
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, point: Point) -> None:
        """Add a line; every number in it, nested ones too, becomes a scalar of TensorBoard."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(point)) + "\n")
        if self._writer is not None:
            for name, value in _flat(point).items():
                self._writer.add_scalar(name, value, point["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _lines(path: Path) -> list[Point]:
    """The whole lines of a log; a kill may have left half of one at the end."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN: such a number is written as null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(point: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in point.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            found[prefix + name] = value
    return found


def memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of its GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return status_bytes("VmHWM")
