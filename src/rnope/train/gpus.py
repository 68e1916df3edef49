"""GPUs by name: what they reach at most, and what they hold. Figures of NVIDIA's data sheets, dense, without sparsity."""

import re
from dataclasses import dataclass

from rnope.errors import unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU."""

    peaks: dict[str, float]
    """Precision of the products -> FLOP/s; fp32 without TF32. A precision that it lacks is not there."""
    memory_gib: int
    other: str = r"$^"
    """What in a device's name says that it is another make, with other peaks."""


GPUS: dict[str, Gpu] = {
    "A100": Gpu(peaks={"fp32": 19.5e12, "bf16": 312e12}, memory_gib=80),
    "H100": Gpu(peaks={"fp32": 67e12, "bf16": 989e12, "fp8": 1979e12}, memory_gib=80, other="PCIe|NVL"),
    "H200": Gpu(peaks={"fp32": 67e12, "bf16": 989e12, "fp8": 1979e12}, memory_gib=140, other="NVL"),
    "B200": Gpu(peaks={"fp32": 75e12, "bf16": 2250e12, "fp8": 4500e12}, memory_gib=179),
    "L40S": Gpu(peaks={"fp32": 91.6e12, "bf16": 362e12, "fp8": 733e12}, memory_gib=45),
    "RTX 4090": Gpu(peaks={"fp32": 82.6e12, "bf16": 165e12, "fp8": 330e12}, memory_gib=24, other="Laptop"),
}


def gpu_named(name: str) -> Gpu:
    """The GPU called `name`.

    Raises:
        ConfigError: there is none in the table.
    """
    if name not in GPUS:
        raise unknown("--gpu", name, "GPU in the table", GPUS)
    return GPUS[name]


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s that the device of this name, as torch gives it, reaches at most; None where the table does not know."""
    for name, gpu in GPUS.items():
        if re.search(rf"\b{name}\b", device_name) and not re.search(gpu.other, device_name):
            return gpu.peaks.get(precision)
    return None
