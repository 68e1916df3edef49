"""One token after another behind a long context: milliseconds a token, against the peers' and against the bandwidth."""

from collections.abc import Callable
from functools import partial

import torch

from rnope.bench import cost, limits, llama_peer, ours, transformers_peer
from rnope.bench.kit import Kit
from rnope.bench.plan import DTYPES, Plan
from rnope.bench.timing import Contestant, Entry, Row
from rnope.model.accounting import decode_flops

COMPILE_SECONDS = 10.0
LLAMA_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}


Make = Callable[[], Contestant]
WAYS: dict[str, tuple[str, dict[str, bool]]] = {
    "plain": ("", {}),
    "compiled": (" compiled", {"compiled": True}),
    "int8": (" compiled int8", {"compiled": True, "int8": True}),
}
"""Way of the plan -> (name behind the dtype, options of the engine)."""


def rows(plan: Plan, kit: Kit) -> list[Row]:
    """A row for each number of threads and each length; the dtypes stand side by side in it."""
    return [_row(plan, kit, tokens, threads) for threads in plan.threads for tokens in sorted(plan.lengths)]


def _row(plan: Plan, kit: Kit, tokens: int, threads: int) -> Row:
    entries: list[Entry] = []

    def add(who: str, how: str, layout: str, dtype: str, make: Make, weight_bytes: float, value_bytes: int) -> None:
        config = kit.models.configs[layout]
        warm = COMPILE_SECONDS if "compiled" in how else 1.0
        if who == "llama.cpp":
            flops = cost.prefill(config, tokens)
            warm = 2 * kit.expected(flops, dtype, threads, 0.06)  # It reads the prompt with two settings.
        moved = cost.decode_bytes(config, tokens, value_bytes=value_bytes, weight_bytes=weight_bytes)
        entries.append(
            Entry(
                who=who, how=how, layout=layout, dtype=dtype, make=make, bytes=moved,
                flops=decode_flops(config, tokens + 1),
                warm_seconds=warm,
                expected_seconds=plan.decoded_tokens * kit.expected(0, dtype, threads, 1.0, moved),
            )
        )  # fmt: skip

    for i, dtype in enumerate(plan.dtypes):
        itemsize = getattr(torch, DTYPES[dtype]).itemsize
        for way, (how, options) in WAYS.items():
            if way not in plan.ways or (way == "int8" and dtype == "fp32"):
                continue
            make: Make = partial(_ours, kit, "hybrid", dtype, tokens, options)
            add("ours", dtype + how, "hybrid", dtype, make, 1 if way == "int8" else itemsize, itemsize)
            if "full" in plan.peers and i == 0 and way != "int8":
                make = partial(_ours, kit, "full", dtype, tokens, options)
                add("ours", dtype + how, "full", dtype, make, itemsize, itemsize)
        if "transformers" in plan.peers and tokens <= plan.transformers_tokens:
            for kind in ("dynamic", "static"):
                make = partial(_transformers, kit, dtype, tokens, kind)
                add("transformers", f"{dtype} {kind}", "hybrid", dtype, make, itemsize, itemsize)
    if "llama" in plan.peers and tokens <= plan.llama_tokens and plan.device == "cpu":
        for weights, dtype in _llama_weights(plan):
            for flash in (False, True):
                # It has really read a prompt, so that its logits are not compared here; `prefill` compares them.
                make = partial(_llama, kit, weights, dtype, threads, tokens, flash)
                add("llama.cpp", f"{weights}{' flash' * flash}", "hybrid", dtype, make, LLAMA_BYTES[weights], 2)
    entries += limits.bandwidths(plan)
    return Row(tokens=tokens, threads=threads, dtype="", entries=entries)


def _llama_weights(plan: Plan) -> list[tuple[str, str]]:
    """(type in the file, dtype of ours that it is made from)."""
    halves = [dtype for dtype in plan.dtypes if dtype != "fp32"]
    found = [(weights, halves[0]) for weights in ("f16", "q8_0") if halves]
    return found + [("f32", "fp32")] * ("fp32" in plan.dtypes)


def _ours(kit: Kit, layout: str, dtype: str, tokens: int, options: dict[str, bool]) -> Contestant:
    return ours.Decode(kit.models.get(layout, dtype), kit.plan, tokens, **options)


def _transformers(kit: Kit, dtype: str, tokens: int, kind: str) -> Contestant:
    return transformers_peer.Decode(kit.models.get("hybrid", dtype), kit.plan, tokens, kind)


def _llama(kit: Kit, weights: str, dtype: str, threads: int, tokens: int, flash: bool) -> Contestant:
    path = kit.files.get(kit.models.get("hybrid", dtype), weights, f"hybrid-{dtype}")
    return llama_peer.Decode(path, threads, kit.models.ids(tokens), kit.plan, flash=flash)
