"""The limits of the machine, measured among the contestants: matmul rate, read and copy bandwidth."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.bench.plan import DTYPES, Plan
from rnope.bench.timing import Contestant, Entry, Sample, timed
from rnope.model.spec import ModelConfig


class Repeated(Contestant):
    """The same work several times over; a sample is the time of all."""

    def __init__(self, make: Callable[[], Callable[[], object]], device: torch.device, times: int = 1) -> None:
        super().__init__()
        self.device, self.times = device, times
        self._work = make()

    def warm_up(self) -> None:
        self._work()

    @torch.inference_mode()
    def measure(self) -> Sample:
        def work() -> None:
            for _ in range(self.times):
                self._work()

        return Sample(timed(work, self.device), {})


def matmuls(plan: Plan, dtype: str, rate: float) -> list[Entry]:
    """The matmul rate in `dtype`: of one square product, and of the model's own products on a chunk of tokens."""
    device, kind = torch.device(plan.device), getattr(torch, DTYPES[dtype])
    edge = 256 if plan.quick else 8192 if device.type == "cuda" else 2048
    config, tokens = plan.config, min(plan.chunk_tokens, 256 if plan.quick else 2**16)
    shapes = _linears(config)
    per_token = 2 * sum(a * b for a, b in shapes)
    works: dict[str, tuple[int, Callable[[], Callable[[], object]]]] = {
        f"matmul {edge}": (2 * edge**3, partial(_square, edge, kind, device)),
        "matmul of the model": (tokens * per_token, partial(_layer, shapes, tokens, kind, device)),
    }
    entries = []
    for how, (flops, make) in works.items():
        times = max(1, round((0 if plan.quick else 0.2) * rate / flops))
        again = partial(Repeated, make, device, times)
        entries.append(
            Entry(who="limit", how=f"{how} {dtype}", dtype=dtype, flops=flops * times, expected_seconds=0.3, make=again)
        )
    return entries


def bandwidths(plan: Plan) -> list[Entry]:
    """Read and copy bandwidth over buffers that were written, and are larger than any cache."""
    device = torch.device(plan.device)
    count = 2**22 if plan.quick else 2**30  # bytes read, or read and written
    return [
        Entry(who="limit", how=how, bytes=count, expected_seconds=0.2, make=partial(Repeated, make, device))
        for how, make in (("read", partial(_read, count, device)), ("copy", partial(_copy, count // 2, device)))
    ]


def rate_guess(dtype: str, device: torch.device, quick: bool) -> float:
    """FLOP/s of one square product, for estimates."""
    edge = 128 if quick else 4096 if device.type == "cuda" else 768
    work = _square(edge, getattr(torch, DTYPES[dtype]), device)
    work()
    return 2 * edge**3 / min(timed(work, device) for _ in range(3))


def set_threads(threads: int) -> None:
    """For torch's own kernels and for those that its compiler writes."""
    torch.set_num_threads(threads)
    import torch._inductor.config as inductor

    inductor.cpp.threads = threads


def _linears(config: ModelConfig) -> list[tuple[int, int]]:
    """[in, out] of one layer's products."""
    attention, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    square = [(config.width, attention), (config.width, keys), (config.width, keys), (attention, config.width)]
    return [*square, *[(config.width, config.ffn_width)] * 2, (config.ffn_width, config.width)]


def _square(edge: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def _layer(shapes: list[tuple[int, int]], tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    weights = [torch.randn(out, into, device=device).to(dtype) for into, out in shapes]
    inputs = {into: torch.randn(tokens, into, device=device).to(dtype) for into, _ in shapes}

    def work() -> None:
        for weight in weights:
            F.linear(inputs[weight.shape[1]], weight)

    return work


def _filled(count: int, device: torch.device) -> Tensor:
    """`count` bytes, written: pages that were never touched would all be read from one page of zeros."""
    return torch.ones(count // 4, device=device).mul_(1.5)


def _read(count: int, device: torch.device) -> Callable[[], Tensor]:
    buffer = _filled(count, device)
    return lambda: buffer.sum()


def _copy(count: int, device: torch.device) -> Callable[[], Tensor]:
    buffer = _filled(count, device)
    target = torch.ones_like(buffer)
    return lambda: target.copy_(buffer)
