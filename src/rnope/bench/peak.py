"""Peak memory of one prefill in a process that does nothing else: ``python -m rnope.bench.peak JOB``, JOB as JSON.

Counted is what comes on top of the libraries: the process has already read a short prompt with another model, so that
code, thread pools and workspaces are there.
"""

import gc
import json
import sys
from typing import Any

import torch

from rnope.bench.limits import set_threads
from rnope.bench.memory import plan_of, thin
from rnope.bench.ours import default_dtype
from rnope.bench.plan import DTYPES
from rnope.generate import Engine
from rnope.generate.room import chunk_bytes
from rnope.memory import status_bytes
from rnope.model.accounting import parameters
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.train.metrics import memory_bytes


def peak(job: dict[str, Any]) -> dict[str, int]:
    """Bytes of `job`: ``peak_bytes`` on top of the ``baseline_bytes``, and of what it consists."""
    set_threads(job["threads"])
    device, dtype = torch.device(job["device"]), getattr(torch, DTYPES[job["dtype"]])
    config, chunk = plan_of(job), job["chunk_tokens"]
    run(thin(config), min(job["tokens"], 2 * config_window(config) + 1), chunk, device, dtype)
    gc.collect()
    baseline = now_bytes(device)
    engine, cache = run(config, job["tokens"], chunk, device, dtype)
    return {
        "baseline_bytes": baseline,
        "peak_bytes": memory_bytes(device) - baseline,
        "weight_bytes": parameters(config) * dtype.itemsize,
        "cache_bytes": cache,
        "chunk_bytes": chunk_bytes(engine),
    }


def run(
    config: ModelConfig, tokens: int, chunk_tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[Engine, int]:
    """(engine, cache bytes) after a prefill of `tokens` random tokens; weights are made in `dtype` at once."""
    with device, default_dtype(dtype):
        model = Decoder(config).requires_grad_(False)
    engine = Engine(model, prefill_chunk_tokens=chunk_tokens)
    ids = torch.randint(0, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    return engine, engine.prefill(ids).held_bytes


def config_window(config: ModelConfig) -> int:
    """The longest window; 64 where there is none."""
    return max((spec.window for spec in config.layers if spec.window is not None), default=64)


def now_bytes(device: torch.device) -> int:
    """Memory of this process on `device`; from here on the peak of a GPU is counted anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return status_bytes("VmRSS")


if __name__ == "__main__":
    print(json.dumps(peak(json.loads(sys.argv[1]))))
