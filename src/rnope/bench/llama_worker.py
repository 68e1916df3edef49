"""llama.cpp in a process of its own, asked through pipes: ``python -m rnope.bench.llama_worker``. It loads no torch.

Two libraries that use the matrix tiles of one thread (AMX) undo each other's settings, and some builds end the process
with an illegal instruction; here that ends a peer's attempt, and not the benchmark.
"""

import ctypes
import time
from typing import Any

from rnope.bench.worker import serve

BATCH_TOKENS = 2048


class Worker:
    """A model and a context; each public method is a request, its keyword arguments plain data."""

    def __init__(self) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self.context: Any = None

    def open(self, *, path: str, extra: bool, flash: bool, ubatch: int, context_tokens: int, threads: int) -> None:
        """Load a model and make an empty context; keys and values are float16, its default."""
        api = self.api
        self.close()
        chosen = api.llama_model_default_params()
        chosen.use_extra_bufts = extra
        self.model = api.llama_model_load_from_file(path.encode(), chosen)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load the model")
        wanted = api.llama_context_default_params()
        wanted.n_ctx = -(-context_tokens // 256) * 256
        wanted.n_batch, wanted.n_ubatch = BATCH_TOKENS, ubatch
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.swa_full = False
        wanted.flash_attn_type = int(flash)
        self.context = api.llama_init_from_model(self.model, wanted)
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context of {context_tokens:,} tokens")

    def close(self) -> None:
        """Give the memory back."""
        if self.context:
            self.api.llama_free(self.context)
        if self.model:
            self.api.llama_model_free(self.model)
        self.model = self.context = None

    def prefill(self, *, ids: list[int]) -> float:
        """Forget everything, read `ids`, and say in how many seconds."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        started = time.perf_counter()
        self._read(ids)
        return time.perf_counter() - started

    def decode(self, *, tokens: int, first: int) -> list[float]:
        """Go on for `tokens` tokens from `first`, the likeliest each time, and say the seconds of each."""
        times, token = [], first
        for _ in range(tokens):
            started = time.perf_counter()
            self._read([token])
            token = int(self._logits().argmax())
            times.append(time.perf_counter() - started)
        return times

    def logits(self) -> list[float]:
        """Of the token after the last one that was read."""
        return [float(x) for x in self._logits()]

    def _read(self, ids: list[int]) -> None:
        for start in range(0, len(ids), BATCH_TOKENS):
            part = ids[start : start + BATCH_TOKENS]
            tokens = (self.api.llama_token * len(part))(*part)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(part))) != 0:
                raise RuntimeError(f"llama.cpp cannot read token {start:,} and those after it")

    def _logits(self) -> Any:
        import numpy as np

        count = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, -1), (count,))


if __name__ == "__main__":
    serve(Worker)
