"""What the system says of this process's memory; nothing of GPUs."""

from pathlib import Path

_STATUS = Path("/proc/self/status")


def status_bytes(name: str) -> int:
    """A line of /proc/self/status in bytes, for example ``VmHWM``, the most that was resident; 0 on systems without it."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
