"""Whether a context fits into memory, asked before it is read. It knows what an engine allocates, and nothing of text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rnope.errors import ConfigError
from rnope.generate.cache import Slots, State
from rnope.memory import status_bytes

if TYPE_CHECKING:
    from rnope.generate.engine import Engine

_CGROUP = Path("/sys/fs/cgroup")


def check_room(engine: "Engine", wanted: Sequence[tuple[State, int]]) -> None:
    """Refuse contexts that would not fit.

    Args:
        wanted: states, and how many tokens each is to have.

    Raises:
        ConfigError: says how many tokens would fit.
    """
    free = free_bytes(engine.device)
    if free is None:
        return
    needed = _needed(engine, wanted)
    if needed <= free:
        return
    low, high = 0, max(tokens for _, tokens in wanted)
    while low < high:  # The largest context that all of them could have.
        middle = (low + high + 1) // 2
        if _needed(engine, [(state, min(tokens, middle)) for state, tokens in wanted]) <= free:
            low = middle
        else:
            high = middle - 1
    raise ConfigError(
        "prompt and new tokens",
        max(tokens for _, tokens in wanted),
        f"{len(wanted)} context(s) of so many tokens need {needed / 2**30:,.2f} GiB, and {free / 2**30:,.2f} GiB are free",
        f"At most {low:,} tokens fit: shorten them, or use fewer sequences or a 16-bit dtype.",
    )


def _needed(engine: "Engine", wanted: Sequence[tuple[State, int]]) -> int:
    """Bytes that are not allocated yet: caches in whole blocks, the largest one twice while it grows, and a chunk."""
    added = moving = 0
    taken: set[Slots] = set()
    for state, tokens in wanted:
        for layer in state.layers:
            slots, count = layer.slots, layer.slots_for(tokens)
            if count <= slots.count and slots not in taken and not layer.overwrites():
                taken.add(slots)  # It goes on where it is; of several forks one can.
                continue
            freed = slots.bytes if len(slots.readers) == 1 else 0
            added += max(count, slots.count) * layer.token_bytes - freed
            moving = max(moving, freed)
    return added + moving + chunk_bytes(engine)


def chunk_bytes(engine: "Engine") -> int:
    """About what one chunk holds at the widest place of a layer, and a row of logits."""
    config, size = engine.config, engine.dtype.itemsize
    values = 6 * config.width + 3 * config.ffn_width + 4 * config.heads * config.head_size
    return engine.prefill_chunk_tokens * values * size + 8 * config.vocab_size


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on `device`, within a container's limit; None where it cannot be known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type != "cpu":
        return None
    bounds = []
    ours = status_bytes("RssFile")  # files that this process has mapped, weights among them: "available", and needed
    for line in _lines(Path("/proc/meminfo")):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            bounds.append(max(0, int(value.split()[0]) * 1024 - ours))
    limit, used = _lines(_CGROUP / "memory.max"), _lines(_CGROUP / "memory.current")
    if limit and used and limit[0].isdigit():
        # Pages of files that were read count as used, and are given up on demand.
        stat = dict(line.split() for line in _lines(_CGROUP / "memory.stat"))
        inactive, active = (int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
        bounds.append(max(0, int(limit[0]) - int(used[0]) + min(inactive, max(0, inactive + active - ours))))
    return min(bounds, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
