"""llama.cpp asked for logits, through ``llama-cpp-python``: an independent implementation to compare GGUF files with.

Plain kernels, no flash attention, keys and values in float32, windowed layers kept as long as their window: what is left
is what the file says.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rnope.model.decoder import Decoder

Logits = NDArray[np.float32]


@contextmanager
def silenced(package: Any) -> Iterator[Any]:
    """The module ``llama_cpp``, initialised, without its log."""
    silent = package.llama_log_callback(lambda level, text, data: None)
    package.llama_log_set(silent, ctypes.c_void_p(0))
    package.llama_backend_init()
    yield package
    package.llama_log_set(package.llama_log_callback(0), ctypes.c_void_p(0))


@contextmanager
def opened(api: Any, path: Path) -> Iterator[Any]:
    """The model of a GGUF file."""
    parameters = api.llama_model_default_params()
    # Kernels for AMX, in a process where torch uses AMX too, were seen to end in an illegal instruction.
    parameters.use_extra_bufts = False
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    try:
        yield model
    finally:
        api.llama_model_free(model)


@contextmanager
def reading(
    api: Any, model: Any, *, tokens: int = 512, ubatch: int = 64
) -> Iterator[Callable[[Sequence[int], int], Logits]]:
    """A function: ids, and the position of the first -> logits [ids, vocab].

    Args:
        tokens: room of the context, and the most that is read at once.
        ubatch: tokens that are computed at once.
    """
    parameters = api.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = tokens
    parameters.n_ubatch = ubatch
    parameters.swa_full = False  # the default keeps every key of windowed layers
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
    context = api.llama_init_from_model(model, parameters)
    batch = api.llama_batch_init(tokens, 0, 1)
    width = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def read(ids: Sequence[int], start: int) -> Logits:
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row], batch.logits[row] = int(token), start + row, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
        assert api.llama_decode(context, batch) == 0
        return np.ctypeslib.as_array(api.llama_get_logits(context), (len(ids), width)).copy()

    try:
        yield read
    finally:
        api.llama_batch_free(batch)
        api.llama_free(context)


def llama_logits(
    api: Any, path: Path, ids: Sequence[int], *, prefill: int | None = None, ubatch: int = 64, tokens: int = 512
) -> Logits:
    """Next-token logits [t, vocab] of `ids` [t]: the first `prefill` (None: all) in one batch, the others one by one."""
    count = len(ids)
    prefill = count if prefill is None else prefill
    with opened(api, path) as model, reading(api, model, ubatch=ubatch, tokens=tokens) as read:
        return np.concatenate([read(ids[:prefill], 0), *(read(ids[i : i + 1], i) for i in range(prefill, count))])


@torch.no_grad()
def our_logits(model: Decoder, ids: Sequence[int]) -> Logits:
    """The same of `model`, by one forward pass."""
    found: Logits = model(torch.as_tensor(ids)[None])[0].float().numpy()
    return found


def divergence(ours: Logits, theirs: Logits) -> NDArray[np.float64]:
    """KL(ours || theirs) at each position, in nats."""
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (ours, theirs))
    found: NDArray[np.float64] = (p.exp() * (p - q)).sum(-1).clamp(min=0).numpy()
    return found
