"""Bytes of the caches, right after a prefill and after decoding, by layer kind; and the peak memory of a long prefill.

Cache bytes depend on layers, heads of keys and values and the window alone, so that a thin model shows them: real
prefills of long contexts through narrow layers.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from rnope.bench import cost, transformers_peer
from rnope.bench.kit import Kit
from rnope.bench.plan import DTYPES, Plan, full_attention
from rnope.bench.timing import Contestant, Entry, Row, Sample
from rnope.generate import Engine
from rnope.model.accounting import cache_bytes
from rnope.model.decoder import Decoder
from rnope.model.spec import Init, ModelConfig

DECODED = 3
"""Tokens after the prefill; the window layers of transformers let go at the first."""


def thin(config: ModelConfig) -> ModelConfig:
    """A model with the caches of `config` and next to nothing else."""
    return replace(config, width=64, ffn_width=64, heads=config.kv_heads, vocab_size=256, logit_scale=1.0, init=Init())


class Ours(Contestant):
    """A real prefill and a few tokens; no time is of interest."""

    def __init__(self, config: ModelConfig, plan: Plan, dtype: str, tokens: int) -> None:
        super().__init__()
        model = Decoder(config, seed=plan.seed).to(torch.device(plan.device), getattr(torch, DTYPES[dtype]))
        self.engine = Engine(model.requires_grad_(False), prefill_chunk_tokens=plan.chunk_tokens)
        self.ids = torch.randint(0, config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(plan.seed))

    def warm_up(self) -> None:
        self.engine.prefill(self.ids[:1])

    def measure(self) -> Sample:
        engine, tokens = self.engine, len(self.ids)
        started = time.perf_counter()
        state = engine.prefill(self.ids)
        took = time.perf_counter() - started
        seen = {"after prefill": _seen(state.held_by_kind(), state.logical_bytes, engine.cache_bytes(tokens))}
        for _ in range(DECODED):
            engine.step([state], [0])
        after = engine.cache_bytes(tokens + DECODED)
        seen["after decode"] = _seen(state.held_by_kind(), state.logical_bytes, after)
        self.facts["moments"] = seen
        return Sample(took, {})


class Theirs(Contestant):
    """A cache of transformers: keys and values of a whole prompt at once, as its prefill hands them over, then tokens."""

    def __init__(self, config: ModelConfig, dtype: str, tokens: int, kind: str, device: torch.device) -> None:
        super().__init__()
        self.ours, self.tokens, self.kind = config, tokens, kind
        self.like = torch.empty(0, dtype=getattr(torch, DTYPES[dtype]), device=device)
        self.config = transformers_peer.hf_config(config, DTYPES[dtype], tokens + DECODED)

    def warm_up(self) -> None:
        """Nothing to load."""

    def measure(self) -> Sample:
        started = time.perf_counter()
        cache = transformers_peer.empty_cache(self.config, self.kind, self.tokens + DECODED)
        seen = {}
        for moment, tokens, steps in (("after prefill", self.tokens, 1), ("after decode", 1, DECODED)):
            for _ in range(steps):
                transformers_peer.fill(cache, self.ours, tokens, self.like)
            total = self.tokens + (DECODED if moment == "after decode" else 0)
            logical = cache_bytes(self.ours, total, bytes_per_value=self.like.dtype.itemsize)
            seen[moment] = _seen(transformers_peer.held_bytes(cache, self.ours), logical, logical)
        self.facts["moments"] = seen
        return Sample(time.perf_counter() - started, {})


class Peak(Contestant):
    """A prefill in a process of its own, whose memory is looked at (`rnope.bench.peak`)."""

    def __init__(self, config: ModelConfig, plan: Plan, dtype: str, threads: int) -> None:
        super().__init__()
        self.job = {
            "variant": plan.variant, "size": plan.size, "window": plan.window, "thin": plan.peak == "thin",
            "full": config != plan.config and config != thin(plan.config), "dtype": dtype, "threads": threads,
            "tokens": plan.peak_tokens, "chunk_tokens": plan.chunk_tokens, "device": plan.device,
        }  # fmt: skip

    def warm_up(self) -> None:
        """The process warms itself up."""

    def measure(self) -> Sample:
        command = [sys.executable, "-m", "rnope.bench.peak", json.dumps(self.job)]
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(self.job["threads"])}
        )
        if done.returncode:
            raise RuntimeError(f"the process ended with {done.returncode}: {done.stderr[-300:]}")
        self.facts["peak"] = self.job | json.loads(done.stdout)
        return Sample(time.perf_counter() - started, {})


def rows(plan: Plan, kit: Kit) -> list[Row]:
    """A row of caches for each dtype and length, and one of the peak for each dtype."""
    threads = max(plan.threads)
    small = thin(plan.config)
    found = []
    for dtype in plan.dtypes:
        for tokens in sorted(plan.lengths):
            found.append(
                Row(
                    tokens=tokens,
                    threads=threads,
                    dtype=dtype,
                    entries=_caches(plan, kit, small, dtype, tokens, threads),
                )
            )
        if plan.peak != "none":
            found.append(
                Row(tokens=plan.peak_tokens, threads=threads, dtype=dtype, entries=_peaks(plan, kit, dtype, threads))
            )
    return found


def _caches(plan: Plan, kit: Kit, small: ModelConfig, dtype: str, tokens: int, threads: int) -> list[Entry]:
    configs = {"hybrid": small, "full": full_attention(small)}
    makers: list[tuple[str, str, str, Callable[[], Contestant]]] = [
        ("ours", "cache", "hybrid", lambda: Ours(small, plan, dtype, tokens))
    ]
    if "transformers" in plan.peers:
        makers += [
            ("transformers", kind, layout,
             partial(Theirs, configs[layout], dtype, tokens, kind, kit.device))
            for layout in ("hybrid", "full") for kind in ("dynamic", "static")
        ]  # fmt: skip
    flops = cost.prefill(small, tokens)
    guess = kit.expected(flops, dtype, threads, 0.15)
    return [
        Entry(who=who, how=how, layout=layout, dtype=dtype, make=make,
              bytes=_logical(configs[layout], tokens, dtype), expected_seconds=guess * (who == "ours"))
        for who, how, layout, make in makers
    ]  # fmt: skip


def _peaks(plan: Plan, kit: Kit, dtype: str, threads: int) -> list[Entry]:
    base = thin(plan.config) if plan.peak == "thin" else plan.config
    configs = {"hybrid": base} | (
        {"full": full_attention(base)} if "full" in plan.peers and plan.peak == "thin" else {}
    )
    return [
        Entry(who="ours", how="peak", layout=layout, dtype=dtype, flops=cost.prefill(config, plan.peak_tokens),
              make=partial(Peak, config, plan, dtype, threads),
              expected_seconds=kit.expected(cost.prefill(config, plan.peak_tokens), dtype, threads, 0.3))
        for layout, config in configs.items()
    ]  # fmt: skip


def _logical(config: ModelConfig, tokens: int, dtype: str) -> int:
    return cache_bytes(config, tokens, bytes_per_value=getattr(torch, DTYPES[dtype]).itemsize)


def _seen(held: dict[str, int], logical: int, formula: int) -> dict[str, Any]:
    return {"held_bytes": sum(held.values()), "held_by_kind": held, "logical_bytes": logical, "formula_bytes": formula}


def plan_of(job: dict[str, Any]) -> ModelConfig:
    """The model of a `Peak`'s job."""
    overrides = {} if job["window"] is None else {"window": job["window"]}
    config = ModelConfig.variant(job["variant"], job["size"], **overrides)
    config = thin(config) if job["thin"] else config
    return full_attention(config) if job["full"] else config
