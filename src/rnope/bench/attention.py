"""One layer's attention, forward, and forward and backward: through `attend`, against torch's own kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnope.bench import cost, limits
from rnope.bench.kit import Kit
from rnope.bench.plan import DTYPES, Plan
from rnope.bench.timing import Contestant, Entry, Row, Sample, timed
from rnope.kernels import attend, choose

BACKWARD = 3.5
"""FLOPs of forward and backward over those of forward: five products to two."""
MASK_TOKENS = 16384
"""No L × L mask beyond so many tokens."""
SHARES = {"attend": 0.15, "sdpa": 0.1, "flex_attention": 0.1, "sdpa with a mask": 0.005}
"""Shares of the matmul rate, guessed, for estimates."""
COMPILE_SECONDS = 30.0
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


class Layer(Contestant):
    """Attention over random queries, keys and values; the last `queries` of `tokens` positions ask."""

    def __init__(
        self, run: Run, plan: Plan, dtype: str, tokens: int, *, queries: int | None = None, backward: bool = False
    ) -> None:
        super().__init__()
        self.run, self.backward = run, backward
        self.device = torch.device(plan.device)
        config = plan.config
        kv = plan.kv_heads or config.heads
        generator = torch.Generator(self.device).manual_seed(plan.seed)
        shapes = [(config.heads, queries or tokens), (kv, tokens), (kv, tokens)]
        self.qkv = [
            torch.randn(1, heads, length, config.head_size, generator=generator, device=self.device)
            .to(getattr(torch, DTYPES[dtype]))
            .requires_grad_(backward)
            for heads, length in shapes
        ]
        self.grad = torch.randn_like(self.qkv[0]) if backward else None

    def work(self) -> Tensor:
        with torch.set_grad_enabled(self.backward):
            out = self.run(*self.qkv)
            if self.grad is not None:
                torch.autograd.grad(out, self.qkv, self.grad)
        return out

    def warm_up(self) -> None:
        out = self.work().detach()
        self.logits = out[0, :, -min(64, out.shape[2]) :].float().cpu().flatten()

    def measure(self) -> Sample:
        return Sample(timed(self.work, self.device), {})


def rows(plan: Plan, kit: Kit) -> list[Row]:
    """A row for each number of threads, dtype and length."""
    return [
        _row(plan, kit, tokens, dtype, threads)
        for threads in plan.threads
        for dtype in plan.dtypes
        for tokens in sorted(plan.lengths)
    ]


def _row(plan: Plan, kit: Kit, tokens: int, dtype: str, threads: int) -> Row:
    config, window = plan.config, _window(plan)
    grouped = plan.kv_heads not in (None, config.heads)
    entries: list[Entry] = []

    def add(
        who: str, how: str, layout: str, run: Callable[[], Run], span: int | None, *, backward: bool = False,
        queries: int | None = None, flops: int | None = None,
    ) -> None:  # fmt: skip
        useful = cost.attention(config.heads, config.head_size, tokens, span, queries=queries)
        if backward:
            useful = int(useful * BACKWARD)
        took = kit.expected(useful, dtype, threads, SHARES[how.removesuffix(" last chunk")])
        entries.append(
            Entry(
                who=who, how=how + " forward and backward" * backward, layout=layout, dtype=dtype, flops=useful,
                expected_seconds=took, warm_seconds=took + COMPILE_SECONDS * ("flex" in how),
                make=lambda: Layer(run(), plan, dtype, tokens, queries=queries, backward=backward),
            )
        )  # fmt: skip

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, window=window)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    for backward in (False, True):
        add("ours", "attend", "window", lambda: windowed, window, backward=backward)
        if "flex" in plan.peers and (not backward or plan.device != "cpu"):  # On CPUs it has no backward.
            add("torch", "flex_attention", "window", lambda: _flex(tokens, window, kit.device, grouped), window,
                backward=backward)  # fmt: skip
        if "full" in plan.peers:
            add("ours", "attend", "full", lambda: attend, None, backward=backward)
            add("torch", "sdpa", "full", lambda: sdpa, None, backward=backward)
            if tokens <= MASK_TOKENS:
                add("torch", "sdpa with a mask", "window", lambda: _masked(tokens, window, kit.device, grouped), window,
                    backward=backward)  # fmt: skip
    if "full" in plan.peers and plan.chunk_tokens < tokens:
        add("ours", "attend last chunk", "full", lambda: attend, None, queries=plan.chunk_tokens)
    entries += limits.matmuls(plan, dtype, kit.rate(dtype, threads))
    return Row(tokens=tokens, threads=threads, dtype=dtype, entries=entries, notes=(backends(plan, dtype),))


def backends(plan: Plan, dtype: str) -> str:
    """Which backends `attend` takes for the two kinds of layer."""
    config = plan.config
    shape: dict[str, Any] = dict(
        device=plan.device, dtype=getattr(torch, DTYPES[dtype]), head_size=config.head_size, heads=config.heads,
        kv_heads=(plan.kv_heads or config.heads) if plan.what == "attention" else config.kv_heads,
    )  # fmt: skip
    windowed, full = choose(window=_window(plan), **shape), choose(window=None, **shape)
    one = choose(window=None, single=True, **shape)
    return f"backends in {dtype}: windowed layers {windowed}, full layers {full}, one query {one}"


def _window(plan: Plan) -> int | None:
    return next((spec.window for spec in plan.config.layers if spec.window is not None), None)


def _flex(tokens: int, window: int | None, device: torch.device, grouped: bool) -> Run:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        near = (q >= k) & (q - k < (window or tokens))
        assert isinstance(near, Tensor)
        return near

    mask = create_block_mask(seen, None, None, tokens, tokens, device=str(device))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=grouped)


def _masked(tokens: int, window: int | None, device: torch.device, grouped: bool) -> Run:
    """One mask, made once, as transformers makes it."""
    places = torch.arange(tokens, device=device)
    apart = places[:, None] - places
    mask = (apart >= 0) & (apart < (window or tokens))
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
