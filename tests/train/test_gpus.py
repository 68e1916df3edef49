"""GPUs by name, as a user writes them and as torch says them."""

import pytest

from rnope.errors import ConfigError
from rnope.train.gpus import GPUS, gpu_named, peak_flops


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "fp8", 1979e12),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
        ("NVIDIA H200", "fp32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp8", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GB200", "bf16", None),
        ("cpu", "fp32", None),
        ("", "bf16", None),
    ],
)
def test_peak_of_a_device(device, precision, peak):
    assert peak_flops(device, precision) == peak


def test_faster_in_fewer_bits():
    for gpu in GPUS.values():
        assert gpu.peaks["fp32"] < gpu.peaks["bf16"] < gpu.peaks.get("fp8", 1e18)


def test_a_gpu_by_name():
    assert gpu_named("H200").memory_gib == 140
    with pytest.raises(ConfigError, match=r"--gpu = 'H10': no such GPU in the table\. Did you mean 'H100'"):
        gpu_named("H10")
