"""Where and when a measurement was made: processor, GPU, versions, source revision, load. It measures nothing."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
"""Flags of /proc/cpuinfo that decide how fast products are."""
PACKAGES = ("torch", "transformers", "llama-cpp-python", "gguf", "numpy")


def machine(device: str) -> dict[str, Any]:
    """What must be alike in runs that share a file: processor, GPU, and the versions that compute."""
    cpu = _cpuinfo()
    found: dict[str, Any] = {
        "processor": cpu.get("model name", platform.processor() or "unknown"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in FEATURES if name in cpu.get("flags", "").split()],
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def session(command: str) -> dict[str, Any]:
    """What may differ from run to run: date, command, source revision, load average at the start."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "revision": _revision(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The commit of the source tree, with a ``+`` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--", str(here.parent)))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0].strip() + ("+" if found[1].strip() else "")
