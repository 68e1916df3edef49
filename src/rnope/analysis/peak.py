"""The most memory that something takes, beside what was in use when the meter was made."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

from rnope.memory import status_bytes

_REFERENCES = Path("/proc/self/clear_refs")


class Peak:
    """A meter for `device`.

    Attributes:
        means: what `taken` counts, in words.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self.means = "the most tensor memory on the GPU, less the model's"
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self.means = "the most memory of the process, less what it had with the model open"
            _give_back()
            self._before = status_bytes("VmRSS")

    def reset(self) -> None:
        """Forget what was most so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _give_back()
            with suppress(OSError):  # no Linux, or one that forbids it: the process's most so far counts
                _REFERENCES.write_text("5")

    def taken(self) -> int | None:
        """Bytes since `reset`; None where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device)) - self._before
        most = status_bytes("VmHWM")
        return max(0, most - self._before) if most else None


def _give_back() -> None:
    """Let the C library hand freed memory to the system: what it keeps would hide what is taken anew."""
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)
