"""What the rows of a run share: models, files for llama.cpp, a guess at the machine's rate, and what fits into memory."""

import os
import tempfile

import torch

from rnope.bench import cost
from rnope.bench.limits import rate_guess, set_threads
from rnope.bench.llama_peer import Files
from rnope.bench.ours import Models
from rnope.bench.plan import DTYPES, Plan
from rnope.errors import ConfigError
from rnope.generate.room import free_bytes
from rnope.model.accounting import parameters
from rnope.model.spec import ModelConfig

SPARE_BYTES = 2**30
"""Left free on a GPU for libraries and what they set aside."""
BYTES_PER_SECOND = {"cpu": 8e9, "cuda": 3e12}
"""A guess, for estimates only."""


class Kit:
    """Shared by all rows of `plan`.

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device", plan.device, "torch sees no GPU here", "Use cpu.")
        self.models = Models(plan)
        self.files = Files()
        self._compiled = tempfile.TemporaryDirectory(prefix="rnope-bench-")
        self._before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._compiled.name  # Compile times are those of a fresh start.
        self.free = free_bytes(self.device)
        """Bytes that are free on the device before anything is built; None where that cannot be known."""
        self._rates: dict[tuple[str, int], float] = {}

    def rate(self, dtype: str, threads: int) -> float:
        """About how many FLOP/s a product makes."""
        key = (dtype, threads)
        if key not in self._rates:
            set_threads(threads)
            self._rates[key] = rate_guess(dtype, self.device, self.plan.quick)
        return self._rates[key]

    def expected(self, flops: int, dtype: str, threads: int, share: float, moved: int = 0) -> float:
        """Seconds of `flops` at `share` of the rate, or of moving so many bytes, whichever takes longer."""
        return max(flops / self.rate(dtype, threads) / share, moved / BYTES_PER_SECOND[self.device.type])

    def needed_bytes(self, config: ModelConfig, tokens: int, dtype: str) -> int:
        """Weights, a context of `tokens` and one chunk, about."""
        size = getattr(torch, DTYPES[dtype]).itemsize
        values = 6 * config.width + 3 * config.ffn_width + 4 * config.heads * config.head_size
        chunk = self.plan.chunk_tokens * values * size
        spare = SPARE_BYTES if self.device.type == "cuda" else 0
        return parameters(config) * size + cost.context_bytes(config, tokens, size) + chunk + spare

    def lacking_bytes(self, config: ModelConfig, tokens: int, dtype: str) -> int:
        """How much memory is missing for `tokens`; 0 where they fit."""
        return 0 if self.free is None else max(0, self.needed_bytes(config, tokens, dtype) - self.free)

    def longest(self, config: ModelConfig, dtype: str, below: int) -> int:
        """The longest context under `below` tokens that fits, a round number; 0 where none does."""
        step = 10_000 if below > 100_000 else 100
        low, high = 0, (below - 1) // step
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (low, middle - 1) if self.lacking_bytes(config, middle * step, dtype) else (middle, high)
        return low * step

    def close(self) -> None:
        self.files.close()
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        if self._before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._before
        self._compiled.cleanup()
